"""Intervals that a gate can be built on: for rates, for means, for drops and ratios between two models.

The decision that shaped this file: an interval must not be narrow because nothing happened to be seen. Where no unit
in n shows a leak, or only some do, the upper end counts one unseen unit at the top of the range (Gaffke's bound: the
Bayesian bootstrap with one more observation at 1), which is -ln(1 - confidence) / n when nothing is seen at all; the
ratio of two models' gains counts one unseen pair at either end. Only means of numbers that are never exactly zero
(masses) use the plain bootstrap, bias-corrected and accelerated, for they are skewed. Everything here depends on the
values as a set (or as a set of pairs), never on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from recerase.errors import UsageError
from recerase.types import FloatArray, IntArray, Interval

RESAMPLES = 2000
_CHUNK = 1 << 20
"""Numbers drawn at once: bounds the memory of a bootstrap, whatever n is."""
_NORMAL = NormalDist()
_FEW = 120
"""Hits up to which the exact end of a rate may lie below Wilson's; beyond, up to .999, it never does (at .95: ten)."""


def wilson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """The interval of a rate from `hits` in `n` independent trials (Wilson 1927).

    No hit, or nothing but hits: the other end is -ln(1 - confidence) / n away (the rule of three, 3 / n at .95), and
    the method says so. Few hits, or few misses: Wilson's end on that side is too sure (Brown, Cai & DasGupta 2001), and
    the exact one-sided one takes its place. Raises UsageError unless 0 <= hits <= n and n >= 1.
    """
    _check_confidence(confidence)
    if n < 1 or not 0 <= hits <= n:
        raise UsageError(f"A rate cannot be made of {hits} hits in {n} trials.", "Give 0 <= hits <= n and n >= 1.")
    none = unseen(n, confidence)
    if hits == 0:
        return Interval(0.0, none, confidence, "rule-of-three")
    if hits == n:
        return Interval(1.0 - none, 1.0, confidence, "rule-of-three")
    z, rate = _NORMAL.inv_cdf((1 + confidence) / 2), hits / n
    shrunk = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrunk
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / shrunk
    low = min(centre - half, 1.0 - none, _rarest(hits, n, confidence))
    high = max(centre + half, none, 1.0 - _rarest(n - hits, n, confidence))  # a hit never looks better than none
    return Interval(max(low, 0.0), min(high, 1.0), confidence, "wilson")


def _rarest(hits: int, n: int, confidence: float) -> float:
    """The rate at which n trials give `hits` or more with probability 1 - confidence; 1 for more hits than few."""
    if hits > _FEW:
        return 1.0
    low, high = 0.0, hits / n
    ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(hits)]
    for _ in range(50):
        rate = (low + high) / 2
        seen, not_seen = math.log(rate), math.log1p(-rate)
        fewer = sum(math.exp(way + k * seen + (n - k) * not_seen) for k, way in enumerate(ways))
        low, high = (rate, high) if fewer > confidence else (low, rate)
    return low


def unseen(n: int, confidence: float) -> float:
    """How large a rate may be, with `confidence`, that showed itself in none of n units: -ln(1 - confidence) / n."""
    return min(1.0, -math.log1p(-confidence) / n)


def bootstrap_mean(values: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The interval of the mean of `values` [n], one a unit.

    Values in [0, 1] with a zero among them (exposures, gains): Gaffke's bound (Learned-Miller & Thomas 2019), which is
    the rule of three where all are zero and Clopper-Pearson's where all are 0 or 1. Other values: the bootstrap, bias-
    corrected and accelerated (Efron 1987), which knows of no unit unlike those it saw: where one user in n holds the whole
    mass, it is too sure. Raises UsageError when there is no value or one is not finite.
    """
    _check_confidence(confidence)
    given = _units(values)
    units, point, n = np.sort(given), float(given.mean()), len(given)
    low, high = float(units[0]), float(units[-1])
    if low == high == 0.0:
        return Interval(0.0, unseen(n, confidence), confidence, "rule-of-three")
    rng = np.random.default_rng(seed)
    if low == 0.0 and high <= 1.0:
        ends, method = _gaffke(units, confidence, resamples, rng), "gaffke"
        ends = (ends[0], max(ends[1], unseen(n, confidence)))
    elif low == high:
        ends, method = (low, high), "bootstrap"
    else:
        means = _resampled(units[:, None], resamples, rng)[:, 0]
        ends, method = _accelerated(means, point, units - point, confidence), "bootstrap"
    return Interval(min(ends[0], point), max(ends[1], point), confidence, method)


def paired_ratio(
    subject: ArrayLike, versus: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, Interval]:
    """mean(subject) / mean(versus) and its interval; both [n], the same units in the same order.

    Arrays of different lengths are taken as independent samples. Where some of the subject's values in [0, 1] are zero
    the upper end is never below what an unseen unit would make of the ratio; it is infinite where `versus` is so sparse
    that it may be zero. Pairs that are sparse on both sides (gains) count an unseen pair at either end: ten users whose
    hits are all still there do not say that no hit is lost. Raises UsageError when the mean of `versus` is not positive.
    """
    _check_confidence(confidence)
    own, base = _units(subject), _units(versus)
    paired = len(own) == len(base)
    order = np.lexsort((base, own)) if paired else np.argsort(own)
    own, base = own[order], base[order] if paired else np.sort(base)
    if base.mean() <= 0:
        raise UsageError("A ratio to a mean that is not positive has no meaning.", "Compare the values themselves.")
    point = float(own.mean() / base.mean())
    rng = np.random.default_rng(seed)
    influence_own, influence_base = own - own.mean(), -point * (base - base.mean())
    if paired:
        top, bottom = _resampled(np.stack([own, base], axis=1), resamples, rng).T
        influence = influence_own + influence_base
    else:
        top, bottom = (_resampled(x[:, None], resamples, rng)[:, 0] for x in (own, base))
        influence = np.concatenate([influence_own / len(own), influence_base / len(base)])
    informed = (bottom > 0) | (top > 0)
    ratios = np.divide(top, bottom, out=np.full(resamples, np.inf), where=bottom > 0)[informed]
    low, high = _accelerated(ratios, point, influence, confidence)
    method = "bootstrap"
    if own.min() == 0.0 and own.max() <= 1.0:
        floor = bootstrap_mean(base, confidence, resamples, seed).low
        high = max(high, unseen(len(own), confidence) / floor if floor > 0 else math.inf)
        method = "rule-of-three" if own.max() == 0.0 else method
    if paired and own.min() == base.min() == 0.0 and max(own.max(), base.max()) <= 1.0:
        ends = _gaffke_ratio(own, base, confidence, resamples, rng)
        low, high = min(low, ends[0]), max(high, ends[1])
    return point, Interval(min(low, point), max(high, point), confidence, method)


def paired_drop(
    subject: ArrayLike, versus: ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, Interval]:
    """(mean(versus) - mean(subject)) / mean(versus) and its interval, from the same resamples as `paired_ratio`."""
    ratio, found = paired_ratio(subject, versus, confidence, resamples, seed)
    return 1.0 - ratio, Interval(1.0 - found.high, 1.0 - found.low, confidence, found.method)


def equivalence(
    subject: ArrayLike,
    versus: ArrayLike,
    margin: float,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[bool, Interval]:
    """Whether the paired means differ by less than `margin`, in their own unit: two one-sided tests (Schuirmann 1987).

    Returns the answer and the interval of mean(subject) - mean(versus) it rests on, at 2 * confidence - 1, so that each
    side is tested at `confidence`. Raises UsageError when the arrays differ in length or the margin is not positive.
    """
    own, base = _units(subject), _units(versus)
    if len(own) != len(base) or not margin > 0 or not 0.5 < confidence < 1:
        raise UsageError(
            f"Equivalence of {len(own)} and {len(base)} values within {margin} at {confidence} cannot be tested.",
            "Give one value a unit for both, a margin above 0 and a confidence between .5 and 1.",
        )
    difference = np.sort(own - base)
    point = float(difference.mean())
    means = _resampled(difference[:, None], resamples, np.random.default_rng(seed))[:, 0]
    low, high = _accelerated(means, point, difference - point, 2 * confidence - 1)
    return -margin < low and high < margin, Interval(low, high, 2 * confidence - 1, "bootstrap")


def required_n(value: float, end: float, limit: float, n: int, method: str = "bootstrap") -> int | None:
    """About how many units would bring the pessimistic `end` of an interval to `limit`, were `value` to stay.

    The distance from value to end shrinks with 1 / n under the rule of three, with 1 / sqrt(n) otherwise. None when no
    number suffices: the value is on the limit or beyond it, or the end is infinite. An interval of no width needs n.
    """
    reach, room = end - value, limit - value
    if reach == 0:
        return n
    share = reach / room if room != 0 else math.inf
    if not math.isfinite(share) or share <= 0:
        return None
    needed = n * (share if method == "rule-of-three" else share * share)
    return max(math.ceil(needed * (1 - 1e-12)), 1)


def enough_n(
    value: float, end: float, limit: float, n: int, method: str, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """About how many units would bring the pessimistic end within `limit` with probability `power`, were `value` the truth.

    `value`, `end` and `limit` are turned so that smaller is better: a minimum is given negated. `required_n` is for the value
    staying where it is, and half of all samples lie above it: the distance that must fit between the value and the limit is
    z(power) standard errors longer. A rate (`wilson`) is sought with the interval itself, for its width is not that of a normal
    distribution where hits are few; Gaffke's bound has a part that shrinks faster. No hit at all needs what the rule of three
    says. None as `required_n`.
    Raises UsageError unless power is in [.5, 1).
    """
    _check_confidence(confidence)
    if not 0.5 <= power < 1:
        raise UsageError(f"A power of {power} cannot be planned for.", "Give one from .5 to below 1, such as .8.")
    plain = required_n(value, end, limit, n, method)
    if plain is None or end == value or method == "rule-of-three":
        return plain
    more = _NORMAL.inv_cdf(power)
    if method == "wilson" and limit < 1 and -1 <= value <= 1:
        hits, rate = (value, limit) if value >= 0 else (1 + value, 1 + limit)
        return _enough_trials(hits, rate, confidence, more)
    z = _NORMAL.inv_cdf((1 + confidence) / 2)
    if method == "gaffke":
        unseen_unit = -math.log((1 - confidence) / 2) * (1 - value if value >= 0 else -value)
        return _enough_units(end - value, limit - value, n, unseen_unit, more / z)
    return max(math.ceil(n * ((end - value) / (limit - value) * (1 + more / z)) ** 2 * (1 - 1e-12)), 1)


def _enough_units(reach: float, room: float, n: int, unseen_unit: float, lengthened: float) -> int:
    """As `enough_n` for Gaffke's bound, whose `reach` at n is made of two parts: the spread of the units, which shrinks with
    sqrt(n) and is `lengthened` by what the power asks, and the one unit that was not seen, which shrinks with n. They add up as
    squares, to a few percent (a normal variable and an exponential one)."""
    spread = n * max(reach**2 - (unseen_unit / n) ** 2, 0.0)
    return _least(lambda m: math.sqrt(spread / m + (unseen_unit / m) ** 2) + lengthened * math.sqrt(spread / m) <= room)


def _enough_trials(rate: float, limit: float, confidence: float, more: float) -> int:
    """Trials in which `rate`, and `more` standard errors of hits, keep the upper end of its interval within `limit`."""

    def passes(n: int) -> bool:
        hits = math.ceil(n * rate + more * math.sqrt(n * rate * (1 - rate)))
        return wilson(min(hits, n), n, confidence).high <= limit

    return _least(passes)


def _least(passes: Callable[[int], bool]) -> int:
    """The least n that passes, to one percent; what passes at some n passes at any larger one."""
    high = 1
    while not passes(high):
        high *= 2
    low = high // 2
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UsageError(f"A confidence of {confidence} cannot be had.", "Give one between 0 and 1, such as .95.")


def _units(values: ArrayLike) -> FloatArray:
    units: FloatArray = np.asarray(values, dtype=np.float64).reshape(-1)
    if units.size == 0:
        raise UsageError("There is no value to make an interval of.", "Measure at least one unit.")
    if not np.isfinite(units).all():
        raise UsageError("A value is not a finite number, so its mean has no interval.", "Look at what measured it.")
    return units


def _distinct(units: FloatArray) -> tuple[FloatArray, IntArray]:
    """Sorted distinct rows of `units` [n, C] and how often each is there: what makes a resample blind to order."""
    rows, counts = np.unique(units, axis=0, return_counts=True)
    return rows, counts


def _resampled(units: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """[resamples, C] means of n rows drawn from `units` [n, C] with replacement."""
    n = len(units)
    rows, counts = _distinct(units)
    if len(rows) * 8 <= n:  # few distinct rows, such as exposures in tenths: draw how often each comes
        drawn = rng.multinomial(n, counts / n, size=resamples)
        return np.asarray(drawn @ rows / n)
    ordered = np.repeat(rows, counts, axis=0)
    means = np.empty((resamples, units.shape[1]))
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        block = means[start : start + step]
        block[:] = ordered[rng.integers(n, size=(len(block), n))].mean(axis=1)
    return means


def _gaffke(units: FloatArray, confidence: float, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    """Both ends of Gaffke's bound: Dirichlet weights on `units` [n] in [0, 1] and on one unit more, at 0 and at 1."""
    sums, more = _weighed(np.stack([units, np.ones_like(units)], axis=1), resamples, rng)
    seen, total = sums[:, 0], sums[:, 1] + more
    tail = (1 - confidence) / 2
    return float(np.quantile(seen / total, tail)), float(np.quantile((seen + more) / total, 1 - tail))


def _gaffke_ratio(
    own: FloatArray, base: FloatArray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Both ends of mean(own) / mean(base), paired [n] in [0, 1], with one pair more: (0, 1) below, (1, 0) above."""
    sums, more = _weighed(np.stack([own, base], axis=1), resamples, rng)
    lows, highs = sums[:, 0] / (sums[:, 1] + more), (sums[:, 0] + more) / sums[:, 1]
    tail = (1 - confidence) / 2
    return float(np.quantile(lows, tail)), float(np.quantile(highs, 1 - tail))


def _weighed(units: FloatArray, resamples: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Sums [R, C] of `units` [n, C] under a Dirichlet's weights, not normalised, and the weight [R] of one unit more."""
    rows, counts = _distinct(units)
    shapes = np.append(counts, 1).astype(np.float64)
    sums, more = np.empty((resamples, rows.shape[1])), np.empty(resamples)
    step = max(1, _CHUNK // len(shapes))
    for start in range(0, resamples, step):
        block = slice(start, min(start + step, resamples))
        weights = rng.standard_gamma(shapes, size=(block.stop - start, len(shapes)))
        sums[block], more[block] = weights[:, :-1] @ rows, weights[:, -1]
    return sums, more


def _accelerated(estimates: FloatArray, point: float, influence: FloatArray, confidence: float) -> tuple[float, float]:
    """The BCa ends of `estimates` [R] around `point`; `influence` is each unit's pull on it, up to a common factor."""
    r, rounding = len(estimates), 1e-12 * max(abs(point), np.finfo(np.float64).tiny)
    below = (np.count_nonzero(estimates < point - rounding) + np.count_nonzero(estimates <= point + rounding)) / (2 * r)
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / r), 1 - 0.5 / r))
    pull = influence / max(float(np.abs(influence).max()), np.finfo(np.float64).tiny)
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0

    def place(level: float) -> float:
        shifted = bias + _NORMAL.inv_cdf(level)
        slack = 1 - acceleration * shifted
        return _NORMAL.cdf(bias + shifted / slack) if slack > 0 else float(shifted > 0)

    levels = [place((1 - confidence) / 2), place((1 + confidence) / 2)]
    low, high = np.quantile(estimates, levels, method="inverted_cdf")
    return float(low), float(high)
