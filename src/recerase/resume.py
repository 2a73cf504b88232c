"""The state an interrupted run leaves beside its output: one value for training, erasing and auditing.

The deciding choice is what a state may be used for. It carries a key, name -> digest of everything the result depends
on, and is continued when every entry is equal and thrown away when one is not: a piece is never reused in part, and
whoever is refused is told which entries differ. Pieces are sealed files, so that a damaged one is seen when it is
read; what they hold, and that it gives the bytes of a straight run, is the business of the room that wrote them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from recerase.disk import hidden_name, locked, resolved
from recerase.errors import ArtefactError, DataError, Interrupted, RecEraseError, UsageError, WriteError
from recerase.parallel import workers
from recerase.store import canonical_json, read_sealed, write_sealed
from recerase.types import SILENT, Observer

_KEY = "key"
_SUFFIX = ".sealed"
_STATE, _LOCK = ".recerase-state", ".recerase-state-lock"
_FRESH = "Pass --fresh to start over."
_COULD_NOT_FINISH = RecEraseError.exit_code


def state_directory(target: str | os.PathLike[str]) -> Path:
    """Where the state of a run that makes `target` is kept: beside it, hidden."""
    return _beside(target, _STATE)


class Pieces(Protocol):
    """Where finished work is put and found again by name; what the rooms that do the work know of a state."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, data: bytes) -> None: ...


class RunState:
    """What a run has finished so far; without a `target` nothing is kept.

    Leaving the `with` block removes the state when all went well, and keeps it when anything went wrong and a piece
    is there: the exception then carries a note that says where, and how to go on. Raises UsageError on `open` when
    another process works on the same target. Of several processes that share a command the main one keeps the state: in
    the others nothing is found and nothing is kept, and whoever reads a piece tells the others what it holds.

        with RunState(out) as state:
            state.open({"model": digest, "seed": "0"}, resume=None)
            made = state.read("weights") or make()
            state.write("weights", made)
    """

    def __init__(self, target: str | os.PathLike[str] | None) -> None:
        self.target = None if target is None else Path(target)
        self.directory = None if target is None else state_directory(target)
        self._lock_file = None if target is None else _beside(target, _LOCK)
        self._lock: int | None = None
        self._opened = False
        self._before = _identity(self.target)

    def open(self, key: Mapping[str, str], resume: bool | None = None, observer: Observer = SILENT) -> None:
        """Take what an interrupted run with the same key left, or start from nothing.

        `resume` True refuses to start over, False (`--fresh`) always does; None continues when the key is equal, and
        tells the observer which entries differ when it is not. Raises DataError when the processes that share the
        command do not agree on the key: then they would not do the same work.
        """
        _agree(key)
        if not workers().main:
            return
        if self.directory is None:
            if resume:
                raise UsageError(
                    "There is nothing to continue: an audit without --output keeps no state.",
                    "Pass -o FILE, the same as in the interrupted run.",
                )
            return
        if resume and not self.directory.is_dir():
            raise _nothing_to_continue(self.directory)
        self._take(self.directory)
        if resume is not False:
            before = self._read_key(self.directory)
            changed = sorted(name for name in {*before, *key} if before.get(name) != key.get(name))
            if before and not changed:
                observer.note(f"continuing the interrupted run kept in {self.directory}")
                self._opened = True
                return
            if resume:
                raise _other_run(self.directory, changed) if before else _nothing_to_continue(self.directory)
            if before:
                observer.note(f"nothing of the interrupted run is reused: {_have_changed(changed)}")
        self._start_over(self.directory)
        self._opened = True  # from here on what is there is ours, and goes when this is stopped before a piece is done
        write_sealed(self._file(_KEY), canonical_json(dict(key)))

    def read(self, name: str) -> bytes | None:
        """The piece called `name`, or None when it was not finished. Raises ArtefactError when it is damaged."""
        if not self._opened or not self._file(name).is_file():
            return None
        return _unsealed(self._file(name))

    def write(self, name: str, data: bytes) -> None:
        """Keep a finished piece; on return it is on the disk. Raises WriteError."""
        if self._opened:
            write_sealed(self._file(name), data)

    def __enter__(self) -> RunState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            done = error is None or self._published()
            if self._opened and self.directory is not None and (done or not self._pieces(self.directory)):
                shutil.rmtree(self.directory, ignore_errors=True)
            elif self.directory is None and isinstance(error, KeyboardInterrupt | Interrupted):
                error.add_note("Nothing is kept: an audit with -o FILE can be continued.")
            elif error is not None and self._opened and _may_go_on(error):
                error.add_note(
                    f"What it had finished is kept in {self.directory}: run the same command again to continue, or with "
                    "--fresh to start over."
                )
        finally:
            self._opened = False
            if self._lock is not None:
                self._let_go()
                os.close(self._lock)
                self._lock = None

    def _published(self) -> bool:
        """Whether what this run makes appeared meanwhile: who is stopped after that has nothing to continue."""
        now = _identity(self.target)
        return now is not None and now != self._before

    def _let_go(self) -> None:
        """Remove the lock, and the directory when it is empty: a run that could not begin leaves nothing."""
        assert self.directory is not None
        assert self._lock_file is not None
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        with contextlib.suppress(OSError):
            self._lock_file.unlink()

    def _file(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{name}{_SUFFIX}"

    def _pieces(self, directory: Path) -> list[Path]:
        return [path for path in directory.glob(f"[!.]*{_SUFFIX}") if path != self._file(_KEY)]

    def _take(self, directory: Path) -> None:
        """Hold the directory against every other process, and make it when it is not there.

        What is locked is a file beside it, as in `disk`: a directory cannot be locked on NFS.
        """
        assert self._lock_file is not None
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._lock = locked(self._lock_file, wait=False)
            if directory.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            directory.mkdir(exist_ok=True)
        except BlockingIOError as error:
            raise UsageError(
                f"Another run is working on {self.target}.", "Wait until it has ended, or name another output."
            ) from error
        except OSError as error:
            raise _cannot_keep(directory, error) from error

    def _read_key(self, directory: Path) -> dict[str, str]:
        """The key of what is there, empty when there is nothing to reuse; temporary files of a killed run go."""
        self._remove(directory.glob(".*"))
        if not self._pieces(directory) or not self._file(_KEY).is_file():
            return {}
        key = json.loads(_unsealed(self._file(_KEY)))
        return {str(name): str(value) for name, value in key.items()}

    def _start_over(self, directory: Path) -> None:
        """Empty the directory, the key last: as long as a piece is there, so is the key it was made under."""
        self._remove(sorted(directory.iterdir(), key=lambda path: path == self._file(_KEY)))

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise _cannot_keep(path, error) from error


def _agree(key: Mapping[str, str]) -> None:
    keys = workers().gathered(dict(key))
    for rank, other in enumerate(keys):
        differs = sorted(name for name in {*other, *keys[0]} if other.get(name) != keys[0].get(name))
        if differs:
            raise DataError(
                f"Process {rank} of this run does not work on what the main one does: {_of_another(differs)}.",
                "Give every machine the same inputs, versions and --threads.",
            )


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file or directory stands there, if one does; another one has another number."""
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _unsealed(path: Path) -> bytes:
    try:
        return read_sealed(path)
    except ArtefactError as error:
        raise ArtefactError(error.message, _FRESH) from error


def _beside(target: str | os.PathLike[str], ending: str) -> Path:
    return hidden_name(resolved(Path(target)), ending)


def _cannot_keep(path: Path, error: OSError) -> WriteError:
    return WriteError(
        f"Cannot keep the state of this run in {path}: {error.strerror or error}.",
        "Name another output, or remove what is there.",
    )


def _may_go_on(error: BaseException) -> bool:
    """Whether the same command can do better another time: not after a refusal, which will be the same again."""
    return not isinstance(error, RecEraseError) or error.exit_code == _COULD_NOT_FINISH


def _have_changed(names: list[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last} have changed" if others else f"{last} has changed"


def _of_another(names: list[str]) -> str:
    return f"its {', '.join(names)} differ{'s' if len(names) == 1 else ''}"


def _nothing_to_continue(directory: Path) -> UsageError:
    return UsageError(
        f"There is nothing to continue: {directory} holds no state of an interrupted run.", "Leave --resume out."
    )


def _other_run(directory: Path, changed: list[str]) -> UsageError:
    return UsageError(
        f"{directory} holds the state of another run: {_have_changed(changed)}.",
        f"Repeat the interrupted command exactly. {_FRESH}",
    )
