"""What an eraser learns from: forget and retain pairs of the training interactions, and histories of the concept alone.

Held-out interactions are never touched: what is reported on test users was not seen here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recerase.catalog.interactions import Histories, Interactions
from recerase.errors import ConceptError, DataError
from recerase.model.batches import pairs, windows
from recerase.sid.table import SidTable
from recerase.types import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Examples:
    """Pairs (history, next item) of the training sequences, by what they have to do with the concept."""

    forget: Histories
    """D_F: the target is a concept item."""
    touched: Histories
    """Part of D_R: the target is retained, the history holds a concept item."""
    retain: Histories
    """D_R: the target is retained, all of them."""
    sequences: Histories
    """Pieces of at most `window` + 1 items of training sequences that hold no concept item; no targets."""
    earlier: Histories
    """The target is an item of a concept that was erased before: neither D_F nor D_R."""


def examples(
    interactions: Interactions, table: SidTable, members: BoolArray, window: int, gone: BoolArray | None = None
) -> Examples:
    """The training pairs of items that have a SID, histories cut to `window` items.

    Items `gone` [N] with earlier concepts may stand in histories of pairs, and are no retained target.

    Raises:
        ConceptError: nothing is left to keep, so nothing can be kept well.
        DataError: there is no pair at all.
    """
    sequences = interactions.split().train.without(~table.present)
    sequences = sequences.take(np.flatnonzero(sequences.lengths >= 2))
    found = pairs(sequences, window)
    pieces = windows(sequences, window + 1, np.random.default_rng(0))
    if len(found) == 0:
        raise DataError(
            "No user has two training interactions with items that have a SID, so there is nothing to learn from.",
            "Give the --data that the checkpoint was trained on.",
        )
    before = np.zeros(len(members), bool) if gone is None else gone & ~members
    mine, old = members[found.targets], before[found.targets]
    kept = ~mine & ~old
    if not kept.any():
        raise ConceptError(
            "Every training pair leads to a concept item, so there is nothing to retain.", "Narrow the concept."
        )
    return Examples(
        forget=found.take(np.flatnonzero(mine)),
        touched=found.take(np.flatnonzero(kept & found.touches(members))),
        retain=found.take(np.flatnonzero(kept)),
        sequences=pieces.take(np.flatnonzero(~pieces.touches(members | before))),
        earlier=found.take(np.flatnonzero(old)),
    )


def concept_histories(
    popularity: FloatArray, members: BoolArray, n: int, most: int, rng: np.random.Generator
) -> Histories:
    """n histories of 1..most concept items, drawn half in proportion to `popularity` [N] and half evenly, without targets."""
    items = np.flatnonzero(members)
    weight = popularity[items].astype(np.float64) + 1e-9
    p = 0.5 * weight / weight.sum() + 0.5 / len(items)
    lengths = rng.integers(1, most + 1, n)
    drawn = rng.choice(items, int(lengths.sum()), p=p)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nobody = np.full(n, -1, np.int64)
    return Histories(drawn.astype(np.int32), offsets, nobody, nobody.astype(np.int32))


def joined(*parts: Histories) -> Histories:
    """The histories of all parts, one after the other."""
    sizes = np.concatenate([p.lengths for p in parts])
    return Histories(
        np.concatenate([p.items for p in parts]),
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([p.users for p in parts]),
        np.concatenate([p.targets for p in parts]),
    )


def alike(histories: Histories, n: int, rng: np.random.Generator) -> list[Histories]:
    """The histories in at most `n` batches, each of about one length so that little of it is padding; the batches in any order."""
    parts = np.array_split(np.argsort(histories.lengths, kind="stable"), min(n, len(histories)))
    return [histories.take(parts[i]) for i in rng.permutation(len(parts))]


def draw(histories: Histories, n: int, rng: np.random.Generator) -> Histories:
    """n of the histories, without replacement while there are enough; none of none."""
    if len(histories) == 0:
        return histories
    return histories.take(rng.choice(len(histories), n, replace=len(histories) < n))


def neighbours(embeddings: FloatArray, members: BoolArray, k: int, eligible: BoolArray | None = None) -> IntArray:
    """int64 [N, k] the k nearest items outside the concept by cosine, for concept items; -1 elsewhere.

    Only `eligible` items [N] (those with a SID, where their probability is wanted) can be neighbours; default: all.
    """
    inside, outside = np.flatnonzero(members), np.flatnonzero(~members if eligible is None else eligible & ~members)
    k = min(k, len(outside))
    out = np.full((len(members), k), -1, np.int64)
    out[inside] = _nearest(embeddings, inside, outside, k)
    return out


def nearest_others(embeddings: FloatArray, eligible: BoolArray, k: int) -> IntArray:
    """int64 [N, k] the k nearest other `eligible` items [N] by cosine, for eligible items; -1 elsewhere. Needs more than k of them."""
    rows = np.flatnonzero(eligible)
    near = _nearest(embeddings, rows, rows, k + 1)
    own = near == rows[:, None]
    own[~own.any(1), -1] = True  # among more than k equals an item need not be near itself
    out = np.full((len(eligible), k), -1, np.int64)
    out[rows] = near[~own].reshape(len(rows), k)
    return out


def _nearest(embeddings: FloatArray, of: IntArray, among: IntArray, k: int) -> IntArray:
    """int64 [len(of), k] the items `among` nearest by cosine to each item `of`, nearest first."""
    import faiss

    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(np.ascontiguousarray(unit[among], np.float32))
    _, near = index.search(np.ascontiguousarray(unit[of], np.float32), k)
    found: IntArray = among[near]
    return found
