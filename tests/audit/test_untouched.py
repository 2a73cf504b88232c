"""What every probe of behaviour promises: the same numbers again, whatever the batch, and a model as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.cards import load_probe
from recerase.audit.probes import AuditWorld
from recerase.audit.readings import Readings
from recerase.model.recommender import Recommender
from recerase.types import Measurement

NAMES = ["co_consumed", "depth", "forced_prefix", "spill", "within"]


def read(name: str, world: AuditWorld, audited: Callable, model: Recommender) -> dict[str, Measurement]:
    original = Readings(audited(model, role="original"), world)
    found = load_probe(name)(Readings(audited(model), world, beside={"original": original}))
    return {m.metric: m for m in found if isinstance(m, Measurement)}


@pytest.fixture
def small(world: AuditWorld, monkeypatch: pytest.MonkeyPatch) -> AuditWorld:
    monkeypatch.setattr("recerase.audit.forced_prefix.PAIRS", 60)
    return replace(world, config=replace(world.config, saturated_histories=20))


@pytest.mark.parametrize("name", NAMES)
def test_a_probe_repeats_itself_in_other_batches_and_leaves_the_model_as_it_was(
    name: str, small: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    module = untrained.module
    before = {key: value.clone() for key, value in module.state_dict().items()}
    asks, mode, chance = [p.requires_grad for p in module.parameters()], module.training, torch.get_rng_state()
    once, again = (read(name, small, audited, untrained) for _ in range(2))
    other = replace(small, config=replace(small.config, batch=7, mass_batch=5))
    cut = read(name, other, audited, untrained)
    assert set(once) == set(again) == set(cut)
    for metric, m in once.items():
        assert m.value == again[metric].value
        assert m.interval == again[metric].interval
        assert cut[metric].value == pytest.approx(m.value, rel=1e-4, abs=1e-9)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == asks
    assert all(p.grad is None for p in module.parameters())
    assert module.training == mode
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("name", ["co_consumed", "depth", "spill", "within"])
def test_users_in_another_order_are_the_same_users(
    name: str, small: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    """All of them are read; forced_prefix draws a user's item by place (see its own test of order)."""
    every = replace(small, config=replace(small.config, mass_users=1000))
    turned = replace(every, histories=every.histories.take(np.arange(len(every.histories))[::-1]))
    one, two = read(name, every, audited, untrained), read(name, turned, audited, untrained)
    for metric, m in one.items():
        assert two[metric].value == pytest.approx(m.value, rel=1e-4, abs=1e-9)
