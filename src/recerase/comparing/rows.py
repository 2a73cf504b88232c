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

from recerase.audit.equivalence import LEGS
from recerase.comparing.alike import equivalents, told_apart
from recerase.comparing.apart import apart
from recerase.comparing.front import RULE, places
from recerase.comparing.reading import METRICS, Reading
from recerase.report.compared import APART, LEAK, Figure, Row, axis_of
from recerase.types import FloatArray, Interval, Scope

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig

Kind = Literal["drop", "ratio"]
NDCG, NEAR = "utility.ndcg@10", "utility_neighbours.ndcg@10"
DROP = f"{NDCG} drop/original"
FORGOTTEN = (
    "natural.exposure@10",
    "saturated.exposure@10",
    *(f"{stem}.mass.{side}" for stem in ("natural", "saturated") for side in ("old", "new")),
)
"""What a method that forgets keeps within the shipped policy's limits."""
FORGETTING = {
    LEAK: "Forgetting: exact concept mass over all users, under the old or the new SIDs, whichever is more; there is no reference, "
    "so less is better and over-forgetting is not seen.",
    APART: "Forgetting: likeness to the references, two-sided. The largest |log10(mass / the references' mean)| over all users, users "
    "of the concept and histories of nothing but the concept, under the old and the new SIDs: a mass at a tenth of the references' "
    "is as far away as one ten times theirs. Its interval also holds every single reference.",
}
UTILITY = "Utility: NDCG@10 on retained items, as a share of the original's."


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


COMPARED: tuple[tuple[str, str, str, Kind], ...] = (
    (NDCG, NDCG, "original", "drop"),
    (NDCG, NDCG, "reference", "drop"),
    (NEAR, NEAR, "reference", "ratio"),
    *((own, gold, "reference", "ratio") for own, gold in LEGS),
)
"""(metric, that of whom it is held against, who that is, how)."""


def figures(
    readings: Sequence[Reading], base: Base, config: AuditConfig, own: str = "", scope: Scope = "output"
) -> dict[str, Figure]:
    """Every figure of the models of one row; `own` is whom it is not compared with, because it is that one."""
    from recerase.audit.probes import interval_of

    found: dict[str, Figure] = {}
    for metric in METRICS:
        values = [reading.values[metric] for reading in readings if metric in reading.values]
        if values and values[0].size:
            points = [float(x.mean()) for x in values]
            found[metric] = _figure(points, interval_of(np.mean(values, axis=0), config), len(values[0]))
    for metric, theirs, whom, kind in COMPARED:
        versus = base.of(whom, theirs)
        values = [reading.values[metric] for reading in readings if metric in reading.values]
        if whom != own and versus is not None and versus.mean() > 0 and values:
            found[f"{metric} {kind}/{whom}"] = _compared(kind, values, versus, config)
    sides = [found[name] for name in ("natural.mass.old", "natural.mass.new") if name in found]
    if sides:
        found[LEAK] = max(sides, key=lambda side: side.value)
    if not readings or not base.references:
        return found
    distance = apart(readings, base.references, config)
    found |= {} if distance is None else {APART: distance}
    if own not in ("reference", "filter"):
        found |= equivalents(readings, base.references, config)
        found |= told_apart(readings, base.references, scope, config)
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


def limits() -> dict[str, float]:
    """What the shipped policy allows of FORGOTTEN."""
    from recerase.audit.policy import default_policy

    plain = [rule for rule in default_policy().rules if rule.max is not None and rule.max_ratio_to is None]
    return {rule.metric: float(rule.max) for rule in plain if rule.metric in FORGOTTEN and rule.max is not None}


def remembers(row: Row, allowed: Mapping[str, float]) -> bool:
    """Whether an interval lies above its limit: the concept is still in the lists or in the weights, beyond doubt."""
    found = [(row.figures[name].interval, limit) for name, limit in allowed.items() if name in row.figures]
    return any(interval is not None and interval.low > limit for interval, limit in found)


def ranked(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of one scope, each method's with where it stands on the front; controls and references are no candidates."""
    axis, allowed = axis_of(rows), limits()
    there = [i for i, row in enumerate(rows) if row.kind == "method" and axis in row.figures and DROP in row.figures]
    out = {i for i in there if remembers(rows[i], allowed)}
    taken = [i for i in there if i not in out]
    found = places([rows[i].figures[axis] for i in taken], [rows[i].figures[DROP] for i in taken], len(out))
    told: dict[int, Row] = {
        i: replace(rows[i], standing=place.standing, beaten_by=tuple(rows[taken[j]].name for j in place.beaten_by))
        for i, place in zip(taken, found, strict=True)
    }
    told |= {i: replace(rows[i], standing="remembers") for i in out}
    return tuple(told.get(i, row) for i, row in enumerate(rows))


def front_text(rows: Sequence[Row]) -> str:
    """What the front of these rows measures, who is no candidate, when a row is beaten, and how many stand where; a line each."""
    told = " or ".join(f"{name} above {limit:g}" for name, limit in limits().items())
    rule = f"No candidate: a method whose interval has {told}, the shipped policy's limits; it does not forget."
    counts = []
    for scope in dict.fromkeys(row.scope for row in rows):
        own = [row for row in rows if row.scope == scope and row.kind == "method"]
        first = [row.name for row in own if row.standing in ("alone", "front")]
        alone = [row.name for row in own if row.standing == "alone"]
        who = f" ({', '.join(alone)})" if alone else ""
        counts.append(
            f"Scope {scope}: on the front {len(first)} of {len(own)} ({', '.join(first) or 'nobody'}), alone {len(alone)}{who}."
        )
    return "\n".join([FORGETTING[axis_of(rows)], UTILITY, rule, RULE, *counts])
