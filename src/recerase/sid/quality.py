"""How good a SID table is, before anybody trains on it: codes in use, evenness, collisions.

Perplexity (the number of codes that would give the same entropy if used evenly) is the figure that shows a collapsed
level, which a count of codes in use hides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recerase.sid.table import SidTable
from recerase.types import FloatArray, IntArray

_COLLAPSED = 0.2
_CROWDED = 0.25


@dataclass(frozen=True)
class QualityReport:
    """Figures a level (tuples of L), and over the table."""

    used: tuple[int, ...]
    """Codes that some item has."""
    perplexity: tuple[float, ...]
    """exp(entropy) of the codes over items; K_l when all are used evenly."""
    gini: tuple[float, ...]
    """0 when all K_l codes are used evenly, towards 1 when few codes have all items."""
    collision_before: float
    """Share of the items that shared their SID before resolution."""
    collision_after: float
    moved_by_resolution: int
    """Items that resolution gave another SID."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def quality(table: SidTable, before_codes: IntArray | None = None) -> QualityReport:
    """The figures of a table; `before_codes` [N, L] are its codes before collisions were resolved."""
    counts = [table.usage(level) for level in range(table.levels)]
    n_items = int(table.present.sum())
    after = collision_share(table.codes[table.present])
    before, moved = after, int(table.resolved.sum())
    if before_codes is not None:
        before = collision_share(before_codes[table.present])
        moved = int((before_codes != table.codes).any(axis=1).sum())
    absent = len(table) - n_items
    return figures(counts, n_items, before, after, moved, absent)


def figures(
    counts: Sequence[IntArray], n_items: int, before: float, after: float, moved: int, absent: int = 0
) -> QualityReport:
    """The report of `n_items` with a SID and `absent` ones without: items a code [K_l] of each level, shares of collisions."""
    perplexities = tuple(perplexity(c) for c in counts)
    sizes = [len(c) for c in counts]
    return QualityReport(
        used=tuple(int((c > 0).sum()) for c in counts),
        perplexity=perplexities,
        gini=tuple(gini(c) for c in counts),
        collision_before=before,
        collision_after=after,
        moved_by_resolution=moved,
        warnings=tuple(_warnings(sizes, n_items, absent, perplexities, after, moved)),
    )


def perplexity(counts: IntArray) -> float:
    """exp of the entropy (nats) of counts [K]; 0 when all are 0."""
    total = counts.sum()
    if total == 0:
        return 0.0
    shares = counts[counts > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def gini(counts: IntArray) -> float:
    """Gini coefficient of counts [K], in [0, 1 - 1 / K]."""
    ordered: FloatArray = np.sort(counts).astype(np.float64)
    total = ordered.sum()
    if total == 0:
        return 0.0
    size = len(ordered)
    return float(((2 * np.arange(1, size + 1) - size - 1) * ordered).sum() / (size * total))


def collision_share(codes: IntArray) -> float:
    """Share of the rows of codes [N, L] that occur more than once."""
    if not len(codes):
        return 0.0
    return shared_items(codes) / len(codes)


def shared_items(codes: IntArray) -> int:
    """How many of the rows of codes [N, L] occur more than once."""
    sid, reach = np.zeros(len(codes), np.int64), 1
    for column in codes.T:
        size = int(column.max(initial=0)) + 2
        if reach * size > 1 << 62:  # the prefix so far, as a number that leaves room
            sid, reach = np.unique(sid, return_inverse=True)[1].reshape(-1), len(codes)
        sid = sid * size + (column.astype(np.int64) + 1)
        reach *= size
    counts = np.unique(sid, return_counts=True)[1]
    return int(counts[counts > 1].sum())


def _warnings(
    sizes: Sequence[int], n_items: int, absent: int, perplexities: tuple[float, ...], collisions: float, moved: int
) -> list[str]:
    out = []
    if absent:
        out.append(f"{absent} of {n_items + absent} items have no SID.")
    for level, (found, size) in enumerate(zip(perplexities, sizes, strict=True)):
        reachable = min(size, n_items)
        if found < _COLLAPSED * reachable:
            out.append(
                f"Level {level + 1} has collapsed: its use of {reachable} codes is worth {found:.0f} evenly used ones."
            )
    if collisions > 0:
        out.append(f"{collisions:.2%} of the items share their SID with another item.")
    if moved > _CROWDED * max(n_items, 1):
        out.append(
            f"Resolution changed {moved} of {n_items} SIDs: use more codes or levels, or embeddings that say more."
        )
    return out
