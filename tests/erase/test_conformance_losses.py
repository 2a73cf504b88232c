"""What every loss that is gone down must be: a mean over its batches, and lower where the concept is less likely."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.cases import CASES, bits, settings_of

from recerase.catalog.interactions import Histories
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest, Method
from recerase.erase.methods import get_method
from recerase.erase.precision import student
from recerase.erase.steps import Loss
from recerase.model.mass import forced_log_probs

LOSSES = [case for case in CASES if get_method(case)[0].objective]
PAIRS = 12
FEW = {"rmu": 8}
"""Steps of a method of which one may go either way."""
_MADE: dict[tuple[str, str], tuple[EraseRequest, Loss, Histories, Histories]] = {}


@pytest.fixture(params=LOSSES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(case: str, kind: str, ask: Callable[..., EraseRequest]) -> tuple[EraseRequest, Loss, Histories, Histories]:
    """The request, the loss, and twelve pairs each of D_F and D_R; the loss is made once a case."""
    if (case, kind) not in _MADE:
        request = ask(kind)
        found = examples(request.interactions, request.table, request.concept, request.model.window)
        first = np.arange(PAIRS)
        loss = _loss(get_method(case)[0], request, settings_of(case))
        _MADE[case, kind] = request, loss, found.forget.take(first), found.retain.take(first)
    return _MADE[case, kind]


def _loss(method: Method, request: EraseRequest, config: Any) -> Loss:
    loss = method.loss(request, config)
    assert loss is not None
    return loss


@pytest.mark.parametrize("cut", [1, 9])
def test_a_batch_split_in_two_gives_the_same_loss_and_gradient(made: Any, cut: int) -> None:
    """Away from where the erasing starts, where some losses have no slope."""
    request, loss, forget, retain = made
    model = student(request.model)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight.mul_(1.1)
    rows = np.arange(PAIRS)

    def taken(part: Any) -> tuple[float, dict[str, float], torch.Tensor]:
        model.module.zero_grad()
        total, figures = loss(model, forget.take(part), retain.take(part))
        assert total.shape == ()
        total.backward()
        slopes = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.module.parameters()]
        flat = torch.cat([slope.flatten() for slope in slopes])
        return float(total.detach()), {k: float(v.detach()) for k, v in figures.items()}, flat

    whole, one, other = taken(rows), taken(rows[:cut]), taken(rows[cut:])
    share = cut / PAIRS
    assert share * one[0] + (1 - share) * other[0] == pytest.approx(whole[0], rel=1e-4, abs=1e-5)
    assert {k: share * one[1][k] + (1 - share) * other[1][k] for k in whole[1]} == pytest.approx(
        whole[1], rel=1e-4, abs=1e-5
    )
    assert float(whole[2].norm()) > 0
    torch.testing.assert_close(share * one[2] + (1 - share) * other[2], whole[2], rtol=1e-3, atol=1e-4)


def test_pairs_count_in_any_order(made: Any) -> None:
    request, loss, forget, retain = made
    order = np.random.default_rng(0).permutation(PAIRS)
    with torch.no_grad():
        straight, _ = loss(request.model, forget, retain)
        mixed, _ = loss(request.model, forget.take(order), retain.take(order))
    assert float(mixed) == pytest.approx(float(straight), rel=1e-4, abs=1e-5)


def test_a_loss_leaves_the_original_alone(made: Any) -> None:
    request, loss, forget, retain = made
    before = bits(request.model)
    loss(student(request.model), forget, retain)[0].backward()
    assert bits(request.model) == before
    assert all(weight.grad is None for weight in request.model.module.parameters())


def test_one_step_makes_the_concept_less_likely(case: str, kind: str, ask: Callable[..., EraseRequest]) -> None:
    """A public port of one of these methods had the sign wrong (METHODS 3). RMU asks for a direction, and takes a few."""
    request = ask(kind)
    config = dataclasses.replace(settings_of(case), steps=FEW.get(case, 1), batch=64)
    erased = get_method(case)[0].run(request, config)
    pairs = examples(request.interactions, request.table, request.concept, request.model.window).forget
    now, was = (forced_log_probs(m, request.table, pairs, pairs.targets) for m in (erased.model, request.model))
    assert now.mean() < was.mean()
