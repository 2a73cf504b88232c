"""The front of forgetting against utility: which rows nobody beats in both, and how sure that is.

The deciding choice is two steps. A row is beaten when another is at least as good in both figures and better in one; it is
*dominated* only when the two intervals of that better figure do not overlap, else it is *tied*: worse by a hair that another
draw of users or seeds may turn round. What nobody beats is the front; *alone* on it is a row that beats every other one clearly
in the same figure and is not clearly worse than any in the other.
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
    "beaten by nobody. Alone on it: in one figure its interval lies below every other candidate's, and in the other above nobody's."
)


@dataclass(frozen=True)
class Place:
    """Where one row stands."""

    standing: Standing
    beaten_by: tuple[int, ...] = ()
    """Positions of the rows that beat it: those that dominate it, where there are any."""


def places(leaks: Sequence[Figure], drops: Sequence[Figure], others: int = 0) -> tuple[Place, ...]:
    """Where each row stands by what it still leaks and what utility it lost; of both, less is better.

    `others`: rows that were compared and are no candidates; a row that is left over is alone where there are some.
    """
    if not leaks:
        return ()
    figures = [(leak, drop) for leak, drop in zip(leaks, drops, strict=True)]
    value = np.array([[x.value for x in row] for row in figures])  # [n, 2]
    low = np.array([[x.interval.low if x.interval else x.value for x in row] for row in figures])
    high = np.array([[x.interval.high if x.interval else x.value for x in row] for row in figures])
    better = value[:, None] < value[None]  # [n, n, 2] row i than row j
    beats: BoolArray = np.asarray((value[:, None] <= value[None]).all(2) & better.any(2))
    clearly: BoolArray = beats & (better & (high[:, None] < low[None])).any(2)
    below = high[:, None] < low[None]  # [n, n, 2] the interval of row i lies below that of row j
    held = below & ~below.transpose(1, 0, 2)[:, :, ::-1] | np.eye(len(figures), dtype=bool)[:, :, None]
    alone: BoolArray = np.any(held.all(1), axis=1) & (len(figures) + others > 1)
    found = []
    for j in range(len(figures)):
        by = clearly[:, j] if clearly[:, j].any() else beats[:, j]
        standing: Standing = "dominated" if clearly[:, j].any() else "tied" if beats[:, j].any() else "front"
        standing = "alone" if alone[j] and standing == "front" else standing
        found.append(Place(standing, tuple(np.flatnonzero(by).tolist())))
    return tuple(found)
