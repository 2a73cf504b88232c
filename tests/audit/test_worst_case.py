"""The search over histories: its guesses are derivatives, its moves the best there are, and everybody is attacked alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit.probes import AuditModel, AuditWorld, build_world, counted
from recerase.audit.readings import Readings
from recerase.audit.run import compare
from recerase.audit.swaps import Target, as_histories, gradients, guesses, propose, search
from recerase.audit.worst_case import admitted, drawn_starts, target_of, worst, worst_case
from recerase.catalog.interactions import Catalogue, Histories, Interactions
from recerase.errors import CheckpointError, UsageError
from recerase.model.mass import concept_mass
from recerase.model.prompt import Prompt
from recerase.model.recommender import ModelConfig, Recommender, new_recommender, wrap
from recerase.model.training import TrainConfig, train
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import SILENT, Measurement, Skipped

N, GROUP = 36, 12
Models = Callable[..., AuditModel]
OTHERS = np.arange(GROUP, N)


def read(model: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    return {m.metric: m for m in worst_case(Readings(model, world)) if isinstance(m, Measurement)}


def target(model: AuditModel, world: AuditWorld, batch: int = 32) -> Target:
    return Target(model, model.table, world.members, batch)


def lengths(items: np.ndarray) -> np.ndarray:
    return np.count_nonzero(items >= 0, axis=1)


@cache
def walks() -> Interactions:
    """120 users who mostly stay in a group of twelve and go on to its next item."""
    rng = np.random.default_rng(5)
    lists = []
    for _ in range(120):
        walk = [int(rng.integers(N))]
        for _ in range(int(rng.integers(4, 9))):
            group, place = divmod(walk[-1], GROUP)
            walk.append(group * GROUP + (place + 1) % GROUP if rng.random() < 0.7 else int(rng.integers(N)))
        lists.append(walk)
    items = np.concatenate([np.asarray(x, np.int32) for x in lists])
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    names = np.array([f"u{u:03d}" for u in range(len(lists))], dtype=object)
    return Interactions(names, offsets, items, np.arange(len(items), dtype=np.int64), "walks")


@cache
def _trained(kind: Any) -> Recommender:
    schema = SidSchema.native((3, 16))
    codes = np.stack([np.arange(N) // GROUP, np.arange(N) % GROUP], axis=1).astype(np.int32)
    table = SidTable(
        np.array([f"i{i:02d}" for i in range(N)], dtype=object), codes, np.ones(N, bool), schema, np.zeros(N, bool)
    )
    shape = ModelConfig(kind, width=24, layers=1, heads=2, feed_forward=32, window=8, dropout=0.0)
    model = new_recommender(shape, schema, 1)
    recipe = TrainConfig(epochs=10, batch=32, lr=2e-2, validate_every=10, validation_users=8, dropout=0.0)
    train(model, table, walks().split(), recipe)
    return model


def test_the_one_item_that_brings_the_concept_is_found_and_put_last(
    world: AuditWorld, audited: Models, planted: Callable[[int], Recommender]
) -> None:
    """A bigram model that begins with group 1, but after the last code 7 with the concept: items 19 and 31 do it, in the last slot."""
    model = planted(1)
    first, second = model.schema.rows
    head = model.module.lm_head.weight
    with torch.no_grad():
        head[int(first[0]), int(second[7])] = 5.0 / 32**0.5
    small = replace(world, config=replace(world.config, worst_items=4, worst_starts=7, worst_rounds=5))
    readings = Readings(audited(model), small)
    items, masses = worst(readings, "old")
    assert target(readings.model, small).read(as_histories(drawn_starts(small, 4))).min() < np.log(1e-3)
    ends = items[np.arange(7), lengths(items) - 1]
    assert set(ends.tolist()) <= {19, 31}
    np.testing.assert_allclose(masses, 12 / 16, atol=0.01)
    found = read(readings.model, small)
    assert found["worst_case.mass.old"].value == pytest.approx(12 / 16, abs=0.01)
    assert found["worst_case.exposure@10"].value == 1


def test_a_model_without_taste_for_the_concept_cannot_be_talked_into_it(
    world: AuditWorld, audited: Models, planted: Callable[[int], Recommender]
) -> None:
    found = read(audited(planted(1)), world)
    assert max(m.value for name, m in found.items() if "exposure" not in name) < 1e-3
    assert found["worst_case.exposure@10"].value == 0


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_guesses_are_derivatives(kind: Any, world: AuditWorld, audited: Models) -> None:
    """Against differences of the exact log-mass, along the way from the embeddings that stand there to a candidate's."""
    model = audited(_trained(kind))
    goal, items = target(model, world), np.array([[13, 20, 35], [30, -1, -1]])
    guess = guesses(goal, items, OTHERS).numpy()
    recommender, table = model.recommender, model.table
    with torch.no_grad():
        mean = recommender.embed(torch.from_numpy(table.rows()[OTHERS])).mean(0)
    for row, slot, chosen in [(0, 0, 22), (0, 2, 12), (1, 0, 14), (1, 1, 33)]:
        size = 3 if row == 0 else 2
        asked = [13, 20, 35] if row == 0 else [30, 12]  # any item where the mean is put
        tokens, counts, (_, places) = recommender.placed(as_histories(np.array([asked])), table)
        with torch.no_grad():
            stood = recommender.embed(tokens)
            if size == 2:
                stood[0, places[0, 1]] = mean
            way = torch.zeros_like(stood)
            wanted = recommender.embed(torch.from_numpy(table.rows()[[chosen]]))[0]
            way[0, places[0, slot]] = wanted - stood[0, places[0, slot]]
            ends = [float(goal.log_mass(tokens, counts, stood + step * way)) for step in (0.01, -0.01)]
        assert guess[row, slot, chosen - GROUP] == pytest.approx((ends[0] - ends[1]) / 0.02, rel=0.02, abs=0.02)
    assert np.isneginf(guess[1, 2]).all()  # nothing stands there, nor can anything come there next
    assert np.isneginf(guess[0, [0, 1, 2], [1, 8, 23]]).all()  # the items themselves


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_one_round_over_all_moves_makes_the_best_swap_there_is(kind: Any, world: AuditWorld, audited: Models) -> None:
    model = audited(_trained(kind))
    goal = target(model, world)
    starts = np.array([[13, 20, 35], [30, 17, -1], [-1, -1, -1]])
    done = search(goal, starts, OTHERS, 1, SILENT, proposed=3 * len(OTHERS))
    for start, end, value in zip(starts, done.items, done.log_mass, strict=True):
        held = [i for i in start.tolist() if i >= 0]
        moves = [held] + [[*held[:j], i, *held[j + 1 :]] for j in range(min(3, len(held) + 1)) for i in OTHERS.tolist()]
        masses = concept_mass(model.recommender, model.table, world.members, Histories.from_lists(moves)).mass
        assert np.exp(value) == pytest.approx(masses.max(), rel=1e-4)
        assert [i for i in end.tolist() if i >= 0] == moves[int(masses.argmax())]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_it_finds_more_than_as_many_random_histories(kind: Any, world: AuditWorld, audited: Models) -> None:
    model = audited(_trained(kind))
    small = replace(world, config=replace(world.config, worst_items=6, worst_starts=4, worst_rounds=9))
    goal = target(model, small)
    starts = drawn_starts(small, 6)
    done = search(goal, starts, OTHERS, 9, SILENT, proposed=8)
    assert done.read == 4 + 9 * 4 * 8
    chance = np.random.default_rng(0).choice(OTHERS, size=(20, done.read, 6))
    luck = [goal.read(as_histories(tried)).max() for tried in chance[:3]]
    assert done.log_mass.max() > max(luck) + 0.05
    assert (done.log_mass >= goal.read(as_histories(starts))).all()
    np.testing.assert_allclose(goal.read(as_histories(done.items)), done.log_mass, atol=1e-5)


def test_moves_that_gained_nothing_give_way_to_those_the_gradient_liked_next(
    world: AuditWorld, audited: Models
) -> None:
    goal, items = target(audited(_trained("causal")), world), np.array([[13, 20], [30, -1]])
    pages = [propose(goal, items, OTHERS, np.array([page, page]), 10) for page in range(6)]
    for row, moves in enumerate([2 * (len(OTHERS) - 1), 2 * len(OTHERS) - 1]):
        seen = [(s, c) for slots, chosen in pages for s, c in zip(slots[row], chosen[row], strict=True) if c >= 0]
        assert len(seen[:moves]) == len(set(seen[:moves])) == moves
    guess = guesses(goal, items, OTHERS).numpy()
    slots, chosen = pages[0]
    assert guess[0, slots[0, 0], chosen[0, 0] - GROUP] == guess[0].max()


def test_the_shop_window_holds_listed_retained_items_and_any_is_never_less(world: AuditWorld, audited: Models) -> None:
    listed = np.arange(N) % 2 == 0
    readings = Readings(audited(_trained("causal"), listed=listed), world)
    items, masses = worst(readings, "new")
    held = items[items >= 0]
    assert listed[held].all()
    assert not world.members[held].any()
    best = concept_mass(readings.model.recommender, readings.model.table, world.members, as_histories(items)).mass
    np.testing.assert_allclose(best, masses, rtol=1e-4)
    anything, more = worst(readings, "new", anything=True)
    assert more.max() >= masses.max()
    assert more.max() > 2 * masses.max()  # who stays in a group is best asked for it by its own items
    assert world.members[anything[anything >= 0]].any()


def test_a_filter_hides_the_lists_and_not_the_mass(world: AuditWorld, audited: Models) -> None:
    whole = read(audited(_trained("causal")), world)
    hidden = read(audited(_trained("causal"), role="filter", listed=~world.members), world)
    assert hidden["worst_case.exposure@10"].value == 0 < whole["worst_case.exposure@10"].value
    for name in ("mass.old", "mean.new", "any.old"):
        assert hidden[f"worst_case.{name}"].value == whole[f"worst_case.{name}"].value


def test_moved_sids_are_searched_for_apart_and_those_that_are_gone_have_no_mass(
    world: AuditWorld, audited: Models, moved: SidTable, table: SidTable
) -> None:
    readings = Readings(audited(_trained("causal"), table=moved, old_table=table), world)
    for side, spelled in (("old", table), ("new", moved)):
        items, masses = worst(readings, side)  # type: ignore[arg-type]
        again = concept_mass(readings.model.recommender, moved, world.members, as_histories(items), output=spelled).mass
        np.testing.assert_allclose(masses, again, rtol=1e-4)
    assert worst(readings, "old")[1].max() > 2 * worst(readings, "new")[1].max()
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes))
    found = read(audited(_trained("causal"), table=gone, old_table=table), world)
    assert found["worst_case.mass.new"].value == found["worst_case.any.new"].value == 0
    assert found["worst_case.mass.old"].value > 0


def test_what_did_not_move_is_searched_once(
    world: AuditWorld, audited: Models, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recerase.audit import swaps

    calls = []
    real = swaps.search
    monkeypatch.setattr(swaps, "search", lambda *given, **more: calls.append(1) or real(*given, **more))
    cache: dict[Any, Any] = {}
    worst_case(Readings(audited(untrained), world, cache))
    assert len(calls) == 2
    worst_case(Readings(audited(untrained, role="original"), world, cache))
    assert len(calls) == 2


def test_the_reference_meets_the_same_attack(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    own = read(audited(untrained), world)
    other = read(audited(untrained, role="reference", reads_concept=False), world)
    for name, m in own.items():
        assert other[name].value == m.value


def test_the_order_of_users_the_batch_and_the_hour_change_nothing(world: AuditWorld, audited: Models) -> None:
    first = read(audited(_trained("causal")), world)
    turned = np.random.default_rng(1).permutation(len(world.histories))
    again = {
        "hour": world,
        "users": replace(world, histories=world.histories.take(turned)),
        "batch": replace(world, config=replace(world.config, mass_batch=5, batch=7)),
    }
    for what, other in again.items():
        for name, m in read(audited(_trained("causal")), other).items():
            assert m.value == pytest.approx(first[name].value, rel=1e-4 if what == "batch" else 0), (what, name)


def test_the_starts_are_of_four_kinds_and_without_the_concept(world: AuditWorld) -> None:
    wide = replace(world, config=replace(world.config, worst_starts=10))
    starts = drawn_starts(wide, 5)
    assert starts.shape == (10, 5)
    assert (starts[0] == -1).all()
    assert (lengths(starts)[1:] > 0).all()
    assert not world.members[starts[starts >= 0]].any()
    bare = drawn_starts(replace(wide, embeddings=None), 5)
    assert (bare[[1, 3, 4, 6, 7, 9]] == starts[[1, 3, 4, 6, 7, 9]]).all()
    assert (bare[[2, 5, 8]] != starts[[2, 5, 8]]).any()
    kept = admitted(np.array([[3, 1, 2, -1]]), np.array([True, True, False, True]))
    assert kept.tolist() == [[3, 1, -1, -1]]


def test_a_search_leaves_the_model_as_it_was(world: AuditWorld, audited: Models, untrained: Recommender) -> None:
    module = untrained.module
    frozen = next(module.parameters())
    frozen.requires_grad_(False)
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    flags = [weight.requires_grad for weight in module.parameters()]
    random = torch.get_rng_state()
    worst_case(Readings(audited(untrained), world))
    assert all(torch.equal(before[name], weight) for name, weight in module.state_dict().items())
    assert [weight.requires_grad for weight in module.parameters()] == flags
    assert all(weight.grad is None for weight in module.parameters())
    assert not module.training
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("asked", ["per level", "prompt", "half"])
def test_every_kind_of_model_is_searched(
    asked: str, world: AuditWorld, audited: Models, table: SidTable, schema: SidSchema
) -> None:
    trained = _trained("causal" if asked == "prompt" else "seq2seq")
    model = trained
    if asked == "per level":
        model = wrap(trained.module, trained.schema, trained.window, per_level=True)
    elif asked == "prompt":
        around = Prompt((schema.bos,), (schema.eos, schema.bos), (schema.eos,), (schema.bos,))
        model = wrap(trained.module, trained.schema, 3, around)
    else:
        model = new_recommender(ModelConfig("causal", 16, 1, 2, 16, window=8), schema)
        model.module.bfloat16()
    readings = Readings(audited(model), world)
    items, masses = worst(readings, "old", anything=True)
    assert items.shape[1] == min(world.config.worst_items, model.window)
    goal = target_of(readings, "old")
    assert goal is not None
    by_hand = concept_mass(model, table, world.members, as_histories(items)).mass
    np.testing.assert_allclose(masses, by_hand, rtol=0.02 if asked == "half" else 1e-4)
    grads, stood = gradients(goal, items)
    assert (grads.abs().sum((2, 3)) > 0).numpy()[items >= 0].any()
    assert torch.isfinite(grads).all()
    there = torch.from_numpy(items >= 0)
    wanted = model.embed(torch.from_numpy(table.rows()[items.clip(0)])).float()
    assert torch.equal(stood[there], wanted[there])


def test_an_empty_window_is_skipped_and_a_broken_model_refused(
    world: AuditWorld, audited: Models, untrained: Recommender
) -> None:
    (said,) = worst_case(Readings(audited(untrained, listed=world.members), world))
    assert isinstance(said, Skipped)
    assert said.metric == "worst_case.*"
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="no finite probability"):
        worst_case(Readings(audited(untrained), world))


def test_the_ratio_of_two_figures_without_chance_in_them_has_none_either(
    world: AuditWorld, audited: Models, untrained: Recommender
) -> None:
    readings = Readings(audited(untrained), world)
    own = counted(readings, "worst_case.mass.old", 0.2, 12, exact=True)
    base = replace(counted(readings, "worst_case.mass.old", 0.1, 12, exact=True), role="reference")
    made = compare(own, base, "ratio", world)
    assert isinstance(made, Measurement)
    assert made.interval is not None
    assert (made.value, made.interval.low, made.interval.high, made.interval.method) == (2, 2, 2, "exact")
    unsure = compare(own, replace(base, interval=None), "ratio", world)
    assert isinstance(unsure, Measurement)
    assert unsure.interval is None


@pytest.mark.parametrize("name", ["worst_items", "worst_starts", "worst_rounds"])
def test_a_search_of_nothing_is_refused(name: str, world: AuditWorld) -> None:
    catalogue = Catalogue(world.catalogue.items, world.catalogue.interactions)
    with pytest.raises(UsageError, match=name):
        build_world(catalogue, world.concept, config=replace(world.config, **{name: 0}))
