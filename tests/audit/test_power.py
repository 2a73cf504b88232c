"""How many users would have been enough: shown right by drawing that many, many times."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import numpy as np
import pytest

from recerase.audit.policy import decide
from recerase.errors import UsageError
from recerase.stats import bootstrap_mean, enough_n, paired_drop, required_n, wilson
from recerase.types import FloatArray, IntArray, Interval, Measurement, Policy, Result, Rule

DRAWS = 120


def share(passes: Callable[[int], bool]) -> float:
    return sum(passes(seed) for seed in range(DRAWS)) / DRAWS


@pytest.mark.parametrize(("rate", "limit"), [(0.0004, 0.001), (0.02, 0.03), (0.3, 0.35)])
def test_a_rate_passes_four_audits_of_five_with_the_n_that_is_said(rate: float, limit: float) -> None:
    enough = enough_n(rate, 2 * limit, limit, 100, "wilson")
    assert enough is not None
    hits = np.random.default_rng(0).binomial(enough, rate, size=2000)
    assert 0.75 <= passing(hits, enough, limit) <= 0.9
    fewer = np.random.default_rng(1).binomial(enough // 2, rate, size=2000)
    assert passing(fewer, enough // 2, limit) < 0.65


def passing(hits: IntArray, n: int, limit: float) -> float:
    """The share of these numbers of hits in n trials whose interval respects the limit."""
    values, counts = np.unique(hits, return_counts=True)
    passes = np.array([wilson(int(value), n).high <= limit for value in values])
    return float((passes * counts).sum() / counts.sum())


def test_a_rate_that_must_be_high_is_a_rate_of_misses_that_must_be_low() -> None:
    assert enough_n(-0.98, -0.9, -0.97, 100, "wilson") == enough_n(0.02, 0.1, 0.03, 100, "wilson")


POPULATIONS = {
    "exposures": lambda rng, n: rng.choice([0.0, 0.1, 0.2, 0.5], size=n, p=[0.9, 0.06, 0.03, 0.01]),
    "masses": lambda rng, n: rng.lognormal(-6, 1.0, size=n),
}


@pytest.mark.parametrize("kind", POPULATIONS)
def test_a_mean_passes_four_audits_of_five_with_the_n_that_is_said(kind: str) -> None:
    drawn = POPULATIONS[kind]
    seen: FloatArray = drawn(np.random.default_rng(5), 150)  # what the first audit saw, taken for the truth
    value, ends = float(seen.mean()), bootstrap_mean(seen, resamples=500)
    limit = value + 0.75 * (ends.high - value)
    enough = enough_n(value, ends.high, limit, len(seen), ends.method)
    assert enough is not None
    assert 150 < enough < 1000

    def passes(seed: int, n: int) -> bool:
        return bootstrap_mean(np.random.default_rng(seed).choice(seen, size=n), resamples=400).high <= limit

    assert 0.65 <= share(lambda seed: passes(seed, enough)) <= 0.95
    assert share(lambda seed: passes(seed, 150)) < 0.6


def test_a_drop_passes_four_audits_of_five_with_the_n_that_is_said() -> None:
    rng = np.random.default_rng(2)
    before = rng.choice([0.0, 0.5, 1.0], size=400, p=[0.5, 0.3, 0.2])
    after = np.clip(before - rng.choice([0.0, 0.2, -0.15], size=400), 0.0, 1.0) * 0.99 + 0.005
    value, ends = paired_drop(after, before, resamples=500)
    limit = value + 0.75 * (ends.high - value)
    enough = enough_n(value, ends.high, limit, 400, ends.method)
    assert enough is not None

    def passes(seed: int) -> bool:
        rows = np.random.default_rng(seed).integers(400, size=enough)
        return paired_drop(after[rows], before[rows], resamples=400)[1].high <= limit

    assert 0.68 <= share(passes) <= 0.95


def test_no_hit_needs_what_the_rule_of_three_says_and_more_power_needs_more() -> None:
    assert enough_n(0.0, 0.03, 0.001, 100, "rule-of-three") == required_n(0.0, 0.03, 0.001, 100, "rule-of-three")
    half = enough_n(0.1, 0.3, 0.2, 100, "bootstrap", power=0.5)
    assert half == required_n(0.1, 0.3, 0.2, 100)
    more = [enough_n(0.1, 0.3, 0.2, 100, "bootstrap", power=power) or 0 for power in (0.5, 0.8, 0.95)]
    assert more == sorted(set(more))
    assert enough_n(0.2, 0.3, 0.2, 100, "bootstrap") is None
    with pytest.raises(UsageError, match="power"):
        enough_n(0.1, 0.3, 0.2, 100, "bootstrap", power=0.2)


@pytest.mark.parametrize(
    ("found", "n", "enough"),
    [
        (wilson(0, 2000), 2000, 2996),
        (wilson(0, 100), 100, 2996),
        (Interval(0.0, 0.0005, 0.95, "bootstrap"), 100, 1000),
        (wilson(0, 3000), 3000, None),
    ],
)
def test_a_finding_carries_the_number_that_its_reason_says(found: Interval, n: int, enough: int | None) -> None:
    rule = Rule("exposure", "natural.exposure@10", max=0.001)
    seen = Measurement(rule.metric, "subject", 0.0, n, "catalogue", found)
    (finding,) = decide(Policy((rule,)), [seen], (), (), "c", date(2026, 1, 1)).findings
    assert finding.enough == enough
    assert (finding.result is Result.INCONCLUSIVE) == (enough is not None)
    assert enough is None or f"n = {enough} or" in finding.reason
