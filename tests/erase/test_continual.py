"""Erasing again: no method keeps or moves an item of a concept that was erased before, and what it left stays empty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.erase.cases import CASES, settings_of, shortest
from tests.erase.conftest import N, World, the_world

from recerase.catalog.interactions import Histories
from recerase.erase import examples as drawn
from recerase.erase import scif, steps, supply, tracer, u_can, unlearnrec
from recerase.erase.examples import examples
from recerase.erase.frontier import frontier
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.erase.reassign import CommitConfig, commit, quantiser
from recerase.erase.vacant import exclusive_prefixes, free_sids, keys_of, usable
from recerase.model.mass import concept_mass

SECOND = (np.arange(N) >= 6) & (np.arange(N) < 16)
"""Overlaps with the concept of the world, items 0 to 8."""
LEARNING = [case for case in CASES if get_method(case)[0].gradients or case == "u-can"]


def again(request: EraseRequest, **changes: Any) -> EraseRequest:
    """The request for the second concept, from a model that is said to be erased of the first."""
    return dataclasses.replace(request, concept=SECOND, gone=the_world().concept, **changes)


def only_first() -> Any:
    return the_world().concept & ~SECOND


def test_pairs_of_earlier_items_are_neither_kept_nor_forgotten(world: World) -> None:
    first = only_first()
    found = examples(world.interactions, world.table, SECOND, 5, world.concept)
    alone = examples(world.interactions, world.table, SECOND, 5)
    assert SECOND[found.forget.targets].all()
    assert len(found.forget) == len(alone.forget)
    assert not first[found.retain.targets].any()
    assert not first[found.touched.targets].any()
    assert first[found.earlier.targets].all()
    assert len(found.earlier) > 0
    assert len(found.retain) + len(found.earlier) == len(alone.retain)
    assert not found.sequences.touches(first | SECOND).any()
    assert alone.sequences.touches(first).any()
    assert len(alone.earlier) == 0


@pytest.mark.parametrize("case", LEARNING)
def test_no_method_learns_to_give_an_earlier_item(
    case: str, ask: Callable[..., EraseRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every history that is scored, and every path that is distilled along, is watched for a target among them."""
    first, seen = only_first(), []

    def watched(name: str, module: Any) -> None:
        real = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            seen.extend(int(t) for a in args if isinstance(a, Histories) for t in a.targets if t >= 0)
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    def distilled(self: Any, histories: Histories, paths: Any) -> Any:
        seen.extend(int(t) for t in paths if t >= 0)
        return real_target(self, histories, paths)

    real_target = supply.Teacher.target
    monkeypatch.setattr(supply.Teacher, "target", distilled)
    for module in (steps, scif, u_can, unlearnrec):
        if hasattr(module, "target_log_probs"):
            watched("target_log_probs", module)
    real_draw = drawn.draw

    def draw(histories: Histories, n: int, rng: Any) -> Histories:
        found = real_draw(histories, n, rng)
        if not case.startswith(("tracer", "renormalise")) or case == "tracer/paper":
            seen.extend(int(t) for t in found.targets if t >= 0)
        return found

    for module in (steps, unlearnrec, tracer, scif, u_can):
        if hasattr(module, "draw"):
            monkeypatch.setattr(module, "draw", draw)
    trained: list[int] = []
    if case == "retrain":
        from recerase.erase import baselines

        def fit(model: Any, table: Any, split: Any, *rest: Any) -> Any:
            trained.extend(split.train.items.tolist())
            raise KeyboardInterrupt

        monkeypatch.setattr(baselines, "train", fit)
        with pytest.raises(KeyboardInterrupt):
            get_method(case)[0].run(again(ask("causal")), settings_of(case))
        assert trained
        assert not (first | SECOND)[trained].any()
        return
    config = shortest(settings_of(case))
    if case.startswith(("tracer", "renormalise")):
        config = dataclasses.replace(config, batch=48)  # enough of them that some lead to the first concept
    get_method(case)[0].run(again(ask("causal")), config)
    assert seen
    assert not first[seen].any()
    seen.clear()
    get_method(case)[0].run(dataclasses.replace(again(ask("causal")), gone=None), config)
    assert first[seen].any() or case in ("ga", "task-vector")  # the watching would have seen it: these two read no D_R


@pytest.mark.parametrize("case", CASES)
def test_what_was_erased_before_keeps_its_sids(case: str, ask: Callable[..., EraseRequest]) -> None:
    if case == "retrain":
        pytest.skip("a training, seen above; it changes no SID")
    request = again(ask("causal"))
    erased = get_method(case)[0].run(request, shortest(settings_of(case)))
    assert (erased.table.codes[~SECOND] == request.table.codes[~SECOND]).all()
    assert (erased.table.listed[~SECOND] == request.table.listed[~SECOND]).all()


def test_nothing_erased_before_changes_no_bit(ask: Callable[..., EraseRequest]) -> None:
    for case in ("tracer", "npo"):
        method, config = get_method(case)[0], settings_of(case)
        plain = method.run(ask("causal"), config)
        empty = method.run(ask("causal", gone=np.zeros(N, bool), left=the_world().table.codes[:0]), config)
        for a, b in zip(plain.model.module.parameters(), empty.model.module.parameters(), strict=True):
            assert bool((a == b).all())
        assert plain.table.digest == empty.table.digest


def test_the_first_concept_comes_back_where_it_is_forgotten_that_it_was_erased(
    ask: Callable[..., EraseRequest],
) -> None:
    """Exact mass over the test users: with the memory a small part of what retained training gives back without it."""
    world, method = the_world(), get_method("graddiff")[0]
    second = (np.arange(N) >= 16) & (np.arange(N) < 24)
    config, test = make_config(method, None, {}), world.interactions.split().test
    first = method.run(ask("causal"), config)

    def mass(model: Any) -> float:
        return float(concept_mass(model, world.table, world.members, test).mass.mean())

    request = ask("causal", model=first.model, concept=second)
    forgetful = mass(method.run(request, config).model)
    mindful = mass(method.run(dataclasses.replace(request, gone=world.concept), config).model)
    before, original = mass(first.model), mass(ask("causal").model)
    assert before < 0.1 * original
    assert forgetful > 0.5 * original
    assert mindful < 0.3 * forgetful


def test_the_target_deletes_both_concepts(ask: Callable[..., EraseRequest]) -> None:
    """`tracer` and `renormalise` go towards a model that gives neither; a run of settling does not raise the first."""
    world, method = the_world(), get_method("renormalise")[0]
    second = (np.arange(N) >= 16) & (np.arange(N) < 24)
    test, config = world.interactions.split().test, make_config(method, None, {"settle_steps": "40"})

    def mass(model: Any, members: Any) -> float:
        return float(concept_mass(model, world.table, members & world.table.present, test).mass.mean())

    first = method.run(ask("causal"), config)
    both = method.run(ask("causal", model=first.model, concept=second, gone=world.concept), config)
    assert mass(both.model, world.concept) < 1.1 * mass(first.model, world.concept)
    assert mass(both.model, second) < 0.7 * mass(first.model, second)


def test_no_sid_that_was_left_and_no_place_that_only_erased_items_knew_is_given(world: World) -> None:
    first = only_first() & world.table.present
    second = SECOND & world.table.present
    quant = quantiser(world.table, second, world.codebooks, world.embeddings, gone=first)
    phi = [d.new_zeros(d.shape) for d in quant.distances]
    wide = CommitConfig(candidates=300, beam=60)
    given = commit(world.table, second, world.codebooks, world.embeddings, quant, phi, wide).codes[second]
    left = given[:4].astype(np.int32)  # what it would like best is what others left
    table = commit(world.table, second, world.codebooks, world.embeddings, quant, phi, wide, None, first, left)
    sizes = world.table.schema.codes
    for depth in (1, 2):
        closed = exclusive_prefixes(world.table, second, depth, first, left)
        assert len(np.setdiff1d(closed, exclusive_prefixes(world.table, second, depth)))
        assert not np.isin(keys_of(table.codes[second][:, :depth].astype(np.int64), sizes), closed).any()
    assert not {tuple(c) for c in left.tolist()} & {tuple(c) for c in table.codes[second].tolist()}
    known = usable(world.table, world.codebooks)
    assert free_sids(world.table, second, known, first, left)[0] < free_sids(world.table, second, known)[0]


def test_the_frontier_of_both_holds_every_earlier_item(world: World) -> None:
    both = frontier(world.table, (world.concept | SECOND) & world.table.present)
    below = {int(i) for rank in both.ranks for items in rank.below for i in items} | set(both.unreachable.tolist())
    assert set(np.flatnonzero((world.concept | SECOND) & world.table.present).tolist()) == below
