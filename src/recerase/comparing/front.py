"""The front of forgetting against utility: which rows nobody beats in both, and how sure that is.

The deciding choice is two steps. A row is beaten when another is at least as good in both figures and better in one; it is
*dominated* only when the two intervals of that better figure do not overlap, else it is *tied*: worse by a hair that another
draw of users or seeds may turn round. What nobody beats is the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recerase.report.compared import Figure, Standing
from recerase.types import BoolArray

RULE = (
    "Beaten: another method is at least as good in both figures and better in one. Dominated: and the intervals of that better "
    "figure do not overlap; otherwise tied. Intervals are over users, and as wide as the values of all seeds. On the front: "
    "beaten by nobody."
)


@dataclass(frozen=True)
class Place:
    """Where one row stands."""

    standing: Standing
    beaten_by: tuple[int, ...] = ()
    """Positions of the rows that beat it: those that dominate it, where there are any."""


def places(leaks: Sequence[Figure], drops: Sequence[Figure]) -> tuple[Place, ...]:
    """Where each row stands by what it still leaks and what utility it lost; of both, less is better."""
    if not leaks:
        return ()
    figures = [(leak, drop) for leak, drop in zip(leaks, drops, strict=True)]
    value = np.array([[x.value for x in row] for row in figures])  # [n, 2]
    low = np.array([[x.interval.low if x.interval else x.value for x in row] for row in figures])
    high = np.array([[x.interval.high if x.interval else x.value for x in row] for row in figures])
    better = value[:, None] < value[None]  # [n, n, 2] row i than row j
    beats: BoolArray = np.asarray((value[:, None] <= value[None]).all(2) & better.any(2))
    clearly: BoolArray = beats & (better & (high[:, None] < low[None])).any(2)
    found = []
    for j in range(len(figures)):
        by = clearly[:, j] if clearly[:, j].any() else beats[:, j]
        standing: Standing = "dominated" if clearly[:, j].any() else "tied" if beats[:, j].any() else "front"
        found.append(Place(standing, tuple(np.flatnonzero(by).tolist())))
    return tuple(found)
