"""Two-sided likeness of one number to retrained references: within a factor of them, and equivalent at their own spread.

The decision that shaped this file: the margin is the references' to give, within limits that are not theirs. Clean runs that
differ in nothing but the seed have different masses; the margin is how far from their mean a further run of the kind would
fall. From three runs that is itself a guess, so it is never taken below FLOOR, what other fields take to be no difference,
nor above CEILING, the most that may ever be called alike, however much the references disagree. The ceiling is what makes
the test's size known: two models a factor of CEILING apart are called equivalent in at most 1 - confidence of all cases,
whatever the spread. Two references tell nothing of a spread (the bound for a third is 16 standard deviations away).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from recerase.errors import UsageError
from recerase.types import FloatArray, Interval

FLOOR, CEILING = 1.25, 3.0
"""Factors: the margin of bioequivalence (.8 to 1.25), and three."""
LEAST_REFERENCES = 3
LEGS = tuple(
    (f"{stem}.mass.{side}", f"{stem}.mass.old")
    for stem in ("natural", "natural_concept_users", "saturated")
    for side in ("old", "new")
)
"""(mass of the model, mass of the references it is held against): theirs are under the SIDs they were trained with."""


@dataclass(frozen=True)
class Equivalence:
    """What the test concluded, and from what."""

    equivalent: bool | None
    """None: it cannot be known; `reason` says why."""
    ratio: float | None
    """Subject over references: of the geometric means over seeds of the means over users."""
    interval: Interval | None
    """Of the ratio, at 2 * confidence - 1, so that each side is tested at `confidence`."""
    margin: float | None
    """The factor the interval must stay within, on both sides."""
    reason: str
    """One plain sentence."""


def within_factor(value: float, references: Sequence[float], factor: float = CEILING) -> bool | None:
    """Whether `value` lies within 1 / factor and factor of the references' mean; None where that mean is not positive.

    Raises UsageError unless factor >= 1.
    """
    if not factor >= 1:
        raise UsageError(f"A factor of {factor} bounds nothing.", "Give one of 1 or more, such as 3.")
    mean = float(np.mean(references)) if len(references) else 0.0
    return 1 / factor <= value / mean <= factor if mean > 0 and math.isfinite(value) else None


def equivalent_log_ratio(
    subject: Sequence[ArrayLike], references: Sequence[ArrayLike], confidence: float = 0.95
) -> Equivalence:
    """Whether mean masses are the references' but for a factor that a further reference could differ by (TOST).

    Args:
        subject: a seed: [n] the mass a user, or its mean alone. references: the same, a retrained model each.
    Per-user values must be those of the same users. With L the logarithm of a seed's mean, s the standard deviation of the k
    references' L, the margin is t(k - 1) * s * sqrt(1 + 1 / k), the two-sided prediction bound at `confidence` for one more
    reference, within log FLOOR and log CEILING. The interval of the difference of mean L (Welch) counts the seeds of both
    sides, and the users where there are values of theirs; a subject with one seed is taken to vary over seeds as the
    references do. Equivalent where the interval at 2 * confidence - 1 is inside the margin (Schuirmann 1987).
    Raises UsageError: no subject, unequal users, a negative or infinite mass, or a confidence outside (.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise UsageError(f"Equivalence cannot be tested at {confidence}.", "Give a confidence between .5 and 1.")
    own, base = _seeds(subject), _seeds(references)
    if not own:
        raise UsageError("There is no subject to compare.", "Give one array a seed.")
    if len({len(x) for x in (*own, *base)}) > 1:
        raise UsageError(
            "The models were not read on the same users.", "Give each seed one value a user, in one order."
        )
    if not base or min(float(x.mean()) for x in base) <= 0:
        return Equivalence(None, None, None, None, _without(len(base)))
    if min(float(x.mean()) for x in own) <= 0:
        return Equivalence(False, 0.0, None, None, "the subject gives no mass at all, the references do")
    logs, base_logs = (np.log([float(x.mean()) for x in xs]) for xs in (own, base))
    point = float(logs.mean() - base_logs.mean())
    if len(base) < LEAST_REFERENCES:
        return Equivalence(None, math.exp(point), None, None, _without(len(base)))
    margin = _margin(base_logs, confidence)
    half = _half_width(logs, base_logs, _users_variance(own, base), confidence)
    interval = Interval(math.exp(point - half), math.exp(point + half), 2 * confidence - 1, "welch")
    inside = abs(point) + half < margin
    told = f"the interval is {'inside' if inside else 'not inside'} 1/{math.exp(margin):.3g} to {math.exp(margin):.3g}"
    return Equivalence(inside, math.exp(point), interval, math.exp(margin), told)


@dataclass(frozen=True)
class Leg:
    """One of LEGS, tested."""

    told: Equivalence
    n: int
    """Users or histories a model."""
    models: int
    """That gave the mass."""


def equivalent_masses(
    own: Sequence[Mapping[str, FloatArray]], references: Sequence[Mapping[str, FloatArray]], confidence: float = 0.95
) -> dict[str, Leg]:
    """Each of LEGS that was read off both sides, by the name of the model's mass: `own` and `references` give metric -> [n] values.

    Where the models were not read on the same histories (a reference cannot read those of nothing but the concept) the means alone
    are compared. Raises as `equivalent_log_ratio`.
    """
    found: dict[str, Leg] = {}
    for name, gold in LEGS:
        mine = [x[name] for x in own if name in x]
        theirs = [x[gold] for x in references if gold in x]
        if not mine or not theirs:
            continue
        same = len({len(x) for x in (*mine, *theirs)}) == 1
        told = equivalent_log_ratio(
            mine if same else [x.mean() for x in mine], theirs if same else [x.mean() for x in theirs], confidence
        )
        found[name] = Leg(told, len(mine[0]), len(mine))
    return found


def _without(k: int) -> str:
    if k == 0:
        return "there is no reference"
    if k < LEAST_REFERENCES:
        return f"{k} reference{'s' if k > 1 else ''}: a spread over seeds needs {LEAST_REFERENCES}"
    return "a reference gives no mass at all, so there is no ratio to it"


def _seeds(values: Sequence[ArrayLike]) -> list[FloatArray]:
    found: list[FloatArray] = [np.asarray(x, dtype=np.float64).reshape(-1) for x in values]
    if any(x.size == 0 or not np.isfinite(x).all() or (x < 0).any() for x in found):
        raise UsageError("A mass is missing, negative or no number.", "Look at what measured it.")
    return found


def _margin(logs: FloatArray, confidence: float) -> float:
    """How far from the mean of k `logs` one more would lie, at `confidence`, between the floor and the ceiling."""
    k = len(logs)
    reach = _t((1 + confidence) / 2, k - 1) * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / k)
    return min(max(reach, math.log(FLOOR)), math.log(CEILING))


def _half_width(own: FloatArray, base: FloatArray, users: tuple[float, int], confidence: float) -> float:
    """Half of the interval of mean(own) - mean(base); `users` is what users add to the variance, and its degrees of freedom."""
    k, seeds = len(base), len(own)
    spread = float(base.var(ddof=1))
    if seeds == 1:
        parts = [(spread * (1 + 1 / k), k - 1), users]
    else:
        parts = [(spread / k, k - 1), (float(own.var(ddof=1)) / seeds, seeds - 1), users]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / df for variance, df in parts if variance > 0)
    return _t(confidence, freedom) * math.sqrt(total)


def _users_variance(own: Sequence[FloatArray], base: Sequence[FloatArray]) -> tuple[float, int]:
    """Variance, from the drawing of n users, of the difference of mean logarithms (to first order), and n - 1."""
    n = len(own[0])
    if n < 2:
        return 0.0, 1
    pull = np.mean([x / x.mean() for x in own], axis=0) - np.mean([x / x.mean() for x in base], axis=0)
    return float(pull.var(ddof=1)) / n, n - 1


def _t(level: float, freedom: float) -> float:
    """Student's quantile."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))
