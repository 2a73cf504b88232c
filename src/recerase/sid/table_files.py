"""SID tables in files: parquet as recerase writes it, and the JSON that other tools publish.

The one decision: a file is read to a `SidTable` whole or refused in a sentence; what it does not say (code sizes of a JSON table)
is taken as large as published tables are, never as small as the codes in use.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recerase.catalog.files import parquet_table, read_file
from recerase.errors import TableError
from recerase.sid.ids import as_text
from recerase.sid.schema import SCHEMA_FILE, SidSchema
from recerase.sid.table import SidTable, native_schema
from recerase.types import BoolArray, IntArray

TABLE_FILE = "sids.parquet"


TOMBSTONE = "recerase-tombstone-"
"""Begins the key of an entry in a JSON table that keeps a token in the token set; such an entry is no item."""


_MOST_LEVELS = 1024
"""Far above any recommender, and too few for one long SID of many short ones to fill the memory."""


def table_to_arrow(table: SidTable) -> pa.Table:
    """The content of sids.parquet: item_id, codes list<int32> (null without SID), listed, resolved."""
    offsets = np.concatenate([[0], np.cumsum(table.lengths)]).astype(np.int32)
    values = np.ascontiguousarray(table.codes[table.codes >= 0], np.int32)  # nothing lies under a null
    absent = pa.array(~table.present)
    return pa.table(
        {
            "item_id": as_text(table.item_ids),
            "codes": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=absent),
            "listed": pa.array(table.listed),
            "resolved": pa.array(table.resolved),
        }
    )


def arrow_to_table(data: pa.Table, schema: SidSchema | None = None, name: str = TABLE_FILE) -> SidTable:
    """The inverse of `table_to_arrow`; `listed` and `resolved` may be absent.

    L is the length of the longest SID, or the schema's levels where SIDs differ in length and none is that long.

    Raises:
        TableError: a column is missing or of the wrong kind, a SID is empty, or `SidTable.build` refuses.
    """
    for column in ("item_id", "codes"):
        if column not in data.column_names:
            raise TableError(
                f"{name} has no column {column}; found {', '.join(data.column_names) or 'none'}.",
                "A SID table has item_id (string) and codes (list of integers).",
            )
    try:
        ids = data["item_id"].cast(pa.string()).combine_chunks()
        lists = data["codes"].cast(pa.list_(pa.int32())).combine_chunks()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise TableError(f"{name}: {error!s:.120}.", "codes must be lists of integers, item_id strings.") from error
    lengths = np.asarray(lists.value_lengths().fill_null(-1))
    if lengths.max(initial=-1) < 0 or (lengths == 0).any() or ids.null_count:
        raise TableError(
            f"{name} holds no SIDs, an empty SID, or an item without an id.",
            "Give every SID a code at least, and every item an id; an item without a SID has null codes.",
        )
    values = lists.flatten()  # leaves out what lies under a null
    if values.null_count or pc.min(values).as_py() < 0:
        raise TableError(f"{name} holds a SID with a missing or negative code.", "Give every level a code from 0 up.")
    codes = _padded(values.to_numpy(), np.maximum(lengths, 0), 0 if schema is None else schema.levels)
    flags = {flag: _flags(data, flag, name) for flag in ("listed", "resolved") if flag in data.column_names}
    return SidTable.build(ids.to_numpy(zero_copy_only=False), codes, schema, **flags)


def _padded(values: IntArray, lengths: IntArray, levels: int) -> IntArray:
    """int32 [N, L] rows of `lengths` [N] of `values`, then -1. Where lengths differ, L is at least `levels`."""
    some = lengths[lengths > 0]
    width = int(some.max() if some.min() == some.max() else max(some.max(), levels))
    if width > _MOST_LEVELS:
        raise TableError(
            f"A SID has {width:,} codes, more than {_MOST_LEVELS}.", "Check the file: a SID has a few codes."
        )
    codes = np.full((len(lengths), width), -1, np.int32)
    codes[np.arange(width) < lengths[:, None]] = values
    return codes


def _flags(data: pa.Table, column: str, name: str) -> BoolArray:
    if data[column].type != pa.bool_() or data[column].null_count:
        raise TableError(f"{name}: column {column} must be true or false in every row.", "Correct or drop it.")
    return data[column].combine_chunks().to_numpy(zero_copy_only=False).astype(bool)


def read_table(path: str | Path, schema: SidSchema | None = None) -> SidTable:
    """The table in a directory's (or file's) sids.parquet, with the schema beside it unless one is given."""
    path = Path(path)
    file = path / TABLE_FILE if path.is_dir() else path
    if file.suffix == ".json":
        return read_json_table(file)
    if not file.is_file():
        raise TableError(f"There is no {file}.", "Make SIDs with `recerase tokenize`.")
    beside = file.parent / SCHEMA_FILE
    if schema is None and beside.is_file():
        schema = schema_of(read_file(beside), beside)
    return table_of(read_file(file), schema, file)


def schema_of(data: bytes, path: Path) -> SidSchema:
    """The schema in the content of a sid_schema.json. Raises TableError."""
    try:
        return SidSchema.from_json(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is not JSON.", "Write the SIDs again with `recerase tokenize`.") from error


def table_of(data: bytes, schema: SidSchema | None, path: Path) -> SidTable:
    """The table in the content of a sids.parquet. Raises TableError."""
    try:
        found = parquet_table(data, ("item_id", "codes", "listed", "resolved"))
    except ValueError as error:
        raise TableError(f"{path} cannot be read as parquet ({error}).", "Restore it, or tokenize again.") from error
    return arrow_to_table(found, schema, path.name)


_TOKEN = re.compile(r"^<?([a-z])_(\d{1,9})>?$")


def read_json_table(path: str | Path) -> SidTable:
    """A table published as JSON: {"item": ["<a_60>", "<b_159>", ...]} or {"item": [60, 159, ...]}.

    K_l is the largest code in use rounded up to a power of two, at least 256: the published files do not say it.
    Raises:
        TableError: not such a file.
    """
    path = Path(path)
    try:
        data = json.loads(read_file(path), object_pairs_hook=_unique)
        found = {str(k): v for k, v in data.items() if not str(k).startswith(TOMBSTONE)}
        ids = list(found)
        "".join(ids).encode()  # half a surrogate pair is no text
        sids = [[_code(t, level) for level, t in enumerate(v)] for v in found.values()]
        lengths = np.array([len(sid) for sid in sids], np.int64)
        values = np.array([code for sid in sids for code in sid], np.int64)
        if not len(sids) or not lengths.all() or values.max() >= 2**24:
            raise ValueError("there are none, one is empty, or a code is 2 ** 24 or more")
        codes = _padded(values, lengths, 0)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise TableError(
            f"{path} is not a SID table in JSON: {error!s:.120}.",
            'Expected {"item id": ["<a_1>", "<b_2>", ...]} or {"item id": [1, 2, ...]}.',
        ) from error
    sizes = [max(256, 1 << int(k).bit_length()) for k in codes.max(axis=0)]
    return SidTable.build(ids, codes, native_schema(codes, sizes))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an item is there twice")
    return found


def _code(token: Any, level: int) -> int:
    """The integer of one published token, which must name its own level."""
    if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
        return token
    match = _TOKEN.match(token) if isinstance(token, str) else None
    if match is None or ord(match[1]) - ord("a") != level:
        raise ValueError(f"{token!r:.40} is no code of level {level + 1}")
    return int(match[2])
