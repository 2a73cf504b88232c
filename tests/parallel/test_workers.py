"""Who shares, and what becomes of it, in one process and, with the network left out, in several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recerase import connection, launching, parallel, runtime
from recerase.connection import Link, PeerError, heard_as, patience
from recerase.errors import DataError, Interrupted, UsageError
from recerase.parallel import Workers, _word, begin, local_processes, placed, together, workers
from recerase.resume import RunState
from recerase.runtime import available_threads, choose_device, environment
from recerase.store import append_text, publish, write_bytes, write_manifest, write_sealed


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, no RECERASE_*, and eight cores."""
    for name in (
        *launching._PLACE,
        "MASTER_ADDR",
        "MASTER_PORT",
        "RECERASE_PROCESSES",
        "RECERASE_TIMEOUT",
        *parallel._MPI,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "_now", parallel._Now())
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A process of several, in the middle of a shared command."""

    def be(rank: int, size: int, **more: str) -> None:
        for name, value in {"RANK": str(rank), "WORLD_SIZE": str(size), **more}.items():
            monkeypatch.setenv(name, value)
        parallel._now.sharing = True

    return be


def test_one_process_exchanges_with_itself_and_starts_nothing() -> None:
    who, tensor = workers(), torch.ones(3)
    assert (who.rank, who.size, who.main) == (0, 1, True)
    assert who.gathered({"a": 1}) == [{"a": 1}]
    assert who.told("x") == "x"
    assert who.summed(tensor) is tensor
    who.wait()
    who.look()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 20])
def test_every_piece_is_somebodys_once(n: int, size: int) -> None:
    parts = [Workers(rank, size).mine(n) for rank in range(size)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert all(part.dtype == np.int64 for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(("rank", "size"), [("", "2"), ("2", "2"), ("0", "1"), ("x", "2"), ("0", "-3")])
def test_an_environment_that_names_no_place_among_several_is_one_process(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    parallel._now.sharing = True
    assert workers() == Workers(0, 1)


def test_rank_and_size_are_of_one_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    parallel._now.sharing = True
    assert workers() == Workers(0, 1)
    assert not placed()
    monkeypatch.setenv("WORLD_SIZE", "²")
    assert workers() == Workers(0, 1)


def test_the_library_never_shares_whatever_started_the_program(launched: Callable[..., None], tmp_path: Path) -> None:
    launched(1, 2)
    parallel._now.sharing = False
    assert workers() == Workers(0, 1)
    assert local_processes() == environment().processes == 1
    write_bytes(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


def test_sharing_ends_with_the_command(launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(0, 2)
    parallel._now.sharing = False
    seen: list[Workers] = []
    assert together("audit", lambda: seen.append(workers()) or 0) == 0  # nobody was waited for: `begin` was not reached
    with pytest.raises(DataError):
        together("audit", lambda: raising(DataError("a", "b")))
    assert seen == [Workers(0, 2)]
    assert workers() == Workers(0, 1)
    assert not parallel._now.begun


def raising(error: BaseException) -> int:
    raise error


class PlayedLink:
    """A connection whose last exchange breaks."""

    def __init__(self, *_: object) -> None:
        self.heard: BaseException | None = None
        self.agreed, self.settled = False, 0

    def told(self, value: int) -> int:
        self.heard = PeerError("gone")
        raise self.heard

    def fail(self, word: object) -> None: ...

    def settle(self) -> None:
        self.settled += 1


@pytest.mark.parametrize("rank", [0, 1])
def test_the_main_process_keeps_its_code_when_the_others_break_at_the_very_end(
    launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    launched(rank, 2)
    monkeypatch.setattr(parallel, "Link", PlayedLink)
    if rank == 0:
        assert together("audit", lambda: begin() or 5) == 5
    else:
        with pytest.raises(PeerError, match="gone"):
            together("audit", lambda: begin() or 5)
    assert parallel._now.link is not None
    assert vars(parallel._now.link)["settled"] == 1


def test_nobody_is_waited_for_twice(launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    launched(0, 2)
    tries: list[int] = []

    def meet(*_: object) -> None:
        tries.append(1)
        raise PeerError("cannot reach the others")

    monkeypatch.setattr(parallel, "Link", meet)
    with pytest.raises(PeerError, match="cannot reach"):
        together("audit", lambda: begin() or workers().wait() or 0)
    assert tries == [1]


def test_a_store_that_is_gone_is_noticed_between_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def check(self, _: object) -> bool:
            raise RuntimeError("Connection reset by peer\nmore")

    link = Link.__new__(Link)
    link._store, link._looked, link._run, link._counts = Gone(), 0.0, 0, None
    with pytest.raises(PeerError, match=r"gone, or did not answer for 604800 s \(Connection reset by peer\)"):
        link.look()
    assert link._left() is None


def test_a_program_under_mpi_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(UsageError, match="MPI started 4 processes"):
        together("audit", lambda: begin() or 0)
    assert together("report", lambda: begin() or 7) == 7
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun within
    assert together("audit", lambda: begin() or 7) == 7


@pytest.mark.parametrize("value", ["inf", "nan", "2h", "0", "-3", "1e300"])
def test_a_patience_that_is_none_is_refused(
    launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    assert patience() == 7 * 86400
    launched(0, 2, RECERASE_TIMEOUT=value)
    with pytest.raises(UsageError, match="RECERASE_TIMEOUT"):
        together("audit", lambda: pytest.fail("nothing may run"))
    monkeypatch.setenv("RECERASE_TIMEOUT", "1.5")
    assert patience() == 1.5


def test_who_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECERASE_MEETING", str(tmp_path / "meeting"))
    monkeypatch.setattr(connection, "_SECONDS_TO_MEET", 0.2)
    with pytest.raises(
        PeerError, match=r"Process 0 of 2 cannot reach the others: 1 of 2 came within 0 s\. .* unset RANK"
    ):
        Link(0, 2, 2)
    with pytest.raises(DataError, match="dead"):
        Link(0, 9, 2, lambda: raising(DataError("dead")) and None)


def test_cores_are_divided_among_the_processes_of_this_machine(launched: Callable[..., None]) -> None:
    cores = available_threads()
    assert cores == 8
    launched(1, 4, LOCAL_WORLD_SIZE="2")
    assert (local_processes(), available_threads()) == (2, max(1, cores // 2))
    assert environment().processes == 4
    launched(1, 4, LOCAL_WORLD_SIZE="", MASTER_ADDR="127.0.0.1")
    assert local_processes() == 4
    launched(1, 4, LOCAL_WORLD_SIZE="", MASTER_ADDR="10.0.0.1")
    assert local_processes() == 1


def test_cores_that_a_launcher_has_divided_are_not_divided_again(
    launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(1, 4, LOCAL_WORLD_SIZE="4")
    mine, parents = set(range(2)), set(range(8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: parents if process else mine, raising=False)
    assert available_threads() == 2
    parents = set(range(2))
    assert available_threads() == 1
    parents = set(range(8))
    monkeypatch.setenv("RECERASE_MEETING", "there")  # they are recerase's own, and have these two in common
    assert available_threads() == 1


def test_a_device_is_one_process_s(launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workers, "meet", lambda self: pytest.fail("refused before"))
    launched(1, 2, LOCAL_WORLD_SIZE="2")
    with pytest.raises(UsageError, match=r"2 processes cannot share --device cuda:0\. Pass --device cuda"):
        choose_device("cuda:0")
    monkeypatch.setenv("RECERASE_MEETING", "there")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes were asked for, and there are 1 GPUs"):
        choose_device("auto")
    runtime._check_shared("cpu")


def test_other_commands_are_the_main_process_s_alone(launched: Callable[..., None]) -> None:
    launched(0, 2)
    parallel._now.sharing = False
    assert together("recommend", lambda: 10 * workers().size) == 10
    launched(1, 2)
    parallel._now.sharing = False
    assert together("recommend", lambda: pytest.fail("somebody else does it")) == 0


def test_importing_it_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import recerase.parallel, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.split()) & {"torch", "numpy", "accelerate"}


def test_only_the_main_process_writes(launched: Callable[..., None], tmp_path: Path) -> None:
    home = tmp_path
    launched(1, 2)
    assert len(write_bytes(home / "a", b"x")) == 64
    write_sealed(home / "b", b"x")
    append_text(home / "c", "x")
    with publish(home / "d" / "e") as result:
        write_bytes(result.directory / "f", b"x")
        write_manifest(result.directory, {})
    (home / "there").mkdir()
    with publish(home / "there"):  # refused by the main process, which is the one that writes
        pass
    with RunState(home / "g") as state:
        state.write("piece", b"x")
        assert state.read("piece") is None
    assert [path.name for path in home.rglob("*")] == ["there"]


def test_a_failure_is_told_with_its_code() -> None:
    for error, code in [(DataError("a", "b"), 4), (Interrupted(15), 143), (KeyError("x"), 3)]:
        told = heard_as(_word(error))
        assert getattr(told, "exit_code", None) == code
        assert isinstance(told, type(error) | PeerError)
