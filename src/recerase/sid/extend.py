"""SIDs for the new items of a grown catalogue, while not one SID that was given moves.

The deciding choice is that old items are held: codebooks, recipe and codes are used as they are stored, and a new item whose
SID is taken goes to its nearest free one, even where it lies nearer to the codeword than the item that has it. An item may
not leave the catalogue, because a table speaks of exactly the catalogue's items: dropped, its SID would go to another item,
which a trained model would then recommend in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recerase.errors import DataError, TableError, UsageError
from recerase.sid.codebooks import Codebooks
from recerase.sid.quality import QualityReport, quality
from recerase.sid.resolve import resolve_collisions
from recerase.sid.table import SidTable
from recerase.types import BoolArray, FloatArray, IntArray

_SAME = 1e-5
"""Largest difference of two embeddings of one item, as a share of the largest number: rounding, not another model."""
_FAR = 1.5
"""New items this many times as far from their SIDs as old ones are not what the codebooks were made for."""


def check_extendable(table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None) -> Codebooks:
    """The codebooks, when they and the embeddings say exactly what the codes of `table` mean. Raises UsageError."""
    if codebooks is None:
        raise UsageError(
            "These SIDs come without codebooks, so nobody knows what their codes mean.",
            "Extend a directory made by recerase tokenize.",
        )
    if embeddings is None and not codebooks.fitted:
        raise UsageError(
            "These SIDs were made in a stream that did not keep the item embeddings.",
            "Tokenize again with --keep-embeddings.",
        )
    if embeddings is None or codebooks.fitted or tuple(len(words) for words in codebooks.vectors) != table.schema.codes:
        raise UsageError(
            "The codebooks were fitted to SIDs made elsewhere; codes chosen by them would be a guess.",
            "Extend these SIDs with the tool that made them, or tokenize the catalogue afresh.",
        )
    return codebooks


def new_rows(table: SidTable, item_ids: Sequence[str] | NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Rows of the catalogue `item_ids` [N]: those of the table's items in the table's order, and those of new items.

    Raises:
        TableError: an item of the table is not in the catalogue.
    """
    place = {str(item): row for row, item in enumerate(item_ids)}
    known = [str(item) for item in table.item_ids]
    gone = [item for item in known if item not in place]
    if gone:
        raise TableError(
            f"{len(gone)} items that have a SID are not in the catalogue, {gone[0]} first.",
            "Keep the rows of items that are no longer sold: their SIDs stay taken, and histories may name them.",
        )
    old = np.fromiter((place[item] for item in known), np.int64, len(known))
    return old, np.setdiff1d(np.arange(len(item_ids)), old)


def check_same(stored: FloatArray, given: FloatArray, item_ids: NDArray[Any]) -> None:
    """Refuse, with DataError, embeddings `given` [N, D] of old items that are not those `stored`."""
    remedy = "Embed old and new items with what the SIDs were made from."
    if stored.shape != given.shape:
        raise DataError(
            f"The embeddings given are {given.shape[1]} wide, those the SIDs were made from {stored.shape[1]}.", remedy
        )
    apart = np.abs(stored.astype(np.float64) - given).max(axis=1)
    worst = int(apart.argmax())
    if not apart[worst] <= _SAME * max(float(np.abs(stored).max()), 1e-30):
        raise DataError(
            f"The embeddings given are not those the SIDs were made from: the largest difference is {apart[worst]:.3g}, "
            f"of item {item_ids[worst]}.",
            remedy,
        )


def extend(
    table: SidTable,
    codebooks: Codebooks,
    embeddings: FloatArray,
    item_ids: Sequence[str] | NDArray[Any],
    points: FloatArray,
    *,
    without: BoolArray | None = None,
    taken: IntArray | None = None,
) -> tuple[SidTable, QualityReport]:
    """The table with SIDs for new `item_ids` [M] at `points` [M, D] in rows below its own, and its quality.

    The first N rows are those of `table`, with `embeddings` [N, D]. New items are kept apart from all others unless the
    schema allows that SIDs are shared. Items of `without` [M] get none and are not listed, and nobody gets one of `taken` [n, L].
    Raises UsageError when there are more items than SIDs, or SIDs differ in length.
    """
    table.require_one_length("Extending a table")
    fresh = codebooks.encode(points) if len(points) else np.zeros((0, table.levels), np.int32)
    if without is not None:
        fresh[without] = -1
    taken = table.codes[:0] if taken is None else taken
    before = np.concatenate([table.codes, fresh])
    codes, resolved = before.copy(), np.concatenate([table.resolved, np.zeros(len(fresh), bool)])
    there = before[:, 0] >= 0  # an old item without a SID takes none
    if table.schema.collisions == "unique" and len(fresh):
        held = np.concatenate([(np.arange(len(before)) < len(table))[there], np.ones(len(taken), bool)])
        everyone = np.concatenate([np.concatenate([embeddings, points])[there], codebooks.point(taken)])
        found, moved = resolve_collisions(np.concatenate([before[there], taken]), codebooks, everyone, held)
        codes[there] = found[: int(there.sum())]
        resolved[there] |= moved[: int(there.sum())]
    listed = np.concatenate([table.listed, fresh[:, 0] >= 0])
    ids = np.concatenate([table.item_ids, np.asarray(item_ids, dtype=object)])
    grown = SidTable.build(ids, codes, table.schema, listed, resolved)
    if table.dropped is not None:
        grown = grown.filtered(np.concatenate([table.dropped, np.zeros(len(fresh), bool)]))
    report = quality(grown, before)
    return grown, replace(report, warnings=report.warnings + _drift(grown, codebooks, embeddings, points))


def _drift(table: SidTable, codebooks: Codebooks, embeddings: FloatArray, points: FloatArray) -> tuple[str, ...]:
    """A warning when new items lie much farther from their SIDs than the table's own do."""
    n_old = len(embeddings)
    old = table.present[:n_old]
    if not len(points) or not old.any():
        return ()
    new = table.present[n_old:]
    if not new.any():
        return ()
    mine = _error(codebooks, embeddings[old], table.codes[:n_old][old])
    theirs = _error(codebooks, points[new], table.codes[n_old:][new])
    if theirs <= _FAR * mine:
        return ()
    return (
        f"New items lie {theirs / max(mine, 1e-12):.1f} times as far from their SIDs as old ones: "
        "the codebooks were not made for such items.",
    )


def _error(codebooks: Codebooks, points: FloatArray, codes: IntArray) -> float:
    """Mean distance of points [N, D] from where their SIDs lie."""
    return float(np.linalg.norm(points - codebooks.point(codes), axis=1).mean())
