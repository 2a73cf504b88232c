"""How far a model is from the references: orders of magnitude of concept mass, above or below.

The deciding choice is that the figure has two sides. A concept pressed below what a model that never saw it gives can be told by
its absence, so a mass at a thousandth of the reference's is as far away as one at a thousand times it. Of six masses (all users,
users of the concept, histories of nothing but the concept; under the SIDs of before and of today) the farthest counts, seed by
seed, so that one seed above the references and one below them do not make a model beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.equivalence import LEGS
from recerase.comparing.reading import Reading
from recerase.report.compared import Figure
from recerase.types import FloatArray, Interval

if TYPE_CHECKING:
    from recerase.audit.probes import AuditConfig

TINY = float(np.finfo(np.float32).tiny)
"""A mass that is nought in float32 is taken for this one: it has no logarithm, and no model gives exactly nought."""


def apart(readings: Sequence[Reading], references: Sequence[Reading], config: AuditConfig) -> Figure | None:
    """The largest |log10(mass / references' mean)| over LEGS, a mean over the models of `readings`; None where there is no leg.

    The interval holds what another draw of users would make of each leg (bootstrap, paired by user where both were read on the
    same), every single model, and every single reference in the place of the references' mean: it is never narrower than what
    the seeds of either side show.
    """
    legs = [found for own, gold in LEGS if (found := _leg(readings, references, own, gold)) is not None]
    if not legs:
        return None
    ends = np.array([_ends(own, gold, config) for own, gold in legs])  # [legs, 2]
    means = [np.array([x.mean() for x in own]) for own, _ in legs]
    gold = [np.array([x.mean() for x in versus]) for _, versus in legs]
    points = np.max([_distance(m / g.mean()) for m, g in zip(means, gold, strict=True)], axis=0)  # [models]
    single = np.max(
        [_distance(m[:, None] / g) for m, g in zip(means, gold, strict=True)], axis=0
    )  # [models, references]
    seen = np.concatenate([points, single.ravel()])
    interval = Interval(
        float(min(ends[:, 0].max(), seen.min())),
        float(max(ends[:, 1].max(), seen.max())),
        config.confidence,
        "bootstrap",
    )
    sd = float(np.std(points, ddof=1)) if len(points) > 1 else None
    return Figure(float(points.mean()), len(legs[0][0][0]), len(points), sd, interval)


def _leg(
    readings: Sequence[Reading], references: Sequence[Reading], own: str, gold: str
) -> tuple[list[FloatArray], list[FloatArray]] | None:
    """Values [n] of every model and of every reference; None where one of them was not read."""
    if not readings or not references:
        return None
    if not all(own in x.values for x in readings) or not all(gold in x.values for x in references):
        return None
    mine = [np.maximum(reading.values[own], TINY) for reading in readings]
    theirs = [np.maximum(reading.values[gold], TINY) for reading in references]
    return (mine, theirs) if all(x.size for x in (*mine, *theirs)) else None


def _distance(ratio: FloatArray) -> FloatArray:
    found: FloatArray = np.abs(np.log10(ratio))
    return found


def _ends(own: list[FloatArray], gold: list[FloatArray], config: AuditConfig) -> tuple[float, float]:
    """The interval of one leg's distance; where the ratio's holds 1 it begins at 0."""
    from recerase.stats import paired_ratio

    _, found = paired_ratio(np.mean(own, axis=0), np.mean(gold, axis=0), confidence=config.confidence, seed=config.seed)
    low, high = float(np.log10(max(found.low, TINY))), float(np.log10(max(found.high, TINY)))
    near = 0.0 if low <= 0.0 <= high else min(abs(low), abs(high))
    return near, max(abs(low), abs(high))
