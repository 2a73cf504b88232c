"""The frontier against its definition: the shortest prefixes that only concept items have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.conftest import World, forward, items_of

from recerase.catalog.interactions import Histories
from recerase.erase.frontier import Frontier, besides, continuation, frontier, walk
from recerase.erase.paths import start
from recerase.model.recommender import Recommender
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import BoolArray

Prefix = tuple[int, ...]
SIZES = (3, 3, 4)


def random_table(seed: int) -> tuple[SidTable, BoolArray]:
    """25 items on 36 SIDs: some share a SID across the border of the concept, some have none."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, k, 25) for k in SIZES], 1)
    codes[rng.random(25) < 0.1] = -1
    members = rng.random(25) < 0.4
    members[0] = True
    codes[0] = [2, 1, 0]
    return SidTable.build([f"i{i}" for i in range(25)], codes, SidSchema.native(SIZES, "allowed")), members


def by_hand(table: SidTable, members: BoolArray) -> tuple[dict[Prefix, list[int]], set[Prefix], list[int]]:
    """Closed prefixes (of codes) with the items below, open prefixes that lead on to the concept, unreachable items."""
    retained = {tuple(c[:d]) for c in table.codes[table.present & ~members].tolist() for d in (1, 2, 3)}
    closed: dict[Prefix, list[int]] = {}
    shared: set[Prefix] = set()
    unreachable = []
    for item in np.flatnonzero(table.present & members).tolist():
        sid = tuple(table.codes[item].tolist())
        depth = next((d for d in (1, 2, 3) if sid[:d] not in retained), None)
        shared |= {sid[:d] for d in range(1, depth or 4)}
        if depth is None:
            unreachable.append(item)
        else:
            closed.setdefault(sid[:depth], []).append(item)
    return closed, shared, unreachable


def prefixes(found: Frontier, table: SidTable) -> list[list[Prefix]]:
    """The codes of every node, a depth, read back through parents and rows."""
    out: list[list[Prefix]] = []
    above: list[Prefix] = [()]
    for depth, rank in enumerate(found.ranks):
        code = {int(r): c for c, r in enumerate(table.schema.rows[depth])}
        out.append([(*above[p], code[r]) for p, r in zip(rank.parent.tolist(), rank.rows.tolist(), strict=True)])
        above = [out[-1][i] for i in rank.open.tolist()]
    return out


@pytest.mark.parametrize("seed", range(25))
def test_closed_open_and_unreachable_are_as_defined(seed: int) -> None:
    table, members = random_table(seed)
    closed, shared, unreachable = by_hand(table, members)
    found = frontier(table, members)
    names = prefixes(found, table)
    got = {
        nodes[n]: sorted(items.tolist())
        for nodes, rank in zip(names, found.ranks, strict=True)
        for n, items in zip(rank.closed.tolist(), rank.below, strict=True)
    }
    assert got == closed
    assert found.closed == len(closed)
    opened = [nodes[n] for nodes, rank in zip(names, found.ranks, strict=True) for n in rank.open.tolist()]
    assert sorted(opened) == sorted(shared)
    assert sorted(found.unreachable.tolist()) == unreachable
    for nodes, rank in zip(names, found.ranks, strict=True):
        assert len(nodes) == len(set(nodes)) == len(rank.open) + len(rank.closed)


@pytest.mark.parametrize("seed", range(25))
def test_virgin_codes_are_those_that_no_item_has_there(seed: int) -> None:
    """Even weights over the unused codes after a closed prefix's parent; no weights where all are in use."""
    table, members = random_table(seed)
    found = frontier(table, members)
    prefix_uses = {tuple(c[:d]) for c in table.codes[table.present].tolist() for d in (1, 2, 3)}
    for depth, (nodes, rank) in enumerate(zip(prefixes(found, table), found.ranks, strict=True)):
        for e, n in enumerate(rank.closed.tolist()):
            unused = [k for k in range(SIZES[depth]) if (*nodes[n][:-1], k) not in prefix_uses]
            expected = np.zeros(table.schema.vocabulary)
            expected[table.schema.rows[depth][unused]] = 1 / max(1, len(unused))
            np.testing.assert_allclose(rank.virgin[e].numpy(), expected, rtol=1e-6)


def test_the_world_has_closed_prefixes_of_every_length(world: World) -> None:
    """What the tests below and those of the target rest on."""
    found = frontier(world.table, world.members)
    assert all(len(rank.closed) for rank in found.ranks)
    assert all(len(rank.open) for rank in found.ranks[:2])


def test_a_walk_has_the_probabilities_that_transformers_gives(
    world: World, loud: Callable[..., Recommender], kind: str, batch: Histories
) -> None:
    model, table = loud(kind), world.table
    found = frontier(table, world.members)
    with torch.no_grad():
        twins = [torch.where(rank.virgin.sum(1) > 0, rank.virgin.argmax(1), -1) for rank in found.ranks]
        state = start(model, table, batch)
        seen, near = walk(model, state, found, twins), besides(model, state, found)
        names = prefixes(found, table)
        means = [torch.zeros(1)] * len(found.ranks)
        for b in range(len(batch)):
            closed = []
            for depth, (nodes, rank) in enumerate(zip(names, found.ranks, strict=True)):
                rows = torch.tensor([[int(table.schema.rows[x][n[min(x, depth)]]) for x in range(3)] for n in nodes])
                truth = forward(model, table, items_of(batch, b), rows)  # [n, L, V]
                steps = truth.gather(2, rows[..., None])[..., 0]
                joint = steps[:, : depth + 1].sum(1)
                torch.testing.assert_close(seen.joint[depth][b].double(), joint, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(seen.step[depth][b].double(), steps[:, depth], rtol=1e-4, atol=1e-4)
                free = twins[depth] >= 0
                beside = truth[:, depth][rank.closed]  # all codes after the closed node's parent
                least = beside[:, rank.codes].min(1).values
                own = torch.where(free, beside.gather(1, twins[depth].clamp(min=0)[:, None])[:, 0], least)
                twin = own + steps[rank.closed, :depth].sum(1)
                torch.testing.assert_close(seen.virgin[depth][b].double(), twin, rtol=1e-4, atol=1e-4)
                means[depth] = means[depth] + (beside + steps[rank.closed, :depth].sum(1, keepdim=True)).exp() / len(
                    batch
                )
                closed.append(joint[rank.closed])
            torch.testing.assert_close(seen.closed(found)[b].double(), torch.cat(closed), rtol=1e-4, atol=1e-4)
        for mean, ours, rank in zip(means, near, found.ranks, strict=True):
            torch.testing.assert_close(ours[:, rank.codes].double(), mean[:, rank.codes], rtol=1e-4, atol=1e-9)
            assert float(ours.sum()) == pytest.approx(float(ours[:, rank.codes].sum()))


def test_how_surely_a_closed_prefix_goes_on_to_the_concept_is_what_transformers_gives(
    world: World, loud: Callable[..., Recommender], kind: str, batch: Histories
) -> None:
    """log of the total probability of the next codes that some item below has; 0 where the prefix is a whole SID."""
    model, table = loud(kind), world.table
    found = frontier(table, world.members)
    below = [(depth, items.tolist()) for depth, rank in enumerate(found.ranks) for items in rank.below]
    assert {depth for depth, _ in below} == {0, 1, 2}
    with torch.no_grad():
        onwards = continuation(model, start(model, table, batch), found)
        for b in range(len(batch)):
            truth = forward(model, table, items_of(batch, b), torch.from_numpy(table.rows()).clamp(min=0)).exp()
            exact = []
            for depth, items in below:
                following = {int(table.rows()[i, depth + 1]) for i in items} if depth < 2 else set()
                chance = sum(float(truth[items[0], depth + 1, row]) for row in following)
                exact.append(np.log(chance) if following else 0.0)
            assert onwards[b].tolist() == pytest.approx(exact, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("who", ["nobody", "no SID", "all shared"])
def test_a_concept_without_a_prefix_of_its_own_has_an_empty_frontier(
    who: str, world: World, loud: Callable[..., Recommender], batch: Histories
) -> None:
    table, members = world.table, np.zeros(len(world.table), bool)
    if who == "no SID":
        members[6] = True
    if who == "all shared":
        table = SidTable.build(table.item_ids, table.codes[[9, *range(1, 40)]], SidSchema.native((5, 6, 8), "allowed"))
        members[0] = True
    found = frontier(table, members)
    assert found.closed == 0
    assert found.unreachable.tolist() == ([0] if who == "all shared" else [])
    model = loud("causal")
    seen = walk(model, start(model, table, batch), found, [torch.empty(0, dtype=torch.int64)] * 3)
    assert seen.closed(found).shape == (len(batch), 0)
    assert continuation(model, start(model, table, batch), found).shape == (len(batch), 0)
