"""The relearning probe: its steps are those of the attack, with a value a history, and an attack is made once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit import relearn as probe
from recerase.audit import relearning
from recerase.audit.evidence import curves
from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld, interval_of
from recerase.audit.readings import Readings
from recerase.audit.relearning import RelearnConfig, Relearned
from recerase.audit.run import compare
from recerase.catalog.interactions import Catalogue
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Role, Skipped

Audited = Callable[..., AuditModel]
Planted = Callable[[int], Recommender]
STEPS = (1, 5, 12)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, and such that a planted model feels."""
    monkeypatch.setattr(probe, "RelearnConfig", functools.partial(RelearnConfig, steps=STEPS, lr=5e-2, batch=8))
    monkeypatch.setattr(probe, "MARKS", (0, 1, 5))


@pytest.fixture
def world(world: AuditWorld) -> AuditWorld:
    return replace(world, config=replace(world.config, saturated_histories=16))


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(attack, side) of every attack that is made."""
    made: list[tuple[str, str]] = []
    real = relearning.relearn

    def counted(model: Any, world: Any, kind: Any, config: RelearnConfig, observer: Any) -> Relearned:
        made.append((kind, config.side))
        return real(model, world, kind, config, observer)

    monkeypatch.setattr(relearning, "relearn", counted)
    return made


def beside(world: AuditWorld, *models: AuditModel, state: Any = None) -> dict[Role, Readings]:
    cache: dict[Any, Any] = {}
    together: dict[Role, Readings] = {}
    together |= {model.role: Readings(model, world, cache, state=state, beside=together) for model in models}
    return together


def found_of(readings: Readings) -> dict[str, Measurement | Skipped]:
    return {m.metric: m for m in probe.relearn(readings)}


def value(found: Measurement | Skipped) -> float:
    assert isinstance(found, Measurement), found
    return found.value


def test_an_original_is_there_and_a_model_that_never_knew_takes_the_steps_of_the_attack(
    world: AuditWorld, audited: Audited, planted: Planted
) -> None:
    models = beside(world, audited(planted(1)), audited(planted(0), role="original"))
    own, base = (found_of(models[role]) for role in ("subject", "original"))
    for attack in ("forget", "benign"):
        assert value(base[f"relearn.{attack}.steps"]) == 0
        assert value(base[f"relearn.{attack}.reached"]) == 1
        assert value(base[f"relearn.{attack}.exposure@s0"]) == 1
        assert value(own[f"relearn.{attack}.exposure@s0"]) == 0
    config = RelearnConfig(steps=STEPS, lr=5e-2, batch=8, histories=16)
    twin = relearning.relearn(models["subject"].model, world, "forget", config)
    steps = own["relearn.forget.steps"]
    assert 0 < value(steps) < 12
    assert value(steps) == pytest.approx(twin.steps_to(0.5))
    assert value(own["relearn.forget.reached"]) == 1
    assert value(own["relearn.forget.exposure@s5"]) == pytest.approx(twin.exposure[2])
    assert isinstance(steps, Measurement)
    assert steps.interval is not None
    assert steps.interval.low <= steps.value <= steps.interval.high
    assert isinstance(compare(steps, steps, "ratio", world), Measurement)
    assert value(compare(steps, steps, "ratio", world)) == 1


def test_a_model_that_is_not_brought_back_counts_as_if_it_were_at_the_horizon(
    world: AuditWorld, audited: Audited, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "RelearnConfig", functools.partial(RelearnConfig, steps=STEPS, lr=1e-9))
    models = beside(world, audited(planted(1)), audited(planted(0), role="original"))
    found = found_of(models["subject"])
    assert value(found["relearn.forget.steps"]) == 12
    assert value(found["relearn.forget.reached"]) == 0


def test_a_value_a_history_is_its_pull_on_the_steps() -> None:
    """Twin: the steps with one history counted a little more, in the model and in the level."""
    rng = np.random.default_rng(4)
    rise = np.array([0.1, 0.2, 0.4, 0.9])[:, None]
    curve, first = (
        Relearned("forget", np.array([0, 1, 5, 21]), np.clip(x, 0, 1)[None], 9)
        for x in (rise + rng.normal(size=(4, 12)) * 0.05, 0.9 + 0.1 * rng.random((4, 12)))
    )
    found = probe.steps_a_history(curve, first)
    assert 5 < curve.steps_to(first.half) < 21
    assert found.mean() == pytest.approx(curve.steps_to(first.half))
    more = 1e-5
    for i in range(12):
        weights = np.ones(12) + more * (np.arange(12) == i) * 12
        weights *= 12 / weights.sum()
        mine, theirs = (replace(x, values=x.values * weights) for x in (curve, first))
        pull = (mine.steps_to(theirs.half) - curve.steps_to(first.half)) / more
        assert found[i] - found.mean() == pytest.approx(pull, rel=1e-2, abs=1e-3)


def test_a_model_that_is_nearly_back_at_the_horizon_is_not_surely_short_of_it() -> None:
    """By the true curve half is reached at step 19; samples that do not see it there must not be sure of the horizon."""
    rng, steps, n = np.random.default_rng(6), np.array([0, 5, 13, 21]), 400
    shown, truth, covered, sure = np.array([0.0, 0.1, 0.25, 0.305]), 13 + 8 * 0.05 / 0.055, 0, 0
    for _ in range(60):
        own, before = (rng.beta(1.5, 1, n) / 0.6 for _ in range(2))
        curve = Relearned("forget", steps, (shown[:, None] * own)[None], 9)
        first = Relearned("forget", steps, np.broadcast_to(0.6 * before, (1, 4, n)), 9)
        interval = interval_of(probe.steps_a_history(curve, first), AuditConfig())
        sure += interval.low == interval.high
        covered += interval.low <= truth <= interval.high
    assert sure == 0
    assert covered >= 52  # of 60; 38 where a curve that falls short is sure of it
    far = Relearned("forget", steps, (np.array([0.0, 0.01, 0.02, 0.03])[:, None] * own)[None], 9)
    assert set(probe.steps_a_history(far, first).tolist()) == {21.0}


def test_an_attack_is_made_once_for_equal_weights_and_twice_where_items_moved(
    world: AuditWorld, audited: Audited, planted: Planted, moved: SidTable, attacks: list[tuple[str, str]]
) -> None:
    original = audited(planted(0), role="original")
    filtered = replace(original, role="filter", listed=~world.members)
    models = beside(world, original, filtered, audited(planted(1), table=moved))
    first, second = (found_of(models[role]) for role in ("original", "filter"))
    assert attacks == [("forget", "new"), ("benign", "new")]
    assert {name: value(m) for name, m in first.items()} == {name: value(m) for name, m in second.items()}
    found = found_of(models["subject"])
    assert attacks[2:] == [("forget", "new"), ("forget", "old"), ("benign", "new"), ("benign", "old")]
    half = probe.attacked(models["original"], "forget", probe._config(models["original"]))
    sides = probe.attacked(models["subject"], "forget", probe._config(models["subject"]))
    assert not isinstance(half, str)
    assert not isinstance(sides, str)
    assert len(sides) == 2
    quicker = min(min(side.steps_to(half[0].half), 12) for side in sides)
    assert value(found["relearn.forget.steps"]) == pytest.approx(quicker)
    assert len(attacks) == 6


def test_without_an_original_there_is_no_level_and_exposure_is_told(
    world: AuditWorld, audited: Audited, planted: Planted
) -> None:
    found = found_of(Readings(audited(planted(1)), world))
    skipped = {name: m.reason for name, m in found.items() if isinstance(m, Skipped)}
    assert set(skipped) == {f"relearn.{attack}.{x}" for attack in ("forget", "benign") for x in ("steps", "reached")}
    assert all("original" in reason for reason in skipped.values())


def test_an_original_that_shows_nothing_sets_no_level(world: AuditWorld, audited: Audited, planted: Planted) -> None:
    models = beside(world, audited(planted(1)), audited(planted(1), role="original"))
    found = found_of(models["subject"])["relearn.forget.steps"]
    assert isinstance(found, Skipped)
    assert "shows nothing" in found.reason


def test_a_concept_that_nobody_trained_on_cannot_be_learned_and_the_reason_is_told(
    world: AuditWorld, audited: Audited, planted: Planted
) -> None:
    items = world.catalogue.interactions.items
    none = replace(world.catalogue.interactions, items=np.where(world.members[items], 20, items).astype(np.int32))
    bare = replace(world, catalogue=Catalogue(world.catalogue.items, none))
    found = found_of(Readings(audited(planted(0), role="original"), bare))
    for name, m in found.items():
        assert isinstance(m, Skipped) == name.startswith("relearn.forget")
    told = found["relearn.forget.steps"]
    assert isinstance(told, Skipped)
    assert "nothing to relearn" in told.reason


def test_curves_are_in_the_report_once_the_probe_ran_and_not_before(
    world: AuditWorld, audited: Audited, planted: Planted, attacks: list[tuple[str, str]]
) -> None:
    models = beside(world, audited(planted(1)), audited(planted(0), role="original"))
    assert "relearn_forget" not in curves([*models.values()])
    assert not attacks
    found = found_of(models["subject"])
    drawn = curves([*models.values()])
    assert drawn["relearn_forget"]["x"] == [0, *STEPS]
    assert set(drawn["relearn_forget"]) == {"x", "subject", "original"}
    assert set(drawn["relearn_benign"]) <= {"x", "subject", "original"}
    assert drawn["relearn_forget"]["subject"][2] == value(found["relearn.forget.exposure@s5"])
    assert all(len(line) == 4 for line in drawn["relearn_forget"].values())


class Kept(dict[str, bytes]):
    """A state in memory."""

    def read(self, name: str) -> bytes | None:
        return self.get(name)

    def write(self, name: str, data: bytes) -> None:
        self[name] = data


def test_an_interrupted_audit_attacks_no_model_twice(
    world: AuditWorld, audited: Audited, planted: Planted, attacks: list[tuple[str, str]]
) -> None:
    state, model = Kept(), audited(planted(0), role="original", digest="weights")
    first = found_of(beside(world, model, state=state)["original"])
    assert len(attacks) == len(state) == 2
    again = found_of(beside(world, model, state=state)["original"])
    assert len(attacks) == 2
    assert {name: value(m) for name, m in again.items()} == {name: value(m) for name, m in first.items()}


def test_few_pairs_are_other_attacks_three_times_each(
    world: AuditWorld, audited: Audited, planted: Planted, attacks: list[tuple[str, str]]
) -> None:
    models = beside(world, audited(planted(1)), audited(planted(0), role="original"))
    found = {m.metric: m for m in probe.few(models["subject"])}
    assert set(found) == {f"relearn_few.shots{n}.{x}" for n in (8, 64) for x in ("steps", "reached")}
    steps = found["relearn_few.shots8.steps"]
    assert 0 < value(steps) <= 12
    config = replace(probe._config(models["subject"]), shots=8, repeats=3)
    (curve,) = probe.attacked(models["subject"], "forget", config)
    assert isinstance(curve, Relearned)
    assert curve.values.shape == (3, 4, 16)
    assert curve.pairs == 8


def test_the_model_and_the_random_state_stay_as_they_are(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    before, state = copy.deepcopy(untrained.module.state_dict()), torch.get_rng_state()
    found_of(Readings(audited(untrained, role="original"), world))
    after = untrained.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.grad is None and weight.requires_grad for weight in untrained.module.parameters())
    assert torch.equal(state, torch.get_rng_state())
