"""SIDs as sorted 64-bit keys: the codes of all levels side by side in one word, in as few bits as they need.

Below the codes stands the number of the item, where it fits: then the keys themselves are sorted, and no second array is
moved along. SIDs longer than a word take several, sorted together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recerase.sid.table import SidTable
from recerase.types import IntArray

_BITS = 64
_BLOCK = 1 << 18
"""Items packed at once, so that what is in between stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class _Field:
    """Where a level's code stands in a key, and what it means."""

    word: int
    shift: np.uint64
    mask: np.uint64
    values: IntArray
    """int64 vocabulary rows that the level may have, ascending; the key holds a place in them."""
    lookup: NDArray[np.uint64] | None
    """[K_l + 2] the place of each code's row, of eos and of nothing; None: a code is its own place."""


@dataclass(frozen=True, eq=False)
class Packed:
    """The SIDs of n items as keys."""

    words: tuple[NDArray[np.uint64], ...]
    """[n] each, the first levels first."""
    fields: tuple[_Field, ...]
    """One a level."""
    numbered: int
    """Bits of the only word that hold the number of the item, below its codes; 0: there was no room."""

    @classmethod
    def of(cls, table: SidTable, chosen: IntArray) -> Packed:
        """The keys of the items `chosen` [n], in that order; they sort as the vocabulary rows of the SIDs do."""
        fields, numbered = _layout(table, len(chosen))
        words = tuple(np.zeros(len(chosen), np.uint64) for _ in range(fields[-1].word + 1))
        for begin in range(0, len(chosen), _BLOCK):
            rows = slice(begin, begin + _BLOCK)
            codes = table.codes[chosen[rows]]
            for level, one in enumerate(fields):
                words[one.word][rows] |= _places(codes, level, one) << one.shift
            if numbered:
                words[0][rows] |= np.arange(begin, begin + len(codes), dtype=np.uint64)
        return cls(words, fields, numbered)

    def sorted(self) -> tuple[Packed, IntArray]:
        """The same keys, ascending, and the places [n] they had. Equal SIDs keep their order."""
        if self.numbered:
            key = np.sort(self.words[0])
            return replace(self, words=(key,)), (key & np.uint64((1 << self.numbered) - 1)).astype(np.int64)
        order = np.lexsort(self.words[::-1]) if len(self.words) > 1 else np.argsort(self.words[0], kind="stable")
        return replace(self, words=tuple(word[order] for word in self.words)), order

    def changes(self) -> NDArray[np.uint16]:
        """[n] of sorted keys: the first level at which each differs from the one before; L where none does, 0 for the first."""
        n = len(self.words[0])
        out = np.zeros(n, np.uint16)
        for begin in range(1, n, _BLOCK):
            end = min(n, begin + _BLOCK)
            apart = [word[begin:end] ^ word[begin - 1 : end - 1] for word in self.words]
            same = np.ones(end - begin, bool)
            for one in self.fields:
                same &= apart[one.word] >> one.shift == 0
                out[begin:end] += same
        return out

    def tokens(self, level: int, at: IntArray) -> IntArray:
        """int64 vocabulary rows of the keys at places `at`."""
        one = self.fields[level]
        found: IntArray = one.values[(self.words[one.word][at] >> one.shift) & one.mask]
        return found


def _layout(table: SidTable, n: int) -> tuple[tuple[_Field, ...], int]:
    """The fields of all levels, packed from the left, and how many bits are kept for the number of each of n items."""
    levels = [_values(table, level) for level in range(table.levels)]
    sizes: list[list[int]] = []
    for values, _ in levels:
        bits = max(1, (len(values) - 1).bit_length())
        if not sizes or sum(sizes[-1]) + bits > _BITS:
            sizes.append([])
        sizes[-1].append(bits)
    number = max(1, n.bit_length())
    numbered = number if len(sizes) == 1 and sum(sizes[0]) + number <= _BITS else 0
    fields: list[_Field] = []
    for word, inside in enumerate(sizes):
        shift = sum(inside) + numbered
        for bits in inside:
            shift -= bits
            fields.append(_Field(word, np.uint64(shift), np.uint64((1 << bits) - 1), *levels[len(fields)]))
    return tuple(fields), numbered


def _values(table: SidTable, level: int) -> tuple[IntArray, NDArray[np.uint64] | None]:
    """The vocabulary rows of a level, ascending, and the lookup of `_Field`."""
    rows = table.schema.rows[level]
    ended = np.array([table.schema.eos, -1])
    if not table.ragged:
        if (rows >= 0).all() and (np.diff(rows) > 0).all():
            return rows, None
        ended = ended[:0]
    values = np.unique(np.concatenate([rows[rows >= 0], ended]))
    return values, np.searchsorted(values, np.concatenate([rows, ended])).astype(np.uint64)


def _places(codes: IntArray, level: int, field: _Field) -> NDArray[np.uint64]:
    """uint64 [n] what the key holds of `level` of codes [n, L]."""
    column = codes[:, level]
    if field.lookup is None:
        return column.astype(np.uint64)
    if (column < 0).any():  # the first code that is missing is spelled eos
        first = codes[:, level - 1] >= 0
        column = np.where(column >= 0, column, np.where(first, len(field.lookup) - 2, len(field.lookup) - 1))
    return field.lookup[column]
