"""Starts the other processes of a command on this machine, where no launcher does.

    RECERASE_PROCESSES=2 recerase audit erased --original model --concept brand=Acme --data data -o audit.json
    accelerate launch --cpu --num_processes 2 -m recerase audit ...

The first needs no launcher, and ends with recerase's own exit code (torchrun and accelerate end with 1 whatever it was, and
1 is a violated rule: behind them, read the report). The second exists because accelerate's launcher for CPUs, without
an MPI, starts one process and tells it where to meet, but not with how many: that stands in its own command line alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.errors import UsageError
from recerase.parallel import SHARED, placed

if TYPE_CHECKING:
    import subprocess

_ASKED = "RECERASE_PROCESSES"
_COUNT = ("--num_processes", "--num-processes")
_SECONDS_TO_END = 10.0


@contextlib.contextmanager
def companions(command: str, argv: Sequence[str]) -> Iterator[None]:
    """Run a block as the main one of the processes asked for; the others do `argv`, and are gone when it ends.

    Nothing is started for a command that one process does, or in a process that a launcher gave its place.
    """
    count = _asked() if command in SHARED and not placed() else 1
    if count < 2:
        yield
        return
    import subprocess

    run = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port()}
    before = dict(os.environ)
    others: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, count):
            place = {**run, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            program = [sys.executable, "-m", "recerase", *argv]
            others.append(subprocess.Popen(program, env={**before, **place}, stdin=subprocess.DEVNULL))
        os.environ.update({**run, "RANK": "0", "LOCAL_RANK": "0"})
        yield
    finally:
        for other in others:
            _end(other)
        for name in (*run, "RANK", "LOCAL_RANK"):
            os.environ.pop(name, None)
        os.environ.update(before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """They end together by themselves; who does not is told, and then made to."""
    import subprocess

    for push in (process.terminate, process.kill):
        try:
            process.wait(_SECONDS_TO_END)
            return
        except subprocess.TimeoutExpired:
            push()
    process.wait()


def _asked() -> int:
    """How many processes were asked for. Raises UsageError for a RECERASE_PROCESSES that is no number."""
    given = os.environ.get(_ASKED, "")
    if given:
        if not given.isdigit() or int(given) < 1:
            raise UsageError(f"{_ASKED} is {given!r}, not a number of processes.", "Set it to 1 or more, or unset it.")
        return int(given)
    by_accelerate = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ
    return _asked_of_launcher() if by_accelerate else 1


def _asked_of_launcher() -> int:
    """The number in the command line of the process that started this one; 1 where it cannot be seen."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, equals, value = word.partition("=")
            number = value if equals else following
            if name in _COUNT and number.isdigit():
                return int(number)
    return 1


def _port() -> str:
    """A port nobody listens on."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
