"""Coarser copies: each is what it says, the model stays as it is, and what rounding brings back is seen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit import precision as probe
from recerase.audit.precision import COARSE, NAMES, coarser, noisy, precision, pruned, quantised, rounded_to, users
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.errors import CheckpointError
from recerase.model.recommender import Recommender
from recerase.types import Measurement, Skipped

Audited = Callable[..., AuditModel]
PARTS = ("exposure@10", "mass.old", "mass.new")


def figures(readings: Readings) -> dict[str, float]:
    return {m.metric: m.value for m in precision(readings) if isinstance(m, Measurement)}


def some(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize(("most", "group"), [(127, None), (7, 128), (7, 4)])
def test_quantised_weights_are_the_nearest_multiples_of_their_scale(most: int, group: int | None) -> None:
    weight = some(3, 10)
    weight[1] = 0.0
    found = quantised(most, group)(weight, np.random.default_rng(0)).numpy()
    width = min(group or 10, 10)
    for row in range(3):
        for first in range(0, 10, width):
            own = weight[row, first : first + width].numpy().astype(float)
            scale = np.abs(own).max() / most
            grid = scale * np.arange(-most, most + 1)
            nearest = grid[np.abs(own[:, None] - grid).argmin(axis=1)]
            np.testing.assert_allclose(found[row, first : first + width], nearest, atol=1e-6)
    vector = some(5)
    assert torch.equal(quantised(most, group)(vector, np.random.default_rng(0)), vector)


def test_pruning_takes_the_smallest_three_in_ten_of_a_matrix() -> None:
    weight, rng = some(4, 5), np.random.default_rng(0)
    found = pruned(weight, rng)
    gone = found == 0
    assert int(gone.sum()) == 6
    assert weight[gone].abs().max() < weight[~gone].abs().min()
    assert torch.equal(found[~gone], weight[~gone])
    assert torch.equal(pruned(weight[0], rng), weight[0])


def test_noise_is_small_and_beyond_the_range_of_a_float_stands_its_largest() -> None:
    weight = some(200, 50) * 7
    noise = noisy(weight, np.random.default_rng(3)) - weight
    assert float(noise.square().mean().sqrt() / weight.square().mean().sqrt()) == pytest.approx(0.005, rel=0.05)
    wide = torch.tensor([1e6, -1e6, 1.0])
    assert rounded_to(torch.float16)(wide, np.random.default_rng(0)).tolist() == [65504.0, -65504.0, 1.0]
    assert rounded_to(torch.bfloat16)(weight, np.random.default_rng(0)).tolist() == weight.bfloat16().float().tolist()


def test_the_copies_differ_from_the_model_and_the_model_stays(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    module, state, legacy = untrained.module, torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002
    before = copy.deepcopy(module.state_dict())
    gradients = [weight.requires_grad for weight in module.parameters()]
    readings = Readings(audited(untrained), world)
    precision(readings)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert gradients == [weight.requires_grad for weight in module.parameters()]
    assert not module.training
    assert torch.equal(state, torch.get_rng_state())
    assert legacy == str(np.random.get_state())  # noqa: NPY002
    for name, coarse in COARSE.items():
        made = coarser(module, coarse, world.random(name)).state_dict()
        assert any(not torch.equal(before[key], made[key]) for key in before), name


def test_an_oracle_shows_the_concept_in_every_copy_and_another_in_none(
    world: AuditWorld, audited: Audited, planted: Callable[[int], Recommender]
) -> None:
    shows, hides = (figures(Readings(audited(planted(group)), world)) for group in (0, 1))
    assert len(shows) == len(PARTS) * (len(NAMES) + 1)
    for name in ("", *(f"{x}." for x in NAMES)):
        assert shows[f"precision.{name}exposure@10"] == pytest.approx(1.0)
        assert shows[f"precision.{name}mass.old"] > 0.7  # the second code is even: 12 of 16
        assert hides[f"precision.{name}exposure@10"] == 0.0
        assert hides[f"precision.{name}mass.old"] < 0.01


def test_what_four_bits_bring_back_is_the_worst(
    world: AuditWorld, audited: Audited, planted: Callable[[int], Recommender]
) -> None:
    """The concept's first code is 1.4 nats behind; in 4 bits a row's step is 20 / 7, and it is level with the favourite."""
    model = planted(1)
    row = int(model.schema.rows[0][0])
    weight = model.module.lm_head.weight
    with torch.no_grad():
        weight[row] = torch.where(weight[row] * 32**0.5 > -15, -1.4 / 32**0.5, weight[row])
    found = figures(Readings(audited(model), world))
    behind = np.exp(-1.4) / (1 + np.exp(-1.4)) * 12 / 16
    assert found["precision.stored.mass.old"] == pytest.approx(behind, rel=1e-2)
    assert found["precision.int8.mass.old"] == pytest.approx(behind, rel=5e-2)
    assert found["precision.int4.mass.old"] == pytest.approx(0.5 * 12 / 16, rel=1e-2)
    assert found["precision.mass.old"] == found["precision.int4.mass.old"]


def test_a_filter_filters_nothing_from_whoever_holds_the_weights(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    model = audited(untrained, digest="weights")
    filtered = replace(model, role="filter", listed=~world.members)
    cache: dict[Any, Any] = {}
    own = figures(Readings(model, world, cache))
    known = set(cache)
    assert own["precision.stored.exposure@10"] > 0
    assert figures(Readings(filtered, world, cache)) == own
    assert set(cache) == known  # nothing is read twice


def test_the_figures_as_stored_are_the_readings(world: AuditWorld, audited: Audited, untrained: Recommender) -> None:
    readings = Readings(audited(untrained), world)
    found, case = figures(readings), users(world)
    shown = world.members[readings.lists(case)[:, :10]].mean()
    assert found["precision.stored.exposure@10"] == pytest.approx(shown)
    assert found["precision.stored.mass.new"] == pytest.approx(readings.mass(case).mean())


def test_neither_batches_nor_another_run_change_a_figure(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    small = replace(world, config=replace(world.config, batch=3, mass_batch=3))
    first, again = (figures(Readings(audited(untrained), x)) for x in (world, small))
    torch.rand(3)
    for name, value in first.items():
        assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    other = figures(Readings(audited(untrained), replace(world, config=replace(world.config, seed=1))))
    assert other["precision.noise.mass.old"] != first["precision.noise.mass.old"]


def test_a_copy_without_finite_numbers_is_skipped_and_a_model_without_is_refused(
    world: AuditWorld, audited: Audited, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "COARSE", {**COARSE, "noise": lambda weight, rng: weight * float("nan")})
    found = precision(Readings(audited(untrained), world))
    skipped = {m.metric for m in found if isinstance(m, Skipped)}
    assert skipped == {f"precision.noise.{part}" for part in PARTS}
    assert {f"precision.{part}" for part in PARTS} <= {m.metric for m in found if isinstance(m, Measurement)}
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="no finite probability"):
        precision(Readings(audited(untrained), world))
