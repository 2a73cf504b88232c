"""Which SIDs may be given: codes that can be used, SIDs that nobody has, and no place that the concept alone knew.

The one decision: what an erased item has, or had, is no vacancy. A SID that it left still means it to whoever remembers the old
table, and below a prefix that only erased items used the model knows nothing but them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recerase.sid.codebooks import Codebooks
from recerase.sid.table import SidTable
from recerase.types import BoolArray, IntArray


def usable(table: SidTable, codebooks: Codebooks, offered: Sequence[IntArray] = ()) -> list[BoolArray]:
    """A level: bool [K_l] which codes may be given to an item.

    They have a vocabulary row and, where there are codebooks, a codeword that says something: fitted codebooks know nothing of a
    code that no item uses, unless it is among the new ones that are `offered` (a level, or nothing at all).
    """
    out = []
    for level, rows in enumerate(table.schema.rows):
        known = rows >= 0
        if level < codebooks.levels:
            known[len(codebooks.vectors[level]) :] = False
            if codebooks.fitted:
                said = table.usage(level) > 0
                said[offered[level] if len(offered) else []] = True
                known &= said
        out.append(known)
    return out


def free_sids(
    table: SidTable,
    members: BoolArray,
    known: Sequence[BoolArray],
    gone: BoolArray | None = None,
    left: IntArray | None = None,
) -> tuple[int, int]:
    """SIDs of `known` codes that the commit may give: nobody has them, and no prefix of theirs is the concept's alone.

    Of earlier concepts, items `gone` [N] and the SIDs they `left` [n, L], nothing is given either; see `commit`.

    Returns their number, and that of the prefixes of L - 1 codes below which they may be: so many more a new last code makes.
    """
    sizes, counts = table.schema.codes, [int(level.sum()) for level in known]
    free, prefixes = math.prod(counts), math.prod(counts[:-1])
    sids = np.unique(np.concatenate([table.codes[table.present], rows_left(left, table)]), axis=0).astype(np.int64)
    sids = sids[np.stack([level[sids[:, at]] for at, level in enumerate(known)]).all(0)]
    for depth in range(1, table.levels):
        keys = keys_of(sids[:, :depth], sizes)
        closed = np.isin(keys, exclusive_prefixes(table, members, depth, gone, left))
        shut = len(np.unique(keys[closed]))
        free -= shut * math.prod(counts[depth:])
        prefixes -= shut * math.prod(counts[depth:-1])
        sids = sids[~closed]
    return free - len(sids), prefixes


def keys_of(codes: IntArray, sizes: tuple[int, ...]) -> IntArray:
    """int64 [n] one number a prefix [n, d], different for different prefixes of the same depth."""
    key = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        key = key * sizes[level] + codes[:, level]
    return key


def exclusive_prefixes(
    table: SidTable, members: BoolArray, depth: int, gone: BoolArray | None = None, left: IntArray | None = None
) -> IntArray:
    """Keys of the prefixes of `depth` codes that items of the concept or of earlier ones have, or had, and no retained item has."""
    sizes = table.schema.codes
    out = members if gone is None else members | gone
    mine = np.concatenate([table.codes[table.present & out], rows_left(left, table)])
    theirs = table.codes[table.present & ~out]
    return np.setdiff1d(keys_of(mine[:, :depth], sizes), keys_of(theirs[:, :depth], sizes))


def rows_left(left: IntArray | None, table: SidTable) -> IntArray:
    """`left` [n, L], or no row."""
    return table.codes[:0] if left is None else left.astype(table.codes.dtype)
