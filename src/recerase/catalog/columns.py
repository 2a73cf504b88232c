"""Parquet columns as the types of the data directory, so that a wrong file is refused in one sentence.

A cast is allowed when it loses nothing (an integer id becomes a string, a null column an empty one) and refused
when it would (a fractional id or timestamp, a price written as text): guessing is how audits read the wrong items.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recerase.catalog.files import parquet_names, parquet_table
from recerase.errors import DataError

ITEM_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("categories", pa.list_(pa.string())),
        pa.field("brand", pa.string()),
        pa.field("price", pa.float64()),
    ]
)
INTERACTION_SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("rating", pa.float64()),
    ]
)
_OPTIONAL = frozenset({"brand", "price", "rating"})


def table_of(data: bytes, schema: pa.Schema, path: Path) -> pa.Table:
    """The columns of `schema` from a parquet file's content, cast to it; extra columns are dropped. Raises DataError."""
    try:
        _require_columns(parquet_names(data), schema, path.name)
        table = parquet_table(data, schema.names)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as parquet ({error}).", "Write it again, or check the path.") from error
    return conform(table, schema, path.name)


def require_files(*paths: Path) -> None:
    """Raises DataError naming the first of `paths` that is no file."""
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"There is no file {path}.", "Give a data directory with items.parquet and interactions.parquet."
            )


def conform(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """`table` with exactly the columns of `schema`; `name` stands for it in errors.

    Raises DataError: a required column is missing or has nulls, a cast would lose something, there is no row.
    """
    _require_columns(table.column_names, schema, name)
    if table.num_rows == 0:
        raise DataError(f"{name} has no rows.", "Give a file that holds at least one row.")
    columns = [
        _cast(table[f.name], f, name) if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


def _require_columns(found: Sequence[str], schema: pa.Schema, name: str) -> None:
    missing = [f.name for f in schema if f.name not in found and f.name not in _OPTIONAL]
    if missing:
        raise DataError(
            f"{name} has no column {', '.join(missing)}; found {', '.join(found) or 'none'}.",
            "Rename the column, or import the files with one of the readers.",
        )
    twice = [f.name for f in schema if list(found).count(f.name) > 1]
    if twice:
        raise DataError(f"{name} has two columns {twice[0]}.", "Drop or rename one of them.")


def first_duplicate(column: pa.ChunkedArray) -> str | None:
    """The first value that occurs twice, if any."""
    counts = pc.value_counts(column)
    repeated = pc.filter(counts.field("values"), pc.greater(counts.field("counts"), 1))
    return repeated[0].as_py() if len(repeated) else None


def _cast(column: pa.ChunkedArray, field: pa.Field, name: str) -> pa.ChunkedArray:
    if not field.nullable and column.null_count:
        row = pc.index(column.is_null(), value=True).as_py()
        raise DataError(f"{name} has no {field.name} in row {row}.", "Fill it in, or remove the row.")
    refusal = DataError(
        f"Column {field.name} of {name} is {column.type}, which is not {field.type} without loss.",
        f"Store {field.name} as {field.type}.",
    )
    if not _may_cast(column.type, field.type):
        raise refusal
    try:
        return column.cast(field.type, safe=True)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise refusal from error


def _may_cast(source: pa.DataType, target: pa.DataType) -> bool:
    if pa.types.is_dictionary(source):
        source = source.value_type
    text = pa.types.is_string(source) or pa.types.is_large_string(source) or source == pa.string_view()
    if pa.types.is_null(source):
        return True
    if pa.types.is_string(target):
        return text or pa.types.is_integer(source)
    if pa.types.is_list(target):
        lists = pa.types.is_list(source) or pa.types.is_large_list(source)
        return bool(lists and _may_cast(source.value_type, target.value_type))
    if pa.types.is_integer(target):
        return pa.types.is_integer(source) or pa.types.is_floating(source) or pa.types.is_timestamp(source)
    return pa.types.is_integer(source) or pa.types.is_floating(source) or pa.types.is_decimal(source)


def texts(table: pa.Table, name: str) -> list[Any]:
    """A string column as Python strings, null as ''."""
    return pc.fill_null(table[name], "").to_pylist()
