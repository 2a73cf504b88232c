"""Several processes that share one command's work, started by the launcher that a user has.

    torchrun --nproc_per_node 2 -m recerase audit erased --original model --concept brand=Acme --data data -o audit.json
    accelerate launch --multi_gpu --num_processes 8 -m recerase train data --sids sids --out model

The command line is the one of a single process, and so are files, stdout and the verdict. `audit`, `erase`, `tokenize`
and `train` are shared: every process reads the inputs, takes its part of the users and batches, and gets the parts of the
others; any other command is done by the main process (rank 0) alone. Only the main process checks, locks and writes
outputs, keeps the state of the run, and speaks. Launchers end with 1 whatever recerase ended with: `launching.py` has
the lines that keep its exit code.

The one decision: every exchange begins with a word from everybody on whether it has failed. Who fails takes part in the
next exchange to say so, and all of them end with its exit code; the last resort, for a process that is gone without
a word, is a closed connection, or no answer for RECERASE_TIMEOUT seconds (default 7200).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from recerase.errors import Interrupted, RecEraseError

if TYPE_CHECKING:
    from torch import Tensor

    from recerase.types import IntArray, Observer

_Failure = dict[str, Any]
"""rank, message, remedy and exit code of a failure, as it is told."""
SHARED = ("audit", "erase", "train", "tokenize")
"""The commands whose work is shared; any other is done by the main process alone."""
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
_GATHERED, _TOLD, _SUMMED = 1, 2, 3
_NOTHING = -(2**40)
_WORD = "recerase/failed"
_SECONDS_BETWEEN_LOOKS = 0.5


class PeerError(RecEraseError):
    """Another process of this run failed: its sentence, and its exit code."""

    def __init__(self, message: str, remedy: str = "", exit_code: int = 3) -> None:
        super().__init__(message, remedy)
        self.exit_code = exit_code


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
        if self.size > 1 and _link.cache_info().currsize:
            _link().look()


_alone = False


def workers() -> Workers:
    """This process among those that share the command, from what torchrun, accelerate or MPI put into the environment.

    Imports no torch; the processes first meet (gloo on CPU, nccl on CUDA) at the first exchange.
    """
    return Workers() if _alone else _launched()


def _launched() -> Workers:
    rank, size = _number(_RANKS, -1), _number(_SIZES, 1)
    return Workers(rank, size) if size > 1 and 0 <= rank < size else Workers()


def placed() -> bool:
    """Whether a launcher gave this process a place among several."""
    return _launched().size > 1 or _number(_RANKS, -1) >= 0


def local_processes() -> int:
    """How many of the processes are on this machine."""
    return 1 if workers().size == 1 else max(1, _number(_LOCAL_SIZES, _guessed_local()))


def _guessed_local() -> int:
    """Without a word from the launcher: all of them where they meet on this machine, else one."""
    return workers().size if os.environ.get("MASTER_ADDR", "") in ("127.0.0.1", "localhost", "::1") else 1


def _number(names: tuple[str, ...], default: int) -> int:
    given = (os.environ.get(name, "") for name in names)
    return next((int(text) for text in given if text.isdigit()), default)


def together(command: str, work: Callable[[], int]) -> int:
    """Do one command's work in every process that shares it, and end all of them alike; returns the exit code.

    The main process raises what has failed, wherever that was; the others are silent, but for a bug in them.
    """
    global _alone
    if _launched().size == 1:
        return work()
    if command not in SHARED:
        _alone = True
        try:
            return work() if _launched().main else 0
        finally:
            _alone = False
    try:
        with _unheard():
            code = int(work())
        return int(_link().told(code))
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> int:
    """Let the others know, agree on whose failure it was, and raise it or return its exit code."""
    heard = isinstance(error, PeerError) or (_link.cache_info().currsize > 0 and error is _link().heard)
    try:
        link = _link()
    except RecEraseError:  # the others cannot be reached: everybody speaks for itself
        raise error from None
    counts = link.fail(None if heard else _word(error))
    if not link.agreed or counts is None:
        raise error
    if workers().main:
        raise (error if heard or counts["rank"] == 0 else _heard(counts)) from None
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


def _word(error: BaseException) -> _Failure:
    """What the others are told of a failure here."""
    rank = _launched().rank
    if isinstance(error, RecEraseError):
        message, remedy, code = error.message, error.remedy, error.exit_code
    elif isinstance(error, Interrupted | KeyboardInterrupt):
        message, remedy, code = "", "", getattr(error, "exit_code", 130)
    else:
        message, remedy, code = f"Process {rank} failed: {type(error).__name__}: {error!s:.300}.", "See above.", 3
    return {"rank": rank, "message": message, "remedy": remedy, "code": code}


def _heard(word: _Failure) -> BaseException:
    """The exception that a word stands for."""
    if not word["message"]:
        return Interrupted(int(word["code"]) - 128)
    return PeerError(word["message"], word["remedy"], word["code"])


def _lost() -> PeerError:
    return PeerError(
        f"Another process of this run is gone, or did not answer for {_patience():.0f} s.",
        "See what it said; then run the same command again.",
    )


def _patience() -> float:
    try:
        return max(1.0, float(os.environ.get("RECERASE_TIMEOUT", "7200")))
    except ValueError:
        return 7200.0


@functools.cache
def _link() -> _Link:
    return _Link(_launched())


class _Link:
    """The connection to the other processes, made by accelerate, and the order in which they speak."""

    def __init__(self, who: Workers) -> None:
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cpu = devices < local_processes() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        patience = timedelta(seconds=_patience())
        self.who = who
        self.heard: BaseException | None = None
        """What another process's failure was raised as, here."""
        self.agreed = False
        """Whether everybody knows of the failure."""
        self._counts: _Failure | None = None
        self._broken, self._looked = False, time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on threads, which `runtime.pinned` sets
                PartialState(cpu=cpu, timeout=patience, **({"backend": "gloo"} if cpu else {}))
            self._group: Any = None if cpu else dist.new_group(backend="gloo", timeout=patience)
            self._store: Any = dist.distributed_c10d._get_default_store()
            atexit.register(_part)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PeerError(
                f"Process {who.rank} of {who.size} cannot reach the others: {reason:.200}.",
                "Check the launcher's address and port.",
            ) from error

    def gathered(self, value: Any) -> list[Any]:
        with self._exchange(_GATHERED):
            return self._all(value)

    def told(self, value: Any) -> Any:
        import torch.distributed as dist

        with self._exchange(_TOLD):
            held = [value if self.who.main else None]
            dist.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def summed(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        with self._exchange(_SUMMED):
            dist.all_reduce(tensor, group=self._group if tensor.device.type == "cpu" else None)
        return tensor

    def look(self) -> None:
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        word = self._left()
        if word is not None:
            self.heard = _heard(word)
            raise self.heard

    def fail(self, word: _Failure | None) -> _Failure | None:
        """Tell the others, who hear it at their next exchange; returns the failure that counts: of the lowest rank.

        `word` is None for who only heard of a failure. None when the others are gone.
        """
        if word is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(_WORD, json.dumps(word))
        if not self.agreed and not self._broken:
            with contextlib.suppress(PeerError, Interrupted):
                self._meet(_NOTHING, word)
        return self._counts or self._left()

    @contextlib.contextmanager
    def _exchange(self, kind: int) -> Iterator[None]:
        """The step in which everybody does the same; what breaks in it cannot be mended."""
        self._meet(kind, None)
        try:
            yield
        except RuntimeError as error:
            raise self._gone() from error
        except BaseException:
            self._broken = True
            raise

    def _meet(self, kind: int, word: _Failure | None) -> None:
        """Everybody says what it came for, and whether it failed; raises what the lowest rank that failed told."""
        import torch
        import torch.distributed as dist

        failed = int(kind == _NOTHING)
        said = torch.tensor([failed, kind, _NOTHING if failed else -kind], dtype=torch.int64)
        try:
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
            words = self._all(word) if bool(said[0]) else []
        except RuntimeError as error:
            raise self._gone() from error
        except BaseException:
            self._broken = True
            raise
        if bool(said[0]):
            told = [w for w in words if w is not None]
            self._counts, self.agreed = (told[0] if told else self._left()), True
            self.heard = _heard(self._counts) if self._counts else _lost()
            raise self.heard
        if int(said[1]) != -int(said[2]):
            raise AssertionError("the processes of this run are out of step")

    def _gone(self) -> BaseException:
        """A connection broke: the word that was left behind, or that there was none."""
        self._broken = True
        word = self._left()
        self.heard = _heard(word) if word is not None else _lost()
        return self.heard

    def _all(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        held: list[Any] = [None] * self.who.size
        dist.all_gather_object(held, value, group=self._group)
        return held

    def _left(self) -> _Failure | None:
        """The word that a failing process left, if one did and it can still be read."""
        try:
            found = self._store.check([_WORD])
            return dict(json.loads(self._store.get(_WORD))) if found else None
        except RuntimeError:
            return None


def _part() -> None:
    """Leave the group at the end of the process, as nccl wants it."""
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()


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
