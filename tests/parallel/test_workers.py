"""The exchanges themselves, in one process and, with the network left out, in several."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from recerase.errors import DataError, Interrupted, UsageError
from recerase.launching import _asked, companions
from recerase.parallel import PeerError, Workers, _heard, _word, local_processes, together, workers
from recerase.runtime import available_threads, environment


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be(rank: int, size: int, **more: str) -> None:
        for name, value in {"RANK": str(rank), "WORLD_SIZE": str(size), **more}.items():
            monkeypatch.setenv(name, value)

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
    assert workers() == Workers(0, 1)


def test_cores_are_divided_among_the_processes_of_this_machine(launched: Callable[..., None]) -> None:
    cores = available_threads()
    launched(1, 4, LOCAL_WORLD_SIZE="2")
    assert (local_processes(), available_threads()) == (2, max(1, cores // 2))
    assert environment().processes == 4
    launched(1, 4, LOCAL_WORLD_SIZE="", MASTER_ADDR="127.0.0.1")
    assert local_processes() == 4
    launched(1, 4, LOCAL_WORLD_SIZE="", MASTER_ADDR="10.0.0.1")
    assert local_processes() == 1


def test_other_commands_are_the_main_process_s_alone(launched: Callable[..., None]) -> None:
    launched(0, 2)
    assert together("recommend", lambda: 10 * workers().size) == 10
    assert workers().size == 2
    launched(1, 2)
    assert together("recommend", lambda: pytest.fail("somebody else does it")) == 0


def test_importing_it_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import recerase.parallel, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.split()) & {"torch", "numpy", "accelerate"}


def test_only_the_main_process_writes(launched: Callable[..., None], tmp_path: object) -> None:
    from pathlib import Path

    from recerase.resume import RunState
    from recerase.store import append_text, publish, write_bytes, write_manifest, write_sealed

    home = Path(str(tmp_path))
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    monkeypatch.delenv("RECERASE_PROCESSES", raising=False)
    return lambda value: monkeypatch.setenv("RECERASE_PROCESSES", value)


@pytest.mark.parametrize("value", ["two", "-1", "0", "1.5"])
def test_a_number_of_processes_that_is_none_is_refused(asked: Callable[[str], None], value: str) -> None:
    asked(value)
    with pytest.raises(UsageError, match="RECERASE_PROCESSES"), companions("audit", []):
        pytest.fail("nothing may run")


def test_nothing_is_started_for_one_process_s_commands_or_under_a_launcher(
    asked: Callable[[str], None], launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    asked("3")
    with companions("report", []):
        assert workers().size == 1
    launched(1, 2)
    with companions("audit", []):
        assert workers() == Workers(1, 2)


def test_companions_get_places_and_the_environment_is_given_back(
    asked: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[tuple[str, str, str]] = []

    class Started:
        def __init__(self, program: list[str], env: dict[str, str], **_: object) -> None:
            assert program[1:] == ["-m", "recerase", "audit", "model"]
            places.append((env["RANK"], env["WORLD_SIZE"], env["MASTER_ADDR"]))

        def wait(self, seconds: float) -> None: ...

        def terminate(self) -> None:
            pytest.fail("it has ended")

        kill = terminate

    monkeypatch.setattr(subprocess, "Popen", Started)
    asked("3")
    before = dict(os.environ)
    with companions("audit", ["audit", "model"]):
        assert workers() == Workers(0, 3)
    assert places == [("1", "3", "127.0.0.1"), ("2", "3", "127.0.0.1")]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("words", "count"),
    [(["--num_processes", "3"], 3), (["--num-processes=4"], 4), (["--num_processes", "x"], 1), ([], 1)],
)
def test_the_number_that_accelerate_was_given_is_read_off_its_command_line(
    monkeypatch: pytest.MonkeyPatch, words: list[str], count: int
) -> None:
    program = [sys.executable, "-c", "print(1, flush=True); input()", *words]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        launcher.stdout.readline()  # while a program is being loaded its command line is empty
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
        monkeypatch.setenv("MASTER_PORT", "29500")
        monkeypatch.delenv("RECERASE_PROCESSES", raising=False)
        assert _asked() == count
        monkeypatch.delenv("MASTER_PORT")
        assert _asked() == 1
        launcher.communicate(b"\n")


def test_a_failure_is_told_with_its_code() -> None:
    for error, code in [(DataError("a", "b"), 4), (Interrupted(15), 143), (KeyError("x"), 3)]:
        told = _heard(_word(error))
        assert getattr(told, "exit_code", None) == code
        assert isinstance(told, type(error) | PeerError)
