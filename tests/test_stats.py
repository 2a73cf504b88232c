"""Intervals must hold the truth as often as they say, and must not be narrow because nothing was seen."""

from __future__ import annotations

import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recerase import stats
from recerase.errors import UsageError
from recerase.stats import bootstrap_mean, equivalence, paired_drop, paired_ratio, required_n, unseen, wilson
from recerase.types import Interval

SMALL = 300
"""Resamples in tests that look at many intervals."""
shares = hnp.arrays(np.float64, st.integers(2, 60), elements=st.integers(0, 10).map(lambda x: x / 10))


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)])
def test_wilson_agrees_with_its_textbook_values(hits: int, n: int, low: float, high: float) -> None:
    found = wilson(hits, n)  # Newcombe 1998, table I, method 3
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize(("hits", "n", "end"), [(1, 100, 0.000513), (2, 100, 0.003565), (3, 100, 0.008226)])
def test_few_hits_and_few_misses_have_the_exact_end_where_wilsons_is_too_sure(hits: int, n: int, end: float) -> None:
    """Beta(hits, n - hits + 1) at .05: the lower end of Clopper and Pearson, one-sided. Wilson's: .0018, .0055, .0103."""
    found, mirrored = wilson(hits, n), wilson(n - hits, n)
    assert found.low == pytest.approx(end, abs=1e-6)
    assert mirrored.high == pytest.approx(1 - end, abs=1e-6)
    assert found.high == pytest.approx({1: 0.0545, 2: 0.0700, 3: 0.0845}[hits], abs=5e-5)  # Wilson's own


@given(st.integers(1, 5000), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_nothing_seen_is_at_most_three_in_n(n: int, confidence: float) -> None:
    found = wilson(0, n, confidence)
    assert found.low == 0.0
    assert found.high == pytest.approx(min(1.0, -math.log(1 - confidence) / n))
    assert found.method == "rule-of-three"
    assert bootstrap_mean(np.zeros(n), confidence) == found
    assert found.high >= 1 - (1 - confidence) ** (1 / n)  # the exact bound it stands for


@given(st.integers(1, 6) | st.integers(1, 400), st.sampled_from([0.8, 0.95, 0.999]), st.data())
def test_more_hits_never_lower_a_rate_and_hits_and_misses_mirror(n: int, sure: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n - 1))
    fewer, more = wilson(hits, n, sure), wilson(hits + 1, n, sure)
    assert fewer.low <= more.low + 1e-12
    assert fewer.high <= more.high + 1e-12
    mirrored = wilson(n - hits, n, sure)
    assert (1 - mirrored.high, 1 - mirrored.low) == (pytest.approx(fewer.low), pytest.approx(fewer.high))
    assert fewer.low <= hits / n <= fewer.high


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.4])
def test_wilson_covers(rate: float) -> None:
    hits = np.random.default_rng(0).binomial(1000, rate, size=1000)
    found = [wilson(int(h), 1000) for h in hits]
    assert np.mean([f.low <= rate <= f.high for f in found]) > 0.93


def test_the_bootstrap_covers_a_skewed_mean() -> None:
    rng, truth = np.random.default_rng(1), math.exp(0.5)
    found = [bootstrap_mean(rng.lognormal(size=300), 0.9, SMALL, seed=i) for i in range(200)]
    covered = np.mean([f.low <= truth <= f.high for f in found])
    assert 0.84 < covered < 0.97


def test_an_interval_leans_to_the_side_of_the_tail() -> None:
    values = np.random.default_rng(10).lognormal(sigma=1.5, size=200)
    plain = np.quantile(np.random.default_rng(11).choice(values, (4000, 200)).mean(axis=1), [0.025, 0.975])
    right, left = bootstrap_mean(values), bootstrap_mean(-values)
    assert right.low > plain[0]
    assert right.high > plain[1]
    assert (left.low, left.high) == (pytest.approx(-right.high, rel=0.05), pytest.approx(-right.low, rel=0.05))


@pytest.mark.parametrize("rate", [0.002, 0.02])
def test_the_upper_end_of_a_rare_leak_holds_where_the_plain_bootstrap_does_not(rate: float) -> None:
    """Slots of ten, a leak in one or two a thousand users: what a gate must not be fooled by."""
    rng, n, truth, plain = np.random.default_rng(2), 500, rate * 0.1, 0
    held = 0
    for i in range(200):
        values = (rng.random(n) < rate) * 0.1
        held += bootstrap_mean(values, 0.95, SMALL, seed=i).high >= truth
        plain += np.quantile(rng.choice(values, (SMALL, n)).mean(axis=1), 0.975) >= truth
    assert held == 200
    assert plain < 200


@given(shares, st.integers(0, 3))
def test_one_more_leak_never_looks_better_than_none(values: np.ndarray, seed: int) -> None:
    values[0] = 0.0
    assert bootstrap_mean(values, 0.95, SMALL, seed).high >= bootstrap_mean(np.zeros(len(values))).high


@given(shares)
def test_an_interval_holds_its_point_and_stays_in_range(values: np.ndarray) -> None:
    found = bootstrap_mean(values, 0.95, SMALL)
    assert 0.0 <= found.low <= values.mean() <= found.high <= 1.0


@given(shares, st.integers(0, 99))
def test_the_order_of_units_does_not_matter(values: np.ndarray, shuffle: int) -> None:
    versus = values[::-1] + 0.05
    order = np.random.default_rng(shuffle).permutation(len(values))
    first, again = bootstrap_mean(values, 0.95, SMALL), bootstrap_mean(values[order], 0.95, SMALL)
    assert (first.low, first.high) == (pytest.approx(again.low), pytest.approx(again.high))
    _, one = paired_ratio(values, versus, 0.95, SMALL)
    _, two = paired_ratio(values[order], versus[order], 0.95, SMALL)
    assert (one.low, one.high) == (pytest.approx(two.low), pytest.approx(two.high))


def test_the_gaffke_bound_of_hits_is_clopper_and_pearsons() -> None:
    values = np.repeat([0.0, 1.0], [95, 5])
    found = bootstrap_mean(values, 0.95, 40_000)
    assert found.low == pytest.approx(0.0164, abs=0.001)  # Beta(5, 96) and Beta(6, 95), at .025 and .975
    assert found.high == pytest.approx(0.1128, abs=0.001)


def test_few_and_many_distinct_values_are_resampled_alike() -> None:
    """Two ways to draw a resample: how often each value comes, or which units; they must agree."""
    tenths = np.random.default_rng(3).integers(1, 11, size=2000) / 10
    jittered = tenths + np.random.default_rng(4).normal(size=2000) * 1e-9
    few, many = bootstrap_mean(tenths), bootstrap_mean(jittered)
    width = few.high - few.low
    assert abs(few.low - many.low) < 0.1 * width
    assert abs(few.high - many.high) < 0.1 * width


def test_more_units_and_less_confidence_make_an_interval_narrower() -> None:
    values = np.random.default_rng(5).lognormal(size=400)
    wide, narrow = bootstrap_mean(values), bootstrap_mean(np.tile(values, 16))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4, rel=0.15)
    less = bootstrap_mean(values, 0.8)
    assert wide.low < less.low < less.high < wide.high


def test_a_seed_decides_everything() -> None:
    values = np.random.default_rng(6).random(200)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_a_paired_ratio_sees_through_noise_between_units() -> None:
    rng = np.random.default_rng(7)
    base = rng.lognormal(size=500)
    own = base * 0.8 * rng.normal(1, 0.01, size=500)
    ratio, paired = paired_ratio(own, base)
    _, apart = paired_ratio(own[:-1], base)  # of other lengths: independent samples
    assert ratio == pytest.approx(0.8, abs=0.01)
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    drop, found = paired_drop(own, base)
    assert (drop, found.low, found.high) == (1 - ratio, 1 - paired.high, 1 - paired.low)


def test_ratios_cover_paired_and_apart() -> None:
    rng, held, apart = np.random.default_rng(8), 0, 0
    for i in range(150):
        base = rng.gamma(2.0, size=200)
        own = base * rng.gamma(4.0, 0.2, size=200)  # mean .8 of base
        other = rng.gamma(2.0, 0.8, size=150)
        found = paired_ratio(own, base, 0.9, SMALL, seed=i)[1]
        held += found.low <= 0.8 <= found.high
        found = paired_ratio(other, base, 0.9, SMALL, seed=i)[1]
        apart += found.low <= 0.8 <= found.high
    assert 0.83 < held / 150 < 0.97
    assert 0.83 < apart / 150 < 0.97


@given(shares)
def test_a_model_beside_itself_has_no_drop(values: np.ndarray) -> None:
    versus = values + 0.01
    drop, found = paired_drop(versus, versus, 0.95, SMALL)
    assert (drop, found.low, found.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("hits", [3, 10, 300])
def test_hits_that_are_all_still_there_do_not_say_that_none_is_lost(hits: int) -> None:
    """An unseen user whose hit is lost: the drop is at most what a Beta(1, hits) says, one end of two."""
    base = np.repeat([1.0, 0.0], [hits, 1000 - hits])
    drop, found = paired_drop(base, base, 0.95, 20_000)
    assert drop == 0.0
    assert found.high == pytest.approx(1 - 0.025 ** (1 / hits), rel=0.05)
    assert found.low <= 0.95 * (1 - 0.025 ** (-1 / hits))  # and one that is found anew


def test_a_ratio_of_nothing_seen_is_not_sure_to_be_zero() -> None:
    base = np.full(1000, 0.01)
    ratio, found = paired_ratio(np.zeros(1000), base)
    assert ratio == found.low == 0.0
    assert found.high == pytest.approx(unseen(1000, 0.95) / 0.01)
    assert found.method == "rule-of-three"
    one = np.zeros(1000)
    one[0] = 0.1
    assert paired_ratio(one, base)[1].high >= found.high


def test_a_denominator_that_may_be_zero_leaves_a_ratio_open() -> None:
    base, own = np.zeros(20), np.full(20, 0.5)
    base[0] = 1.0
    assert paired_ratio(own, base)[1].high == math.inf


def test_equivalence_needs_evidence_and_nearness() -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(1.0, 0.2, size=400)
    assert equivalence(base + rng.normal(0, 0.05, 400), base, 0.02)[0]
    assert not equivalence(base + 0.05, base, 0.02)[0]  # far
    assert not equivalence(rng.normal(1.0, 0.2, 20), base[:20], 0.02)[0]  # unknown
    assert equivalence(base, base, 0.02)[1].confidence == pytest.approx(0.9)


@given(st.floats(0.0001, 0.01), st.integers(10, 10_000), st.floats(1.01, 5.0))
def test_the_n_that_would_suffice_suffices(limit: float, n: int, beyond: float) -> None:
    value = limit / 2
    needed = required_n(value, value + (limit - value) * beyond, limit, n)
    assert needed is not None
    assert needed > n
    assert value + (limit - value) * beyond * math.sqrt(n / needed) <= limit * (1 + 1e-9)
    none_seen = required_n(0.0, unseen(n, 0.95), limit, n, "rule-of-three")
    assert none_seen is not None
    assert unseen(none_seen, 0.95) <= limit * (1 + 1e-9) or unseen(n, 0.95) == 1.0


@pytest.mark.parametrize(("value", "end"), [(0.1, 0.2), (0.2, 0.3), (0.05, math.inf)])
def test_no_n_suffices_on_the_limit_beyond_it_or_without_an_end(value: float, end: float) -> None:
    assert required_n(value, end, 0.1, 100) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(1, 0),
        lambda: wilson(3, 2),
        lambda: wilson(-1, 2),
        lambda: wilson(1, 2, 1.0),
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([0.1, math.nan]),
        lambda: bootstrap_mean([0.1], 0.0),
        lambda: paired_ratio([0.1], [0.0]),
        lambda: equivalence([0.1, 0.2], [0.1], 0.1),
        lambda: equivalence([0.1], [0.1], 0.0),
        lambda: equivalence([0.1], [0.1], 0.1, 0.5),
        lambda: equivalence([0.1], [0.1], 0.1, 1.0),
    ],
)
def test_what_cannot_be_computed_is_refused(call: object) -> None:
    with pytest.raises(UsageError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.message.endswith(".")
    assert caught.value.remedy.endswith(".")


def by_the_book(estimates: np.ndarray, point: float, influence: np.ndarray, confidence: float) -> tuple[float, float]:
    """Efron's BCa ends (1987, eq. 3.8 and 6.6), written down a second time; half of a tie counts as below."""
    normal = NormalDist()
    below = np.mean((estimates < point - 1e-14) * 0.5 + (estimates <= point + 1e-14) * 0.5)
    half = 0.5 / len(estimates)  # no estimate is quite sure to lie on one side
    bias, pull = normal.inv_cdf(min(max(float(below), half), 1 - half)), np.asarray(influence)
    skew = float((pull**3).sum() / (6 * (pull**2).sum() ** 1.5))
    z = [bias + normal.inv_cdf(level) for level in ((1 - confidence) / 2, (1 + confidence) / 2)]
    levels = [normal.cdf(bias + at / (1 - skew * at)) for at in z]
    low, high = np.quantile(estimates, levels, method="inverted_cdf")
    return float(low), float(high)


@pytest.mark.parametrize(("n", "confidence"), [(7, 0.95), (40, 0.8), (300, 0.99)])
def test_the_bootstrap_of_a_mean_is_efrons(n: int, confidence: float) -> None:
    values = np.sort(np.random.default_rng(n).lognormal(size=n))
    means = values[np.random.default_rng(5).integers(n, size=(500, n))].mean(axis=1)
    found = bootstrap_mean(values, confidence, 500, seed=5)
    ends = by_the_book(means, values.mean(), values - values.mean(), confidence)
    assert (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert (found.confidence, found.method) == (confidence, "bootstrap")


@pytest.mark.parametrize(("n", "few"), [(15, False), (16, True), (17, True)])
def test_from_eight_units_a_value_on_it_is_counted_how_often_each_comes(n: int, few: bool) -> None:
    values = np.repeat([1.0, 3.0], [n - 5, 5])
    for seed in range(8):
        rng = np.random.default_rng(seed)
        if few:
            means = rng.multinomial(n, [(n - 5) / n, 5 / n], size=60) @ [1.0, 3.0] / n
        else:
            means = values[rng.integers(n, size=(60, n))].mean(axis=1)
        found = bootstrap_mean(values, 0.9, 60, seed)
        ends = by_the_book(means, values.mean(), values - values.mean(), 0.9)
        assert (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))


def test_three_resamples_on_one_side_are_no_certainty() -> None:
    values, one_sided = np.sort(np.random.default_rng(17).lognormal(size=9)), 0
    for seed in range(40):
        means = values[np.random.default_rng(seed).integers(9, size=(3, 9))].mean(axis=1)
        one_sided += means.min() > values.mean() or means.max() < values.mean()
        low, high = by_the_book(means, values.mean(), values - values.mean(), 0.5)
        found = bootstrap_mean(values, 0.5, 3, seed)
        assert (found.low, found.high) == (
            pytest.approx(min(low, values.mean())),
            pytest.approx(max(high, values.mean())),
        )
    assert one_sided > 5


@pytest.mark.parametrize("scale", [2.0**-400, 2.0**400])
def test_the_unit_of_measurement_decides_nothing(scale: float) -> None:
    values = np.random.default_rng(18).lognormal(sigma=2, size=50)
    plain, scaled = bootstrap_mean(values), bootstrap_mean(values * scale)
    assert (scaled.low, scaled.high) == (plain.low * scale, plain.high * scale)


def test_beyond_what_the_correction_can_say_the_end_is_the_last_resample() -> None:
    """One unit in a thousand is far out: 10 nines of confidence ask for more than the skewness leaves room for."""
    values = np.append(np.full(999, 1.0), 1000.0)
    means = np.random.default_rng(0).multinomial(1000, [0.999, 0.001], size=2000) @ [1.0, 1000.0] / 1000
    assert bootstrap_mean(values, 1 - 1e-10).high == pytest.approx(means.max())
    mirrored = np.random.default_rng(0).multinomial(1000, [0.001, 0.999], size=2000) @ [-1000.0, -1.0] / 1000
    assert bootstrap_mean(-values, 1 - 1e-10).low == pytest.approx(mirrored.min())


def test_counts_and_booleans_are_numbers() -> None:
    own, base = np.tile([0, 1, 1, 0], 5), np.tile([1, 1, 0, 0], 5)
    as_numbers = equivalence(own.astype(float), base.astype(float), 0.9)
    assert equivalence(own.astype(np.uint8), base.astype(np.uint8), 0.9) == as_numbers
    assert equivalence(own.astype(bool), base.astype(bool), 0.9) == as_numbers


def test_paired_and_separate_ratios_are_efrons() -> None:
    rng = np.random.default_rng(12)
    base = np.sort(rng.gamma(2.0, size=60))
    own = np.sort(base * rng.gamma(4.0, 0.2, size=60))  # sorted alike, so that the pairs stand in their order
    ratio, found = paired_ratio(own, base, 0.9, 400, seed=3)
    drawn = np.random.default_rng(3).integers(60, size=(400, 60))
    pull = own - own.mean() - ratio * (base - base.mean())
    ends = by_the_book(own[drawn].mean(axis=1) / base[drawn].mean(axis=1), own.mean() / base.mean(), pull, 0.9)
    assert ratio == pytest.approx(own.mean() / base.mean())
    assert (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert (found.confidence, found.method) == (0.9, "bootstrap")
    fewer = own[:45]
    ratio, found = paired_ratio(fewer[::-1], base[::-1], 0.9, 400, seed=3)
    rng = np.random.default_rng(3)
    top, bottom = (x[rng.integers(len(x), size=(400, len(x)))].mean(axis=1) for x in (fewer, base))
    pull = np.concatenate([(fewer - fewer.mean()) / 45, -ratio * (base - base.mean()) / 60])
    ends = by_the_book(top / bottom, ratio, pull, 0.9)
    assert (found.low, found.high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))


def test_equivalence_rests_on_efrons_interval_of_the_differences() -> None:
    rng = np.random.default_rng(13)
    base = rng.normal(1.0, 0.2, size=50)
    own = base + rng.normal(0.01, 0.05, size=50)
    gaps = np.sort(own - base)
    means = gaps[np.random.default_rng(4).integers(50, size=(400, 50))].mean(axis=1)
    low, high = by_the_book(means, gaps.mean(), gaps - gaps.mean(), 0.8)
    same, found = equivalence(own, base, 0.05, 0.9, 400, seed=4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (same, found.confidence, found.method) == (True, pytest.approx(0.8), "bootstrap")
    assert equivalence(own, base, high + 1e-6, 0.9, 400, seed=4)[0]
    assert not equivalence(own, base, high - 1e-6, 0.9, 400, seed=4)[0]
    assert equivalence(base, own, high + 1e-3, 0.9, 400, seed=4)[0]
    assert not equivalence(base, own, high - 1e-3, 0.9, 400, seed=4)[0]


def test_means_that_are_a_whole_margin_apart_are_not_equivalent() -> None:
    far, near = np.full(9, 0.75), np.full(9, 0.25)
    assert equivalence(far, near, 0.5) == (False, Interval(0.5, 0.5, pytest.approx(0.9), "bootstrap"))
    assert equivalence(near, far, 0.5) == (False, Interval(-0.5, -0.5, pytest.approx(0.9), "bootstrap"))
    assert equivalence(far, near, 0.5 + 1e-9)[0]


def test_the_gaffke_bound_is_learned_millers() -> None:
    values = np.array([0.0, 0.0, 0.1, 0.1, 0.1, 0.7, 1.0, 0.0, 0.0, 0.0])
    weights = np.random.default_rng(6).standard_gamma([5.0, 3.0, 1.0, 1.0, 1.0], size=(600, 5))
    weights /= weights.sum(axis=1, keepdims=True)
    lows = weights @ [0.0, 0.1, 0.7, 1.0, 0.0]  # the unit more: at the bottom of the range, and at its top
    found = bootstrap_mean(values, 0.9, 600, seed=6)
    assert found.low == pytest.approx(np.quantile(lows, 0.05))
    assert found.high == pytest.approx(np.quantile(lows + weights[:, -1], 0.95))
    assert (found.confidence, found.method) == (0.9, "gaffke")


@pytest.mark.parametrize(
    ("values", "method"),
    [
        ([0.0, 0.5], "gaffke"),
        ([0.0, 1.0], "gaffke"),
        ([0.0, 1.1], "bootstrap"),
        ([0.1, 1.0], "bootstrap"),
        ([-0.5, 0.5], "bootstrap"),
        ([0.5, 0.5], "bootstrap"),
    ],
)
def test_only_shares_with_a_zero_among_them_get_gaffkes_bound(values: list[float], method: str) -> None:
    assert bootstrap_mean(values, 0.95, SMALL).method == method


def test_values_that_are_all_one_number_have_no_width() -> None:
    assert bootstrap_mean([0.3] * 5) == Interval(0.3, 0.3, 0.95, "bootstrap")
    assert bootstrap_mean([-2.0]) == Interval(-2.0, -2.0, 0.95, "bootstrap")


def test_what_is_not_said_is_95_in_100_from_2000_resamples_of_seed_0() -> None:
    rng = np.random.default_rng(14)
    own, base = rng.lognormal(size=30), rng.lognormal(size=30)
    assert bootstrap_mean(own) == bootstrap_mean(own, 0.95, 2000, 0)
    assert paired_ratio(own, base) == paired_ratio(own, base, 0.95, 2000, 0)
    assert paired_drop(own, base) == paired_drop(own, base, 0.95, 2000, 0)
    assert equivalence(own, base, 1.0) == equivalence(own, base, 1.0, 0.95, 2000, 0)
    assert paired_drop(own, base, 0.8, 100, 7)[1] != paired_drop(own, base, 0.8, 100, 8)[1]
    assert paired_drop(own, base, 0.8, 100, 7)[1] != paired_drop(own, base, 0.8, 900, 7)[1]
    assert paired_drop(own, base, 0.8, 100, 7)[1].confidence == 0.8


@pytest.mark.parametrize("sure", [0.8, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [20, 50, 300])
def test_each_end_of_a_rate_is_as_sure_as_it_says(n: int, sure: float) -> None:
    """Exactly, by summing the binomial: a gate looks at one end, so each of them must hold with the confidence alone."""
    found, hits = [wilson(h, n, sure) for h in range(n + 1)], np.arange(n + 1)
    high, low = np.array([i.high for i in found]), np.array([i.low for i in found])
    ways = np.array([math.lgamma(n + 1) - math.lgamma(h + 1) - math.lgamma(n - h + 1) for h in hits])
    for rate in np.linspace(0.005, 0.995, 199):
        chance = np.exp(ways + hits * math.log(rate) + (n - hits) * math.log1p(-rate))
        assert chance[high >= rate - 1e-9].sum() >= sure - 1e-9, rate
        assert chance[low <= rate + 1e-9].sum() >= sure - 1e-9, rate


def test_wilson_says_which_way_it_was_made() -> None:
    assert wilson(3, 10, 0.9).method == "wilson"
    assert wilson(3, 10, 0.9).confidence == 0.9
    assert wilson(10, 10, 0.9) == Interval(1 - unseen(10, 0.9), 1.0, 0.9, "rule-of-three")
    assert wilson(1, 1).low == 0.0  # nobody knows from one trial


def test_the_floor_of_a_sparse_ratio() -> None:
    """The subject's zeros in [0, 1] keep the upper end up; other values are none of this rule's business."""
    base = np.full(50, 0.5)
    seen = np.repeat([0.0, 1.0], [49, 1])
    _, found = paired_ratio(seen, base, 0.95, SMALL)
    assert found.method == "bootstrap"
    assert found.high >= unseen(50, 0.95) / 0.5
    small = np.repeat([0.0, 1e-6], [49, 1])
    assert paired_ratio(small, base, 0.95, SMALL)[1].high == pytest.approx(unseen(50, 0.95) / 0.5)
    assert paired_ratio(small + 1e-9, base, 0.95, SMALL)[1].high < 1e-5  # no zero
    lone = np.repeat([0.0, 1.5], [1, 49])
    assert paired_ratio(lone, base * 1000, 0.95, SMALL)[1].high < unseen(50, 0.95)  # no share


@pytest.mark.parametrize(
    ("value", "end", "limit", "n", "method", "needed"),
    [
        (0.0, 0.02, 0.01, 100, "bootstrap", 400),
        (0.0, 0.02, 0.01, 100, "rule-of-three", 200),
        (0.5, 0.4, 0.45, 100, "bootstrap", 400),  # a lower limit
        (0.0, 1e-9, 1.0, 1, "bootstrap", 1),
        (0.2, 0.2, 0.1, 70, "bootstrap", 70),
        (0.2, 0.2, 0.2, 70, "bootstrap", 70),
    ],
)
def test_the_n_needed_in_numbers(value: float, end: float, limit: float, n: int, method: str, needed: int) -> None:
    assert required_n(value, end, limit, n, method) == needed


def test_a_bootstrap_is_made_in_pieces_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the memory nor the result depends on how much is drawn at once."""
    rng = np.random.default_rng(15)
    far, near = rng.lognormal(size=1000), np.append(0.0, rng.random(999))
    whole = bootstrap_mean(far), bootstrap_mean(near)
    monkeypatch.setattr(stats, "_CHUNK", 4096)
    for values, before in zip((far, near), whole, strict=True):
        tracemalloc.start()
        found = bootstrap_mean(values)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found.low, found.high) == (pytest.approx(before.low), pytest.approx(before.high))
        assert peak < 1 << 20  # 2000 resamples of 1000 values are 16 million bytes
    monkeypatch.setattr(stats, "_CHUNK", 10)
    assert bootstrap_mean(far).low == pytest.approx(whole[0].low)


def test_ten_hits_still_count_as_few() -> None:
    """At 99 in 100 the exact end lies below Wilson's for ten hits; it is where ten or more come once in a hundred."""
    low = wilson(10, 1000, 0.99).low
    fewer = sum(math.comb(1000, k) * low**k * (1 - low) ** (1000 - k) for k in range(10))
    assert fewer == pytest.approx(0.99, abs=1e-9)


def test_a_drop_says_how_its_ratio_was_made() -> None:
    assert paired_drop(np.zeros(30), np.full(30, 0.5))[1].method == "rule-of-three"


def test_a_ratio_of_sparse_pairs_counts_one_unseen_pair_at_either_end() -> None:
    """Ten hits of fifty that are all still there: no resample differs, so what is left is the weight of that pair."""
    hits = np.repeat([0.0, 0.5], [40, 10])
    rng = np.random.default_rng(2)
    rng.multinomial(50, [0.8, 0.2], size=400)
    weights = rng.standard_gamma([40.0, 10.0, 1.0], size=(400, 3))
    seen, more = weights[:, 1] * 0.5, weights[:, 2]
    ratio, found = paired_ratio(hits, hits, 0.9, 400, seed=2)
    floor = unseen(50, 0.9) / bootstrap_mean(hits, 0.9, 400, seed=2).low
    assert ratio == 1.0
    assert found.low == pytest.approx(np.quantile(seen / (seen + more), 0.05))
    assert found.high == pytest.approx(max(np.quantile((seen + more) / seen, 0.95), floor))
    assert found.high > floor


def test_not_one_bit_of_a_ratio_depends_on_the_order_of_units() -> None:
    rng = np.random.default_rng(16)
    own, base = rng.integers(1, 4, size=200) / 7, rng.lognormal(size=200)  # many units of one value
    first = paired_ratio(own, base, 0.95, 50)
    for _ in range(20):
        order = rng.permutation(200)
        assert paired_ratio(own[order], base[order], 0.95, 50) == first


def test_resamples_that_saw_nothing_say_nothing_about_a_ratio() -> None:
    lone = np.array([0.0, 0.0, 1.5])
    with np.errstate(all="raise"):
        assert paired_ratio(lone, lone) == (1.0, Interval(1.0, 1.0, 0.95, "bootstrap"))
        assert paired_ratio(np.ones(3), lone)[1].high == math.inf


def test_the_floor_of_nothing_seen_comes_from_the_sure_end_of_what_it_is_compared_with() -> None:
    base = np.random.default_rng(19).lognormal(size=60)
    found = paired_ratio(np.zeros(60), base, 0.9, SMALL, seed=3)[1]
    assert found.high == pytest.approx(unseen(60, 0.9) / bootstrap_mean(base, 0.9, SMALL, seed=3).low)
    sparse = np.append(np.zeros(19), 2.0)
    assert paired_ratio(np.zeros(20), sparse)[1].high == math.inf


def test_pairs_that_are_no_shares_have_no_unseen_pair() -> None:
    twos = np.repeat([0.0, 2.0], [40, 10])
    assert paired_ratio(twos, twos) == (1.0, Interval(1.0, 1.0, 0.95, "bootstrap"))


def test_units_may_stand_in_rows() -> None:
    assert bootstrap_mean([[0.1, 0.2], [0.3, 0.7]]) == bootstrap_mean([0.1, 0.2, 0.3, 0.7])
