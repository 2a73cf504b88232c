"""From readings to rows: means over seeds with their spread, comparisons with the original and the references, and the front.

The deciding choice is where the uncertainty is put. Values are averaged over seeds user by user, and the interval over users is
of that average (paired where it is compared with another model); it is then stretched to the values of all seeds, so that it is
never narrower than what the seeds themselves show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from recerase.comparing.cells import METRICS, Reading
from recerase.comparing.front import places
from recerase.report.compared import Figure, Row
from recerase.types import FloatArray, Interval

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig

Kind = Literal["drop", "ratio"]
NDCG, NEAR = "utility.ndcg@10", "utility_neighbours.ndcg@10"
LEAK, DROP = "leak", f"{NDCG} drop/original"
LIKENESS = ("natural.mass.old", "natural_concept_users.mass.old", "saturated.mass.old")
FRONT = (
    "Forgetting: exact concept mass over all users, under the old or the new SIDs, whichever is more. Utility: NDCG@10 on "
    "retained items, as a share of the original's."
)


@dataclass(frozen=True, eq=False)
class Base:
    """What rows are compared with: the original, and the mean of the references where there are any."""

    original: Reading
    references: tuple[Reading, ...] = ()

    def of(self, whom: str, metric: str) -> FloatArray | None:
        """[n] the values of `original` or `reference`; references' are averaged user by user."""
        readings = (self.original,) if whom == "original" else self.references
        found = [reading.values[metric] for reading in readings if metric in reading.values]
        return np.mean(found, axis=0) if found else None


COMPARED: tuple[tuple[str, str, Kind], ...] = (
    (NDCG, "original", "drop"),
    (NDCG, "reference", "drop"),
    (NEAR, "reference", "ratio"),
    *((metric, "reference", "ratio") for metric in LIKENESS),
)


def figures(readings: Sequence[Reading], base: Base, config: AuditConfig, own: str = "") -> dict[str, Figure]:
    """Every figure of the models of one row; `own` is whom it is not compared with, because it is that one."""
    from recerase.audit.probes import interval_of

    found: dict[str, Figure] = {}
    for metric in METRICS:
        values = [reading.values[metric] for reading in readings if metric in reading.values]
        if values:
            points = [float(x.mean()) for x in values]
            found[metric] = _figure(points, interval_of(np.mean(values, axis=0), config), len(values[0]))
    for metric, whom, kind in COMPARED:
        versus = base.of(whom, metric)
        values = [reading.values[metric] for reading in readings if metric in reading.values]
        if whom != own and versus is not None and versus.mean() > 0 and values:
            found[f"{metric} {kind}/{whom}"] = _compared(kind, values, versus, config)
    sides = [found[name] for name in ("natural.mass.old", "natural.mass.new") if name in found]
    if sides:
        found[LEAK] = max(sides, key=lambda side: side.value)
    return found


def _compared(kind: Kind, values: Sequence[FloatArray], versus: FloatArray, config: AuditConfig) -> Figure:
    from recerase.stats import paired_drop, paired_ratio

    ratios = [float(x.mean() / versus.mean()) for x in values]
    points = ratios if kind == "ratio" else [1.0 - ratio for ratio in ratios]
    paired = paired_ratio if kind == "ratio" else paired_drop
    _, interval = paired(np.mean(values, axis=0), versus, confidence=config.confidence, seed=config.seed)
    return _figure(points, interval, len(values[0]))


def _figure(points: Sequence[float], interval: Interval, n: int) -> Figure:
    """The mean of a value a seed, with their spread, and an interval that holds all of them."""
    wide = replace(interval, low=min(interval.low, *points), high=max(interval.high, *points))
    sd = float(np.std(points, ddof=1)) if len(points) > 1 else None
    return Figure(float(np.mean(points)), n, len(points), sd, wide)


def ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of one scope, each method's with where it stands on the front; controls and references are no candidates."""
    taken = [i for i, row in enumerate(rows) if row.kind == "method" and LEAK in row.figures and DROP in row.figures]
    found = places([rows[i].figures[LEAK] for i in taken], [rows[i].figures[DROP] for i in taken])
    told: Mapping[int, Row] = {
        i: replace(rows[i], standing=place.standing, beaten_by=tuple(rows[taken[j]].name for j in place.beaten_by))
        for i, place in zip(taken, found, strict=True)
    }
    return tuple(told.get(i, row) for i, row in enumerate(rows))
