"""The SID table: which codes spell which item, and which vocabulary row each code is.

Items without a SID carry -1 in every level; items that have one but must not be recommended are unlisted, so that a
history may still name them. SIDs may differ in length: one of fewer than L codes carries -1 behind its last code and is
ended by the schema's eos. Everything else (trie, mass, reassignment) is computed from this one value.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recerase.catalog.files import parquet_table, read_file
from recerase.errors import TableError, UsageError
from recerase.sid.checks import check_table
from recerase.sid.ids import as_text, text_rank
from recerase.sid.schema import SCHEMA_FILE, SidSchema
from recerase.types import BoolArray, IntArray

__all__ = [
    "SCHEMA_FILE",
    "TABLE_FILE",
    "TOMBSTONE",
    "SidSchema",
    "SidTable",
    "arrow_to_table",
    "read_json_table",
    "read_table",
    "table_to_arrow",
]

TABLE_FILE = "sids.parquet"
TOMBSTONE = "recerase-tombstone-"
"""Begins the key of an entry in a JSON table that keeps a token in the token set; such an entry is no item."""
_MOST_LEVELS = 1024
"""Far above any recommender, and too few for one long SID of many short ones to fill the memory."""


@dataclass(frozen=True, eq=False)
class SidTable:
    """Item -> SID, one row an item, in the order of the catalogue."""

    item_ids: NDArray[Any]
    """[N] object, distinct strings."""
    codes: IntArray
    """int32 [N, L]; -1 behind the last code of a shorter SID; a row of -1 is an item without a SID."""
    listed: BoolArray
    """[N] the item may be recommended (it is in the decoding trie)."""
    schema: SidSchema
    resolved: BoolArray
    """[N] the last code was changed to keep SIDs apart, so the codebooks alone do not give it."""
    dropped: BoolArray | None = None
    """[N] a retrieval filter: histories are read without the item, though it has a SID; None: without none."""

    @classmethod
    def build(
        cls,
        item_ids: Sequence[str] | NDArray[Any],
        codes: IntArray,
        schema: SidSchema | None = None,
        listed: BoolArray | None = None,
        resolved: BoolArray | None = None,
    ) -> SidTable:
        """A validated table; `schema` defaults to the native one for the codes in use, `listed` to having a SID.

        Raises:
            TableError: shapes differ, an id is repeated, a code is out of range or has no vocabulary row. Items that
                share a SID are not refused, whatever the schema says: inspecting and auditing must find them.
        """
        ids = np.asarray(item_ids, dtype=object)
        codes = np.ascontiguousarray(codes, dtype=np.int32)
        if codes.ndim != 2 or len(codes) != len(ids) or codes.shape[1] == 0:
            raise TableError(
                f"A SID table needs one row of codes an item; got {codes.shape} for {len(ids)} items.",
                "Check the file.",
            )
        if schema is None:
            schema = _native_schema(codes, [int(k) + 1 for k in codes.max(axis=0, initial=0)])
        listed = codes[:, 0] >= 0 if listed is None else np.asarray(listed, bool)
        resolved = np.zeros(len(ids), bool) if resolved is None else np.asarray(resolved, bool)
        if listed.shape != ids.shape or resolved.shape != ids.shape:
            raise TableError("The flags of a SID table must be one an item.", "Check the file.")
        table = cls(ids, codes, listed, schema, resolved)
        check_table(table.item_ids, table.codes, schema)
        return table

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def levels(self) -> int:
        return self.schema.levels

    @cached_property
    def lengths(self) -> IntArray:
        """int64 [N] codes of each item's SID, without what ends it; 0 without a SID."""
        return np.count_nonzero(self.codes >= 0, axis=1)

    @cached_property
    def ragged(self) -> bool:
        """Whether some SID has fewer than L codes."""
        return bool((self.present & (self.codes[:, -1] < 0)).any())

    def require_one_length(self, what: str, remedy: str = "Make SIDs of one length with `recerase tokenize`.") -> None:
        """Raises UsageError, saying that `what` cannot be done, and the `remedy`, when SIDs differ in length."""
        if self.ragged:
            lengths = self.lengths[self.present]
            raise UsageError(
                f"{what} needs SIDs of one length; those of this table have {lengths.min()} to {lengths.max()} codes.",
                remedy,
            )

    @cached_property
    def _rows(self) -> IntArray:
        parts = [self.schema.rows[level][np.maximum(self.codes[:, level], 0)] for level in range(self.levels)]
        rows = np.where(self.codes >= 0, np.stack(parts, 1), -1).astype(np.int64)
        if self.ragged:
            short = np.flatnonzero(self.present & (self.lengths < self.levels))
            rows[short, self.lengths[short]] = self.schema.eos
        return rows

    def rows(self) -> IntArray:
        """int64 [N, L] vocabulary rows; a shorter SID goes on with eos, then -1. All -1 for an item without a SID."""
        return self._rows

    @cached_property
    def id_rank(self) -> IntArray:
        """int64 [N] place of each item when ids are sorted as text; sorted once."""
        return text_rank(self.item_ids)

    @property
    def present(self) -> BoolArray:
        """[N] the item has a SID."""
        return self.codes[:, 0] >= 0

    @property
    def readable(self) -> BoolArray:
        """[N] histories are read with the item: it has a SID, and no retrieval filter drops it."""
        return self.present if self.dropped is None else self.present & ~self.dropped

    @cached_property
    def digest(self) -> str:
        """sha256 over ids, codes, flags, schema and, where there is one, the retrieval filter."""
        digest = hashlib.sha256(json.dumps(self.item_ids.tolist(), ensure_ascii=False).encode())
        digest.update(self.codes.astype("<i4").tobytes() + self.listed.tobytes() + self.resolved.tobytes())
        digest.update(json.dumps(self.schema.to_json(), sort_keys=True).encode())
        if self.dropped is not None:
            digest.update(b"dropped" + self.dropped.tobytes())
        return digest.hexdigest()

    def groups(self) -> IntArray:
        """int64 [N] number of the item's SID among the distinct SIDs; -1 for no SID."""
        out = np.full(len(self), -1, np.int64)
        if self.present.any():
            out[self.present] = np.unique(self.codes[self.present], axis=0, return_inverse=True)[1].reshape(-1)
        return out

    def collisions(self) -> tuple[IntArray, ...]:
        """For each SID that several items share: their rows, ascending."""
        groups = self.groups()
        order = np.argsort(groups, kind="stable")[np.count_nonzero(~self.present) :]
        counts = np.bincount(groups[order])
        return tuple(rows for rows in np.split(order, np.cumsum(counts)[:-1]) if len(rows) > 1)

    @cached_property
    def collision_rate(self) -> float:
        """Share of the items with a SID that share it with another item."""
        groups = self.groups()[self.present]
        return float((np.bincount(groups)[groups] > 1).mean()) if len(groups) else 0.0

    def usage(self, level: int) -> IntArray:
        """int64 [K_l] items a code."""
        column = self.codes[:, level]
        return np.bincount(column[column >= 0], minlength=self.schema.codes[level])

    def aligned(self, item_ids: Sequence[str] | NDArray[Any]) -> SidTable:
        """The same table in the order of `item_ids`.

        Raises:
            TableError: an item is missing from the table, or the table names items that are not asked for.
        """
        wanted = [str(i) for i in item_ids]
        place = {str(item): row for row, item in enumerate(self.item_ids.tolist())}
        missing = [i for i in wanted if i not in place]
        extra = sorted(place.keys() - set(wanted))
        if missing or extra:
            first = f"lacks {len(missing)} items of the catalogue, {missing[0]} first" if missing else ""
            second = f"names {len(extra)} items that the catalogue lacks, {extra[0]} first" if extra else ""
            raise TableError(
                f"The SID table {' and '.join(x for x in (first, second) if x)}.",
                "Use the catalogue that the SIDs were made from, or tokenize this one.",
            )
        if len(wanted) != len(place):
            raise TableError("The item ids to align with hold one id twice.", "Keep one row an item.")
        order = np.fromiter((place[i] for i in wanted), np.int64, len(wanted))
        return replace(
            self,
            item_ids=self.item_ids[order],
            codes=self.codes[order],
            listed=self.listed[order],
            resolved=self.resolved[order],
            dropped=None if self.dropped is None else self.dropped[order],
        )

    def replace(self, items: IntArray, codes: IntArray) -> SidTable:
        """The table with new `codes` [M, L] for `items` [M]. Raises TableError for codes the schema cannot spell."""
        new, resolved = self.codes.copy(), self.resolved.copy()
        new[items], resolved[items] = codes, True
        table = replace(self, codes=new, resolved=resolved)
        check_table(table.item_ids, new, self.schema)
        return table._ranked_as(self)

    def unlisted(self, mask: BoolArray) -> SidTable:
        """The table with the items of `mask` [N] kept for histories and taken out of the decoding trie."""
        return replace(self, listed=self.listed & ~mask)._ranked_as(self)

    def filtered(self, mask: BoolArray) -> SidTable:
        """The table under which histories are read without the items of `mask` [N], and without those it drops already."""
        return replace(self, dropped=mask if self.dropped is None else self.dropped | mask)._ranked_as(self)

    @property
    def unfiltered(self) -> SidTable:
        """The table as a client reads it that knows of no retrieval filter."""
        return self if self.dropped is None else replace(self, dropped=None)._ranked_as(self)

    def _ranked_as(self, other: SidTable) -> SidTable:
        """This table, with the order of the ids known where `other`, of the same items, knows it."""
        if "id_rank" in vars(other):
            vars(self)["id_rank"] = other.id_rank
        return self

    def moved(self, other: SidTable) -> BoolArray:
        """[N] the SID differs from that in `other`, a table of the same items."""
        return (self.codes != other.codes).any(1)


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
    return SidTable.build(ids, codes, _native_schema(codes, sizes))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an item is there twice")
    return found


def _native_schema(codes: IntArray, sizes: Sequence[int]) -> SidSchema:
    """The native schema, saying of collisions what is true of codes [N, L]."""
    present = codes[codes[:, 0] >= 0]
    unique = len(np.unique(present, axis=0)) == len(present)
    return SidSchema.native(sizes, "unique" if unique else "allowed")


def _code(token: Any, level: int) -> int:
    """The integer of one published token, which must name its own level."""
    if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
        return token
    match = _TOKEN.match(token) if isinstance(token, str) else None
    if match is None or ord(match[1]) - ord("a") != level:
        raise ValueError(f"{token!r:.40} is no code of level {level + 1}")
    return int(match[2])
