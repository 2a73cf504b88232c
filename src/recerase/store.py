"""The only module that others write through, so that a result appears whole and verified, or not at all.

Files are written beside their target and renamed onto it after an fsync; directories are assembled in a staging directory
beside their target and renamed once every file in them is on disk and named, with its digest, in the manifest `recerase.json`.
Of several processes that share a command only the main one writes; in the others every function here that writes does nothing.
Something that is replaced changes places with the new one in a single step. What a killed run leaves goes with the next run to
the same target. `disk` has the system calls, `encoded` the bytes of a value, `outputs` the places that are refused.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from recerase.disk import (
    digest_of,
    listing,
    make_parents,
    plain_name,
    put,
    resolved,
    settle,
    sha256_file,
    staging_place,
    write_error,
    write_synced,
    write_synced_parts,
)
from recerase.encoded import canonical_json, pretty_json, sha256_bytes
from recerase.errors import ArtefactError, OutputError, WriteError
from recerase.outputs import MANIFEST, check_file_output, check_output
from recerase.parallel import workers

__all__ = [
    "MANIFEST",
    "append_text",
    "canonical_json",
    "check_file_output",
    "check_output",
    "parquet_bytes",
    "pretty_json",
    "publish",
    "read_bytes",
    "read_manifest",
    "read_run",
    "read_sealed",
    "sha256_bytes",
    "sha256_file",
    "verify_manifest",
    "write_bytes",
    "write_manifest",
    "write_parts",
    "write_sealed",
]

MANIFEST_SCHEMA = "recerase.manifest/1"
_MAKE_AGAIN = "Restore it, or make the directory again."
_SEAL = b"recerase-seal/1\n"
"""The last bytes of a sealed file; before them the sha256 of what it holds."""


def parquet_bytes(table: Any, compression: str = "zstd", **settings: Any) -> bytes:
    """A pyarrow table as the bytes of a parquet file; equal tables give equal bytes under one pyarrow version.

    `settings` are those of pyarrow's write_table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=compression, **settings)
    return bytes(sink.getvalue().to_pybytes())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> str:
    """Replace `path` by `data` atomically and return its sha256, read back from the disk.

    The bytes go to a staging file in the same directory (mode 0666 & ~umask), are fsynced, renamed onto `path`, and the directory
    is fsynced; of several processes that write one path, the last wins. Raises WriteError, and leaves what was at `path` as it was,
    when any step fails.
    """
    digest = sha256_bytes(data)

    def write(staging: Path) -> str:
        write_synced(staging, data)
        return digest

    return _replace(Path(path), write) if workers().main else digest


def write_parts(path: str | os.PathLike[str], parts: Iterable[bytes]) -> str:
    """`write_bytes` for content that comes in parts and is never held whole. Nothing is asked of `parts` where nothing is written."""
    return _replace(Path(path), lambda staging: write_synced_parts(staging, parts)) if workers().main else ""


def _replace(path: Path, write: Callable[[Path], str]) -> str:
    """Put at `path` what `write` makes at a place beside it, and return the sha256 that it tells; see `write_bytes`."""
    target = resolved(path)
    try:
        with staging_place(target, wait=True) as staging:
            if target.is_dir() and not target.is_symlink():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            digest = write(staging)
            if digest_of(staging) != digest:
                raise WriteError(
                    f"{path} did not read back as it was written.", "Check the disk; nothing was replaced."
                )
            put(staging, target, replace=True)
    except OSError as error:
        raise write_error(path, error) from error
    return digest


def write_sealed(path: str | os.PathLike[str], data: bytes) -> str:
    """`write_bytes` for a file that vouches for itself: after `data` come its sha256 and a magic word.

    Returns the sha256 of `data`. For files that no manifest names (the state of an interrupted run).
    """
    digest = hashlib.sha256(data)
    write_parts(path, (data, digest.digest() + _SEAL))
    return digest.hexdigest()


def read_sealed(path: str | os.PathLike[str]) -> bytes:
    """What `write_sealed` was given. Raises ArtefactError when a bit was flipped, or a byte is missing or added."""
    content = read_bytes(path)
    end = len(content) - len(_SEAL) - 32
    if end < 0 or content[end + 32 :] != _SEAL:
        raise ArtefactError(f"{path} does not end in its seal: it was cut short or changed.", "Remove it.")
    data = content[:end]
    if hashlib.sha256(data).digest() != content[end : end + 32]:
        raise ArtefactError(f"{path} is not what its seal says: its sha256 differs.", "Remove it.")
    return data


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A file's content; raises ArtefactError when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions.") from error


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Add `text` at the end of a file that others append to as well (a CI step summary). Raises WriteError."""
    if not workers().main:
        return
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise write_error(Path(path), error) from error


class publish:
    """A directory that appears at `out` whole, when the `with` block ends without an exception, or not at all.

    Fill `directory` (inside the block), set `provenance`, and `run` where there is something that no two runs share (what a
    clock says); the manifest with every file's digest is written on leaving.
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
        self.run: dict[str, Any] = {}
        self.directory = self.out
        self.manifest: dict[str, Any] = {}
        self._target = self.out
        self._kept = True
        self._cleanup = contextlib.ExitStack()

    def discard(self) -> None:
        """End the block without publishing: what was made is not to be had (a rule failed)."""
        self._kept = False

    def __enter__(self) -> publish:
        if not workers().main:  # `directory` is the main process's business: nothing is read or written there
            return self
        self._check()
        self._target = resolved(self.out)
        try:
            with contextlib.ExitStack() as cleanup:
                cleanup.callback(_remove_empty, make_parents(self._target.parent))
                self.directory = cleanup.enter_context(staging_place(self._target, wait=False))
                self._check()  # again: a killed run may have left the old directory to be put back
                self.directory.mkdir()
                self._cleanup = cleanup.pop_all()
        except BlockingIOError as error:
            raise OutputError(
                f"Another run is writing to --out {self.out}.", "Wait for it to end, or name another."
            ) from error
        except OSError as error:
            raise write_error(self.out, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._cleanup:
            if isinstance(error, WriteError):
                error.message = self._public(error.message)
            if kind is None and self._kept and workers().main:
                self._finish()

    def _finish(self) -> None:
        try:
            self.manifest = write_manifest(self.directory, self.provenance, self.run)
            settle(self.directory)
            verify_manifest(self.directory)
            self._check()
            put(self.directory, self._target, replace=self.force)
        except FileExistsError as error:
            raise OutputError(f"--out {self.out} was made by another run meanwhile.", "Name another.") from error
        except OSError as error:
            raise write_error(self.out, error) from error
        except WriteError as error:
            raise WriteError(self._public(error.message), error.remedy) from error
        except ArtefactError as error:  # what was just written does not read back
            raise WriteError(self._public(error.message), "Nothing was replaced; check the disk.") from error

    def _public(self, message: str) -> str:
        """A message about the staging directory, which the reader will not find, as one about where it was to appear."""
        return message.replace(str(self.directory), str(self.out))

    def _check(self) -> None:
        check_output(self.out, inputs=self.inputs, force=self.force)


def write_manifest(
    directory: str | os.PathLike[str], provenance: Mapping[str, Any], run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Name every file under `directory` with its size and sha256 in recerase.json; returns it as `read_manifest` does.

    `run` is written beside it and is no part of its digest, so that equal runs have equal manifests; `seal` is over both.
    """
    directory = Path(directory)
    if not workers().main:
        return {}
    files = {
        name: {"bytes": size, "sha256": sha256_file(directory / name)}
        for name, size in listing(directory)
        if name != MANIFEST
    }
    manifest: dict[str, Any] = {"schema": MANIFEST_SCHEMA, "files": files, "provenance": dict(provenance)}
    manifest["digest"] = _manifest_digest(manifest)
    whole = {**manifest, "run": dict(run)} if run else manifest
    sealed = {**whole, "seal": sha256_bytes(canonical_json(whole))} if run else whole
    write_bytes(directory / MANIFEST, pretty_json(sealed))
    return manifest


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What recerase.json in `directory` says, but for `run`. Raises ArtefactError when it is missing or not as recerase wrote it.

    Not one byte may differ from what `write_manifest` writes, so that no change goes unseen, not even in white space.
    """
    return _opened_manifest(directory)[0]


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What recerase.json says that is of one run only, such as seconds; {} where it says nothing. Raises: as `read_manifest`."""
    return _opened_manifest(directory)[1]


def _opened_manifest(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    path = _inside(Path(directory), MANIFEST)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(
            f"{directory} has no readable {MANIFEST}: {error.strerror}.", "Give a directory that recerase wrote."
        ) from error
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is not JSON: {error}.", _MAKE_AGAIN) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != MANIFEST_SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise ArtefactError(f"{path} has schema {found!r}, not {MANIFEST_SCHEMA!r}.", "Use the recerase that wrote it.")
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("provenance"), dict):
        raise ArtefactError(f"{path} names no files.", _MAKE_AGAIN)
    try:
        unchanged = pretty_json(manifest) == content
        beside = {name: manifest.pop(name) for name in ("run", "seal") if name in manifest}
        run = beside.get("run", {})
        seal = sha256_bytes(canonical_json({**manifest, "run": run}))
        unchanged &= not beside or (isinstance(run, dict) and beside == {"run": run, "seal": seal})
        unchanged &= manifest.get("digest") == _manifest_digest(manifest)
    except (ValueError, RecursionError):
        unchanged = False
    if not unchanged:
        raise ArtefactError(f"{path} is not as it was written: its digest differs.", _MAKE_AGAIN)
    return manifest, run


def verify_manifest(directory: str | os.PathLike[str], needed: Iterable[str] = ()) -> None:
    """Read every file the manifest names; raise ArtefactError naming the first that is missing or has changed.

    `needed` are names that somebody is about to read: a manifest that does not list them does not vouch for them.
    """
    directory = Path(directory)
    files = read_manifest(directory)["files"]
    for name in needed:
        if name not in files:
            raise ArtefactError(f"{directory / name} is not vouched for: {MANIFEST} does not name it.", _MAKE_AGAIN)
    for name, entry in files.items():
        path = _inside(directory, name)
        if not os.path.isfile(path):  # Path.is_file raises on a name that no file can have
            raise ArtefactError(f"{path!s:.300} is missing, though {MANIFEST} names it.", _MAKE_AGAIN)
        found = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        if entry != found:
            raise ArtefactError(f"{path} is not what {MANIFEST} says: its size or sha256 differs.", _MAKE_AGAIN)


def _inside(directory: Path, name: str) -> Path:
    """Where a manifest's file is. Raises ArtefactError unless the name is plain and stays below the directory, links followed."""
    if not plain_name(name):
        raise ArtefactError(f"{directory / MANIFEST} names {name!r}, which is no file of this directory.", _MAKE_AGAIN)
    path = directory / name
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory)):
        raise ArtefactError(f"{path} is a link that leaves {directory}.", "Copy the file into the directory.")
    return path


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json({key: value for key, value in manifest.items() if key != "digest"}))


def _remove_empty(directories: Iterable[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # in use by now: the result is in it
            directory.rmdir()
