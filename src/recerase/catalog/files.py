"""Bytes that are checked before they are parsed, and parquet that cannot be larger than it has any right to be.

A file is read once: what was compared with the manifest is what is parsed, so nothing can change in between. Parquet can
say a billion rows, or one long text a million times, in a kilobyte; both are counted before they are unfolded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
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
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)


def read_verified(directory: Path, names: Iterable[str], manifest: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The content of `names` in a directory with a manifest, each as the manifest (as already read, or read here) says.

    Raises ArtefactError: there is no manifest, it does not name one of them, or any file it names has changed.
    """
    names = list(names)
    verify_manifest(directory, needed=names)
    files = (manifest or read_manifest(directory))["files"]
    return {name: _checked(directory / name, files.get(name)) for name in names}


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
    if not isinstance(entry, dict) or sha256_bytes(data) != entry.get("sha256"):
        raise ArtefactError(f"{path} is not what {MANIFEST} says: its sha256 differs.", "Restore it, or make it again.")
    return data


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
