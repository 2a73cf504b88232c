"""Looking ahead at a step of relearning: beside a step taken by hand on a copy, and what it is worth once an attacker comes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.conftest import N, World, interactions_of, walks

from recerase.erase import tracer
from recerase.erase.ahead import attacked
from recerase.erase.both import Both
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.tracer import erase
from recerase.erase.tracer_config import RenormaliseConfig
from recerase.errors import UsageError
from recerase.model.mass import concept_mass

SETTLE = RenormaliseConfig(settle_steps=60, pool=6, batch=24, sequences=8, settle_lr=5e-3)
Ask = Callable[..., EraseRequest]


def likelihood(request: EraseRequest) -> torch.Tensor:
    """Mean log-likelihood of D_F under the request's model."""
    pairs = examples(request.interactions, request.table, request.concept, 5).forget
    rows = item_rows(request.model, request.table, pairs.targets)[:, None]
    return sid_log_probs(request.model, start(request.model, request.table, pairs), rows).sum((1, 2)).mean()


def test_the_step_is_taken_inside_and_taken_back(ask: Ask, kind: str) -> None:
    request = ask(kind)
    pairs = examples(request.interactions, request.table, request.concept, 5).forget
    weights = dict(request.model.module.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    first = float(likelihood(request).detach())
    with attacked(request.model, request.table, pairs, 1e-3):
        assert float(likelihood(request).detach()) > first
        moved = torch.cat([(weights[name].detach() - own).abs().flatten() for name, own in before.items()])
        assert float(moved.max()) == pytest.approx(1e-3, rel=1e-2)
        assert float((moved > 0).float().mean()) > 0.5
    assert all(torch.equal(weights[name], own) for name, own in before.items())
    with pytest.raises(KeyError), attacked(request.model, request.table, pairs, 1e-3):
        raise KeyError
    assert all(torch.equal(weights[name], own) for name, own in before.items())
    assert all(weight.grad is None for weight in weights.values())


def test_gradients_are_those_of_the_attacked_copy(ask: Ask, kind: str) -> None:
    """By hand: a deep copy, its own step along the sign of the gradient, the loss there."""
    request = ask(kind)
    config = dataclasses.replace(SETTLE, look_ahead=1, look_rate=2e-3)
    runs = [tracer._Run(request, config) for _ in range(2)]
    for run in runs:
        target, both = run.supply.batch(0), Both(run.teacher, request.table)
        both.look(run.model, run.supply.few())
        if run is runs[0]:
            run._look_ahead(both, target, request.table)
            continue
        pairs = tracer.draw(run.supply.examples.forget, 32, run.rng)
        rows = item_rows(run.model, request.table, pairs.targets)[:, None]
        (-sid_log_probs(run.model, start(run.model, request.table, pairs), rows).sum((1, 2)).mean()).backward()
        ways = [weight.grad for weight in run.model.module.parameters()]
        run.model = run.model.around(copy.deepcopy(run.model.module))
        with torch.no_grad():
            for weight, way in zip(run.model.module.parameters(), ways, strict=True):
                weight -= 0.0 if way is None else 2e-3 * way.sign()
                weight.grad = None
        lost = run._both_reached(both, start(run.model, request.table, target.histories), target)
        (config.forget_weight * lost).backward()
    pair = zip(*(run.model.module.parameters() for run in runs), strict=True)
    checked = 0
    for mine, hand in pair:
        assert (mine.grad is None) == (hand.grad is None)
        if mine.grad is not None and hand.grad is not None:
            torch.testing.assert_close(mine.grad, hand.grad, rtol=1e-3, atol=1e-6)
            checked += int(hand.grad.abs().sum() > 0)
    assert checked > 5


def test_what_looked_ahead_gives_an_attacker_less(ask: Ask, world: World) -> None:
    """The mean of the concept's log mass after one further step of relearning, of runs that are alike but for looking ahead."""
    request, found = ask(), []
    for every in (0, 1):
        model = erase(request, dataclasses.replace(SETTLE, look_ahead=every, look_rate=5e-3)).model
        pairs = examples(request.interactions, request.table, request.concept, 5).forget
        with attacked(model, request.table, pairs, 5e-3):
            mass = concept_mass(model, request.table, world.members, pairs).mass
        found.append(float(np.log(mass).mean()))
    assert found[1] < found[0] - 0.1


def test_nobody_to_relearn_from_and_settings_out_of_range(ask: Ask) -> None:
    request = dataclasses.replace(ask(interactions=interactions_of(walks(60, 2, first=16))), concept=np.arange(N) < 6)
    short = dataclasses.replace(SETTLE, settle_steps=3)
    plain, ahead = (erase(request, dataclasses.replace(short, look_ahead=every)).model for every in (0, 1))
    for a, b in zip(plain.module.parameters(), ahead.module.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UsageError, match=r"look_rate must be above 0.*look_ahead must be 0 or more"):
        RenormaliseConfig(look_ahead=-1, look_rate=0.0)
