"""Old and new SIDs in one walk: what a model gives them, what they are to get, and which prefixes only the concept has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.conftest import World

from recerase.catalog.interactions import Histories
from recerase.erase.both import Both
from recerase.erase.frontier import frontier_of_both
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.target import Target, Teacher
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import IntArray

Loud = Callable[..., Recommender]


def moved_to_free(world: World, items: IntArray) -> SidTable:
    """`items` with SIDs that nobody has, some of which share prefixes with retained items and with one another."""
    table = world.table
    used = {tuple(c) for c in table.codes.tolist()}
    free = [c for c in np.ndindex(*table.schema.codes) if c not in used]
    return table.replace(items, np.array([free[i // 2 * 9 + i % 2] for i in range(len(items))], np.int32))


def both_of(world: World, model: Recommender, table: SidTable, batch: Histories) -> tuple[Both, Target]:
    teacher = Teacher(model, world.table, world.members, "output", 0)
    return Both(teacher, table), teacher.target(batch, np.full(len(batch), 12))


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_what_is_found_is_the_mass_of_the_items_below(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """The twin: every item's whole SID, scored on its own. Exact after the very history that was looked at."""
    model, items = loud(kind), np.flatnonzero(world.members)
    table = moved_to_free(world, items)
    both, _ = both_of(world, model, table, batch)
    one = batch.take(np.arange(1)).without(world.members)  # the same under either table
    with torch.no_grad():
        state = start(model, table, one)
        both.look(model, one)
        found = both.found(model, state, state)[0]
        each = [sid_log_probs(model, state, item_rows(model, t, items)).sum(2)[0] for t in (world.table, table)]
    n, by_item = len(table), {}
    for shift, log_p in zip((0, n), each, strict=True):
        by_item |= {int(i) + shift: float(p) for i, p in zip(items, log_p, strict=True)}
    below = [rows for rank in both.frontier.ranks for rows in rank.below]
    assert max(map(len, below)) > 1
    assert {i >= n for rows in below for i in rows} == {True, False}
    truth = [np.logaddexp.reduce([by_item[int(i)] for i in rows]) for rows in below]
    np.testing.assert_allclose(found.numpy(), truth, atol=2e-3)


def test_new_sids_get_together_as_much_as_the_old_ones(world: World, loud: Loud, batch: Histories) -> None:
    items = np.flatnonzero(world.members)
    both, target = both_of(world, loud("causal"), moved_to_free(world, items), batch)
    wanted, (old, new) = both.wanted(target), both.groups
    assert wanted.isfinite().all()
    assert not {*old.tolist()} & {*new.tolist()}
    torch.testing.assert_close(wanted[:, old].logsumexp(1), target.closed.logsumexp(1))
    torch.testing.assert_close(wanted[:, new].logsumexp(1), target.closed.logsumexp(1))
    owner, part = both.teacher.frontier.owners(len(both.table)), both.teacher.parts(batch)
    n, at = len(both.table), 0
    for rank in both.frontier.ranks:
        for rows in rank.below:
            fresh = rows[rows >= n] - n
            if len(fresh):
                shares = [target.closed[:, owner[i]] + part[int(i)] for i in fresh]
                torch.testing.assert_close(wanted[:, at], torch.stack(shares, 1).logsumexp(1))
            at += 1


def test_a_target_far_below_the_others_is_not_lost(world: World, loud: Loud, batch: Histories) -> None:
    """One prefix 300 nats under the rest: what stands for it must not become the logarithm of nothing."""
    items = np.flatnonzero(world.members)
    both, target = both_of(world, loud("causal"), moved_to_free(world, items), batch)
    far = target.closed.clone()
    far[:, 0] -= 300.0
    before, after = (both.wanted(dataclasses.replace(target, closed=closed)) for closed in (target.closed, far))
    old, new = both.groups
    assert after[:, old].isfinite().all()
    assert after[:, new].isfinite().all()
    mine = int(both._sources[0][(both._items < 0) & (both._sources[1] == 0)][0])
    torch.testing.assert_close(after[:, mine], before[:, mine] - 300.0)
    others = [int(x) for x in old if x != mine]
    assert torch.equal(after[:, others], before[:, others])


def test_without_a_move_there_are_the_old_sids_alone(world: World, loud: Loud, batch: Histories) -> None:
    both, target = both_of(world, loud("causal"), world.table, batch)
    (old,) = both.groups
    assert old.tolist() == list(range(both.teacher.frontier.closed))
    torch.testing.assert_close(both.wanted(target), target.closed)


def test_an_item_that_did_not_move_is_met_once(world: World, loud: Loud, batch: Histories) -> None:
    items = np.flatnonzero(world.members)
    table = moved_to_free(world, items[::2])
    both, target = both_of(world, loud("causal"), table, batch)
    n = len(table)
    below = np.concatenate([rows for rank in both.frontier.ranks for rows in rank.below])
    assert sorted(below[below < n].tolist()) == items.tolist()
    assert sorted((below[below >= n] - n).tolist()) == items[::2].tolist()
    wanted, (old, new) = both.wanted(target), both.groups
    torch.testing.assert_close(wanted[:, old].logsumexp(1), target.closed.logsumexp(1))
    assert (wanted[:, new].logsumexp(1) < target.closed.logsumexp(1)).all()


def test_closed_prefixes_are_those_that_no_retained_item_has_under_either_table(world: World) -> None:
    items = np.flatnonzero(world.members)
    table = moved_to_free(world, items)
    found = frontier_of_both(world.table, table, world.members, "cpu")
    kept = {tuple(row[:d]) for row in world.table.rows()[world.retained].tolist() for d in range(1, 4)}
    expected = set()
    for row in [*world.table.rows()[items].tolist(), *table.rows()[items].tolist()]:
        depth = next((d for d in range(1, 4) if tuple(row[:d]) not in kept), None)
        if depth:
            expected.add(tuple(row[:depth]))
    rows = np.concatenate([world.table.rows(), table.rows()])
    named = [tuple(rows[b[0], : d + 1].tolist()) for d, rank in enumerate(found.ranks) for b in rank.below]
    assert len(named) == len(set(named))
    assert set(named) == expected


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_single_items_are_read_and_wanted_as_their_whole_sids(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    """The twin: each item's SID scored by itself under either table, and its part of its prefix's target."""
    model, items = loud(kind), np.flatnonzero(world.members)
    table = moved_to_free(world, items[::2])
    leads = np.resize([items[0], -1, 0, items[1], items[2]], len(batch)).astype(batch.targets.dtype)
    batch = dataclasses.replace(batch, targets=leads)
    both, target = both_of(world, model, table, batch)
    n, owner, part = len(batch), both.teacher.frontier.owners(len(table)), both.teacher.parts(batch)
    with torch.no_grad():
        state = start(model, table, batch)
        found, wanted, known = both.one_by_one(model, state, target, np.random.default_rng(3))
        each = [sid_log_probs(model, state, item_rows(model, t, items)).sum(2) for t in (world.table, table)]
    drawn = np.random.default_rng(3).choice(both._below, n)
    below = {int(i) for rank in both.frontier.ranks[:-1] for rows in rank.below for i in rows % len(table)}
    assert set(both._below.tolist()) == below
    assert set(drawn.tolist()) <= set(items.tolist())
    for b in range(n):
        for slot, item in enumerate((int(batch.targets[b]), int(drawn[b]))):
            inside = item >= 0 and bool(world.members[item])
            assert known[b, slot].tolist() == [inside, inside and item in items[::2]]
            for side in np.flatnonzero(known[b, slot].numpy()):
                at = int(np.searchsorted(items, item))
                torch.testing.assert_close(found[b, slot, side], each[side][b, at], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(wanted[b, slot, side], target.closed[b, owner[item]] + part[item])
