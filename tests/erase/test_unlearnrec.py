"""UnlearnRec: the graph is what is said, the gradient is the loss's, and codes outside a request keep their bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.cases import bits

from recerase.erase import unlearnrec
from recerase.erase.examples import Examples, examples
from recerase.erase.influence import Nodes, request_graph, row_tensors
from recerase.erase.method import EraseRequest, Prepared
from recerase.erase.unlearnrec import Rewriting, Simulated, UnlearnRecConfig
from recerase.errors import CheckpointError, UsageError
from recerase.model.mass import forced_log_probs
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.types import Silent

QUICK = UnlearnRecConfig(steps=2, batch=16, prepare_steps=3, lr=1e-2, prepare_lr=1e-2)
RNG = np.random.default_rng(0)


def pairs_of(request: EraseRequest) -> Examples:
    return examples(request.interactions, request.table, request.concept, request.model.window)


@pytest.fixture
def alone(kind: str, ask: Callable[..., EraseRequest]) -> EraseRequest:
    """A request for item 12, to which few histories lead."""
    return ask(kind, concept=np.arange(40) == 12)


def test_the_graph_is_sub_tries_and_co_occurrence(alone: EraseRequest) -> None:
    table, pairs, nodes = alone.table, pairs_of(alone).forget, Nodes.of(alone.table)
    rows = {int(row): place for place, row in enumerate(nodes.rows)}
    assert sorted(rows) == sorted({int(r) for level in table.schema.rows for r in level})
    wanted = np.zeros((len(rows), len(rows)))

    def joined(a: int, b: int) -> None:
        wanted[rows[a], rows[b]] += 1
        wanted[rows[b], rows[a]] += 1

    spelled = table.rows()
    for before, after in zip(spelled[12, :-1], spelled[12, 1:], strict=True):
        joined(int(before), int(after))
    for b in range(len(pairs)):
        for item in pairs.items[pairs.offsets[b] : pairs.offsets[b + 1]]:
            for level in range(table.levels):
                joined(int(spelled[item, level]), int(spelled[12, level]))
    degree = np.maximum(wanted.sum(1), 1e-12) ** -0.5
    found = request_graph(nodes, np.array([12]), pairs, 0.0, RNG).to_dense().numpy()
    assert found == pytest.approx(degree[:, None] * wanted * degree[None], abs=1e-6)
    assert 0 < (wanted.sum(1) == 0).sum() < len(rows)


def test_edges_left_out_are_about_the_share_asked_for(ask: Callable[..., EraseRequest]) -> None:
    request = ask("causal")
    nodes, pairs = Nodes.of(request.table), pairs_of(request).forget
    items = np.flatnonzero(request.concept & request.table.present)
    ones = [request_graph(nodes, items, pairs, drop, np.random.default_rng(1)) for drop in (0.0, 0.9)]
    assert ones[1]._nnz() < ones[0]._nnz()
    assert (ones[1].to_dense() == ones[1].to_dense().T).all()


def test_the_gradient_handed_to_the_encoder_is_that_of_the_loss(ask: Callable[..., EraseRequest], kind: str) -> None:
    """Against a difference quotient in float64, along a random direction of all of the encoder's weights."""
    request = ask(kind)
    request.model.module.double()
    rewriting = Rewriting(request, dataclasses.replace(QUICK, forget_weight=0.7, keep_weight=3.0))
    rewriting.encoder.double()
    found = pairs_of(request)
    graph = rewriting.graph(request.concept, found.forget, 0.0, RNG).double()
    batch = found.forget.take(np.arange(6)), found.retain.take(np.arange(6))
    weights = list(rewriting.encoder.parameters())
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in weights:  # away from where nearly nothing is added, and from the kinks of relu
            weight.copy_(0.5 * torch.randn(weight.shape, generator=drawn, dtype=torch.float64))
    way = [torch.randn(w.shape, generator=drawn, dtype=torch.float64) for w in weights]
    rewriting.loss(*batch, graph, None)[0].backward()
    slope = sum(float((w.grad * v).sum()) for w, v in zip(weights, way, strict=True) if w.grad is not None)

    def at(step: float) -> float:
        with torch.no_grad():
            for weight, v in zip(weights, way, strict=True):
                weight.add_(step * v)
        parts = rewriting.loss(*batch, graph, None)[1]
        with torch.no_grad():
            for weight, v in zip(weights, way, strict=True):
                weight.sub_(step * v)
        return float((parts["retain"] + 0.7 * parts["forget"] + 3.0 * parts["similarity"]).detach())

    quotient = (at(1e-4) - at(-1e-4)) / 2e-4
    assert abs(quotient) > 1e-3
    assert slope == pytest.approx(quotient, rel=2e-3)  # norms compute in float32


def test_only_rows_of_codes_in_the_request_change(alone: EraseRequest) -> None:
    erased = unlearnrec.erase(alone, QUICK)
    nodes = Nodes.of(alone.table)
    graph = request_graph(nodes, np.array([12]), pairs_of(alone).forget, 0.0, RNG)
    touched = set(nodes.rows[torch.unique(graph.indices()[0]).numpy()].tolist())
    assert len(touched) < len(nodes.rows)
    assert erased.summary["rows_changed"] == len(touched)
    before, after = alone.model.module.state_dict(), erased.model.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    names = {name for name, _ in alone.model.module.named_parameters()}
    assert moved & names == set(row_tensors(alone.model))
    for name in moved:
        rows = (before[name] != after[name]).any(1).nonzero()[:, 0].tolist()
        assert set(rows) == touched


def test_a_tied_head_is_one_tensor(kind: str, ask: Callable[..., EraseRequest]) -> None:
    request = ask(kind)
    assert len(row_tensors(request.model)) == 2
    shape = ModelConfig(kind=kind, width=16, layers=1, heads=2, feed_forward=24, window=5, tie=True)  # type: ignore[arg-type]
    assert len(row_tensors(new_recommender(shape, request.table.schema))) == 1


def test_what_is_prepared_does_not_depend_on_the_request(kind: str, ask: Callable[..., EraseRequest]) -> None:
    one, other = ask(kind), ask(kind, concept=np.arange(40) == 12)
    made = [unlearnrec.prepare(request, QUICK) for request in (one, other)]
    assert made[0].facts == made[1].facts
    assert all((made[0].tensors[name] == made[1].tensors[name]).all() for name in made[1].tensors)
    whole = unlearnrec.erase(one, QUICK)
    ready = unlearnrec.erase(
        dataclasses.replace(one, prepared=made[0]), dataclasses.replace(QUICK, hops=1, prepare_steps=9)
    )
    assert bits(whole.model) == bits(ready.model)
    assert whole.summary["prepared"] == "here, in 3 steps"
    assert ready.summary["prepared"] == "before"


def test_the_prepared_encoder_answers_a_request_it_never_saw(kind: str, ask: Callable[..., EraseRequest]) -> None:
    """In one pass, without steps worth the name: the concept falls, and what is retained falls far less."""
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    request = ask(kind, observer=Noting())
    found = pairs_of(request)
    change: dict[int, Any] = {}
    for steps in (1, 40):
        config = UnlearnRecConfig(steps=1, lr=1e-9, batch=16, prepare_steps=steps, prepare_lr=6e-3)
        erased = unlearnrec.erase(request, config).model
        change[steps] = [
            float(
                (
                    forced_log_probs(erased, request.table, part, part.targets)
                    - forced_log_probs(request.model, request.table, part, part.targets)
                ).mean()
            )
            for part in (found.forget, found.retain)
        ]
    assert change[40][0] < -0.5
    assert change[40][0] < change[1][0] - 0.5
    assert change[40][1] > change[40][0] / 2
    assert len(notes) == 2
    assert "for this request alone" in notes[0]


def test_what_was_prepared_for_another_model_is_refused(ask: Callable[..., EraseRequest]) -> None:
    made = unlearnrec.prepare(ask("causal"), QUICK)
    names = Prepared(made.tensors, {**made.facts, "rows": ["another"]})
    less = Prepared({k: v for k, v in made.tensors.items() if not k.startswith("weights")}, made.facts)
    for wrong in (names, less):
        with pytest.raises(CheckpointError, match="of another model"):
            unlearnrec.erase(ask("causal", prepared=wrong), QUICK)


def test_simulated_concepts_are_led_to_and_leave_most_items(ask: Callable[..., EraseRequest]) -> None:
    request = ask("causal")
    pairs = examples(request.interactions, request.table, np.zeros(40, bool), 5).retain
    simulated = Simulated(Rewriting(request, QUICK), pairs)
    rng, sizes, tries = np.random.default_rng(2), set(), []
    first = request.table.codes[:, 0]
    for _ in range(60):
        items = simulated._concept(rng)
        assert set(items.tolist()) <= set(pairs.targets.tolist())
        sizes.add(len(items))
        missing = {int(first[i]) for i in simulated.items if i not in items} & set(first[items].tolist())
        if len(items) >= 4:  # all of the items below its first codes, but for the one where it was full
            tries.append(len(missing) <= 1)
        forget, retain = simulated(rng)
        assert not set(forget.targets.tolist()) & set(retain.targets.tolist())
    assert min(sizes) == 1
    assert max(sizes) <= len(simulated.items) // 4
    assert 0.25 < np.mean(tries) < 0.75


def test_too_few_items_to_simulate_is_refused(ask: Callable[..., EraseRequest]) -> None:
    request = ask("causal")
    pairs = pairs_of(request).retain
    few = pairs.take(np.isin(pairs.targets, np.unique(pairs.targets)[:3]))
    with pytest.raises(UsageError, match="fewer than four items"):
        Simulated(Rewriting(request, QUICK), few)


@pytest.mark.parametrize("wrong", ["hops", "prepare_steps", "prepare_lr", "forget_weight", "steps"])
def test_settings_that_mean_nothing_are_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match=f"{wrong} must be"):
        UnlearnRecConfig(**{wrong: 0})


def test_what_is_held_is_the_cosine_of_items_that_follow_each_other(ask: Callable[..., EraseRequest]) -> None:
    request = ask("causal")
    rewriting, pairs = Rewriting(request, QUICK), pairs_of(request).retain.take(np.arange(5))
    drawn = torch.Generator().manual_seed(3)
    new = {name: rows + torch.randn(rows.shape, generator=drawn) for name, rows in rewriting.rows.items()}
    apart = []
    for name, rows in rewriting.rows.items():
        for b in range(5):
            last, target = int(pairs.items[pairs.offsets[b + 1] - 1]), int(pairs.targets[b])
            ends = rewriting.nodes.of_items[[last, target]]
            then, now = (
                float(torch.cosine_similarity(x[ends[0]].flatten(), x[ends[1]].flatten(), dim=0))
                for x in (rows, new[name])
            )
            apart.append((now - then) ** 2)
    assert float(rewriting._held(new, pairs)) == pytest.approx(np.mean(apart), rel=1e-5)
    assert np.mean(apart) > 0.01
