"""The state of a run: continued under an equal key, never under another, sealed, and held by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from recerase.errors import ArtefactError, EraseError, UsageError, WriteError
from recerase.resume import RunState, state_directory
from recerase.types import Silent

KEY = {"model": "a", "policy": "b", "code": "c"}


class Notes(Silent):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def leave(out: Path, error: BaseException | None = None, pieces: int = 1) -> BaseException:
    """A run that kept some pieces and then failed; returns what it raised."""
    with pytest.raises(BaseException) as caught, RunState(out) as state:
        state.open(KEY)
        for i in range(pieces):
            state.write(f"piece{i}", b"%d" % i)
        raise error or KeyboardInterrupt()
    return caught.value


def test_an_interrupted_run_is_continued(out: Path) -> None:
    error = leave(out, pieces=2)
    assert str(state_directory(out)) in error.__notes__[0]
    assert "run the same command again" in error.__notes__[0]
    notes = Notes()
    with RunState(out) as state:
        state.open(KEY, None, notes)
        assert [state.read(f"piece{i}") for i in range(3)] == [b"0", b"1", None]
        state.write("piece2", b"2")
        assert state.read("piece2") == b"2"
    assert "continuing" in notes.told[0]
    assert not list(out.parent.iterdir())


def test_a_run_stopped_while_it_begins_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(path: Path, data: bytes) -> str:
        path.write_bytes(data)
        raise KeyboardInterrupt

    monkeypatch.setattr("recerase.resume.write_sealed", stopped)
    with pytest.raises(KeyboardInterrupt) as caught, RunState(out) as state:
        state.open(KEY)
    assert not hasattr(caught.value, "__notes__")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("there_before", [False, True])
def test_a_run_stopped_after_its_result_was_published_leaves_nothing(out: Path, there_before: bool) -> None:
    if there_before:
        out.mkdir()
    with pytest.raises(KeyboardInterrupt) as caught, RunState(out) as state:
        state.open(KEY)
        state.write("piece", b"1")
        (out.parent / "staged").mkdir()
        if there_before:
            out.rmdir()
        (out.parent / "staged").rename(out)
        raise KeyboardInterrupt
    assert not hasattr(caught.value, "__notes__")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_nothing_is_promised_where_nothing_is_kept(out: Path) -> None:
    assert not hasattr(leave(out, pieces=0), "__notes__")
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(
    ("error", "promised"), [(EraseError("x"), True), (ArtefactError("x"), False), (ValueError(), True)]
)
def test_a_refusal_promises_nothing_though_all_is_kept(out: Path, error: Exception, promised: bool) -> None:
    assert hasattr(leave(out, error), "__notes__") == promised
    assert state_directory(out).is_dir()


@pytest.mark.parametrize("name", [*KEY, "extra", "missing"])
def test_any_other_key_reuses_nothing_and_says_why(out: Path, name: str) -> None:
    leave(out)
    key = {k: v for k, v in KEY.items() if name != "missing" or k != "code"}
    key |= {name: "z"} if name != "missing" else {}
    changed = "code" if name == "missing" else name
    with pytest.raises(UsageError, match=f"{changed} has changed") as refused, RunState(out) as state:
        state.open(key, True)
    assert "--fresh" in refused.value.remedy
    notes = Notes()
    with RunState(out) as state:
        state.open(KEY, True)  # the refusal left everything as it was
        assert state.read("piece0") == b"0"
        raised = KeyboardInterrupt()
        assert state.__exit__(type(raised), raised, None) is None
    with RunState(out) as state:
        state.open(key, None, notes)
        assert state.read("piece0") is None
    assert notes.told == [f"nothing of the interrupted run is reused: {changed} has changed"]


def test_several_changes_are_all_told(out: Path) -> None:
    leave(out)
    with pytest.raises(UsageError, match="code, model and policy have changed"), RunState(out) as state:
        state.open(dict.fromkeys(KEY, "z"), True)


def test_fresh_starts_over_even_from_a_damaged_state(out: Path) -> None:
    leave(out)
    (state_directory(out) / "key.sealed").write_bytes(b"nonsense")
    with pytest.raises(ArtefactError, match=r"key\.sealed") as refused, RunState(out) as state:
        state.open(KEY)
    assert refused.value.remedy == "Pass --fresh to start over."
    notes = Notes()
    with RunState(out) as state:
        state.open(KEY, False, notes)
        assert state.read("piece0") is None
    assert not notes.told


def test_there_must_be_something_to_continue(out: Path) -> None:
    for target in (out, None):
        with pytest.raises(UsageError, match="nothing to continue"), RunState(target) as state:
            state.open(KEY, True)
    assert not list(out.parent.iterdir())
    state_directory(out).mkdir()
    with pytest.raises(UsageError, match="nothing to continue"), RunState(out) as state:
        state.open(KEY, True)


def test_without_a_target_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunState(None) as state:
        state.open(KEY)
        state.write("piece", b"1")
        assert state.read("piece") is None
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_leaves_is_removed(out: Path) -> None:
    leave(out)
    (state_directory(out) / ".piece1.sealed.recerase-1-ab").write_bytes(b"half")
    leave(out, pieces=0)
    assert sorted(path.name for path in state_directory(out).iterdir()) == ["key.sealed", "piece0.sealed"]


def test_one_process_at_a_time(out: Path) -> None:
    with RunState(out) as state:
        state.open(KEY)
        state.write("piece", b"1")
        with pytest.raises(UsageError, match="Another run"), RunState(out) as other:
            other.open(KEY, False)
        assert state.read("piece") == b"1"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"\.recerase-state"), RunState(tmp_path / "file" / "out") as state:
        state.open(KEY)


def test_what_somebody_else_put_there_is_left_and_named(out: Path) -> None:
    for name in ("folder", ".folder"):
        (state_directory(out) / name).mkdir(parents=True)
        with pytest.raises(WriteError, match=name), RunState(out) as state:
            state.open(KEY)
        (state_directory(out) / name).rmdir()
    state_directory(out).rmdir()
    (out.parent / "elsewhere").mkdir()
    (out.parent / "elsewhere" / "mine").write_text("")
    state_directory(out).symlink_to(out.parent / "elsewhere")
    with pytest.raises(WriteError, match=r"\.recerase-state"), RunState(out) as state:
        state.open(KEY, False)
    assert (out.parent / "elsewhere" / "mine").exists()


def test_a_file_is_locked_and_no_directory(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On NFS a lock is one on bytes, and needs a descriptor that may write: a directory has none."""
    flock = fcntl.flock

    def nfs(descriptor: int, operation: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    leave(out)
    with RunState(out) as state:
        state.open(KEY, True)
        assert state.read("piece0") == b"0"
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize("name", ["a" * 255, "missing/../out", "."])
def test_any_output_has_a_place_for_its_state(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    leave(Path(name))
    assert state_directory(Path(name)).is_dir()
    with RunState(Path(name)) as state:
        state.open(KEY, True)
        assert state.read("piece0") == b"0"
    assert not list(home.iterdir())
    assert list(tmp_path.iterdir()) == [home]
    RunState("/")


def test_a_run_that_cannot_begin_leaves_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> str:
        raise WriteError("full")

    monkeypatch.setattr("recerase.resume.write_sealed", full)
    with pytest.raises(WriteError, match="full"), RunState(out) as state:
        state.open(KEY)
    assert not list(out.parent.iterdir())


def _work(out: Path, start: object, ended: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    try:
        with RunState(out) as state:
            state.open(KEY)
            state.write("piece", b"1")
            assert state.read("piece") == b"1"
        ended.put("done")  # type: ignore[attr-defined]
    except UsageError:
        ended.put("refused")  # type: ignore[attr-defined]


def test_processes_that_start_and_end_together_never_share_a_state(out: Path) -> None:
    """Removing at the end and taking at the start may meet; whoever gets in has the directory alone and whole."""
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        start, ended = fork.Event(), fork.Queue()
        several = [fork.Process(target=_work, args=(out, start, ended)) for _ in range(4)]
        for process in several:
            process.start()
        start.set()
        results = [ended.get(timeout=30) for _ in several]
        for process in several:
            process.join()
        assert "done" in results
        assert not list(out.parent.iterdir())


def test_any_flipped_bit_is_seen(out: Path, effort: Callable[[int, int], int], figure: Callable[..., None]) -> None:
    with pytest.raises(KeyboardInterrupt), RunState(out) as state:
        state.open(KEY)
        state.write("piece", bytes(range(256)))
        raise KeyboardInterrupt
    flips, missed, rng = effort(300, 20_000), 0, random.Random(5)
    files = [state_directory(out) / "piece.sealed", state_directory(out) / "key.sealed"]
    for i in range(flips):
        path = files[i % 2]
        whole = path.read_bytes()
        at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        missed += not _refused(out, path)
        path.write_bytes(whole)
    figure("resume: flipped bits in a state not seen", missed, of=flips)
    assert missed == 0


def _refused(out: Path, path: Path) -> bool:
    """Whether reading key and piece ends in an error that names the file; the state stays."""
    try:
        with RunState(out) as state:
            state.open(KEY, True)
            state.read("piece")
            raise KeyboardInterrupt
    except (KeyboardInterrupt, UsageError):
        return False
    except ArtefactError as error:
        return str(path) in error.message
