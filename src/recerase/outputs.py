"""Where a result may be written: not over anything that exists unless asked, and never over an input.

The deciding choice is that "an input" means what is on the disk, not how it is spelled: the same path through symlinks, a shared
inode (hard links), or the same bytes (a copy, which somebody made for a reason) are all refused, with and without --force.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from recerase.disk import listing, resolved, sha256_file
from recerase.errors import OutputError
from recerase.parallel import workers

MANIFEST = "recerase.json"
_NAME_ANOTHER = "Inputs are never written to; name another."
_EXISTS = "Name another, remove it, or pass --force to replace it."


def check_output(
    out: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = (), force: bool = False
) -> None:
    """Raise OutputError unless a directory may be published at `out` without touching any of `inputs`.

    `out` is an input by path (through symlinks), when it shares a file with one (hard links), or holds the same files.
    """
    if not workers().main:  # what is there is looked at by the one that writes
        return
    place = resolved(Path(out))
    target = Path(os.path.realpath(place))
    there = _inodes(place, follow=False)
    for path in inputs:
        source = Path(os.path.realpath(path))
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            raise OutputError(f"--out {out} is, holds, or lies inside the input {path}.", _NAME_ANOTHER)
        if there and there & _inodes(source, follow=True):
            raise OutputError(f"--out {out} shares files with the input {path} (hard links).", _NAME_ANOTHER)
        if _same_files(place, source):
            raise OutputError(f"--out {out} is a copy of the input {path}.", _NAME_ANOTHER)
    if not os.path.lexists(place):
        return
    if not force:
        raise OutputError(f"--out {out} exists already.", _EXISTS)
    if place.is_symlink() or not (place / MANIFEST).is_file():
        raise OutputError(
            f"--out {out} was not written by recerase (it has no {MANIFEST}).", "Remove it yourself, or name another."
        )


def check_file_output(
    path: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = (), force: bool = False
) -> None:
    """Raise OutputError unless a file may be written at `path` (replaced, with `force`) without touching any of `inputs`.

    `path` is an input by path (through symlinks), as a hard link of one or of a file in one, or with the bytes of one.
    """
    if not workers().main:
        return
    place = resolved(Path(path))
    target = Path(os.path.realpath(place))
    there = _inodes(target, follow=False) if target.is_file() else set()
    for given in inputs:
        source = Path(os.path.realpath(given))
        if target == source or target.is_relative_to(source):
            raise OutputError(f"{path} is, or lies inside, the input {given}.", _NAME_ANOTHER)
        if there and there & _inodes(source, follow=True):
            raise OutputError(f"{path} is a hard link of a file of the input {given}.", _NAME_ANOTHER)
        if _same_bytes(target, source):
            raise OutputError(f"{path} is a copy of the input {given}.", _NAME_ANOTHER)
    if not target.parent.is_dir():
        raise OutputError(f"{path} is in a directory that does not exist.", "Make the directory first.")
    if place.exists() and not place.is_file():
        what = "directory" if place.is_dir() else "device or pipe"
        raise OutputError(f"{path} is a {what}.", "Name a file.")
    if os.path.lexists(place) and not force:
        raise OutputError(f"{path} exists already.", _EXISTS)


def _same_files(out: Path, source: Path) -> bool:
    """Whether two directories hold files of the same names and bytes, whatever their manifests say."""
    if not (out.is_dir() and source.is_dir()):
        return False
    files, given = ([entry for entry in listing(path) if entry[0] != MANIFEST] for path in (out, source))
    return bool(files) and files == given and all(_same_bytes(out / name, source / name) for name, _ in files)


def _same_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; two empty ones are not a copy of each other."""
    if not (one.is_file() and other.is_file()) or not one.stat().st_size == other.stat().st_size > 0:
        return False
    return sha256_file(one) == sha256_file(other)


def _inodes(path: Path, *, follow: bool) -> set[tuple[int, int]]:
    """What a path and everything below it are to the file system; empty when nothing is there."""
    return {(found.st_dev, found.st_ino) for found in _stats(path, follow)}


def _stats(path: Path, follow: bool) -> Iterator[os.stat_result]:
    below = (os.path.join(root, name) for root, folders, files in os.walk(path) for name in (*folders, *files))
    for place in (str(path), *below):
        try:
            yield os.stat(place, follow_symlinks=follow)
        except OSError:  # a dangling link, or gone since it was listed: shares nothing
            continue
