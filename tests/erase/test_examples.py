"""What an eraser may learn from: training pairs only, sorted by what they have to do with the concept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.erase.conftest import N, World, interactions_of, items_of, walks

from recerase.catalog.interactions import Histories
from recerase.erase.examples import alike, concept_histories, draw, examples, joined, nearest_others, neighbours
from recerase.errors import ConceptError

WINDOW = 5


def pairs_of(histories: Histories) -> list[tuple[tuple[int, ...], int]]:
    return [(tuple(items_of(histories, b)), int(histories.targets[b])) for b in range(len(histories))]


def test_they_are_the_training_pairs_by_brute_force(world: World) -> None:
    """Every (history, next) of every user's sequence without its last two, items without a SID left out."""
    forget, touched, retain = [], [], []
    offsets, items = world.interactions.offsets, world.interactions.items
    for u in range(world.interactions.n_users):
        walk = items[offsets[u] : offsets[u + 1]].tolist()
        walk = walk[:-2] if len(walk) >= 3 else walk
        walk = [i for i in walk if world.table.present[i]]
        for at in range(1, len(walk)):
            pair = (tuple(walk[max(0, at - WINDOW) : at]), walk[at])
            if world.concept[walk[at]]:
                forget.append(pair)
                continue
            retain.append(pair)
            if world.concept[list(pair[0])].any():
                touched.append(pair)
    found = examples(world.interactions, world.table, world.concept, WINDOW)
    assert sorted(pairs_of(found.forget)) == sorted(forget)
    assert sorted(pairs_of(found.touched)) == sorted(touched)
    assert sorted(pairs_of(found.retain)) == sorted(retain)
    assert min(len(forget), len(touched), len(retain)) > 10


def test_held_out_interactions_are_never_touched(world: World) -> None:
    """Whatever the last two interactions of a user are, the examples stay the same."""
    rng = np.random.default_rng(0)
    other = [w if len(w) < 3 else [*w[:-2], *rng.integers(0, N, 2).tolist()] for w in walks(80, 1)]
    assert other != walks(80, 1)
    first = examples(world.interactions, world.table, world.concept, WINDOW)
    second = examples(interactions_of(other), world.table, world.concept, WINDOW)
    for part in ("forget", "touched", "retain"):
        assert pairs_of(getattr(first, part)) == pairs_of(getattr(second, part))


def test_nothing_to_retain_is_refused(world: World) -> None:
    with pytest.raises(ConceptError, match="nothing to retain"):
        examples(interactions_of([[0, 1, 2, 3, 4], [2, 3, 4]]), world.table, world.concept, WINDOW)


def test_concept_histories_hold_the_concept_alone_and_every_item_of_it(world: World) -> None:
    popularity = np.zeros(N)
    popularity[2] = 1000.0
    found = concept_histories(popularity, world.members, 400, 4, np.random.default_rng(0))
    assert len(found) == 400
    assert set(found.lengths.tolist()) == {1, 2, 3, 4}
    assert set(found.items.tolist()) == set(np.flatnonzero(world.members).tolist())
    assert (found.targets == -1).all()
    share = (found.items == 2).mean()  # half by popularity, half evenly over the 8 members
    assert 0.5 < share < 0.62


def test_no_histories_may_be_asked_for(world: World) -> None:
    found = concept_histories(np.ones(N), world.members, 0, 4, np.random.default_rng(0))
    assert len(found) == 0
    assert len(joined(found, found)) == 0


def test_joined_keeps_every_history_in_order(batch: Histories) -> None:
    whole = joined(batch.take([2, 0]), batch.take([]), batch.take([5]))
    assert pairs_of(whole) == [pairs_of(batch)[b] for b in (2, 0, 5)]


def test_draw_repeats_a_history_only_when_there_are_too_few(batch: Histories) -> None:
    rng = np.random.default_rng(0)
    few = pairs_of(draw(batch, 5, rng))
    assert len(few) == len(set(few)) == 5
    assert len(draw(batch, 30, rng)) == 30
    assert len(draw(batch.take([]), 5, rng)) == 0
    assert len(draw(batch, 0, rng)) == 0


def test_neighbours_are_the_nearest_retained_items_by_cosine(world: World) -> None:
    unit = world.embeddings / np.linalg.norm(world.embeddings, axis=1, keepdims=True)
    for eligible in (None, world.table.present):
        found = neighbours(world.embeddings, world.concept, 4, eligible)
        allowed = ~world.concept & (np.ones(N, bool) if eligible is None else eligible)
        assert (found[~world.concept] == -1).all()
        for i in np.flatnonzero(world.concept):
            cosine = np.where(allowed, unit @ unit[i], -2.0)
            assert found[i].tolist() == np.argsort(-cosine)[:4].tolist()


def test_nearest_others_are_eligible_and_never_oneself(world: World) -> None:
    """By brute force; also where many items share a point, and an item is not among its own nearest."""
    unit = world.embeddings / np.linalg.norm(world.embeddings, axis=1, keepdims=True)
    found = nearest_others(world.embeddings, world.retained, 4)
    assert (found[~world.retained] == -1).all()
    for i in np.flatnonzero(world.retained):
        cosine = np.where(world.retained & (np.arange(N) != i), unit @ unit[i], -2.0)
        assert found[i].tolist() == np.argsort(-cosine)[:4].tolist()
    same = np.ones((N, 3), np.float32)
    equal = nearest_others(same, world.retained, 4)[world.retained]
    assert (equal != np.flatnonzero(world.retained)[:, None]).all()
    assert world.retained[equal].all()
    assert all(len(set(row)) == 4 for row in equal.tolist())


def test_there_are_no_more_neighbours_than_retained_items(world: World) -> None:
    most = np.ones(N, bool)
    most[[3, 4]] = False
    assert neighbours(world.embeddings, most, 5).shape == (N, 2)


def test_batches_of_one_length_hold_every_history_once(world: World) -> None:
    found = examples(world.interactions, world.table, world.members, WINDOW).retain
    batches = alike(found, 7, np.random.default_rng(0))
    assert len(batches) == 7
    assert sorted(x for batch in batches for x in pairs_of(batch)) == sorted(pairs_of(found))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    spans = sorted((int(batch.lengths.min()), int(batch.lengths.max())) for batch in batches)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    padded = sum(len(batch) * int(batch.lengths.max()) for batch in batches)
    assert padded < 0.8 * len(found) * int(found.lengths.max())
    assert len(alike(found.take(np.arange(3)), 7, np.random.default_rng(0))) == 3
