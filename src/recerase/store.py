"""The only module that opens a file for writing, so that a result appears whole and verified, or not at all.

Files are written beside their target and renamed onto it after an fsync; directories are assembled in a staging
directory beside their target and renamed once every file in them is on disk and named, with its digest, in the
manifest `recerase.json`. A killed run leaves a staging directory behind, which the next run to the same target removes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from recerase.errors import ArtefactError, OutputError, WriteError

MANIFEST = "recerase.json"
MANIFEST_SCHEMA = "recerase.manifest/1"
_STALE_SECONDS = 60.0
_CHUNK = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """The hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The hex digest of a file's content; raises ArtefactError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions.") from error


def canonical_json(value: Any) -> bytes:
    """`value` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ValueError on NaN or infinity, which JSON cannot say.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def pretty_json(value: Any) -> bytes:
    """`value` as indented JSON with sorted keys, for files that people open."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()


def parquet_bytes(table: Any) -> bytes:
    """A pyarrow table as the bytes of a parquet file; equal tables give equal bytes under one pyarrow version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> str:
    """Replace `path` by `data` atomically and return its sha256, read back from the disk.

    The bytes go to a temporary file in the same directory (mode 0666 & ~umask), are fsynced, renamed onto `path`,
    and the directory is fsynced. Raises WriteError (and leaves what was at `path` as it was) when any step fails.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.recerase-{os.getpid()}-{secrets.token_hex(4)}")
    digest = sha256_bytes(data)
    try:
        _write_synced(temporary, data)
        if sha256_file(temporary) != digest:
            raise WriteError(f"{path} did not read back as it was written.", "Check the disk; nothing was replaced.")
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Add `text` at the end of a file that others append to as well (a CI step summary). Raises WriteError."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _write_error(Path(path), error) from error


class publish:
    """A directory that appears at `out` whole, when the `with` block ends without an exception, or not at all.

    Fill `directory` (inside the block), set `provenance`; the manifest with every file's digest is written on leaving.
    `force` replaces a directory that recerase wrote before. Raises OutputError before any work when `out` exists,
    or is, holds, or lies inside one of `inputs` (symlinks resolved); WriteError when the disk refuses.

        with publish(Path("sids"), inputs=[items]) as result:
            write_bytes(result.directory / "sids.parquet", data)
            result.provenance = {"command": "tokenize"}
    """

    def __init__(
        self, out: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = (), force: bool = False
    ) -> None:
        self.out = Path(out)
        self.inputs = tuple(Path(path) for path in inputs)
        self.force = force
        self.provenance: dict[str, Any] = {}
        self.directory = self.out
        self.manifest: dict[str, Any] = {}
        self._lock: int | None = None
        self._kept = True

    def discard(self) -> None:
        """End the block without publishing: what was made is not to be had (a rule failed)."""
        self._kept = False

    def __enter__(self) -> publish:
        check_output(self.out, inputs=self.inputs, force=self.force)
        parent = self.out.absolute().parent
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent, self.out.name)
            self.directory = parent / f".{self.out.name}.recerase-{os.getpid()}-{secrets.token_hex(4)}"
            self.directory.mkdir()
            self._lock = os.open(self.directory, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _write_error(self.out, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._kept:
                self._finish()
        except OSError as problem:
            raise _write_error(self.out, problem) from problem
        finally:
            if self.directory != self.out:
                shutil.rmtree(self.directory, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)

    def _finish(self) -> None:
        self.manifest = write_manifest(self.directory, self.provenance)
        _sync_tree(self.directory)
        verify_manifest(self.directory)
        check_output(self.out, inputs=self.inputs, force=self.force)
        replaced = None
        if os.path.lexists(self.out):
            replaced = self.directory.with_name(self.directory.name + "-replaced")
            os.rename(self.out, replaced)
        try:
            os.rename(self.directory, self.out)
        except OSError:
            if replaced is not None:
                os.rename(replaced, self.out)
            raise
        _sync_directory(self.out.absolute().parent)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)


def check_output(
    out: str | os.PathLike[str], *, inputs: Sequence[str | os.PathLike[str]] = (), force: bool = False
) -> None:
    """Raise OutputError unless a directory may be published at `out` without touching any of `inputs`."""
    out = Path(out)
    target = Path(os.path.realpath(out))
    for path in inputs:
        source = Path(os.path.realpath(path))
        if target == source or target.is_relative_to(source) or source.is_relative_to(target):
            raise OutputError(
                f"--out {out} is, holds, or lies inside the input {path}.", "Inputs are never written to; name another."
            )
    if not os.path.lexists(out):
        return
    if not force:
        raise OutputError(f"--out {out} exists already.", "Name another, remove it, or pass --force to replace it.")
    if out.is_symlink() or not (out / MANIFEST).is_file():
        raise OutputError(
            f"--out {out} was not written by recerase (it has no {MANIFEST}).", "Remove it yourself, or name another."
        )


def write_manifest(directory: str | os.PathLike[str], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Name every file under `directory` with its size and sha256 in recerase.json; returns what was written."""
    directory = Path(directory)
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST)
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
    manifest = {"schema": MANIFEST_SCHEMA, "files": files, "provenance": dict(provenance)}
    write_bytes(directory / MANIFEST, pretty_json(manifest))
    return manifest


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What recerase.json in `directory` says. Raises ArtefactError when it is missing or cannot be read."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtefactError(
            f"{directory} has no readable {MANIFEST}: {error.strerror}.", "Give a directory that recerase wrote."
        ) from error
    except ValueError as error:
        raise ArtefactError(f"{path} is not JSON: {error}.", "Make the directory again.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != MANIFEST_SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtefactError(f"{path} has schema {found!r}, not {MANIFEST_SCHEMA!r}.", "Use the recerase that wrote it.")
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("provenance"), dict):
        raise ArtefactError(f"{path} names no files.", "Make the directory again.")
    return manifest


def verify_manifest(directory: str | os.PathLike[str]) -> None:
    """Read every file the manifest names; raise ArtefactError naming the first that is missing or has changed."""
    directory = Path(directory)
    for name, entry in read_manifest(directory)["files"].items():
        path = directory / name
        if not path.is_file():
            raise ArtefactError(f"{path} is missing, though {MANIFEST} names it.", "Restore it, or make it again.")
        if not isinstance(entry, dict) or sha256_file(path) != entry.get("sha256"):
            raise ArtefactError(
                f"{path} is not what {MANIFEST} says: its sha256 differs.", "Restore it, or make it again."
            )


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    with open(descriptor, "wb") as file:
        for start in range(0, len(data), _CHUNK):
            file.write(data[start : start + _CHUNK])
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for root, _, names in os.walk(directory):
        for name in names:
            _sync_directory(Path(root) / name)
        _sync_directory(Path(root))


def _remove_abandoned(parent: Path, name: str) -> None:
    """Remove staging directories of `name` whose process is gone: nobody holds their lock, and they are not new."""
    for path in parent.glob(f".{name}.recerase-*"):
        if not path.is_dir() or path.is_symlink() or time.time() - path.stat().st_mtime < _STALE_SECONDS:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _write_error(path: Path, error: OSError) -> WriteError:
    remedy = "Nothing was replaced; free some space." if error.errno == errno.ENOSPC else "Nothing was replaced."
    return WriteError(f"Cannot write {path}: {error.strerror or error}.", remedy)
