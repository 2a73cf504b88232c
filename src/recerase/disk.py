"""The system calls under `store`: one locked staging place a target, and names that change hands in a single step.

The deciding choice is that the lock is a file of its own beside the target, held with flock: the kernel drops it with the process,
so whoever gets it knows that what lies in the staging place was abandoned, however long ago, and clears it. (Neither the staging
place nor the target can be the lock: both are renamed while it is held, and a directory cannot be locked on NFS.)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from recerase.errors import ArtefactError, WriteError

_CHUNK = 1 << 20
_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_STAGING, _LOCK, _KEPT = _HIDDEN = (".recerase-staging", ".recerase-lock", ".recerase-replaced")
_LONGEST_NAME = 255
"""Bytes of a name that every file system in use takes."""
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_PERMISSIONS = "Nothing was replaced; check the permissions of the directory."
_REMEDIES = {
    errno.ENOSPC: "Nothing was replaced; free some space.",
    errno.EDQUOT: "Nothing was replaced; the disk quota is used up: free some space.",
    errno.EFBIG: "Nothing was replaced; the file is larger than the system allows: see `ulimit -f`.",
    errno.EMFILE: "Nothing was replaced; allow more open files: see `ulimit -n`.",
    errno.ENFILE: "Nothing was replaced; the system has too many files open: end other programs.",
    errno.EIO: "Nothing was replaced; check the disk.",
    errno.EPERM: _PERMISSIONS,
    errno.EACCES: _PERMISSIONS,
    errno.EROFS: _PERMISSIONS,
}


def write_error(path: Path, error: OSError) -> WriteError:
    """What a failed system call means for the one who wanted `path` written."""
    remedy = _REMEDIES.get(error.errno or 0, "Nothing was replaced; check the path, or name another.")
    return WriteError(f"Cannot write {path}: {error.strerror or error}.", remedy)


def digest_of(path: str | os.PathLike[str]) -> str:
    """The hex sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The hex digest of a file's content; raises ArtefactError when it cannot be read."""
    try:
        return digest_of(path)
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions.") from error


def listing(directory: Path) -> list[tuple[str, int]]:
    """Every file below a directory, but what only serves writing them: relative name and size, in name order."""
    paths = (path for path in directory.rglob("*") if path.is_file() and not path.name.endswith(_HIDDEN))
    return sorted((path.relative_to(directory).as_posix(), path.stat().st_size) for path in paths)


def plain_name(name: str) -> bool:
    """Whether a name that a file gives for another says a place below its directory, in one spelling."""
    plain = PurePosixPath(name)
    strange = name in ("", ".") or "\0" in name or plain.is_absolute() or ".." in plain.parts
    return not strange and plain.as_posix() == name


@contextlib.contextmanager
def staging_place(target: Path, *, wait: bool) -> Iterator[Path]:
    """The name beside `target` under which it is prepared: nothing is there, and this process alone may use it in the block.

    Whatever is there afterwards is removed. When another process has it, waits, or raises BlockingIOError at once.
    """
    staging, lock = hidden_name(target, _STAGING), hidden_name(target, _LOCK)
    descriptor = locked(lock, wait=wait)
    try:
        _recover(target)
        _remove(staging)
        yield staging
    finally:
        with contextlib.suppress(OSError):  # what cannot be put back or removed now is with the next run
            _recover(target)
        for path in (staging, lock):
            with contextlib.suppress(OSError):
                _remove(path)
        os.close(descriptor)


def write_synced(path: Path, data: bytes) -> None:
    """Make a file (mode 0666 & ~umask) and return when its content is on the disk."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:_CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced_parts(path: Path, parts: Iterable[bytes]) -> str:
    """`write_synced` for content that comes in parts and is never held whole; returns its sha256."""
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def spare_files() -> int:
    """How many files may be open at once beside those that a process has open anyway."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else max(1, limit // 2)


class Scratch:
    """Files that only this run reads, appended to in any order and never synced, in a directory that is there and others remove."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths, self._open = tuple(paths), list[int]()

    def __enter__(self) -> Scratch:
        try:
            for path in self._paths:
                self._open.append(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
        except OSError as error:
            self.__exit__()
            raise write_error(path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    def append(self, place: int, data: memoryview | bytes) -> None:
        """Add `data` to a file. Raises WriteError."""
        rest = memoryview(data).cast("B")
        try:
            while rest:
                rest = rest[os.write(self._open[place], rest) :]
        except OSError as error:
            raise write_error(self._paths[place], error) from error


@contextlib.contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory for scratch files below one that this run alone writes to, gone at the end of the block.

    Raises WriteError when it cannot be made, or not be removed: it must not be published with what is around it.
    """
    home = parent / ".scratch"
    try:
        home.mkdir()
    except OSError as error:
        raise write_error(home, error) from error
    try:
        yield home
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    try:
        shutil.rmtree(home)
    except OSError as error:
        raise write_error(home, error) from error


def put(staging: Path, target: Path, *, replace: bool) -> None:
    """Rename `staging` to `target` and return when that is on the disk. With `replace`, what was there is at `staging` afterwards.

    Undone when the disk does not confirm it. Raises FileExistsError when something is there that must not be replaced.
    """
    replaces = replace and os.path.lexists(target)
    if replaces:
        exchange(staging, target)
    else:
        rename_new(staging, target)
    try:
        sync_directory(target.parent)
    except OSError as error:
        try:
            if replaces:
                exchange(staging, target)
            else:
                rename_new(target, staging)
        except OSError:
            message = f"{target} was written, but it may not survive a power cut: {error.strerror or error}."
            raise WriteError(message, "Check the disk, then the file.") from error
        raise


def exchange(staging: Path, target: Path) -> None:
    """Swap what two names stand for; at no moment is `target` missing, where the file system can do that.

    Elsewhere `staging_place` puts back what was at `target` when this fails half way, or when the next run finds it so.
    """
    if _renameat2(staging, target, _EXCHANGE):
        return
    kept = hidden_name(target, _KEPT)
    if stat.S_ISDIR(os.lstat(target).st_mode):
        os.rename(target, kept)
    else:
        with contextlib.suppress(OSError):  # no links, no way back; but never a moment without a file
            os.link(target, kept, follow_symlinks=False)
    os.rename(staging, target)
    with contextlib.suppress(OSError):
        os.rename(kept, staging)


def rename_new(source: Path, target: Path) -> None:
    """Rename, but raise FileExistsError when something is at `target`."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    os.rename(source, target)


def make_parents(directory: Path) -> list[Path]:
    """Make a directory and what is missing above it, on the disk when this returns; the ones made, innermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)
    return missing


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settle(directory: Path) -> None:
    """Return when all names below a directory that nobody writes to any more are on the disk, without locks left behind."""
    for root, _, names in os.walk(directory):
        for name in names:
            if name.endswith(_HIDDEN):
                _remove(Path(root) / name)
        sync_directory(Path(root))


def resolved(path: Path) -> Path:
    """The path that a rename must be given: symlinks above it followed, but not one that it is itself.

    Whatever asks what is there must ask about this one too: `missing/../a` is nothing to the system, and `a` to a rename.
    """
    if path.name in ("", ".."):
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def hidden_name(target: Path, ending: str) -> Path:
    """The hidden name beside a target for what serves making it; a digest of the target's name where that leaves no room."""
    name = f".{target.name}{ending}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()}{ending}"
    return target.parent / name


def locked(lock: Path, *, wait: bool) -> int:
    """A descriptor that holds the lock file, made when missing. Raises BlockingIOError when another has it, unless `wait`."""
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(descriptor, lock):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the one who had it removed it: this is no longer the file that others lock


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _recover(target: Path) -> None:
    """Finish what an interrupted `exchange` began where the file system had no such call: the old one is back, or gone."""
    kept = hidden_name(target, _KEPT)
    if not os.path.lexists(kept):
        return
    if os.path.lexists(target):
        _remove(kept)
    else:
        os.rename(kept, target)
        sync_directory(target.parent)


def _remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Linux's rename with a flag; False where the C library, the kernel or the file system has none."""
    call = _libc_renameat2()
    if call is None:
        return False
    ctypes.set_errno(0)
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))


@functools.cache
def _libc_renameat2() -> Callable[..., int] | None:
    call: Callable[..., int] | None = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call
