"""A catalogue in many parquet files, read a block at a time: what does not fit into memory is never in it.

The one decision: rows are numbered through all files in the order of their names, and a block is cut from these numbers, not from
files or row groups. So nothing that is computed a block at a time depends on how the rows were cut into files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recerase.catalog.columns import ITEM_SCHEMA, conform
from recerase.catalog.files import _plain, _refuse_too_many
from recerase.errors import DataError
from recerase.store import MANIFEST, verify_manifest
from recerase.types import FloatArray, IntArray

ID, VECTOR = "item_id", "vector"
WORDS = ("title", "description", "categories", "brand")
_BUFFER = 1 << 20
"""Bytes of a column read ahead: a row group may be as large as its file."""
_BATCH, _NUMBERS = 8192, 1 << 22
"""Rows read at once, out of which blocks are put together; fewer where they would be more than so many numbers."""
_WIDEST = 1 << 16
"""Numbers in a vector at most."""
_FREE_TEXT, _TEXT_A_BYTE = 64 << 20, 64
"""Bytes of text that so many rows may unfold to, and further ones a byte of the file."""
_UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError)


class Block(NamedTuple):
    """Rows that follow each other."""

    start: int
    """Number of the first, among the rows of all files."""
    ids: pa.Array
    """[n] strings, none of them null or empty."""
    vectors: FloatArray
    """float32 [n, D]"""


@dataclass(frozen=True)
class _File:
    path: Path
    rows: int
    groups: tuple[int, ...]
    """Rows of each row group."""
    columns: tuple[str, ...]
    texts: tuple[str, ...]
    """Paths of the columns that hold text."""
    stamp: tuple[int, ...]
    """What changes when the file does; first the size in bytes."""

    @classmethod
    def open(cls, path: Path) -> _File:
        try:
            stamp = _stamp(path)
            with open(path, "rb") as file:
                metadata = pq.read_metadata(file)
            _refuse_too_many(metadata, stamp[0])
            columns = tuple(metadata.schema.to_arrow_schema().names)
            leaves = [metadata.schema.column(place) for place in range(metadata.num_columns)]
            texts = tuple(leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY")
            groups = tuple(metadata.row_group(place).num_rows for place in range(metadata.num_row_groups))
            if sum(groups) != metadata.num_rows or min(groups, default=0) < 0:
                raise ValueError(f"its row groups do not make up the {metadata.num_rows:,} rows it claims")
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        return cls(path, sum(groups), groups, columns, texts, stamp)

    def check(self) -> None:
        """Raises DataError when the file is no longer what was opened."""
        try:
            same = _stamp(self.path) == self.stamp
        except OSError:
            same = False
        if not same:
            raise DataError(f"{self.path} changed while it was being read.", "Run again when nobody writes to it.")

    def tables(self, columns: Sequence[str], start: int, stop: int, batch_rows: int = _BATCH) -> Iterator[pa.Table]:
        """Rows start to stop of the file, as they come: `batch_rows` at a time. What the footer claims and is not there is told."""
        ends = np.cumsum(self.groups)
        begins = ends - np.asarray(self.groups)
        groups = np.flatnonzero((ends > start) & (begins < stop))
        if not len(groups):
            return
        at = int(begins[groups[0]])
        limit = _FREE_TEXT + _TEXT_A_BYTE * self.stamp[0]
        try:
            self.check()
            with pq.ParquetFile(self.path, buffer_size=_BUFFER, read_dictionary=list(self.texts)) as file:
                for batch in file.iter_batches(batch_rows, groups.tolist(), list(columns)):
                    batch.validate(full=True)
                    table = pa.table({name: _plain(pa.chunked_array([batch[name]]), limit) for name in columns})
                    low, high = max(start - at, 0), min(stop - at, len(batch))
                    at += len(batch)
                    if low < high:
                        yield table.slice(low, high - low)
            if at != ends[groups[-1]]:
                raise ValueError(f"its rows end at {at:,}, of {ends[groups[-1]]:,} that it claims")
            self.check()
        except _UNREADABLE as error:
            raise _unreadable(self.path, error) from error


@dataclass(frozen=True)
class Dataset:
    """Rows of one parquet file or of all in a directory, in the order of the files' names; nothing of them is held."""

    path: Path
    files: tuple[_File, ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Dataset:
        """The files and their row counts, from their footers.

        Raises DataError: no such file, no parquet file, one that cannot be read, no rows, a column missing, files in
        sub-directories; and ArtefactError when a manifest stands beside the files and says otherwise.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"There is no file or directory {path}.", "Check the path.")
        found = parquet_files(path)
        if not found:
            raise DataError(f"{path} holds no parquet file.", "Give a parquet file, or a directory of them.")
        home = path if path.is_dir() else path.parent
        if os.path.lexists(home / MANIFEST):
            verify_manifest(home, needed=[file.name for file in found] if path.is_dir() else [])
        data = cls(path, tuple(file for file in map(_File.open, found) if file.rows))
        if not data.files:
            raise DataError(f"{path} has no rows.", "Give files that hold at least one row.")
        data.require(ID)
        return data

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def has(self, column: str) -> bool:
        """Whether some file has a column; `require` then says whether all have."""
        return any(column in file.columns for file in self.files)

    def tables(self, columns: Sequence[str], size: int, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """Rows start to stop, `size` at a time and fewer at the end, each column in one chunk; file limits do not show."""
        held: list[pa.Table] = []
        waiting = 0
        for table in self._pieces(columns, start, len(self) if stop is None else stop):
            while waiting + len(table) >= size:
                head = table.slice(0, size - waiting)
                table = table.slice(len(head))
                yield _joined([*held, head])
                held, waiting = [], 0
            if len(table):
                held.append(table)
                waiting += len(table)
        if held:
            yield _joined(held)

    def ids(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pa.Array]:
        """Their item ids: arrays of strings. Raises DataError for an id that is missing, empty, or no text or integer."""
        for table in self.tables([ID], size, start, stop):
            yield table[ID].chunk(0)

    def vectors(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[FloatArray]:
        """Their embeddings: float32 [size, D]. Raises DataError: lists of other widths, nulls, no numbers."""
        for table in self.tables([VECTOR], size, start, stop):
            yield _numbers(table)

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Ids and embeddings together, checked as by `ids` and `vectors`, and that every number is finite."""
        at = start
        for table in self.tables([ID, VECTOR], size, start, stop):
            vectors = _numbers(table)
            self._require_finite(vectors, at)
            yield Block(at, table[ID].chunk(0), vectors)
            at += len(table)

    def rows(self, chosen: IntArray, columns: Sequence[str]) -> pa.Table:
        """The rows `chosen` (ascending), in their order; all files are read through, a block at a time."""
        found, at = [], 0
        for table in self._pieces(columns, 0, len(self)):
            low, high = np.searchsorted(chosen, [at, at + len(table)])
            if low < high:
                found.append(table.take(pa.array(chosen[low:high] - at)))
            at += len(table)
        return pa.concat_tables(found).combine_chunks()

    @cached_property
    def width(self) -> int:
        """D, of the first row. Raises DataError when a file has no column of vectors, or they are wider than 65,536."""
        self.require(VECTOR)
        first = next(self.files[0].tables([VECTOR], 0, 1, 1), None)
        if first is None:
            raise self._refusal(0, "is claimed and not there", "Write the file again.")
        width = self._vectors(first[VECTOR].chunk(0), 0, None).shape[1]
        if width > _WIDEST:
            raise self._refusal(0, f"has a vector of {width:,} numbers", f"Give vectors of at most {_WIDEST:,}.")
        return width

    def place(self, row: int) -> tuple[Path, int]:
        """The file of a row, and its number there."""
        ends = np.cumsum([file.rows for file in self.files])
        which = int(np.searchsorted(ends, row, side="right"))
        return self.files[which].path, row - int(ends[which] - self.files[which].rows)

    def _require_finite(self, vectors: FloatArray, start: int) -> None:
        """Raises DataError, naming the row, when embeddings [n, D] that begin at row `start` hold NaN or infinity."""
        with np.errstate(invalid="ignore", over="ignore"):
            if np.isfinite(vectors.sum(dtype=np.float64)):
                return
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        raise self._refusal(start + int(broken[0]), "has NaN or infinity", "Embed these items again.")

    def _pieces(self, columns: Sequence[str], start: int, stop: int) -> Iterator[pa.Table]:
        at, batch = 0, max(1, min(_BATCH, _NUMBERS // self.width)) if VECTOR in columns else _BATCH
        for file in self.files:
            low, high = max(start - at, 0), min(stop - at, file.rows)
            if low < high:
                row = at + low
                for table in file.tables(columns, low, high, batch):
                    yield self._alike(table, row)
                    row += len(table)
            at += file.rows

    def _alike(self, table: pa.Table, start: int) -> pa.Table:
        """The columns in types that do not depend on the file."""
        arrays = {name: table[name] for name in table.column_names}
        if ID in arrays:
            arrays[ID] = self._ids(table, start)
        if VECTOR in arrays:
            vectors = self._vectors(table[VECTOR].chunk(0), start, self.width)
            arrays[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.width)
        if any(name in arrays for name in WORDS):
            return conform(pa.table(arrays), ITEM_SCHEMA, self.place(start)[0].name)
        return pa.table(arrays)

    def _ids(self, table: pa.Table, start: int) -> pa.Array:
        column = table[ID].chunk(0)
        kind = column.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()
        if not (text or pa.types.is_integer(kind)):
            raise self._refusal(start, f"has item ids that are {kind}", "Store item_id as string.")
        ids = column.cast(pa.string())
        if ids.null_count:
            row = pc.index(ids.is_null(), value=True).as_py()
            raise self._refusal(start + row, "has no item_id", "Fill it in, or remove the row.")
        empty = pc.index(pc.binary_length(ids), value=0).as_py()
        if empty >= 0:
            raise self._refusal(start + empty, "has an empty item_id", "Give every item an id.")
        return ids

    def _vectors(self, column: pa.Array, start: int, width: int | None) -> FloatArray:
        kind = column.type
        fixed = pa.types.is_fixed_size_list(kind)
        if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not (
            pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
        ):
            raise self._refusal(start, f"has a column vector of {kind}", "Store it as a list of numbers.")
        if column.null_count:
            row = pc.index(column.is_null(), value=True).as_py()
            raise self._refusal(start + row, "has no vector", "Embed every item.")
        if fixed:
            widths = np.full(len(column), kind.list_size)
        else:
            widths = np.diff(np.asarray(column.offsets))
        expected = int(widths[0]) if width is None else width
        other = np.flatnonzero(widths != expected)
        if len(other):
            row = int(other[0])
            message = f"has a vector of {widths[row]} numbers, others have {expected}"
            raise self._refusal(start + row, message, "Give every item a vector of one width.")
        if expected == 0:
            raise self._refusal(start, "has an empty vector", "Embed these items again.")
        flat = column.flatten()
        if flat.null_count:
            row = pc.index(flat.is_null(), value=True).as_py() // expected
            raise self._refusal(start + row, "has a null inside a vector", "Embed these items again.")
        numbers: Any = flat.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(numbers.reshape(-1, expected), np.float32)

    def _refusal(self, row: int, what: str, remedy: str) -> DataError:
        path, there = self.place(row)
        return DataError(f"Row {there} of {path} {what}.", remedy)

    def require(self, column: str) -> None:
        """Raises DataError when a file has no such column, or two."""
        for file in self.files:
            if file.columns.count(column) != 1:
                said = "two columns" if column in file.columns else "no column"
                raise DataError(
                    f"{file.path} has {said} {column}; found {', '.join(file.columns) or 'none'}.",
                    "Give every file columns item_id and vector, or those of items.parquet.",
                )


def parquet_files(path: Path) -> list[Path]:
    """The file itself, or a directory's parquet files in the order of their names (of a data directory: items.parquet).

    Raises DataError: some are in sub-directories that are not hidden, or the directory holds interactions and no items.
    """
    if not path.is_dir():
        return [path] if path.is_file() else []
    if (path / "items.parquet").is_file():
        return [path / "items.parquet"]
    found = sorted(file for file in path.iterdir() if _is_parquet(file))
    if [file.name for file in found] == ["interactions.parquet"]:
        raise DataError(f"{path} has interactions.parquet and no items.parquet.", "Add it, or name the items' file.")
    for root, below, names in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith((".", "_")))
        deeper = Path(root) != path and next((name for name in sorted(names) if _is_parquet(Path(root) / name)), None)
        if deeper:
            raise DataError(
                f"{path} has parquet files in sub-directories, {Path(root).relative_to(path) / deeper} first.",
                "Put all files into one directory, or name the one that holds them.",
            )
    return found


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet" and not file.name.startswith(".") and file.is_file()


def _joined(tables: list[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if len(tables) > 1 else tables[0].combine_chunks()


def _numbers(table: pa.Table) -> FloatArray:
    """float32 [n, D] of a table's vectors."""
    column = table[VECTOR].chunk(0)
    return np.asarray(column.flatten()).reshape(len(column), -1)


def _stamp(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return (found.st_size, found.st_mtime_ns, found.st_ino)


def _unreadable(path: Path, error: BaseException) -> DataError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(f"{path} cannot be read as parquet ({lines[0]:.160}).", "Write it again, or check the path.")
