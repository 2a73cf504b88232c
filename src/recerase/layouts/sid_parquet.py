"""Parquet files of other tools that carry SIDs: tables (an id and its codes), and texts.

The one decision: of a file that is rewritten all but the SIDs stays: schema with its metadata, other columns, row groups and
compression. A file in which nothing moved is not rewritten at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recerase.catalog.files import parquet_names, parquet_table
from recerase.errors import TableError
from recerase.layouts.index_json import IndexFile
from recerase.store import parquet_bytes, read_bytes, sha256_bytes
from recerase.types import IntArray

ITEM, CODES = "pid", ("codes", "sid")
"""Columns of a table: infer_res_kmeans.py of OpenOneRec writes `codes`, its data/onerec_data scripts read `sid`."""
_MOST_CODE = 1 << 22


def table_names(path: Path) -> list[str]:
    """Names of the parquet files of a directory that are SID tables, by their columns."""
    return [file.name for file in sorted(path.glob("*.parquet")) if codes_column(column_names(file)) is not None]


def column_names(file: Path) -> list[str]:
    """The columns of a parquet file; none where it is none."""
    try:
        return list(pq.read_schema(file).names)
    except (pa.ArrowException, OSError, ValueError):
        return []


def codes_column(names: Sequence[str]) -> str | None:
    """The column of codes of a table with these columns; None when it is no SID table."""
    found = [name for name in CODES if name in names]
    return found[0] if ITEM in names and len(found) == 1 else None


def read_sid_parquet(path: Path) -> IndexFile:
    """A SID table in parquet. Raises TableError when it is none."""
    data = read_bytes(path)
    try:
        column = codes_column(parquet_names(data))
        if column is None:
            raise ValueError(f"it needs a column {ITEM} and one of {' and '.join(CODES)}")
        found = parquet_table(data, (ITEM, column))
        items = [str(item) for item in found[ITEM].to_pylist()]
        if not items or found[ITEM].null_count or len(set(items)) != len(items):
            raise ValueError(f"its {ITEM} are none, or not all different")
        codes = _codes(found[column].combine_chunks())
    except ValueError as error:
        raise TableError(
            f"{path} is not a SID table: {error!s:.160}.", "Expected parquet with pid, and codes as lists of numbers."
        ) from error
    kept = np.empty((0, codes.shape[1]), np.int32)
    return IndexFile(path, sha256_bytes(data), tuple(items), codes, tokens=True, kept=kept)


def _codes(column: Any) -> IntArray:
    """Lists of one length as int32 [N, L]. Raises ValueError."""
    kind = column.type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"its codes are {kind}, and no lists")
    flat = column.flatten()
    if not pa.types.is_integer(flat.type) or column.null_count or flat.null_count:
        raise ValueError("its codes are not all whole numbers")
    levels = len(flat) // len(column)
    lengths = column.value_lengths() if not fixed else pa.array([kind.list_size])
    if not levels or len(lengths.unique()) != 1 or len(flat) != levels * len(column):
        raise ValueError("its SIDs are not all of one length")
    values = np.asarray(flat).reshape(len(column), levels)
    if int(values.min()) < 0 or int(values.max()) >= _MOST_CODE:
        raise ValueError(f"its codes reach from {values.min()} to {values.max()}")
    return values.astype(np.int32)


def with_codes(data: bytes, codes: IntArray, column: str | None = None) -> bytes:
    """The table with other codes int [N, L], in its own order; the file itself when they are its own.

    `column` holds them; default: that of a table of OpenOneRec.
    """
    table = _whole(data)
    column = column or codes_column(table.column_names)
    assert column is not None
    if np.array_equal(_codes(table[column].combine_chunks()), codes):
        return data
    place, kind = table.column_names.index(column), table.schema.field(column).type
    flat = pa.array(codes.reshape(-1).astype(np.int64)).cast(kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        lists = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    else:
        offsets = np.arange(len(codes) + 1, dtype=np.int64) * codes.shape[1]
        family = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
        starts = pa.array(offsets, pa.int64() if family is pa.LargeListArray else pa.int32())
        lists = family.from_arrays(starts, flat, type=kind)
    return _written(table.set_column(place, table.schema.field(place), lists), data)


def texts_of(data: bytes, path: Path) -> dict[str, list[Any]]:
    """Columns of texts, or lists and records of texts, as Python values. Raises TableError when it is no parquet."""
    try:
        found = parquet_table(data)
    except ValueError as error:
        raise TableError(f"{path} cannot be read: {error!s:.160}.", "Restore it.") from error
    return {name: found[name].to_pylist() for name in found.column_names if holds_text(found.schema.field(name).type)}


def holds_text(kind: Any) -> bool:
    """Whether values of an arrow type have texts in them."""
    if pa.types.is_dictionary(kind):
        return holds_text(kind.value_type)
    inner = any(holds_text(kind.field(at).type) for at in range(kind.num_fields))
    return inner or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def with_columns(data: bytes, columns: Mapping[str, Sequence[Any]]) -> bytes:
    """The file with other values in some columns, types kept; the file itself when there are none."""
    table = _whole(data)
    for name, values in columns.items():
        place = table.column_names.index(name)
        made = pa.array(values, table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), made)
    return _written(table, data) if columns else data


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A value of a column with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return type(value)(replaced(inner, change) for inner in value)
    if isinstance(value, dict):
        return {name: replaced(inner, change) for name, inner in value.items()}
    return value


def _whole(data: bytes) -> pa.Table:
    """All of a file that `parquet_table` has read before, with its own types and metadata."""
    return pq.ParquetFile(pa.BufferReader(data)).read()


def _written(table: pa.Table, like: bytes) -> bytes:
    """A table as parquet, with compression and row groups of the file `like`."""
    old = pq.read_metadata(pa.BufferReader(like))
    group = old.row_group(0)
    compression = group.column(0).compression.lower().replace("uncompressed", "none")
    return parquet_bytes(table, compression, row_group_size=max(1, group.num_rows), version=old.format_version)
