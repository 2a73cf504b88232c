"""Settings are chosen on validation users by the stated rule, and a setting that would win on the test does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.comparing.conftest import CONCEPT, QUICK, RUN, Compare, Shop

from recerase import api
from recerase.audit.probes import AuditConfig, build_world
from recerase.audit.readings import SIDES
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT
from recerase.comparing.cells import CELLS, READINGS, Bench
from recerase.comparing.reading import METRICS, Reading
from recerase.comparing.search import choose, criterion, marked, trial
from recerase.report.compared import Trial


def tried(*found: tuple[tuple[float, float], float]) -> list[Trial]:
    return [Trial("npo", "output", {}, leak, drop) for leak, drop in found]


def test_the_rule() -> None:
    assert choose(tried(((0.1, 0.1), 0.0), ((0.0, 0.5), 0.02), ((0.0, 0.4), 0.03)), 0.02) == 1
    assert choose(tried(((0.1, 0.2), 0.0), ((0.1, 0.1), 0.01), ((0.1, 0.1), 0.0)), 0.02) == 2
    assert choose(tried(((0.1, 0.1), 0.0), ((0.1, 0.1), 0.0)), 0.02) == 0
    assert choose(tried(((0.0, 0.1), 0.5), ((0.1, 0.1), 0.3)), 0.02) == 1  # none within the limit: the least drop
    failed = Trial("npo", "output", {}, failure="no")
    assert choose([failed, *tried(((0.1, 0.1), 0.0))], 0.02) == 1
    assert choose([failed], 0.02) is None
    assert [x.chosen for x in marked([failed, failed], 1)] == [False, True]
    assert "2 %" in criterion(0.02, False)
    assert "two-sided" in criterion(0.02, True)
    assert "two-sided" not in criterion(0.02, False)


def test_beside_references_the_nearest_mass_is_taken_and_not_the_least() -> None:
    """A concept pressed far below the references is as far away as one above them."""
    far, near, high = (
        Trial("npo", "output", {}, leak, drop, apart=apart)
        for leak, drop, apart in (((0.0, 1e-12), 0.0, 7.0), ((0.01, 2e-5), 0.01, 0.3), ((0.01, 2e-5), 0.03, 0.0))
    )
    assert choose([far, near, high], 0.02) == 1
    assert choose([replace(far, apart=None), replace(near, apart=None)], 0.02) == 0  # by their leak
    assert choose([far, replace(near, drop=0.2), replace(high, drop=0.1)], -1) == 0


def test_a_drop_that_a_few_users_make_leaves_a_setting_out_of_nothing() -> None:
    """With few users a drop of 5 % may be chance: then the setting stays; with many it is beyond doubt, and goes."""
    rng = np.random.default_rng(0)

    def reading(n: int, scale: float, mass: float) -> Reading:
        ndcg = np.repeat(rng.uniform(0, 1, 8) < 0.4, n // 8) * scale + rng.normal(0, 0.3, n)
        values = {f"natural.mass.{side}": np.full(n, mass) for side in SIDES}
        return Reading({**values, "natural.exposure@10": np.zeros(n), "utility.ndcg@10": ndcg})

    for n, taken in ((40, 1), (40_000, 0)):
        before = reading(n, 1.0, 0.1)
        kept, lost = Reading({**before.values}), Reading({**before.values, "natural.mass.old": np.full(n, 1e-6)})
        lost.values["natural.mass.new"] = np.full(n, 1e-6)  # type: ignore[index]
        lost.values["utility.ndcg@10"] = 0.9 * before.values["utility.ndcg@10"] + rng.normal(0, 0.3, n)  # type: ignore[index]
        trials = [trial("npo", "output", {}, x, before, [], AuditConfig()) for x in (kept, lost)]
        assert trials[1].surely is not None
        assert trials[1].surely < trials[1].drop
        assert choose(trials, 0.02) == taken


def test_a_trial_beside_references_tells_how_far_it_is() -> None:
    def reading(mass: float) -> Reading:
        values = {
            f"{stem}.mass.{side}": np.full(5, mass) for stem in ("natural", "natural_concept_users") for side in SIDES
        }
        return Reading({**values, "natural.exposure@10": np.zeros(5), "utility.ndcg@10": np.ones(5)})

    gold = [reading(1e-5), reading(3e-5)]
    for mass, away in ((2e-5, 0.0), (2e-7, 2.0), (2e-3, 2.0)):
        found = trial("npo", "output", {}, reading(mass), reading(0.1), gold, AuditConfig())
        assert found.apart == pytest.approx(away)
    assert trial("npo", "output", {}, reading(2e-5), reading(0.1), [], AuditConfig()).apart is None


def test_a_trial_tells_the_larger_mass_and_the_drop() -> None:
    def reading(ndcg: float, old: float, new: float) -> Reading:
        values = {"natural.exposure@10": 0.5, "natural.mass.old": old, "natural.mass.new": new, "utility.ndcg@10": ndcg}
        return Reading({name: np.array([value]) for name, value in values.items()})

    found = trial("npo", "output", {}, reading(0.3, 0.1, 0.2), reading(0.4, 0.9, 0.9), [], AuditConfig())
    assert found.leak == (0.5, 0.2)
    assert found.drop == pytest.approx(0.25)
    assert trial("npo", "output", {}, reading(0.3, 0.1, 0.2), reading(0.0, 0.9, 0.9), [], AuditConfig()).drop == 0
    assert trial("npo", "output", {}, Reading({}, "no"), reading(0.4, 0.9, 0.9), [], AuditConfig()).failure == "no"


def test_validation_users_are_read_one_interaction_earlier(shop: Shop) -> None:
    catalogue = load_catalogue(shop.data)
    concept = parse_concept([DEMO_CONCEPT], catalogue.items)
    split = catalogue.interactions.split()
    for part, wanted in (("valid", split.valid), ("test", split.test)):
        world = build_world(catalogue, concept, part=part)  # type: ignore[arg-type]
        assert np.array_equal(world.histories.targets, wanted.targets)
        assert np.array_equal(world.histories.items, wanted.items)
    assert not np.array_equal(split.valid.targets, split.test.targets)


def test_what_would_win_on_the_test_is_not_chosen(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings are planted: each setting leaks the less on the test the more it leaks on validation."""
    worth: dict[str, float] = {}
    seen: list[tuple[str, str]] = []

    def planted(self: Bench, model: Any, part: str, cache: Any, state: Any) -> Reading:
        rank = worth.setdefault(model.digest, 0.1 * (1 + len(worth)))
        seen.append((model.role, part))
        leak = rank if part == "valid" else 1 - rank
        ones = np.ones(8)
        return Reading(
            {name: (leak if "ndcg" not in name and "recall" not in name else 0.5) * ones for name in METRICS}
        )

    monkeypatch.setattr(Bench, "_measured", planted)
    made = compare(tmp_path / "out", methods=("npo",), overrides=QUICK[:2], search=3)
    assert made.search is not None
    trials = made.search.trials
    on_validation = [x.leak[0] for x in trials]
    (chosen,) = [i for i, x in enumerate(trials) if x.chosen]
    assert len(trials) == 3
    assert on_validation[chosen] == min(on_validation)
    (row,) = [row for row in made.rows if row.kind == "method"]
    assert row.tuning == "searched"
    assert row.figures["natural.exposure@10"].value == pytest.approx(1 - min(on_validation))  # the worst of the test
    assert {key: row.settings[key] for key in trials[chosen].settings} == dict(trials[chosen].settings)
    assert seen.count(("subject", "valid")) == 3
    assert seen.count(("subject", "test")) == 1  # nothing else was ever shown a test user


def test_models_that_were_not_chosen_go_and_what_was_read_stays(
    shop: Shop, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = Bench._make
    monkeypatch.setattr(Bench, "_make", lambda self, *given: made.append(given[1].name) or real(self, *given))  # type: ignore[func-returns-value]
    fields: dict[str, Any] = {"methods": ("npo",), "overrides": QUICK[:2], "search": 3}
    kept = compare(tmp_path / "kept", **fields, keep_tried=True)
    cells = {path.name for path in (tmp_path / "kept" / CELLS).iterdir()}
    assert len(cells) == len(made) == 3
    assert any("taken away" in note for note in compare(tmp_path / "out", **fields).notes)
    assert not any("taken away" in note for note in kept.notes)
    (left,) = (path.name for path in (tmp_path / "out" / CELLS).iterdir())
    assert left in cells
    readings = [{path.name for path in (tmp_path / name / READINGS).iterdir()} for name in ("kept", "out")]
    assert readings[0] == readings[1]
    made.clear()
    again = compare(tmp_path / "out", **fields)
    assert made == []
    assert again.rows == kept.rows
    config = api.CompareConfig(**fields, seeds=(0,), max_users=25)
    planned = api.plan_compare(shop.model, CONCEPT, shop.data, tmp_path / "out", config, run=RUN)
    assert {cell.state for cell in planned} == {"done"}


def test_a_model_that_was_taken_away_and_is_chosen_after_all_is_made_again(compare: Compare, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"methods": ("npo",), "overrides": QUICK[:2], "search": 3}
    first = compare(tmp_path / "out", **fields)
    assert first.search is not None
    (own, *_) = first.search.trials
    chosen = [x for x in first.search.trials if x.chosen]
    lenient = compare(tmp_path / "out", **fields, max_drop=1.0)
    strict = compare(tmp_path / "out", **fields, max_drop=0.0)
    for other in (lenient, strict):
        assert other.search is not None
        assert [x.leak for x in other.search.trials] == [x.leak for x in first.search.trials]
        (row,) = [row for row in other.rows if row.kind == "method"]
        (taken,) = [x for x in other.search.trials if x.chosen]
        assert {name: row.settings[name] for name in taken.settings} == dict(taken.settings)
        assert row.seeds == (0,)
    assert own.method == chosen[0].method == "npo"
