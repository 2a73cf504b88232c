"""Codes that keep SIDs apart, changing as few codes and moving items as little as can be.

One rule serves every level. A prefix holds at most as many items as there are SIDs below it (one, at the last level);
the items nearest to its codeword stay, and each other item goes to its nearest code beside it that still has room.
Going from the first level down, every step has room, because the step before saw to it.
"""

from __future__ import annotations

import numpy as np

from recerase.errors import UsageError
from recerase.sid.codebooks import Codebooks, lowest, squared_distances
from recerase.types import BoolArray, FloatArray, IntArray


def resolve_collisions(codes: IntArray, codebooks: Codebooks, embeddings: FloatArray) -> tuple[IntArray, BoolArray]:
    """Codes int32 [N, L] in which no SID occurs twice, and which items [N] were changed.

    Almost always only last codes change; a code above changes when more items share a prefix than there are SIDs
    below it, and such an item is coded afresh from there on.

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
    out = np.array(codes, dtype=np.int32)
    residual = codebooks.enter(embeddings)
    parent = np.zeros(n_items, np.int64)  # the item's prefix above the level, as a number
    for level in range(codebooks.levels):
        spilled, fresh = _spill(parent, out[:, level], residual, codebooks.vectors[level], below[level])
        out[spilled, level] = fresh
        after = codebooks.leave(residual[spilled], fresh, level)
        out[spilled, level + 1 :] = codebooks.complete(after, level + 1)
        residual = codebooks.leave(residual, out[:, level], level)
        parent = np.unique(parent * sizes[level] + out[:, level], return_inverse=True)[1].reshape(-1)
    return out, (out != codes).any(axis=1)


def _spill(
    parent: IntArray, code: IntArray, residual: FloatArray, vectors: FloatArray, capacity: int
) -> tuple[IntArray, IntArray]:
    """The items [S] that must leave for no (parent, code) to hold more than `capacity`, and their new codes [S].

    In rounds: each item left asks for its nearest code with room under its parent, and the nearest are let in.
    """
    size = len(vectors)
    pair = parent * size + code
    crowd = np.bincount(np.unique(pair, return_inverse=True)[1].reshape(-1))
    if crowd.max(initial=0) <= capacity:
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    own = ((residual - np.asarray(vectors, np.float64)[code]) ** 2).sum(axis=1)
    items = np.flatnonzero(_rank(pair, own) >= capacity)
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
        order = _rank(seat[left] * size + wish, open_[np.arange(len(left)), wish])
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
