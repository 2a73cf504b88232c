"""Distance from the references, against its definition; a front on which pressing too far is no merit; who is no candidate."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recerase.audit.equivalence import LEGS
from recerase.audit.probes import AuditConfig
from recerase.comparing.apart import TINY, apart
from recerase.comparing.reading import Reading
from recerase.comparing.rows import Base, figures, front_text, limits, ranked, remembers
from recerase.report.compared import APART, LEAK, Figure, Row, axis_of
from recerase.types import Interval

CONFIG = AuditConfig()
USERS = 40


def reading(level: float, seed: int = 0, **legs: float) -> Reading:
    """Every mass about `level`, but those that are named (`natural_new=1.0`)."""
    wave = np.exp(0.1 * np.random.default_rng(seed).standard_normal(USERS))
    names = {own for own, _ in LEGS}
    given = {name: legs.get(name.replace(".mass.", "_"), level) for name in names}
    values = {name: np.full(USERS, mass) * wave / wave.mean() for name, mass in given.items()}
    shown = {"natural.exposure@10": np.zeros(USERS), "utility.ndcg@10": np.full(USERS, 0.5)}
    return Reading(values | shown)


def test_it_is_the_farthest_leg_seed_by_seed() -> None:
    gold = [reading(1e-5, 1), reading(1e-5, 2)]
    found = apart([reading(1e-5, 3, saturated_new=1e-8), reading(1e-5, 4, natural_old=1e-4)], gold, CONFIG)
    assert found is not None
    assert found.value == pytest.approx((3 + 1) / 2)
    assert found.sd == pytest.approx(math.sqrt(2))
    assert (found.n, found.seeds) == (USERS, 2)
    assert found.interval.low <= 1
    assert found.interval.high >= 3


def test_two_seeds_on_either_side_are_not_beside_the_reference() -> None:
    found = apart([reading(1e-7), reading(2e-5)], [reading(1e-5)], CONFIG)
    assert found is not None
    assert found.value == pytest.approx((2 + math.log10(2)) / 2)


@pytest.mark.parametrize(("over", "under"), [(1e-3, 1e-7), (1e-2, 1e-8)])
def test_above_and_below_are_as_far(over: float, under: float) -> None:
    above, below = (apart([reading(level)], [reading(1e-5)], CONFIG) for level in (over, under))
    assert above is not None
    assert below is not None
    assert above.value == pytest.approx(below.value)
    assert above.interval.high == pytest.approx(below.interval.high)


def test_the_spread_of_the_references_is_in_the_interval() -> None:
    close = apart([reading(1e-5)], [reading(1e-5, 1), reading(1e-5, 2)], CONFIG)
    wide = apart([reading(1e-5)], [reading(1e-6, 1), reading(1.9e-5, 2)], CONFIG)
    assert close is not None
    assert wide is not None
    assert close.interval.low == 0.0  # one is in the interval of every ratio
    assert wide.interval.high >= 1.0 > close.interval.high


def test_a_mass_of_nought_is_very_far_and_finite() -> None:
    found = apart([reading(0.0)], [reading(1e-5)], CONFIG)
    assert found is not None
    assert found.value == pytest.approx(-5 - math.log10(TINY))
    assert math.isfinite(found.interval.high)
    assert apart([], [reading(1e-5)], CONFIG) is None
    assert apart([Reading({})], [reading(1e-5)], CONFIG) is None


def test_references_of_no_mass_are_as_far_and_finite() -> None:
    found = apart([reading(1e-5)], [reading(0.0, 1), reading(0.0, 2)], CONFIG)
    assert found is not None
    assert found.value == pytest.approx(-5 - math.log10(TINY))
    assert math.isfinite(found.interval.high)
    assert found.interval.low > 30


def test_a_mass_that_some_model_lacks_is_no_leg() -> None:
    whole, far = reading(1e-5), reading(1e-5, saturated_new=1e-9)
    part = Reading({name: x for name, x in far.values.items() if name != "saturated.mass.new"})
    for models in ([far, part], [part, far]):
        found = apart(models, [reading(1e-5)], CONFIG)
        assert found is not None
        assert found.value == pytest.approx(0.0, abs=1e-9)
        assert found.seeds == 2
    gold = Reading({name: x for name, x in whole.values.items() if name != "saturated.mass.old"})
    found = apart([far], [whole, gold], CONFIG)
    assert found is not None
    assert found.value == pytest.approx(0.0, abs=1e-9)


def row(name: str, masses: Reading, base: Base, exposure: float = 0.0) -> Row:
    values = {**masses.values, "natural.exposure@10": np.full(USERS, exposure)}
    return Row(name, "method", "output", figures([Reading(values)], base, CONFIG))


def test_over_forgetting_wins_without_references_and_loses_with_them() -> None:
    original, gold = reading(5e-2), (reading(1e-5, 1), reading(1.2e-5, 2))
    for references, first in (((), "npo"), (gold, "beside")):
        base = Base(original, references)
        rows = ranked([row("npo", reading(1e-11), base), row("beside", reading(1.5e-5, 3), base)])
        standings = {x.name: x.standing for x in rows}
        assert standings.pop(first) == "alone"
        assert set(standings.values()) == {"dominated"}
        assert axis_of(rows) == (APART if references else LEAK)
        told = front_text(rows)
        assert ("two-sided" in told) == bool(references)
        assert f"alone 1 ({first})" in told


def test_what_stays_in_lists_or_in_the_weights_is_no_candidate() -> None:
    base = Base(reading(5e-2), (reading(1e-5, 1),))
    rows = ranked([row("cragru", reading(1e-5), base, 0.3), row("npo", reading(1e-9), base)])
    assert [(x.name, x.standing, x.beaten_by) for x in rows] == [("cragru", "remembers", ()), ("npo", "alone", ())]
    hidden = ranked(
        [row("cragru", reading(5e-2), base), row("npo", reading(1e-9), base)]
    )  # in no list, and in the weights
    assert [(x.name, x.standing) for x in hidden] == [("cragru", "remembers"), ("npo", "alone")]
    assert limits() == {
        "natural.exposure@10": 0.001,
        "saturated.exposure@10": 0.005,
        "natural.mass.old": 0.001,
        "natural.mass.new": 0.003,
        "saturated.mass.old": 0.01,
        "saturated.mass.new": 0.01,
    }
    assert "natural.exposure@10 above 0.001" in front_text(rows)

    def shown(low: float, high: float) -> Row:
        interval = Interval(low, high, 0.95, "wilson")
        return Row("x", "method", "output", {"saturated.exposure@10": Figure(low, 9, 1, None, interval)})

    assert remembers(shown(0.006, 0.02), limits())
    assert not remembers(shown(0.004, 0.02), limits())
