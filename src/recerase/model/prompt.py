"""What stands around the SIDs of a history (instructions, separators, begin and end tokens) as vocabulary rows.

The one decision: a prompt is data. A model that was trained on bare SIDs has none; one that was trained inside an instruction is
asked inside the same instruction, and where each code stands among the tokens is computed here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recerase.errors import UsageError
from recerase.types import IntArray


@dataclass(frozen=True)
class Prompt:
    """Vocabulary rows around the SIDs of a history; the model writes the codes of the next item right after `suffix`."""

    prefix: tuple[int, ...]
    """Before the first item's codes."""
    separator: tuple[int, ...]
    """Between the codes of two items, with what ends one SID and begins the next, where something does."""
    suffix: tuple[int, ...]
    """After the last item's codes."""
    empty: tuple[int, ...]
    """All that a history without items reads like; at least one row."""
    numbered: tuple[tuple[int, ...], ...] | None = None
    """Where what stands between two items differs by place: what follows the first item, the second and so on, in place of
    `separator`. A history of more items cannot be spelled."""
    still: tuple[int, ...] = ()
    """Rows that no method changes: those of one user of many, for whom alone it would be learned."""

    @property
    def rows(self) -> tuple[int, ...]:
        """Every vocabulary row that is named."""
        return self.prefix + self.separator + self.suffix + self.empty + sum(self.numbered or (), ())

    def longest(self, items: int, levels: int) -> int:
        """The most tokens that a history of up to so many items of so many rows each reads like."""
        between = sum(map(len, self._between(items)[: items - 1]))
        return max(len(self.empty), len(self.prefix) + len(self.suffix) + items * levels + between)

    def _between(self, items: int) -> tuple[tuple[int, ...], ...]:
        """What follows each of so many items when another one comes. Raises UsageError for more than are numbered."""
        if self.numbered is None:
            return (self.separator,) * items
        if items > len(self.numbered) + 1:
            raise UsageError(
                f"This prompt numbers its items up to {len(self.numbered) + 1}, and a history has {items}.",
                "Raise --layout-set window=N.",
            )
        return (*self.numbered, ())[:items]

    def spell(self, rows: IntArray, pad: int) -> tuple[IntArray, IntArray, IntArray]:
        """The tokens of histories, and where their codes stand.

        Args:
            rows: int64 [B, H, L] vocabulary rows of the codes of each item; -1 behind the last code of a shorter SID, and
                throughout where a history has fewer than H items (which come first).
            pad: what fills the tokens of shorter histories.
        Returns:
            tokens int64 [B, T], lengths int64 [B], and places int64 [B, H, L] of the codes among the tokens, -1 where none.
        """
        many, width, levels = rows.shape
        there = rows[:, :, 0] >= 0  # [B, H]
        between = self._between(width)
        gaps = np.full((width, max(map(len, between), default=0)), -1, np.int64)
        for place, separator in enumerate(between):
            gaps[place, : len(separator)] = separator
        gap = np.broadcast_to(gaps, (many, *gaps.shape))
        follows = np.concatenate([there[:, 1:], np.zeros((many, 1), bool)], 1)[..., None]  # another item comes after
        cells = np.concatenate([rows, gap], 2).reshape(many, -1)
        kept = np.concatenate([rows >= 0, follows & (gap >= 0)], 2).reshape(many, -1)
        ends = len(self.prefix) + kept.sum(1)
        some = there.any(1)
        lengths = np.where(some, ends + len(self.suffix), len(self.empty))
        tokens = np.full((many, int(lengths.max(initial=1))), pad, np.int64)
        tokens[some, : len(self.prefix)] = self.prefix
        at = np.where(kept, len(self.prefix) + np.cumsum(kept, 1) - 1, -1)
        row, column = np.nonzero(kept)
        tokens[row, at[row, column]] = cells[row, column]
        behind = ends[some, None] + np.arange(len(self.suffix))
        tokens[np.flatnonzero(some)[:, None], behind] = self.suffix
        tokens[~some, : len(self.empty)] = self.empty
        return tokens, lengths.astype(np.int64), at.reshape(many, width, -1)[:, :, :levels]
