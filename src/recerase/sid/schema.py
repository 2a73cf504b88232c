"""How codes are spelled in a model's vocabulary: one row a code, wherever the checkpoint keeps it.

Rows are a table, not an offset, so that other tools' vocabularies (rows only for codes in use, in any order) are read
in place; -1 marks a code that the vocabulary lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from recerase.errors import TableError
from recerase.types import IntArray

SCHEMA_FILE = "sid_schema.json"
SCHEMA_ID = "recerase.sids/1"
_MOST_CODES = 1 << 22
"""Codes of all levels together: far above any recommender, far below what would fill the memory."""
_MOST_ROWS = 1 << 31


@dataclass(frozen=True, eq=False)
class SidSchema:
    """Levels, codes a level, and the vocabulary row of each code."""

    codes: tuple[int, ...]
    """K_l, codes a level."""
    rows: tuple[IntArray, ...]
    """rows[l][code] = vocabulary row, -1 where the vocabulary lacks the code."""
    vocabulary: int
    pad: int
    bos: int
    """-1 where the vocabulary has no such token; likewise `eos`."""
    eos: int
    collisions: Literal["unique", "allowed"] = "unique"
    """Whether two items may have one SID."""

    @property
    def levels(self) -> int:
        return len(self.codes)

    @classmethod
    def native(cls, codes: Sequence[int], collisions: Literal["unique", "allowed"] = "unique") -> SidSchema:
        """Our own layout: pad 0, bos 1, eos 2, then one block of rows a level, in order.

        Raises TableError when the codes are so many that their rows would fill the memory.
        """
        if sum(map(int, codes)) > _MOST_CODES:
            raise TableError(
                f"The SIDs use codes up to {max(codes) - 1} on {len(codes)} levels, more than {_MOST_CODES} in all.",
                "Check the file: codes count from 0 up at every level.",
            )
        base = 3 + np.concatenate([[0], np.cumsum(codes)[:-1]]).astype(np.int64)
        rows = tuple(b + np.arange(k, dtype=np.int64) for b, k in zip(base, codes, strict=True))
        return cls(tuple(int(k) for k in codes), rows, 3 + int(sum(codes)), 0, 1, 2, collisions)

    @cached_property
    def _inverse(self) -> IntArray:
        """[L, V] code of a vocabulary row at a level, -1 where it is none."""
        inverse = np.full((self.levels, self.vocabulary), -1, np.int64)
        for level, rows in enumerate(self.rows):
            known = rows >= 0
            inverse[level, rows[known]] = np.flatnonzero(known)
        return inverse

    def codes_of(self, rows: IntArray) -> IntArray:
        """int64 [..., L] codes spelled by vocabulary rows [..., L]; -1 where a row is no code of its level."""
        safe = np.clip(rows, 0, self.vocabulary - 1)
        found = self._inverse[np.arange(self.levels), safe]
        return np.where((rows >= 0) & (rows < self.vocabulary), found, -1)

    def to_json(self) -> dict[str, Any]:
        """The content of sid_schema.json."""
        return {
            "schema": SCHEMA_ID,
            "codes": list(self.codes),
            "rows": [r.tolist() for r in self.rows],
            "vocabulary": self.vocabulary,
            "special": {"pad": self.pad, "bos": self.bos, "eos": self.eos},
            "collisions": self.collisions,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SidSchema:
        """The inverse of `to_json`.

        Raises:
            TableError: a key is missing, of the wrong kind, or contradicts another.
        """
        try:
            if data["schema"] != SCHEMA_ID:
                raise ValueError(f"its schema is {data['schema']!r}, not {SCHEMA_ID!r}")
            codes = tuple(_whole(k, 1) for k in data["codes"])
            rows = tuple(np.array([_whole(row, -1) for row in level], np.int64) for level in data["rows"])
            vocabulary = _whole(data["vocabulary"], 1)
            if vocabulary > _MOST_ROWS:
                raise ValueError(f"a vocabulary of {vocabulary:.3g} rows")
            special = {name: _whole(data["special"][name], -1) for name in ("pad", "bos", "eos")}
            if not codes or [len(r) for r in rows] != list(codes):
                raise ValueError("levels, codes and rows do not fit each other")
            used = np.concatenate([r[r >= 0] for r in rows])
            if max(used.max(initial=-1), *special.values()) >= vocabulary or len(np.unique(used)) != len(used):
                raise ValueError("vocabulary rows are out of range or given to two codes")
            if np.isin(list(special.values()), used).any():
                raise ValueError("a special token has the vocabulary row of a code")
            if data["collisions"] not in ("unique", "allowed"):
                raise ValueError(f"collisions is {data['collisions']!r}")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise TableError(
                f"{SCHEMA_FILE} cannot be used: {error!s:.200}.", "Write the SIDs again with `recerase tokenize`."
            ) from error
        return cls(codes, rows, vocabulary, collisions=data["collisions"], **special)


def _whole(value: Any, least: int) -> int:
    """`value` when it is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r:.40} where a whole number of at least {least} belongs")
    return value
