"""The connection between the processes of one command, and the order in which they speak.

The decision here: the meeting is short and an exchange is patient. Who does not come within five minutes is missing; who
came may read for days before the next exchange, so only a closed connection, or RECERASE_TIMEOUT, ends the waiting then.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from recerase.errors import Interrupted, RecEraseError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Failure = dict[str, Any]
"""rank, message, remedy and exit code of a failure, as it is told."""
MEETING = "RECERASE_MEETING"
"""The file by which processes meet that no launcher started; set by `launching.companions`."""
_GATHERED, _TOLD, _SUMMED = 1, 2, 3
_NOTHING = -(2**40)
_HERE = "recerase/here"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_MEET = 300.0
_SECONDS_OF_PATIENCE = 7 * 86400.0
_MOST_SECONDS = 10 * 365 * 86400.0


class PeerError(RecEraseError):
    """Another process of this run failed: its sentence, and its exit code."""

    def __init__(self, message: str, remedy: str = "", exit_code: int = 3) -> None:
        super().__init__(message, remedy)
        self.exit_code = exit_code


def heard_as(word: Failure) -> BaseException:
    """The exception that a word stands for."""
    if not word["message"]:
        return Interrupted(int(word["code"]) - 128)
    return PeerError(word["message"], word["remedy"], word["code"])


def patience() -> float:
    """Seconds an exchange waits: RECERASE_TIMEOUT, or seven days. Raises UsageError for what is no number of seconds."""
    given = os.environ.get("RECERASE_TIMEOUT", "")
    if not given:
        return _SECONDS_OF_PATIENCE
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(
            f"RECERASE_TIMEOUT is {given!r:.40}, not a number of seconds.", "Set it to, say, 7200, or unset it."
        )
    return seconds


class Link:
    """The connection of process `rank` of `size` to the others, made by accelerate.

    `local` of them are on this machine. `check` is called while the others are awaited, and raises when one cannot come.
    """

    def __init__(self, rank: int, size: int, local: int, check: Callable[[], None] | None = None) -> None:
        import torch
        import torch.distributed as dist
        from accelerate import PartialState

        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        cpu = devices < local or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        self.rank, self.size = rank, size
        self.heard: BaseException | None = None
        """What another process's failure was raised as, here."""
        self.agreed = False
        """Whether everybody knows of the failure."""
        self._counts: Failure | None = None
        self._broken, self._looked, self._run = False, time.monotonic(), 0
        long, short = timedelta(seconds=patience()), timedelta(seconds=min(_SECONDS_TO_MEET, patience()))
        more: dict[str, Any] = {"backend": "gloo"} if cpu else {}
        try:
            if MEETING in os.environ:
                store = _everybody_at(os.environ[MEETING], size, short, check)
                more |= {"store": store, "rank": rank, "world_size": size}
            with warnings.catch_warnings(), _threads_as_they_are():
                warnings.simplefilter("ignore")
                PartialState(cpu=cpu, timeout=short, **more)
            self._group: Any = dist.new_group(backend="gloo", timeout=long)
            self._store: Any = dist.distributed_c10d._get_default_store()
            atexit.register(_part)
        except (RuntimeError, ValueError, OSError) as error:
            raise PeerError(
                f"Process {rank} of {size} cannot reach the others: {_first_line(error)}.",
                "Check the launcher's address and port, or unset RANK and WORLD_SIZE to work alone.",
            ) from error

    def gathered(self, value: Any) -> list[Any]:
        with self._exchange(_GATHERED):
            return self._all(value)

    def told(self, value: Any) -> Any:
        import torch.distributed as dist

        with self._exchange(_TOLD):
            held = [value if self.rank == 0 else None]
            dist.broadcast_object_list(held, src=0, group=self._group)
        return held[0]

    def summed(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        with self._exchange(_SUMMED):
            dist.all_reduce(tensor, group=self._group if tensor.device.type == "cpu" else None)
        return tensor

    def look(self) -> None:
        """Raise what another process has failed with, if it left a word, or when there is nobody to leave one with."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        try:
            word = self._read()
        except RuntimeError as error:
            raise self._gone(error) from error
        if word is not None:
            self.heard = heard_as(word)
            raise self.heard

    def fail(self, word: Failure | None) -> Failure | None:
        """Tell the others, who hear it at their next exchange; returns the failure that counts: of the lowest rank.

        `word` is None for who only heard of a failure. None when the others are gone.
        """
        if word is not None:
            with contextlib.suppress(RuntimeError):
                self._store.set(self._word, json.dumps(word))
        if not self.agreed and not self._broken:
            with contextlib.suppress(PeerError, Interrupted):
                self._meet(_NOTHING, word)
        return self._counts or self._left()

    def settle(self) -> None:
        """The end of a command: its failure is no longer one of the next command's, with the same processes."""
        self.heard, self.agreed, self._counts = None, False, None
        self._run += 1

    def close(self) -> None:
        """Part from the others; another link, to others, may be made then."""
        from accelerate import PartialState

        _part()
        PartialState._reset_state()

    @property
    def _word(self) -> str:
        return f"recerase/failed/{self._run}"

    @contextlib.contextmanager
    def _exchange(self, kind: int) -> Iterator[None]:
        """The step in which everybody does the same; what breaks in it cannot be mended."""
        self._meet(kind, None)
        try:
            yield
        except RuntimeError as error:
            raise self._gone(error) from error
        except BaseException:
            self._broken = True
            raise

    def _meet(self, kind: int, word: Failure | None) -> None:
        """Everybody says what it came for, and whether it failed; raises what the lowest rank that failed told."""
        import torch
        import torch.distributed as dist

        failed = int(kind == _NOTHING)
        said = torch.tensor([failed, kind, _NOTHING if failed else -kind], dtype=torch.int64)
        try:
            dist.all_reduce(said, op=dist.ReduceOp.MAX, group=self._group)
            words = self._all(word) if bool(said[0]) else []
        except RuntimeError as error:
            raise self._gone(error) from error
        except BaseException:
            self._broken = True
            raise
        if bool(said[0]):
            told = [w for w in words if w is not None]
            self._counts, self.agreed = (told[0] if told else self._left()), True
            self.heard = heard_as(self._counts) if self._counts else _lost("it left no word")
            raise self.heard
        if int(said[1]) != -int(said[2]):
            raise AssertionError("the processes of this run are out of step")

    def _gone(self, error: BaseException) -> BaseException:
        """A connection broke: the word that was left behind, or that there was none."""
        self._broken = True
        word = self._left()
        self.heard = heard_as(word) if word is not None else _lost(_first_line(error))
        return self.heard

    def _all(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value, group=self._group)
        return held

    def _read(self) -> Failure | None:
        """The word that a failing process left, if one did. Raises RuntimeError where it cannot be asked for."""
        found = self._store.check([self._word])
        return dict(json.loads(self._store.get(self._word))) if found else None

    def _left(self) -> Failure | None:
        """The same, if it can still be read."""
        try:
            return self._read()
        except RuntimeError:
            return None


def _everybody_at(path: str, size: int, within: timedelta, check: Callable[[], None] | None) -> Any:
    """The store in a file, once all have come there. Raises RuntimeError when they do not."""
    import torch.distributed as dist

    made: Any = dist
    store = made.FileStore(path, size)
    store.set_timeout(within)
    until = time.monotonic() + within.total_seconds()
    come = store.add(_HERE, 1)
    while come < size:
        if check is not None:
            check()
        if time.monotonic() > until:
            raise RuntimeError(f"{come} of {size} came within {within.total_seconds():.0f} s")
        time.sleep(0.05)
        come = store.add(_HERE, 0)
    return store


@contextlib.contextmanager
def _threads_as_they_are() -> Iterator[None]:
    """accelerate sets torch's threads where OMP_NUM_THREADS does not; they are `runtime.pinned`'s."""
    import torch

    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0] if lines else type(error).__name__:.200}".rstrip(".")


def _lost(reason: str) -> PeerError:
    return PeerError(
        f"Another process of this run is gone, or did not answer for {patience():.0f} s ({reason}).",
        "See what it said; then run the same command again.",
    )


def _part() -> None:
    """Leave the group, as nccl wants it; also at the end of the process."""
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError, AssertionError, ValueError):
        dist.destroy_process_group()
