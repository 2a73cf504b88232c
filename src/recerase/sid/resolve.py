"""Codes that keep SIDs apart, changing as few codes and moving items as little as can be.

One rule serves every level. A prefix holds at most as many items as there are SIDs below it (one, at the last level);
the items nearest to its codeword stay, and each other item goes to its nearest code beside it that still has room.
Going from the first level down, every step has room, because the step before saw to it. Prefixes do not concern each other,
so only crowded ones are looked at, and only so many at a time that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from recerase.errors import UsageError
from recerase.sid.codebooks import Codebooks, lowest, squared_distances
from recerase.types import BoolArray, FloatArray, IntArray

_BLOCK = 1 << 16
"""Items looked at together, or those of one prefix where that has more."""


class Rows(Protocol):
    """Embeddings that are asked for by row, always in ascending order: an array, or what reads them from a disk."""

    def __getitem__(self, rows: IntArray, /) -> FloatArray: ...


def resolve_collisions(
    codes: IntArray, codebooks: Codebooks, embeddings: Rows, held: BoolArray | None = None
) -> tuple[IntArray, BoolArray]:
    """Codes int32 [N, L] in which no SID occurs twice, and which items [N] were changed.

    Almost always only last codes change; a code above changes when more items share a prefix than there are SIDs
    below it, and such an item is coded afresh from there on. Items `held` [N] keep their codes, whoever is nearer.

    Raises:
        UsageError: there are more items than SIDs.
    """
    sizes = [len(v) for v in codebooks.vectors]
    n_items = len(codes)
    below = [min(n_items, int(np.prod([float(k) for k in sizes[level + 1 :]]))) for level in range(len(sizes))]
    if n_items > below[0] * sizes[0]:
        raise UsageError(
            f"{n_items} items cannot have different SIDs of {len(sizes)} levels with {sizes} codes.",
            "Use more levels or more codes a level.",
        )
    held = np.zeros(n_items, bool) if held is None else held
    out = np.array(codes, dtype=np.int32)
    parent = np.zeros(n_items, np.int64)  # the item's prefix above the level, as a number
    for level, words in enumerate(codebooks.vectors):
        for rows in _crowded(parent, out[:, level], sizes[level], below[level]):
            residual = codebooks.enter(embeddings[rows])
            for above in range(level):
                residual = codebooks.leave(residual, out[rows, above], above)
            spilled, fresh = _spill(parent[rows], out[rows, level], residual, words, below[level], held[rows])
            out[rows[spilled], level] = fresh
            after = codebooks.leave(residual[spilled], fresh, level)
            out[rows[spilled], level + 1 :] = codebooks.complete(after, level + 1)
        parent = np.unique(parent * sizes[level] + out[:, level], return_inverse=True)[1].reshape(-1)
    return out, (out != codes).any(axis=1)


def _crowded(parent: IntArray, code: IntArray, size: int, capacity: int) -> Iterator[IntArray]:
    """Rows, ascending, of whole parents under which some code is held by more than `capacity` items; parents in blocks."""
    pair, counts = np.unique(parent * size + code, return_inverse=True, return_counts=True)[1:]
    full = np.zeros(int(parent.max(initial=-1)) + 1, bool)
    full[parent[counts[pair.reshape(-1)] > capacity]] = True
    rows = np.flatnonzero(full[parent])
    if len(rows):
        seat, members = np.unique(parent[rows], return_inverse=True, return_counts=True)[1:]
        block = ((np.cumsum(members) - 1) // _BLOCK)[seat.reshape(-1)]
        yield from np.split(rows[np.argsort(block, kind="stable")], np.flatnonzero(np.diff(np.sort(block))) + 1)


def _spill(
    parent: IntArray, code: IntArray, residual: FloatArray, vectors: FloatArray, capacity: int, held: BoolArray
) -> tuple[IntArray, IntArray]:
    """The items [S] that must leave for no (parent, code) to hold more than `capacity`, and their new codes [S].

    In rounds: each item left asks for its nearest code with room under its parent, and the nearest are let in.
    """
    size = len(vectors)
    own = ((residual - np.asarray(vectors, np.float64)[code]) ** 2).sum(axis=1)
    items = np.flatnonzero((_rank(parent * size + code, np.where(held, -1.0, own)) >= capacity) & ~held)
    crowded, seat = np.unique(parent[items], return_inverse=True)  # seat[s]: the parent's row in `room`
    seat = seat.reshape(-1)
    inside = np.isin(parent, crowded)
    taken = np.zeros((len(crowded), size), np.int64)
    np.add.at(taken, (np.searchsorted(crowded, parent[inside]), code[inside]), 1)
    room = capacity - np.minimum(taken, capacity)
    distances = squared_distances(residual[items], vectors)
    fresh = np.full(len(items), -1, np.int32)
    left = np.arange(len(items))
    while len(left):
        open_ = np.where(room[seat[left]] > 0, distances[left], np.inf)
        wish = lowest(open_)
        # Not as `open_` has it: there the last bit depends on who else is in the block.
        way = ((residual[items[left]] - np.asarray(vectors, np.float64)[wish]) ** 2).sum(axis=1)
        order = _rank(seat[left] * size + wish, way)
        let_in = order < room[seat[left], wish]
        fresh[left[let_in]] = wish[let_in]
        np.subtract.at(room, (seat[left[let_in]], wish[let_in]), 1)
        left = left[~let_in]
    return items, fresh


def _rank(group: IntArray, key: FloatArray) -> IntArray:
    """int64 [N] place of each row among those of its group by `key`, the earlier row first among equals."""
    order = np.lexsort((key, group))
    ordered = group[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(np.append(starts, len(ordered)))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return rank
