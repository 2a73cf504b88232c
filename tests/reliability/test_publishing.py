"""Publishing is atomic, durable and exclusive: killed at any moment, with any system call failing, with two at once.

Where processes are killed or meet, that is on a disk (`on_disk`), whose fsync takes a while; calls that fail do so anywhere.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.reliability.conftest import Job

from recerase import disk, store
from recerase.__main__ import run
from recerase.errors import ArtefactError, OutputError, WriteError

Files = dict[str, bytes]
PUBLISHER = """
import sys, time
from pathlib import Path
from recerase import store
way, target, *places = sys.argv[1:]
contents = [{path.name: path.read_bytes() for path in sorted(Path(place).iterdir())} for place in places]
turn = 0
while True:
    print(turn, flush=True)
    files = contents[turn % 2]
    if way == "directory":
        with store.publish(target, force=True) as made:
            for name, data in files.items():
                store.write_bytes(made.directory / name, data)
    elif way == "file":
        store.write_bytes(target, files["file"])
    elif way == "sealed":
        store.write_sealed(target, files["file"])
    else:  # what nobody should do
        with open(target, "wb") as file:
            for byte in files["file"]:
                file.write(bytes([byte]))
                file.flush()
    turn += 1
"""
"""Publishes two contents in turn, for ever, and says when a round begins."""


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith("."))


def read_back(way: str, target: Path) -> Files | None:
    """What is published at `target`, None when nothing is. Raises ArtefactError when it is not whole."""
    if not os.path.lexists(target):
        return None
    if way == "directory":
        store.verify_manifest(target)
        found = {path.name: path.read_bytes() for path in target.iterdir()}
        del found[store.MANIFEST]
        return found
    return {"file": store.read_sealed(target) if way == "sealed" else target.read_bytes()}


def one_more_start(way: str, target: Path) -> None:
    """What any next run to the same target does first; what it would publish is not asked for."""
    if way == "directory":
        with store.publish(target, force=True) as made:
            made.discard()
    else:
        with disk.staging_place(target, wait=True):
            pass


def kinds(job: Job) -> dict[str, tuple[str, Files, Files]]:
    """Kind of artefact: how it is published, and two contents that take turns."""

    def directory(path: Path) -> Files:
        return {file.name: file.read_bytes() for file in path.iterdir() if file.name != store.MANIFEST}

    def other(files: Files) -> Files:
        return {name: data[:-1] + bytes([data[-1] ^ 1]) for name, data in files.items()} | {"more": b"a file more"}

    model, sids, report = directory(job.model), directory(job.sids), job.report.read_bytes()
    big = b"".join(model.values())
    return {
        "checkpoint": ("directory", model, other(model)),
        "SID table": ("directory", sids, other(sids)),
        "report": ("file", {"file": report}, {"file": report[::-1]}),
        "baseline": ("file", {"file": report[: len(report) // 2]}, {"file": b"{}\n"}),
        "resume state": ("sealed", {"file": big}, {"file": big[::-1] * 2}),
    }


@contextmanager
def publisher(way: str, target: Path, places: Sequence[Path]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PUBLISHER, way, str(target), *map(str, places)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def killed(way: str, target: Path, places: Sequence[Path], rounds: int, delay: float) -> None:
    """Start a publisher and kill -9 it `delay` seconds after it began its round number `rounds`."""
    with publisher(way, target, places) as child:
        assert child.stdout is not None
        for _ in range(rounds + 1):
            assert child.stdout.readline()
        time.sleep(delay)
        child.kill()
        assert child.wait() == -9


def laid_out(home: Path, contents: Sequence[Files]) -> list[Path]:
    """The contents as directories, for the publisher to read."""
    places = []
    for number, files in enumerate(contents):
        places.append(home / f"content-{number}")
        places[-1].mkdir(parents=True)
        for name, data in files.items():
            (places[-1] / name).write_bytes(data)
    return places


@pytest.mark.parametrize("kind", ["checkpoint", "SID table", "report", "baseline", "resume state"])
def test_killed_at_any_moment_the_target_is_whole(
    job: Job, on_disk: Path, effort: Callable[[int, int], int], figure: Callable[..., None], kind: str
) -> None:
    """Half of the kills hit a first publication (afterwards there is all or nothing), half a replacement (always all)."""
    way, *contents = kinds(job)[kind]
    places = laid_out(on_disk / "contents", contents)
    home, dice = on_disk / "home", random.Random(kind)
    home.mkdir()
    target, kills, unreadable, left, in_flight = home / "target", effort(10, 200), 0, 0, 0
    for number in range(kills):
        first = number % 2 == 0
        if first and target.exists():
            with disk.staging_place(target, wait=False) as away:
                target.rename(away)
        began = time.monotonic()
        rounds = 0 if first else dice.randrange(1, 4)
        killed(way, target, places, rounds, dice.uniform(0, 0.02))
        assert time.monotonic() - began < 60
        in_flight += bool(hidden(home))
        try:
            found = read_back(way, target)
            unreadable += found not in contents and not (first and found is None)
        except ArtefactError:
            unreadable += 1
        one_more_start(way, target)
        left += len(hidden(home))
        if not os.path.lexists(target):
            published(way, target, contents[0])
    figure(f"publishing: kill -9 of a {kind}, unreadable targets", unreadable, of=kills)
    figure("publishing: kill -9, orphans after the next start", left, of=kills)
    figure("publishing: kill -9 that hit a write in flight", in_flight, of=kills)
    assert unreadable == 0
    assert left == 0
    assert in_flight > 0


def published(way: str, target: Path, files: Files) -> None:
    if way == "directory":
        with store.publish(target, force=True) as made:
            for name, data in files.items():
                store.write_bytes(made.directory / name, data)
    elif way == "sealed":
        store.write_sealed(target, files["file"])
    else:
        store.write_bytes(target, files["file"])


def test_the_kill_test_can_tell(on_disk: Path) -> None:
    """A writer that opens its target is caught by the very same kills."""
    contents = [{"file": bytes(100_000)}, {"file": bytes([1]) * 100_000}]
    places = laid_out(on_disk, contents)
    for number in range(1, 20):
        killed("in place", on_disk / "target", places, 1, 0.002 * number)
        if read_back("file", on_disk / "target") not in contents:
            return
    pytest.fail("a file written in place was whole after every kill")


@pytest.mark.parametrize("way", ["directory", "file"])
def test_there_is_no_moment_without_the_target_while_it_is_replaced(
    on_disk: Path, effort: Callable[[float, float], float], figure: Callable[..., None], way: str
) -> None:
    places = laid_out(on_disk, [{"file": b"1" * 5000}, {"file": b"2" * 9000}])
    target, looks, missing = on_disk / "target", 0, 0
    published(way, target, {"file": b"0"})
    with publisher(way, target, places) as child:
        assert child.stdout is not None
        child.stdout.readline()
        end = time.monotonic() + effort(0.5, 20.0)
        while time.monotonic() < end:
            looks += 1
            missing += not target.exists()
    figure("publishing: looks at a target being replaced, missing", missing, of=looks)
    assert missing == 0
    assert looks > 100


CALLS: list[tuple[Any, str]] = [
    (os, "open"),
    (os, "write"),
    (os, "fsync"),
    (os, "mkdir"),
    (os, "unlink"),
    (os, "rmdir"),
    (os, "rename"),
    (os, "link"),
    (disk, "open"),
    (disk, "_renameat2"),
    (fcntl, "flock"),
]
LEAVES = {"open", "unlink", "rmdir", "flock"}
"""A clean-up that fails too may leave something behind, for the next start to remove."""


@contextmanager
def failing(owner: Any, name: str, nth: int, number: int, lasting: bool) -> Iterator[list[int]]:
    """The nth call of a function fails with an errno, and all after it when `lasting`; yields how many were made."""
    calls = [0]
    real = open if (owner, name) == (disk, "open") else getattr(owner, name)

    def call(*args: Any, **words: Any) -> Any:
        if name == "write" and not stat.S_ISREG(os.fstat(args[0]).st_mode):
            return real(*args, **words)  # a pipe has no disk that could be full
        calls[0] += 1
        if calls[0] == nth or (lasting and calls[0] > nth):
            raise OSError(number, os.strerror(number))
        return real(*args, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call, raising=False)
        yield calls


def everything(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """What is visible below a directory: content, time of change and mode of every file."""
    paths = [path for path in directory.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    stats = {path: path.lstat() for path in paths}
    return {
        path.relative_to(directory).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            stats[path].st_mtime_ns,
            stats[path].st_mode,
        )
        for path in paths
    }


def attacked(home: Path, way: str, owner: Any, name: str, nth: int, number: int, lasting: bool) -> bool:
    """Publish with the nth call failing; False when it was not called that often. Asserts all that was promised."""
    target, before = home / "target", everything(home)
    what = f"{way}, {name} number {nth}, {errno.errorcode[number]}, lasting {lasting}"
    refusal = None
    with failing(owner, name, nth, number, lasting) as calls:
        try:
            published(way, target, {"file": b"new" * 1000})
        except WriteError as error:
            refusal = error
    if refusal is None:
        assert read_back(way, target) == {"file": b"new" * 1000}, what
    else:
        assert refusal.exit_code == 3, what
        assert str(target) in refusal.message, what
        assert os.strerror(number) in refusal.message, what
        assert refusal.remedy.startswith("Nothing was replaced; "), what
        assert everything(home) == before, what
    if name not in LEAVES:
        assert hidden(home) == [], what
    one_more_start(way, target)
    assert hidden(home) == [], what
    return calls[0] >= nth


@pytest.mark.parametrize("exchange", [True, False], ids=["", "no exchange"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("way", ["file", "sealed", "directory"])
def test_any_call_may_fail_and_nothing_that_existed_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Callable[..., None], way: str, old: bool, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(disk, "_libc_renameat2", lambda: None)
    made, home = 0, tmp_path / "home"
    home.mkdir()
    faults = [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False), (errno.EPERM, False)]
    for (owner, name), (number, lasting) in product(CALLS, faults if exchange else faults[2:3]):
        nth, reached = 0, True
        while reached:
            nth += 1
            with disk.staging_place(home / "target", wait=False) as away:
                if (home / "target").exists():
                    (home / "target").rename(away)
            if old:
                published(way, home / "target", {"file": b"old"})
            reached = attacked(home, way, owner, name, nth, number, lasting)
            made += reached
        assert nth < 100
    figure("publishing: failing system calls, something changed or left", 0, of=made)
    assert made > 8


@pytest.mark.parametrize(
    ("owner", "name", "nth"),
    [(os, "write", 1), (os, "write", 4), (os, "fsync", 3), (disk, "_renameat2", 2), (disk, "_renameat2", 5)],
)
def test_a_command_whose_disk_fails_says_so_and_changes_nothing(
    own_job: Job, capsys: pytest.CaptureFixture[str], figure: Callable[..., None], owner: Any, name: str, nth: int
) -> None:
    before = everything(own_job.home)
    command = ["tokenize", str(own_job.data), "--out", str(own_job.sids), "--force", "--codes", "16", "--dims", "16"]
    with failing(owner, name, nth, errno.ENOSPC, lasting=True) as calls:
        assert run(command) == 3
    assert calls[0] >= nth
    complaint = capsys.readouterr().err
    assert "recerase: Cannot write" in complaint
    assert str(own_job.home) in complaint
    assert "free some space" in complaint
    assert "Traceback" not in complaint
    assert everything(own_job.home) == before
    assert hidden(own_job.home) == []
    figure("publishing: commands whose disk failed, something changed or left", 0, of=1)


SMALL = """
import resource, sys
from recerase import store
from recerase.errors import RecEraseError
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
try:
    if sys.argv[3] == "file":
        store.write_bytes(sys.argv[1], bytes(1 << 20))
    else:
        with store.publish(sys.argv[1], force=True) as made:
            for number in range(64):
                store.write_bytes(made.directory / str(number), bytes(1 << 14))
except RecEraseError as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # others may have something to write at the end of a process
    print(error)
    sys.exit(error.exit_code)
"""


def refused_by_the_system(target: Path, why: str, way: str) -> str:
    """Publish more than there is room for; what is said."""
    old = {"file": b"old"}
    published(way, target, old)
    before = everything(target.parent)
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(target), why, way], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert str(target) in done.stdout
    assert everything(target.parent) == before
    assert hidden(target.parent) == []
    return done.stdout


@pytest.mark.parametrize("way", ["file", "directory"])
def test_a_file_larger_than_the_system_allows_is_refused_whole(tmp_path: Path, way: str) -> None:
    said = refused_by_the_system(tmp_path / "target", "limit", way)
    assert "File too large" in said
    assert "ulimit" in said


@pytest.mark.parametrize("way", ["file", "directory"])
def test_a_disk_that_is_really_full_changes_nothing(tmp_path: Path, way: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "recerase-test", str(small)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        assert "No space left on device. Nothing was replaced; free some space." in refused_by_the_system(
            small / "target", "full", way
        )
    finally:
        subprocess.run(["umount", str(small)], check=True)


HOLDER = """
import os, sys
from recerase import store
way, target = sys.argv[1:]
def pause():
    print("inside", flush=True)
    sys.stdin.readline()
if way == "directory":
    with store.publish(target) as made:
        store.write_bytes(made.directory / "file", b"first")
        pause()
else:
    fsync = os.fsync
    def waiting(descriptor):
        os.fsync = fsync
        pause()
        fsync(descriptor)
    os.fsync = waiting
    store.write_bytes(target, b"first")
"""


@contextmanager
def holder(way: str, target: Path) -> Iterator[Callable[[], int]]:
    """A process in the middle of publishing; yields what lets it go on to its end."""
    command = [sys.executable, "-c", HOLDER, way, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "inside\n"

        def go_on() -> int:
            child.communicate("\n")
            return child.returncode

        try:
            yield go_on
        finally:
            child.kill()


def test_the_staging_directory_of_a_living_process_is_never_touched(on_disk: Path, figure: Callable[..., None]) -> None:
    target, tries = on_disk / "target", 10
    with holder("directory", target) as go_on:
        there = everything(on_disk / ".target.recerase-staging")
        os.utime(on_disk / ".target.recerase-staging", (0, 0))
        os.utime(on_disk / ".target.recerase-lock", (0, 0))
        for number in range(tries):
            with pytest.raises(OutputError, match="Another run is writing"):
                published("directory", target, {"file": b"%d" % number})
        assert everything(on_disk / ".target.recerase-staging") == there
        assert go_on() == 0
    assert read_back("directory", target) == {"file": b"first"}
    assert hidden(on_disk) == []
    figure("publishing: starts beside a living process, its temporary touched", 0, of=tries)


def test_who_writes_a_file_that_another_is_writing_waits_and_wins(on_disk: Path, figure: Callable[..., None]) -> None:
    target = on_disk / "target"
    with holder("file", target) as go_on:
        second = threading.Thread(target=store.write_bytes, args=(target, b"second"))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        assert (on_disk / ".target.recerase-staging").read_bytes() == b"first"
        assert go_on() == 0
        second.join(30)
    assert target.read_bytes() == b"second"
    assert hidden(on_disk) == []
    figure("publishing: starts beside a living process, its temporary touched", 0, of=1)


RACER = """
import sys, time
from pathlib import Path
from recerase import store
from recerase.errors import RecEraseError
home, me, other, races, force = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "force"
def wait(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
for race in range(races):
    (home / f"ready-{me}-{race}").touch()
    wait(home / f"ready-{other}-{race}")
    try:
        with store.publish(home / f"out-{race}", force=force) as made:
            store.write_bytes(made.directory / "file", me.encode())
            if force:  # else the second could come when the first is done, and replace what it made, as it was told to
                wait(home / f"done-{other}-{race}")
        code = 0
    except RecEraseError as error:
        code = error.exit_code
    (home / f"done-{me}-{race}").write_text(str(code))
"""


@pytest.mark.parametrize("force", [False, True])
def test_of_two_processes_with_one_output_exactly_one_publishes(
    on_disk: Path, effort: Callable[[int, int], int], figure: Callable[..., None], force: bool
) -> None:
    races, wrong = effort(10, 100), 0
    if force:
        for race in range(races):
            published("directory", on_disk / f"out-{race}", {"file": b"old"})
    names = [("a", "b"), ("b", "a")]
    words = [str(races), "force" if force else ""]
    children = [subprocess.Popen([sys.executable, "-c", RACER, str(on_disk), *pair, *words]) for pair in names]
    assert [child.wait(120) for child in children] == [0, 0]
    for race in range(races):
        codes = {me: int((on_disk / f"done-{me}-{race}").read_text()) for me, _ in names}
        winner = min(codes, key=lambda name: codes[name])
        wrong += sorted(codes.values()) != [0, 2]
        wrong += read_back("directory", on_disk / f"out-{race}") != {"file": winner.encode()}
    figure("publishing: two processes with one --out, not exactly one published", wrong, of=races)
    assert wrong == 0
    assert hidden(on_disk) == []


BETWEEN = """
import os, signal, sys
from pathlib import Path
from recerase import disk, store
way, target, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
disk._libc_renameat2 = lambda: None
rename, seen = os.rename, [0]
def counting(source, goal):
    rename(source, goal)
    seen[0] += Path(source).parent == target.parent
    if seen[0] == last:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = counting
if way == "directory":
    with store.publish(target, force=True) as made:
        store.write_bytes(made.directory / "file", b"new")
else:
    store.write_bytes(target, b"new")
"""


@pytest.mark.parametrize(
    ("way", "last"), [("directory", 1), ("directory", 2), ("directory", 3), ("file", 1), ("file", 2)]
)
def test_without_an_exchange_call_the_next_start_finishes_what_a_kill_interrupted(
    tmp_path: Path, way: str, last: int
) -> None:
    target = tmp_path / "target"
    published(way, target, {"file": b"old"})
    done = subprocess.run([sys.executable, "-c", BETWEEN, way, str(target), str(last)], check=False)
    assert done.returncode == -9
    assert hidden(tmp_path) != []
    one_more_start(way, target)
    expected = b"old" if (way, last) == ("directory", 1) else b"new"
    assert read_back(way, target) == {"file": expected}
    assert hidden(tmp_path) == []


def test_a_directory_that_a_kill_left_aside_is_there_again_and_not_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "target"
    published("directory", target, {"file": b"old"})
    target.rename(tmp_path / ".target.recerase-replaced")
    with pytest.raises(OutputError, match="exists already"), store.publish(target):
        pytest.fail("the block must not run")
    assert read_back("directory", target) == {"file": b"old"}
    assert hidden(tmp_path) == []
