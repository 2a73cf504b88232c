"""Equivalence is declared of what is alike, hardly ever of what is not, and never without references to say how alike they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recerase.audit.equivalence import CEILING, FLOOR, equivalent_log_ratio, within_factor
from recerase.errors import UsageError


def declared(sigma: float, gap: float, seeds: int = 3, references: int = 3, times: int = 1000) -> float:
    """Share of simulated comparisons that end in equivalence: log masses a seed are N(gap, sigma) and N(0, sigma)."""
    rng = np.random.default_rng([seeds, references, round(1000 * sigma), round(1000 * gap) + 10**4])
    own = np.exp(rng.normal(gap, sigma, size=(times, seeds)))
    base = np.exp(rng.normal(0.0, sigma, size=(times, references)))
    found = [equivalent_log_ratio(list(x), list(y)).equivalent for x, y in zip(own, base, strict=True)]
    return float(np.mean([x is True for x in found]))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_three_times_apart_passes_in_at_most_a_twentieth(sigma: float, seeds: int) -> None:
    """The size at the ceiling, whatever the spread; .015 is nearly three standard errors of the simulation."""
    assert declared(sigma, math.log(CEILING), seeds) <= 0.05 + 0.015
    assert declared(sigma, -math.log(CEILING), seeds) <= 0.05 + 0.015


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_ten_times_apart_passes_in_at_most_a_twentieth(sigma: float) -> None:
    assert declared(sigma, math.log(10.0)) <= 0.05
    assert declared(sigma, -math.log(10.0)) <= 0.05


def test_what_is_alike_mostly_passes() -> None:
    """The power: references that differ by a tenth, and by a quarter, from seed to seed."""
    assert declared(0.1, 0.0) > 0.85
    assert declared(0.25, 0.0) > 0.7
    assert declared(0.1, 0.0, seeds=1) > 0.6
    assert declared(0.5, 0.0, references=6) > declared(0.5, 0.0) + 0.1


def test_the_margin_is_the_references_own_between_floor_and_ceiling() -> None:
    def margin(*logs: float) -> float:
        found = equivalent_log_ratio([1.0], [math.exp(x) for x in logs]).margin
        assert found is not None
        return found

    assert margin(0.0, 0.001, 0.002) == pytest.approx(FLOOR)
    assert margin(0.0, 3.0, -3.0) == pytest.approx(CEILING)
    spread = 4.302653 * 0.1 * math.sqrt(4 / 3)  # t of 2 degrees at .975
    assert margin(-0.1, 0.0, 0.1) == pytest.approx(math.exp(spread), rel=1e-6)


def test_the_interval_is_that_of_the_textbook() -> None:
    """Welch by hand: equal variances .01 and n = 3 on both sides give 4 degrees of freedom, t = 2.131847 at .95."""
    found = equivalent_log_ratio([math.exp(x) for x in (0.1, 0.2, 0.3)], [math.exp(x) for x in (-0.1, 0.0, 0.1)])
    half = 2.131847 * math.sqrt(2 * 0.01 / 3)
    assert found.ratio == pytest.approx(math.exp(0.2))
    assert found.interval is not None
    assert found.interval.low == pytest.approx(math.exp(0.2 - half), rel=1e-6)
    assert found.interval.high == pytest.approx(math.exp(0.2 + half), rel=1e-6)
    assert found.interval.confidence == pytest.approx(0.9)
    assert found.equivalent is (found.interval.high < found.margin)


def test_few_users_widen_the_interval_and_their_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    users = rng.lognormal(size=400)
    base = [users * rng.lognormal(0, 0.5, 400) for _ in range(3)]
    own = [users * rng.lognormal(0, 0.5, 400) for _ in range(3)]
    means = equivalent_log_ratio([x.mean() for x in own], [x.mean() for x in base])
    whole = equivalent_log_ratio(own, base)
    assert whole.ratio == pytest.approx(means.ratio)
    assert whole.interval is not None
    assert means.interval is not None
    assert whole.interval.high > means.interval.high
    order = rng.permutation(400)
    shuffled = equivalent_log_ratio([x[order] for x in own], [x[order] for x in base])
    assert shuffled.interval is not None
    assert shuffled.interval.high == pytest.approx(whole.interval.high)


def test_the_unit_of_mass_does_not_matter() -> None:
    own, base = [1.1, 1.3, 0.9], [1.0, 1.2, 0.8]
    first, scaled = equivalent_log_ratio(own, base), equivalent_log_ratio(*([1e-7 * x for x in y] for y in (own, base)))
    assert scaled.equivalent is first.equivalent
    assert scaled.ratio == pytest.approx(first.ratio)


@pytest.mark.parametrize(("k", "said"), [(0, "no reference"), (1, "1 reference:"), (2, "2 references:")])
def test_fewer_than_three_references_say_nothing_of_a_spread(k: int, said: str) -> None:
    found = equivalent_log_ratio([1.0], [1.0] * k)
    assert found.equivalent is None
    assert found.margin is None
    assert said in found.reason
    assert (found.ratio is None) == (k == 0)


def test_no_mass_is_not_alike_and_nothing_is_alike_to_no_mass() -> None:
    assert equivalent_log_ratio([0.0], [1.0, 1.1, 0.9]).equivalent is False
    assert equivalent_log_ratio([1.0], [1.0, 0.0, 1.0]).equivalent is None


@pytest.mark.parametrize(
    ("own", "base", "confidence"),
    [([], [1.0] * 3, 0.95), ([-1.0], [1.0] * 3, 0.95), ([np.nan], [1.0] * 3, 0.95), ([1.0], [1.0] * 3, 0.4)],
)
def test_nonsense_is_refused(own: list[float], base: list[float], confidence: float) -> None:
    with pytest.raises(UsageError):
        equivalent_log_ratio(own, base, confidence)


def test_other_users_are_refused() -> None:
    with pytest.raises(UsageError, match="same users"):
        equivalent_log_ratio([np.ones(4)], [np.ones(4), np.ones(5), np.ones(4)])


def test_within_a_factor_of_the_mean_on_both_sides() -> None:
    assert within_factor(3.0, [0.5, 1.5]) is True
    assert within_factor(3.01, [0.5, 1.5]) is False
    assert within_factor(1 / 3, [1.0]) is True
    assert within_factor(0.33, [1.0]) is False
    assert within_factor(0.0, [1.0]) is False
    assert within_factor(1.0, []) is None
    assert within_factor(1.0, [0.0, 0.0]) is None
    assert within_factor(1.9, [1.0], factor=2.0) is True
    with pytest.raises(UsageError):
        within_factor(1.0, [1.0], factor=0.5)
