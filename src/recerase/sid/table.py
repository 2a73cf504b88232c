"""The SID table: which codes spell which item, and which vocabulary row each code is.

Items without a SID carry -1 in every level; items that have one but must not be recommended are unlisted, so that a
history may still name them. SIDs may differ in length: one of fewer than L codes carries -1 behind its last code and is
ended by the schema's eos. Everything else (trie, mass, reassignment) is computed from this one value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recerase.errors import TableError, UsageError
from recerase.sid.checks import check_table
from recerase.sid.ids import text_rank
from recerase.sid.schema import SidSchema
from recerase.types import BoolArray, IntArray


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
            schema = native_schema(codes, [int(k) + 1 for k in codes.max(axis=0, initial=0)])
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

    @cached_property
    def digest(self) -> str:
        """sha256 over ids, codes, flags and schema."""
        digest = hashlib.sha256(json.dumps(self.item_ids.tolist(), ensure_ascii=False).encode())
        digest.update(self.codes.astype("<i4").tobytes() + self.listed.tobytes() + self.resolved.tobytes())
        digest.update(json.dumps(self.schema.to_json(), sort_keys=True).encode())
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
        )

    def replace(self, items: IntArray, codes: IntArray) -> SidTable:
        """The table with new `codes` [M, L] for `items` [M]. Raises TableError for codes the schema cannot spell."""
        new, resolved = self.codes.copy(), self.resolved.copy()
        new[items], resolved[items] = codes, True
        table = SidTable(self.item_ids, new, self.listed, self.schema, resolved)
        check_table(table.item_ids, new, self.schema)
        return table._ranked_as(self)

    def unlisted(self, mask: BoolArray) -> SidTable:
        """The table with the items of `mask` [N] kept for histories and taken out of the decoding trie."""
        return replace(self, listed=self.listed & ~mask)._ranked_as(self)

    def _ranked_as(self, other: SidTable) -> SidTable:
        """This table, with the order of the ids known where `other`, of the same items, knows it."""
        if "id_rank" in vars(other):
            vars(self)["id_rank"] = other.id_rank
        return self

    def moved(self, other: SidTable) -> BoolArray:
        """[N] the SID differs from that in `other`, a table of the same items."""
        return (self.codes != other.codes).any(1)


def native_schema(codes: IntArray, sizes: Sequence[int]) -> SidSchema:
    """The native schema, saying of collisions what is true of codes [N, L]."""
    present = codes[codes[:, 0] >= 0]
    unique = len(np.unique(present, axis=0)) == len(present)
    return SidSchema.native(sizes, "unique" if unique else "allowed")
