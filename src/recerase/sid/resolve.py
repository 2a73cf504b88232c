"""Codes that keep SIDs apart, changing as few codes and moving items as little as can be.

One rule serves every level. A prefix holds at most as many items as there are SIDs below it (one, at the last level);
the items nearest to its codeword stay, and each other item goes to its nearest code beside it that still has room.
Going from the first level down, every step has room, because the step before saw to it. Prefixes do not concern each other,
so only crowded ones are looked at, a block of them at a time, and their vectors in blocks. What is held of one crowded prefix are
the vectors and distances of the items that must leave it; `most` bounds these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from recerase.errors import UsageError
from recerase.sid.codebooks import Codebooks, lowest, squared_distances
from recerase.types import BoolArray, FloatArray, IntArray

_BLOCK = 1 << 16
"""Items looked at together, or those of one prefix where that has more."""
_NUMBERS = 1 << 21
"""Numbers of residuals or distances made at a time."""


class Rows(Protocol):
    """Embeddings that are asked for by row, always in ascending order: an array, or what reads them from a disk."""

    def __getitem__(self, rows: IntArray, /) -> FloatArray: ...


def resolve_collisions(
    codes: IntArray,
    codebooks: Codebooks,
    embeddings: Rows,
    held: BoolArray | None = None,
    most: int | None = None,
) -> tuple[IntArray, BoolArray]:
    """Codes int32 [N, L] in which no SID occurs twice, and which items [N] were changed.

    Almost always only last codes change; a code above changes when more items share a prefix than there are SIDs
    below it, and such an item is coded afresh from there on. Items `held` [N] keep their codes, whoever is nearer.

    Raises:
        UsageError: there are more items than SIDs, or more than `most` with one prefix that has not so many SIDs.
    """
    sizes = [len(v) for v in codebooks.vectors]
    n_items = len(codes)
    below = [min(n_items, math.prod(sizes[level + 1 :])) for level in range(len(sizes))]
    if n_items > below[0] * sizes[0]:
        raise UsageError(
            f"{n_items} items cannot have different SIDs of {len(sizes)} levels with {sizes} codes.",
            "Use more levels or more codes a level.",
        )
    held = np.zeros(n_items, bool) if held is None else held
    out = np.array(codes, dtype=np.int32)
    parent = np.zeros(n_items, np.int64)  # the item's prefix above the level, as a number
    for level, words in enumerate(codebooks.vectors):
        for rows in _crowded(parent, out[:, level], sizes[level], below[level], most):

            def entering(places: IntArray, rows: IntArray = rows, level: int = level) -> FloatArray:
                residual = codebooks.enter(embeddings[rows[places]])
                for above in range(level):
                    residual = codebooks.leave(residual, out[rows[places], above], above)
                return residual

            spilled, fresh, residual = _spill(parent[rows], out[rows, level], entering, words, below[level], held[rows])
            for some in _blocks(len(spilled), words.shape[1]):
                items = rows[spilled[some]]
                after = codebooks.leave(residual[some], fresh[some], level)
                out[items, level] = fresh[some]
                out[items, level + 1 :] = codebooks.complete(after, level + 1)
        parent = np.unique(parent * sizes[level] + out[:, level], return_inverse=True)[1].reshape(-1)
    return out, (out != codes).any(axis=1)


def _blocks(n: int, width: int) -> list[slice]:
    """n rows of `width` numbers in pieces that memory does not feel."""
    step = max(1, _NUMBERS // width)
    return [slice(at, at + step) for at in range(0, n, step)]


def _crowded(parent: IntArray, code: IntArray, size: int, capacity: int, most: int | None = None) -> Iterator[IntArray]:
    """Rows, ascending, of whole parents under which some code is held by more than `capacity` items; parents in blocks."""
    pair, counts = np.unique(parent * size + code, return_inverse=True, return_counts=True)[1:]
    worst = int(counts.max(initial=0))
    if most is not None and worst > max(most, capacity):
        raise UsageError(
            f"{worst} items have the same vector to within the codebooks, and only {capacity} SIDs are near it.",
            "Where their vectors are equal, more levels will not help: drop the copies, or embed them apart.",
        )
    full = np.zeros(int(parent.max(initial=-1)) + 1, bool)
    full[parent[counts[pair.reshape(-1)] > capacity]] = True
    rows = np.flatnonzero(full[parent])
    if len(rows):
        seat, members = np.unique(parent[rows], return_inverse=True, return_counts=True)[1:]
        block = ((np.cumsum(members) - 1) // _BLOCK)[seat.reshape(-1)]
        yield from np.split(rows[np.argsort(block, kind="stable")], np.flatnonzero(np.diff(np.sort(block))) + 1)


def _spill(
    parent: IntArray,
    code: IntArray,
    entering: Callable[[IntArray], FloatArray],
    vectors: FloatArray,
    capacity: int,
    held: BoolArray,
) -> tuple[IntArray, IntArray, FloatArray]:
    """The items [S] that must leave for no (parent, code) to hold more than `capacity`, their new codes [S] and residuals [S, D].

    In rounds: each item left asks for its nearest code with room under its parent, and the nearest are let in. `entering` gives
    the residuals of some of the N items.
    """
    size, words = len(vectors), np.asarray(vectors, np.float64)
    same, counts = np.unique(parent * size + code, return_inverse=True, return_counts=True)[1:]
    over = np.flatnonzero(counts[same.reshape(-1)] > capacity)
    own = np.empty(len(over))
    for some in _blocks(len(over), words.shape[1]):
        own[some] = ((entering(over[some]) - words[code[over[some]]]) ** 2).sum(axis=1)
    rank = _rank(parent[over] * size + code[over], np.where(held[over], -1.0, own))
    items = over[(rank >= capacity) & ~held[over]]
    residual, distances = np.empty((len(items), words.shape[1])), np.empty((len(items), size))
    for some in _blocks(len(items), max(words.shape)):
        residual[some] = entering(items[some])
        distances[some] = squared_distances(residual[some], vectors)
    crowded, seat = np.unique(parent[items], return_inverse=True)  # seat[s]: the parent's row in `room`
    seat = seat.reshape(-1)
    inside = np.isin(parent, crowded)
    taken = np.zeros((len(crowded), size), np.int64)
    np.add.at(taken, (np.searchsorted(crowded, parent[inside]), code[inside]), 1)
    room = capacity - np.minimum(taken, capacity)
    fresh = np.full(len(items), -1, np.int32)
    left = np.arange(len(items))
    while len(left):
        wish, way = np.empty(len(left), np.int64), np.empty(len(left))
        for some in _blocks(len(left), max(words.shape)):
            asking = left[some]
            wish[some] = lowest(np.where(room[seat[asking]] > 0, distances[asking], np.inf))
            # Not as `distances` has it: there the last bit depends on who else is in the block.
            way[some] = ((residual[asking] - words[wish[some]]) ** 2).sum(axis=1)
        order = _rank(seat[left] * size + wish, way)
        let_in = order < room[seat[left], wish]
        fresh[left[let_in]] = wish[let_in]
        np.subtract.at(room, (seat[left[let_in]], wish[let_in]), 1)
        left = left[~let_in]
    return items, fresh, residual


def _rank(group: IntArray, key: FloatArray) -> IntArray:
    """int64 [N] place of each row among those of its group by `key`, the earlier row first among equals."""
    order = np.lexsort((key, group))
    ordered = group[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    lengths = np.diff(np.append(starts, len(ordered)))
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return rank
