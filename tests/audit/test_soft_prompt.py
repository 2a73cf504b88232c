"""Soft prompts: never below the history they begin with, never longer than an embedding, and the model untouched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.soft_prompt import ascend, soft_prompt
from recerase.audit.swaps import Target, as_histories
from recerase.audit.worst_case import worst
from recerase.errors import CheckpointError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

Models = Callable[..., AuditModel]
STARTS = np.array([[13, 20, -1], [30, 31, 32], [12, -1, -1]])


def read(model: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    return {m.metric: m for m in soft_prompt(Readings(model, world)) if isinstance(m, Measurement)}


def target(model: AuditModel, world: AuditWorld, batch: int = 32) -> Target:
    return Target(model, model.table, world.members, batch)


def test_it_bounds_the_histories_that_were_searched(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    readings = Readings(audited(untrained), world)
    searched = max(worst(readings, "old", anything=whole)[1].max() for whole in (False, True))
    found = {m.metric: m.value for m in soft_prompt(readings) if isinstance(m, Measurement)}
    assert searched * (1 - 1e-5) <= found["soft_prompt.mass.old"] == found["soft_prompt.mass.new"] <= 1


def test_steps_go_up_and_without_one_it_is_the_history_itself(
    world: AuditWorld, audited: Models, untrained: Recommender
) -> None:
    goal = target(audited(untrained), world)
    before = goal.read(as_histories(STARTS))
    np.testing.assert_allclose(ascend(goal, STARTS, 0), before, atol=1e-5)
    few, many = ascend(goal, STARTS, 10), ascend(goal, STARTS, 40)
    assert (few > before).all()
    assert (many >= few).all()


def test_no_vector_grows_longer_than_the_longest_code_of_its_level(
    world: AuditWorld, audited: Models, untrained: Recommender
) -> None:
    """What the model is given is looked at: it grows to the bound and not beyond it, and nothing but codes is changed."""
    goal, given = target(audited(untrained), world), []
    real = goal.log_mass

    def seen(tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> Tensor:
        assert embeds is not None
        given.append(embeds.detach().clone())
        return real(tokens, lengths, embeds)

    goal.log_mass = seen  # type: ignore[method-assign]
    ascend(goal, STARTS[1:2], 60)
    norms = torch.stack(given)[:, 0].norm(dim=-1)  # [steps + 1, 1 + 3 * 2]
    longest = torch.stack([untrained.embed(rows).norm(dim=-1).max() for rows in untrained.level_rows]).repeat(3)
    assert len(given) == 61
    assert (norms[:, 1:] <= longest * (1 + 1e-5)).all()
    assert (norms[-1, 1:] > 0.99 * longest).any()
    assert (norms[:, 0] == norms[0, 0]).all()


def test_an_oracle_that_never_says_the_concept_says_it_after_no_vector(
    world: AuditWorld, audited: Models, planted: Callable[[int], Recommender]
) -> None:
    """Of planted(1) every column of the head prefers group 1; a mixture of its columns can do no better than the best of them."""
    model = planted(1)
    with torch.no_grad():
        model.module.lm_head.weight[model.schema.rows[0][0]] = -40.0 / 32**0.5
        model.module.get_input_embeddings().weight.mul_(0.0)
    assert read(audited(model), world)["soft_prompt.mass.old"].value < 0.4


def test_batches_and_the_hour_change_nothing(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    whole, single = (ascend(target(audited(untrained), world, batch), STARTS, 10) for batch in (32, 1))
    np.testing.assert_allclose(whole, single, atol=1e-3)
    np.testing.assert_array_equal(whole, ascend(target(audited(untrained), world), STARTS, 10))


def test_the_model_stays_as_it_was(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    module = untrained.module
    next(module.parameters()).requires_grad_(False)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    flags, random = [weight.requires_grad for weight in module.parameters()], torch.get_rng_state()
    ascend(target(audited(untrained), world), STARTS, 5)
    assert all(torch.equal(before[name], weight) for name, weight in module.state_dict().items())
    assert [weight.requires_grad for weight in module.parameters()] == flags
    assert all(weight.grad is None for weight in module.parameters())
    assert not module.training
    assert torch.equal(random, torch.get_rng_state())


def test_sids_that_are_gone_have_no_mass_and_an_empty_window_is_skipped(
    world: AuditWorld, audited: Models, untrained: Recommender, table: SidTable
) -> None:
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes))
    found = read(audited(untrained, table=gone, old_table=table), world)
    assert found["soft_prompt.mass.new"].value == 0 < found["soft_prompt.mass.old"].value
    (said,) = soft_prompt(Readings(audited(untrained, listed=world.members), world))
    assert isinstance(said, Skipped)
    assert said.metric == "soft_prompt.*"


def test_a_broken_model_is_refused(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    goal = target(audited(untrained), world)
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="soft prompts"):
        ascend(goal, STARTS, 1)
