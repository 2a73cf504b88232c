"""NPO: the published loss on a copy of the model, and a limit to how far it pushes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.conftest import N, World, forward, interactions_of, items_of, walks

from recerase.erase import steps as loop
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.npo import NpoConfig, erase
from recerase.errors import ConceptError
from recerase.model.mass import forced_log_probs


def test_the_first_loss_is_that_of_the_original(
    world: World, ask: Callable[..., EraseRequest], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p = p_0: L_npo is (2 / b) log 2 whatever the batch, and the retain NLL is transformers' own."""
    monkeypatch.setattr(loop, "draw", lambda histories, n, rng: histories.take(np.arange(n)))
    request = ask(kind)
    losses = erase(request, NpoConfig(steps=1, batch=6, beta=0.25)).summary["losses"]
    assert losses["forget"] == pytest.approx(8 * np.log(2), abs=1e-4)
    retain = examples(request.interactions, request.table, request.concept, request.model.window).retain
    rows = torch.from_numpy(world.table.rows())
    by_hand = []
    with torch.no_grad():
        for b in range(6):
            path = rows[[int(retain.targets[b])]]
            steps = forward(request.model, world.table, items_of(retain, b), path)
            by_hand.append(-float(steps.gather(2, path[..., None]).sum()))
    assert losses["retain"] == pytest.approx(np.mean(by_hand), abs=1e-3)


def test_without_a_retain_term_the_rest_suffers_more(ask: Callable[..., EraseRequest]) -> None:
    request = ask()
    pairs = examples(request.interactions, request.table, request.concept, request.model.window)

    def scores(weight: float) -> tuple[float, float]:
        model = erase(request, NpoConfig(steps=25, lr=5e-3, retain_weight=weight)).model
        return tuple(  # type: ignore[return-value]
            float(forced_log_probs(model, request.table, h, h.targets).mean()) for h in (pairs.forget, pairs.retain)
        )

    with_it, without = scores(1.0), scores(0.0)
    before = [
        float(forced_log_probs(request.model, request.table, h, h.targets).mean()) for h in (pairs.forget, pairs.retain)
    ]
    assert with_it[0] < before[0] - 1
    assert without[0] < before[0] - 1
    assert with_it[1] > without[1] + 0.1


def test_the_seed_decides_the_batches(ask: Callable[..., EraseRequest]) -> None:
    first, second = (erase(ask(seed=seed), NpoConfig(steps=2, batch=8)).model.module for seed in (0, 1))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_concept_that_nothing_leads_to_is_refused(ask: Callable[..., EraseRequest]) -> None:
    request = ask(interactions=interactions_of(walks(60, 2, first=16)))
    request = dataclasses.replace(request, concept=np.arange(N) < 6)
    with pytest.raises(ConceptError, match="No training interaction leads to the concept"):
        erase(request, NpoConfig(steps=1))
