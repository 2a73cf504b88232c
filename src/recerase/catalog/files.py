"""Bytes that are checked before they are parsed, and parquet that cannot be larger than it has any right to be.

What was compared with the manifest is what is parsed, so nothing can change in between: small files are read whole, tensors are
hashed in the memory that is then used (`reading_verified`). Parquet can say a billion rows, or one long text a million times, in
a kilobyte; both are counted before they are unfolded.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recerase.errors import ArtefactError
from recerase.store import MANIFEST, read_bytes, read_manifest, sha256_bytes, verify_manifest

_FREE_ROWS, _ROWS_A_BYTE = 4_000_000, 16
"""Rows a parquet file may hold whatever its size, and further ones a byte of it: real tables need bytes for a row."""
_FREE_TEXT, _TEXT_A_BYTE = 64 << 20, 64
"""Likewise, bytes of text once repetitions are written out."""
_BLOCK = 1 << 20
"""Bytes read and hashed at once."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)


def read_verified(directory: Path, names: Iterable[str], manifest: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The content of `names` in a directory with a manifest, each as the manifest says.

    `manifest` is what it says to one who has called `verify_manifest` already. Raises ArtefactError: there is none, it does not
    name one of them, or any file it names has changed.
    """
    names = list(names)
    if manifest is None:
        verify_manifest(directory, needed=names)
        manifest = read_manifest(directory)
    return {name: _checked(directory / name, manifest["files"].get(name)) for name in names}


class Verified:
    """A file that is read once, front to back, and hashed on the way: made and judged by `reading_verified`."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._file, self._sha256 = file, hashlib.sha256()

    def read(self, count: int) -> bytes:
        """The next `count` bytes."""
        held = bytearray(count)
        self.fill(memoryview(held))
        return bytes(held)

    def fill(self, memory: memoryview) -> None:
        """The next `len(memory)` bytes, put there and hashed from there. Raises ArtefactError when there are fewer."""
        for begin in range(0, len(memory), _BLOCK):
            block = memory[begin : begin + _BLOCK]
            done = 0
            while done < len(block):
                got = self._file.readinto(block[done:])
                if not got:
                    raise ArtefactError(
                        f"{self.path} became shorter while it was read.", "Restore it, or make it again."
                    )
                done += got
            self._sha256.update(block)

    def sha256(self) -> str:
        """The digest of the whole file, what nobody has read yet included."""
        for rest in iter(lambda: self._file.read(_BLOCK), b""):
            self._sha256.update(rest)
        return self._sha256.hexdigest()


@contextmanager
def reading_verified(directory: Path, name: str, manifest: Mapping[str, Any]) -> Iterator[Verified]:
    """A file to be read in the block straight into the memory that will be used, so that nothing holds it twice.

    Call `verify_manifest` before, and believe nothing of it until the block has ended: only then is it known to be what the
    manifest says. Raises ArtefactError when it is not; that goes before a ValueError of the block.
    """
    path = directory / name
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below; only its opening may fail here
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions.") from error
    with file:
        reader = Verified(path, file)
        try:
            try:
                yield reader
            except ValueError:
                _check(path, manifest["files"].get(name), reader.sha256())
                raise
            _check(path, manifest["files"].get(name), reader.sha256())
        except OSError as error:
            raise ArtefactError(
                f"Cannot read {path}: {error.strerror or error}.", "Check the disk, or restore the file."
            ) from error


def read_file(path: Path) -> bytes:
    """One file's content, checked where a manifest beside it names it. Raises ArtefactError."""
    if not (path.parent / MANIFEST).is_file():
        return read_bytes(path)
    files = read_manifest(path.parent)["files"]
    return _checked(path, files[path.name]) if path.name in files else read_bytes(path)


def read_data(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The content of `names` in a directory that has a manifest when recerase made it, and none when its user did."""
    if os.path.lexists(directory / MANIFEST):
        return read_verified(directory, names)
    return {name: read_bytes(directory / name) for name in names}


def parquet_names(data: bytes) -> list[str]:
    """The names of a parquet file's columns, in its order. Raises ValueError as `parquet_table` does."""
    try:
        return list(pq.read_schema(pa.BufferReader(data)).names)
    except _UNREADABLE as error:
        raise _reason(error) from error


def parquet_table(data: bytes, columns: Iterable[str] | None = None) -> pa.Table:
    """The table in a parquet file, or those of `columns` that it has; texts are plain strings, and valid UTF-8.

    Raises ValueError, saying why in a few words: damaged, a column twice, or far more content than a file of this size holds.
    """
    try:
        metadata = pq.read_metadata(pa.BufferReader(data))
        _refuse_too_many(metadata, len(data))
        leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts, metadata=metadata)
        names = file.schema_arrow.names
        chosen = names if columns is None else [name for name in columns if name in names]
        twice = [name for name in chosen if names.count(name) > 1]
        if twice:
            raise ValueError(f"it has two columns {twice[0]}")
        table = file.read(columns=chosen)
        table.validate(full=True)
        limit = _FREE_TEXT + _TEXT_A_BYTE * len(data)
        return pa.table({name: _plain(table[name], limit) for name in chosen})
    except _UNREADABLE as error:
        raise _reason(error) from error


def _reason(error: BaseException) -> ValueError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(f"{lines[0]:.160}")


def _checked(path: Path, entry: Any) -> bytes:
    data = read_bytes(path)
    _check(path, entry, sha256_bytes(data))
    return data


def _check(path: Path, entry: Any, digest: str) -> None:
    if not isinstance(entry, dict) or digest != entry.get("sha256"):
        raise ArtefactError(f"{path} is not what {MANIFEST} says: its sha256 differs.", "Restore it, or make it again.")


def _refuse_too_many(metadata: pq.FileMetaData, size: int) -> None:
    # Of a row group only its own figures are asked: pyarrow ends the process on the columns of a damaged one.
    rows = sum(metadata.row_group(place).num_rows for place in range(metadata.num_row_groups))
    if max(rows, metadata.num_rows) > _FREE_ROWS + _ROWS_A_BYTE * size:
        raise ValueError(f"it claims {max(rows, metadata.num_rows):,} rows in {size:,} bytes")


def _plain(column: pa.ChunkedArray, limit: int) -> pa.ChunkedArray:
    """A column of dictionary-encoded texts (or lists of them) with every text written out."""
    kind = column.type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if nested else kind
    if not pa.types.is_dictionary(inner):
        return column
    for chunk in column.chunks:
        texts = chunk.flatten() if nested else chunk
        limit -= pc.sum(pc.take(pc.binary_length(texts.dictionary), texts.indices)).as_py() or 0
    if limit < 0:
        raise ValueError("its repeated texts would fill the memory")
    return column.cast(pa.list_(inner.value_type) if nested else inner.value_type)
