"""The vocabulary law of a checkpoint when it may grow: which codes get a row, and which row, before anything is written.

Rows that exist keep their place and their token for ever; a new row comes behind all that the tokenizer names, in matrix rows that
are there already and nobody uses (padding) before the matrix is made longer.

The one decision: what grew is never carried along, it is read off two schemas, the one before and the one after. So no writer can
be told another thing than what the table says, and a layout needs one function more: what room it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import EraseError, UsageError

if TYPE_CHECKING:
    from recerase.layouts.native import Checkpoint
    from recerase.layouts.protocol import Layout
    from recerase.sid.schema import SidSchema

AUTO = "auto"
_MOST = 1 << 16
"""Rows that may be asked for."""

Code = tuple[int, int]
"""Level and code."""
Spell = Callable[[int, int], str]
"""Level and code -> token."""


@dataclass(frozen=True)
class NewRow:
    """A code that gets a vocabulary row it had not."""

    level: int
    code: int
    row: int
    token: str


@dataclass(frozen=True)
class Growth:
    """What is added to a vocabulary; nothing, when there are no rows."""

    rows: tuple[NewRow, ...]
    """In the order of their rows, which follow one another."""
    matrix: int
    """Rows that embedding and head have then."""


@dataclass(frozen=True)
class Room:
    """Where a checkpoint's new rows would go."""

    first: int
    """The first new vocabulary row; the others follow it."""
    spell: Spell | None = None
    """How a code is spelled, where codes are tokens: then new rows are in the order of their tokens as text, as the tools add
    them (sorted); else in that of level and code."""
    behind: str = ""
    """Tokens that sort before this one may not be added; empty: any may."""
    hint: str = ""
    """What to do where that is too few."""
    most: int = 0
    """Codes that a level may have at most; 0: any number."""

    def order(self, codes: Iterable[Code]) -> list[Code]:
        """The codes that may be added, in the order of their rows."""
        if self.spell is None:
            return sorted(codes)
        spell = self.spell
        return sorted((code for code in codes if spell(*code) > self.behind), key=lambda code: spell(*code))


def asked_rows(text: str) -> int | None:
    """The most rows that `--grow-vocabulary` allows, None for `auto`. Raises UsageError for anything else."""
    if text == AUTO:
        return None
    if not text.isdecimal() or not 0 < int(text) <= _MOST:
        raise UsageError(
            f"--grow-vocabulary {text!r:.40} is neither auto nor a number of rows from 1 to {_MOST}.",
            "Give auto, or the most rows that may be added.",
        )
    return int(text)


def room_of(layout: Layout, checkpoint: Checkpoint) -> Room:
    """The room of a checkpoint. Raises EraseError, saying why, when its layout has none."""
    if layout.room is None:
        raise EraseError(
            f"The vocabulary of layout {layout.name} cannot grow.",
            "Leave --grow-vocabulary out: rows that exist are used.",
        )
    return layout.room(checkpoint)


def lacking(schema: SidSchema, room: Room) -> list[Code]:
    """Codes below the largest of their level that have no row and may get one, those of the last level first."""
    return [
        code
        for level in reversed(range(schema.levels))
        for code in room.order((level, int(code)) for code in np.flatnonzero(schema.rows[level] < 0))
    ]


def further(schema: SidSchema, room: Room, count: int) -> list[Code]:
    """Up to `count` codes above the largest of the last level."""
    last, size = schema.levels - 1, schema.codes[-1]
    widest = size + count if not room.behind else 10 * (size + count)  # few of them sort behind
    return sorted(room.order((last, code) for code in range(size, min(widest, room.most or widest))))[:count]


def grown_schema(schema: SidSchema, room: Room, codes: Sequence[Code]) -> SidSchema:
    """The schema with a row for each of `codes`, which have none."""
    placed = {code: room.first + place for place, code in enumerate(room.order(codes))}
    rows, sizes = [], []
    for level, old in enumerate(schema.rows):
        mine = {code: row for (at, code), row in placed.items() if at == level}
        new = np.full(max([len(old), *(code + 1 for code in mine)]), -1, np.int64)
        new[: len(old)] = old
        new[list(mine)] = list(mine.values())
        rows.append(new)
        sizes.append(len(new))
    vocabulary = max(schema.vocabulary, room.first + len(placed))
    return replace(schema, codes=tuple(sizes), rows=tuple(rows), vocabulary=vocabulary)


def new_codes(before: SidSchema, after: SidSchema) -> list[Code]:
    """Codes that have a row in `after` alone, by level and code."""
    found = []
    for level, (old, new) in enumerate(zip(before.rows, after.rows, strict=True)):
        had = np.full(len(new), -1, np.int64)
        had[: len(old)] = old
        found += [(level, int(code)) for code in np.flatnonzero((had < 0) & (new >= 0))]
    return found


def growth_between(before: SidSchema, after: SidSchema, spell: Spell) -> Growth:
    """What `after` has that `before` had not."""
    rows = [
        NewRow(level, code, int(after.rows[level][code]), spell(level, code))
        for level, code in new_codes(before, after)
    ]
    return Growth(tuple(sorted(rows, key=lambda row: row.row)), after.vocabulary)


def named_rows(module: Any) -> list[int]:
    """Rows that the config of a model gives a meaning of their own."""
    config = module.config
    keys = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
    said = [getattr(config, key, None) for key in keys]
    return [row for value in said for row in (value if isinstance(value, list) else [value]) if isinstance(row, int)]
