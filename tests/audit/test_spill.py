"""What an erasure takes along: near misses beside the original, and items of the concept's kind that were not asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit.cases import mass_users, natural_case
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.spill import near_misses, spill
from recerase.model.mass import forced_log_probs
from recerase.model.recommender import Recommender
from recerase.types import Measurement, Skipped

ONE, TWO = np.arange(36) // 12 == 1, np.arange(36) // 12 == 2


def read(subject: AuditModel, original: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    cache: dict = {}
    beside = {"original": Readings(replace(original, role="original"), world, cache)}
    found = spill(Readings(subject, world, cache, beside=beside))  # type: ignore[arg-type]
    return {m.metric: m for m in found if isinstance(m, Measurement)}


@pytest.fixture
def beside_one(world: AuditWorld) -> AuditWorld:
    """Group 1 lies beside the concept, group 2 far away; every item of group 1 is someone's near miss."""
    angle = np.concatenate([np.linspace(0, 0.1, 12), np.linspace(0, 0.1, 12) + 0.2, np.full(12, 2.0)])
    points = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    return replace(world, embeddings=points, config=replace(world.config, target_neighbours=12))


def test_near_misses_are_the_nearest_retained_items_that_are_not_held_out(world: AuditWorld) -> None:
    points = np.random.default_rng(5).normal(size=(36, 8)).astype(np.float32)
    held = np.arange(36) % 5 == 1
    for held_out in (None, held):
        other = replace(world, embeddings=points, held_out=held_out)
        unit = points / np.linalg.norm(points, axis=1, keepdims=True)
        cosine = unit[world.members] @ unit.T
        cosine[:, world.members if held_out is None else world.members | held] = -np.inf
        expected = np.isin(np.arange(36), np.argsort(-cosine, axis=1)[:, : world.config.target_neighbours])
        np.testing.assert_array_equal(near_misses(other), expected)


def test_an_erasure_that_cuts_too_wide_loses_what_lies_beside(
    beside_one: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    """The original recommends group 1, which lies beside the concept; the subject recommends group 2 instead."""
    assert (near_misses(beside_one) == ONE).all()
    found = read(audited(planted(2)), audited(planted(1)), beside_one)
    assert found["spill.exposure@10"].value == 0
    assert found["spill.lost.exposure@10"].value == 1
    assert found["spill.lost.mass"].value == pytest.approx(1, abs=1e-3)
    assert found["spill.gained.mass"].value == 0
    back = read(audited(planted(1)), audited(planted(2)), beside_one)
    assert back["spill.mass"].value == pytest.approx(12 / 16, abs=1e-3)
    assert back["spill.lost.mass"].value == 0
    assert back["spill.gained.mass"].value > 1000


def test_what_keeps_the_original_loses_and_gains_nothing(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    whole = audited(untrained)
    hidden = replace(whole, role="filter", listed=~world.members)
    for subject in (whole, hidden, replace(whole, role="original")):
        found = read(subject, whole, world)
        assert found["spill.lost.mass"].value == found["spill.gained.mass"].value == 0
        interval = found["spill.lost.mass"].interval
        assert interval is not None
        assert interval.high == pytest.approx(0, abs=1e-12)
    assert read(hidden, whole, world)["spill.lost.exposure@10"].value == 0
    assert read(hidden, whole, world)["spill.exposure@10"].value > read(whole, whole, world)["spill.exposure@10"].value


def test_mass_and_loss_are_sums_and_shares(
    world: AuditWorld, audited: Callable, untrained: Recommender, planted: Callable[[int], Recommender]
) -> None:
    """Item by item for the mass; for what is lost, the means themselves."""
    sample = mass_users(world)
    histories = sample.case.histories.take(sample.everyone)

    def mass(model: Recommender, items: np.ndarray) -> np.ndarray:
        table = audited(model).table
        each = [forced_log_probs(model, table, histories, np.full(len(histories), i)) for i in np.flatnonzero(items)]
        return np.exp(np.stack(each).astype(np.float64)).sum(0)

    held = TWO & (np.arange(36) % 2 == 0)
    world = replace(world, held_out=held)
    near = near_misses(world)
    found = read(audited(untrained), audited(planted(1)), world)
    np.testing.assert_allclose(found["spill.mass"].values, mass(untrained, near), rtol=1e-5)
    np.testing.assert_allclose(found["spill.held_out.mass"].values, mass(untrained, held), rtol=1e-5)
    ratio = mass(untrained, near).mean() / mass(planted(1), near).mean()
    assert found["spill.lost.mass"].value == pytest.approx(max(0, 1 - ratio), rel=1e-4)
    assert found["spill.gained.mass"].value == pytest.approx(max(0, ratio - 1), rel=1e-4)
    lists = Readings(audited(untrained), world).lists(natural_case(world))[:, :10]
    assert found["spill.held_out.exposure@10"].value == pytest.approx(held[lists].mean())
    assert found["spill.exposure@10"].value == pytest.approx(near[lists].mean())
    for name in ("spill.lost.mass", "spill.gained.mass"):
        interval = found[name].interval
        assert interval is not None
        assert 0 <= interval.low <= found[name].value <= interval.high


def test_a_loss_that_cannot_be_told_is_said(
    beside_one: AuditWorld, audited: Callable, untrained: Recommender, planted: Callable[[int], Recommender]
) -> None:
    found = spill(Readings(audited(untrained), beside_one))
    skipped = {s.metric: s.reason for s in found if isinstance(s, Skipped)}
    assert {"spill.lost.mass", "spill.gained.mass", "spill.lost.exposure@10", "spill.held_out.mass"} <= set(skipped)
    assert "original" in skipped["spill.lost.mass"]
    assert "not in the request" in skipped["spill.held_out.exposure@5"]
    original = Readings(audited(planted(2), role="original"), beside_one)  # shows nothing of group 1
    nothing = spill(Readings(audited(untrained), beside_one, beside={"original": original}))
    reasons = {s.metric: s.reason for s in nothing if isinstance(s, Skipped)}
    assert "nothing that could be lost" in reasons["spill.lost.exposure@5"]
    assert "spill.lost.mass" not in reasons
