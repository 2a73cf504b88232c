"""Starts the other processes of a command on this machine, where no launcher does.

    RECERASE_PROCESSES=2 recerase audit erased --original model --concept brand=Acme --data data -o audit.json
    accelerate launch --num_processes 2 -m recerase audit ...

The first needs no launcher, and ends with recerase's own exit code (torchrun and accelerate end with 1 whatever it was, and
1 is a violated rule: behind them, read the report). The second exists because accelerate's launcher for CPUs, without
an MPI, starts one process and tells it where to meet, but not with how many: that stands in its own command line alone.

The decision here: what is started is nobody else's business. The processes meet in a private directory, speak over the
loopback interface (Linux), start only when there is work to share, and none of them outlives the main one.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.connection import MEETING, PeerError
from recerase.errors import UsageError
from recerase.parallel import SHARED, crew, met, part, placed

if TYPE_CHECKING:
    import subprocess

_ASKED = "RECERASE_PROCESSES"
_MAIN = "RECERASE_MAIN"
"""The number of the process that started this one."""
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_LOOPBACK = "GLOO_SOCKET_IFNAME"
_DIGITS = 6
_SECONDS_TO_END = 10.0
_SECONDS_BETWEEN_LOOKS = 0.5


@contextlib.contextmanager
def companions(command: str, argv: Sequence[str]) -> Iterator[None]:
    """Run a block as the main one of the processes asked for; the others do `argv`, and are gone when it ends.

    They start when the command is understood (`parallel.begin`). Nothing is started for a command that one process does,
    or in a process that has its place from a launcher.
    """
    if _MAIN in os.environ and placed():
        threading.Thread(target=_end_with, args=(int(os.environ[_MAIN]),), daemon=True).start()
    count = _asked() if command in SHARED and not placed() else 1
    if count < 2:
        yield
        return
    import tempfile

    touched = (*_PLACE, "MASTER_ADDR", "MASTER_PORT", MEETING, _LOOPBACK)
    before = {name: os.environ[name] for name in touched if name in os.environ}
    with tempfile.TemporaryDirectory(prefix="recerase-") as private:  # 0700
        run = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), MEETING: str(Path(private) / "meeting")}
        if sys.platform == "linux":
            run[_LOOPBACK] = "lo"
        others = _Companions(count, argv, run)
        try:
            os.environ.update({**run, "RANK": "0", "LOCAL_RANK": "0"})
            crew(others)
            yield
        finally:
            others.end()
            part()
            for name in touched:
                os.environ.pop(name, None)
            os.environ.update(before)


class _Companions:
    """The processes of rank 1 and above."""

    def __init__(self, count: int, argv: Sequence[str], run: dict[str, str]) -> None:
        self._count, self._argv, self._run = count, argv, run
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start them; they look for modules where this process does."""
        import subprocess

        here = [] if {"", os.getcwd()} & set(sys.path) else ["-P"]
        program = [sys.executable, *here, "-m", "recerase", *self._argv]
        for rank in range(1, self._count):
            place = {**self._run, "RANK": str(rank), "LOCAL_RANK": str(rank), _MAIN: str(os.getpid())}
            try:
                self._started.append(subprocess.Popen(program, env={**os.environ, **place}, stdin=subprocess.DEVNULL))
            except OSError as error:
                raise PeerError(
                    f"Process {rank} of {self._count} cannot be started: {error.strerror}.", f"Set {_ASKED} to less."
                ) from error

    def check(self) -> None:
        """Raise PeerError when one has ended: whom it was to meet would wait in vain."""
        for rank, process in enumerate(self._started, 1):
            code = process.poll()
            if code is not None:
                raise PeerError(
                    f"Process {rank} of {self._count} ended with {code} before there was anything to share.",
                    f"See what it said; {_ASKED}=1 works without it.",
                )

    def end(self) -> None:
        """Who met ends by itself, or is told, and then made to; who did not has nothing to lose."""
        if not met():
            for process in self._started:
                process.kill()
        for process in self._started:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    import subprocess

    for push in (process.terminate, process.kill):
        try:
            process.wait(_SECONDS_TO_END)
            return
        except subprocess.TimeoutExpired:
            push()
    process.wait()


def _end_with(main: int) -> None:
    """End this process, which writes nothing, when the main one is gone."""
    while os.getppid() == main:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(3)


def _asked() -> int:
    """How many processes were asked for. Raises UsageError for what is no number, and for more than there are cores."""
    given = os.environ.get(_ASKED, "")
    if given:
        if not given.isdecimal() or len(given) > _DIGITS or int(given) < 1:
            raise UsageError(
                f"{_ASKED} is {given!r:.40}, not a number of processes.", "Set it to 1 or more, or unset it."
            )
        count = int(given)
    elif "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ:  # false, unless --cpu was said
        count = _asked_of_launcher()
    else:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count > max(1, cores):
        raise UsageError(f"{count} processes were asked for, and there are {cores} cores.", f"Ask for at most {cores}.")
    return count


def _asked_of_launcher() -> int:
    """The number in the command line of the accelerate that started this process; 1 where another one did, or unseen.

    Raises UsageError for several machines, and for a number that stands elsewhere.
    """
    words: list[str] = []
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if not all(any(part in word for word in words) for part in ("accelerate", "launch")):
        return 1
    if (_number_after("machines", words) or 1) > 1:
        raise UsageError("accelerate starts no processes across machines on CPUs.", "Use torchrun.")
    count = _number_after("processes", words)
    if count is None:
        raise UsageError(
            "accelerate was asked for several processes, but how many is not in its command line.",
            f"Pass it --num_processes, or set {_ASKED}.",
        )
    return max(1, count)


def _number_after(what: str, words: Sequence[str]) -> int | None:
    """What `--num_<what> N`, `--num-<what>=N` and the like say, last."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        number = value if equals else following
        if name.replace("-", "_") == f"__num_{what}" and number.isdecimal() and len(number) <= _DIGITS:
            found = int(number)
    return found
