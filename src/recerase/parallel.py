"""Several processes that share one command's work, started by the launcher that a user has.

    torchrun --nproc_per_node 2 -m recerase audit erased --original model --concept brand=Acme --data data -o audit.json
    accelerate launch --multi_gpu --num_processes 8 -m recerase train data --sids sids --out model

The command line is the one of a single process, and so are files, stdout and the verdict. `audit`, `erase`, `tokenize`
and `train` are shared: every process reads the inputs, takes its part of the users and batches, and gets the parts of the
others; any other command is done by the main process (rank 0) alone. Only the main process checks, locks and writes
outputs, keeps the state of the run, and speaks. Launchers end with 1 whatever recerase ended with: `launching.py` has
the lines that keep its exit code. The library never shares: a program of its own that a launcher started is left alone.

Behind torchrun and accelerate the processes meet at a TCP port of the main one, open to its network, and what they exchange
there is trusted (pickles): for trusted networks only. What `launching.py` starts meets in a private directory instead.

The one decision: every exchange begins with a word from everybody on whether it has failed. Who fails takes part in the
next exchange to say so, and all of them end with its exit code; the last resort, for a process that is gone without
a word, is a closed connection, or no answer for RECERASE_TIMEOUT seconds (default seven days; five minutes to meet).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from recerase.connection import MEETING, Failure, Link, PeerError, heard_as, patience
from recerase.errors import Interrupted, RecEraseError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from recerase.types import IntArray, Observer

SHARED = ("audit", "erase", "train", "tokenize")
"""The commands whose work is shared; any other is done by the main process alone."""
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Workers:
    """The processes that share one command's work; one process: rank 0 of 1, and nothing is ever initialised.

    Every process must come to the same exchanges (`gathered`, `told`, `summed`, `wait`) in the same order. Each of
    them raises PeerError, or Interrupted, when another process has failed, or was told to stop, before it.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def mine(self, n: int) -> IntArray:
        """int64: the pieces rank, rank + size, rank + 2 size, ... below n."""
        import numpy as np

        return np.arange(self.rank, n, self.size, dtype=np.int64)

    def gathered(self, value: Any) -> list[Any]:
        """One picklable value a process, in rank order, the same on every one."""
        return [value] if self.size == 1 else _link().gathered(value)

    def told(self, value: Any = None) -> Any:
        """The main process's picklable value, on every one; what the others pass is not looked at."""
        return value if self.size == 1 else _link().told(value)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of everybody's tensor of one shape and dtype, in place; the same bits on every process."""
        return tensor if self.size == 1 else _link().summed(tensor)

    def wait(self) -> None:
        """Return when every process has come here."""
        self.gathered(None)

    def meet(self) -> None:
        """Connect the processes, before the first exchange; each has its own device from then on."""
        if self.size > 1:
            _link()

    def look(self) -> None:
        """Raise PeerError when another process has failed meanwhile; cheap, to be called between two pieces of work."""
        if self.size > 1 and _now.link is not None:
            _now.link.look()


class Crew(Protocol):
    """The other processes, where this one starts them."""

    def start(self) -> None:
        """Called once, when it is certain that there is work to share."""

    def check(self) -> None:
        """Raise PeerError when one of them has ended."""


@dataclass
class _Now:
    """What this process shares at the moment."""

    sharing: bool = False
    """Whether a shared command runs, here and in every process that a launcher started with this one."""
    begun: bool = False
    """Whether everybody is going to meet: until then a process speaks for itself, as nobody waits for it."""
    link: Link | None = None
    unreachable: PeerError | None = None
    """Why there is no link: nobody waits for the same others twice."""
    crew: Crew | None = None


_now = _Now()


def workers() -> Workers:
    """This process among those that share the command: alone, but while `together` does a shared command.

    Imports no torch; the processes first meet (gloo on CPU, nccl on CUDA) at the first exchange.
    """
    return _launched() if _now.sharing else Workers()


def _launched() -> Workers:
    """The place that torchrun, accelerate or `launching` put into the environment."""
    rank, size = _number("RANK", -1), _number("WORLD_SIZE", 1)
    return Workers(rank, size) if size > 1 and 0 <= rank < size else Workers()


def placed() -> bool:
    """Whether a launcher gave this process a place, be it as the only one."""
    return _number("RANK", -1) >= 0 and _number("WORLD_SIZE", 0) > 0


def local_processes() -> int:
    """How many of the processes that share the command are on this machine."""
    return 1 if workers().size == 1 else max(1, _number("LOCAL_WORLD_SIZE", _guessed_local()))


def companions_here() -> bool:
    """Whether recerase itself started the processes that share the command; they have cores and devices in common."""
    return workers().size > 1 and MEETING in os.environ


def _guessed_local() -> int:
    """Without a word from the launcher: all of them where they meet on this machine, else one."""
    return workers().size if os.environ.get("MASTER_ADDR", "") in ("127.0.0.1", "localhost", "::1") else 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default


def begin() -> None:
    """A shared command knows what to do, and from here on every process comes to the meeting.

    Raises UsageError under an MPI launcher, which says how many there are but not where they meet.
    """
    if not _now.sharing or _now.begun:
        return
    if workers().size > 1:
        if _now.crew is not None:
            _now.crew.start()
        _now.begun = True
    elif not placed():
        for name in _MPI:
            if _number(name, 1) > 1:
                raise UsageError(
                    f"MPI started {os.environ[name]} processes, which recerase cannot connect.",
                    f"Use torchrun or RECERASE_PROCESSES, or unset {name} to work alone.",
                )


def together(command: str, work: Callable[[], int]) -> int:
    """Do one command's work in every process that shares it, and end all of them alike; returns the exit code.

    The main process raises what has failed, wherever that was; the others are silent, but for a bug in them. Raises
    UsageError for a RECERASE_TIMEOUT that is none.
    """
    who = _launched()
    if command not in SHARED:
        return work() if who.main else 0
    if who.size > 1:
        patience()
    _now.sharing = True
    try:
        return work() if who.size == 1 else _shared(work)
    finally:
        _now.sharing = _now.begun = False
        if _now.link is not None:
            _now.link.settle()


def part() -> None:
    """Leave the processes of a run that is over; others may be met then."""
    if _now.link is not None:
        _now.link.close()
    _now.link = _now.unreachable = _now.crew = None


def crew(started: Crew) -> None:
    """The processes that `begin` is to start."""
    _now.crew = started


def met() -> bool:
    """Whether the processes have been connected."""
    return _now.link is not None


def _shared(work: Callable[[], int]) -> int:
    try:
        with _unheard():
            code = int(work())
        if not _now.begun and not met():  # help, a plan: nobody has anything to say to anybody
            return code
        return _ended(code)
    except BaseException as error:
        return _failed(error)


def _ended(code: int) -> int:
    """The main process's code; it keeps its own when the others break after all is done."""
    link = _link()
    try:
        return int(link.told(code))
    except BaseException as error:
        if workers().main and error is link.heard:
            return code
        raise


def _failed(error: BaseException) -> int:
    """Let the others know, agree on whose failure it was, and raise it or return its exit code."""
    if not met() and (not _now.begun or _now.crew is not None):
        raise error  # nobody waits, or who does is ended by `launching`
    try:
        link = _link()
    except RecEraseError:  # the others cannot be reached: everybody speaks for itself
        raise error from None
    heard = isinstance(error, PeerError) or error is link.heard
    counts = link.fail(None if heard else _word(error))
    if not link.agreed or counts is None:
        raise error
    if workers().main:
        raise (error if heard or counts["rank"] == 0 else heard_as(counts)) from None
    if not isinstance(error, RecEraseError | Interrupted | KeyboardInterrupt):
        raise error  # a bug: its traceback is here
    return int(counts["code"])


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Whatever a process but the main one prints is not seen: the main one says the same."""
    if workers().main:
        yield
        return
    with (
        os.fdopen(os.open(os.devnull, os.O_WRONLY), "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _word(error: BaseException) -> Failure:
    """What the others are told of a failure here."""
    rank = _launched().rank
    if isinstance(error, RecEraseError):
        message, remedy, code = error.message, error.remedy, error.exit_code
    elif isinstance(error, Interrupted | KeyboardInterrupt):
        message, remedy, code = "", "", getattr(error, "exit_code", 130)
    else:
        message, remedy, code = f"Process {rank} failed: {type(error).__name__}: {error!s:.300}.", "See above.", 3
    return {"rank": rank, "message": message, "remedy": remedy, "code": code}


def _link() -> Link:
    """The connection, made at the first call. Raises PeerError when the others cannot be reached, at every call."""
    if _now.unreachable is not None:
        raise _now.unreachable
    if _now.link is None:
        who = _launched()
        try:
            _now.link = Link(who.rank, who.size, local_processes(), None if _now.crew is None else _now.crew.check)
        except PeerError as error:
            _now.unreachable = error
            raise
    return _now.link


class Attentive:
    """An observer that hears of another process's failure, wherever the work stands."""

    def __init__(self, observer: Observer) -> None:
        self.start, self.finish, self.note, self._advance = (
            observer.start,
            observer.finish,
            observer.note,
            observer.advance,
        )

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        workers().look()
        self._advance(task, step, **figures)
