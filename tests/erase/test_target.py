"""The target against the whole distribution over V^3 sequences of a tiny vocabulary, enumerated with the plain model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.erase.conftest import World, forward, items_of
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.frontier import Frontier
from recerase.erase.target import Teacher
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import BoolArray

Loud = Callable[..., Recommender]


def everything(model: Recommender, table: SidTable, items: list[int]) -> Tensor:
    """float64 [V, V, V] p_0 of every sequence of three vocabulary rows after one history."""
    v = table.schema.vocabulary
    first, second = torch.meshgrid(torch.arange(v), torch.arange(v), indexing="ij")
    paths = torch.stack([first.flatten(), second.flatten(), torch.zeros(v * v, dtype=torch.int64)], 1)
    with torch.no_grad():
        steps = forward(model, table, items, paths)  # [V * V, 3, V]
    head = steps[:, 0].gather(1, paths[:, :1]) + steps[:, 1].gather(1, paths[:, 1:2])
    return (head + steps[:, 2]).exp().view(v, v, v)


def deleted(joint: Tensor, table: SidTable, members: BoolArray) -> tuple[Tensor, float]:
    """p* of every sequence: those that begin with a prefix only concept items have are deleted, the rest renormalised."""
    retained = {tuple(r[:d]) for r in table.rows()[table.present & ~members].tolist() for d in (1, 2, 3)}
    out = joint.clone()
    for row in table.rows()[table.present & members].tolist():
        for depth in (1, 2, 3):
            if tuple(row[:depth]) not in retained:
                out[tuple(row[:depth])] = 0.0
                break
    mass = float(joint.sum() - out.sum())
    return out / (1 - mass), mass


def conditionals(joint: Tensor, path: list[int]) -> Tensor:
    """[3, V] p(next | prefix) at the nodes of a path."""
    nodes = [joint.sum((1, 2)), joint[path[0]].sum(1), joint[path[0], path[1]]]
    return torch.stack([n / n.sum() for n in nodes])


def closed_rows(found: Frontier) -> list[tuple[int, ...]]:
    """The vocabulary rows of every closed prefix, in the order of `Target.closed`."""
    out: list[tuple[int, ...]] = []
    above: list[tuple[int, ...]] = [()]
    for rank in found.ranks:
        nodes = [(*above[p], r) for p, r in zip(rank.parent.tolist(), rank.rows.tolist(), strict=True)]
        out += [nodes[n] for n in rank.closed.tolist()]
        above = [nodes[n] for n in rank.open.tolist()]
    return out


def crowded(world: World) -> tuple[SidTable, BoolArray]:
    """A table in which concept item 3 shares its SID with the retained item 20, and another has it in part."""
    codes = world.table.codes.copy()
    codes[3] = codes[20]
    codes[4, :2] = codes[21, :2]
    return SidTable.build(world.table.item_ids, codes, world.table.schema, world.table.listed), world.members


@pytest.mark.parametrize("who", ["loud", "trained"])
@pytest.mark.parametrize("shared", [False, True])
def test_it_is_the_original_without_the_concept_renormalised(
    world: World, loud: Loud, trained: Loud, kind: str, batch: Histories, shared: bool, who: str
) -> None:
    """p*(s|h) = p_0(s|h) / (1 - mass) for every SID outside the closed prefixes, and every conditional sums to 1."""
    model = {"loud": loud, "trained": trained}[who](kind)
    table, members = crowded(world) if shared else (world.table, world.members)
    teacher = Teacher(model, table, members, "output", 0)
    outside = np.flatnonzero(table.present & ~members)[::3].astype(np.int32)
    masses = []
    for b in range(len(batch)):
        target = teacher.target(batch.take([b] * len(outside)), outside)
        joint = everything(model, table, items_of(batch, b))
        truth, mass = deleted(joint, table, members)
        masses.append(mass)
        assert float(target.mass[0]) == pytest.approx(mass, rel=1e-3, abs=1e-6)
        torch.testing.assert_close(target.log_probs.exp().sum(2), torch.ones(len(outside), 3), rtol=0, atol=1e-5)
        for n, item in enumerate(outside):
            path = table.rows()[item].tolist()
            assert target.path[n].tolist() == path
            exact = conditionals(truth, path)
            torch.testing.assert_close(target.log_probs[n].double().exp(), exact, rtol=2e-3, atol=2e-6)
            whole = float(target.log_probs[n].gather(1, target.path[n][:, None]).sum())
            assert whole == pytest.approx(float((joint[tuple(path)] / (1 - mass)).log()), abs=5e-3)
    assert min(masses) < 0.1
    assert max(masses) > (0.3 if who == "trained" else 0.02)


def test_a_shared_prefix_loses_exactly_its_concept_share(world: World, loud: Loud, batch: Histories) -> None:
    """Nothing collapses: where the concept has half of a prefix, the prefix keeps the other half, over 1 - mass."""
    model, table = loud("causal"), world.table
    teacher = Teacher(model, table, world.members, "output", 0)
    item = next(i for i in np.flatnonzero(world.retained) if table.codes[i, 0] in table.codes[world.members, 0])
    row = int(table.rows()[item, 0])
    for b in range(len(batch)):
        joint = everything(model, table, items_of(batch, b))
        truth, mass = deleted(joint, table, world.members)
        found = teacher.target(batch.take([b]), np.array([item], np.int32)).log_probs[0, 0, row]
        below = {tuple(r) for r in table.rows()[world.members].tolist() if r[0] == row}
        assert len(below) > 0
        assert float(found.exp()) == pytest.approx(float(truth[row].sum()), rel=2e-3, abs=1e-6)
        assert float(truth[row].sum()) < float(joint[row].sum()) / (1 - mass)


def test_drawn_paths_avoid_the_concept_and_follow_the_target(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    model, table = loud(kind), world.table
    teacher = Teacher(model, table, world.members, "output", 3)
    closed = closed_rows(teacher.frontier)
    b, n = 3, 3000
    truth, mass = deleted(everything(model, table, items_of(batch, b)), table, world.members)
    assert mass > 1e-3
    paths = teacher.target(batch.take([b] * n), np.full(n, -1)).path
    drawn = [tuple(p) for p in paths.tolist()]
    assert not any(p[: len(c)] == c for p in drawn for c in closed)
    counts = torch.zeros_like(truth)
    counts.index_put_(tuple(paths.T), torch.ones(n, dtype=counts.dtype), accumulate=True)
    spread = (truth * (1 - truth) / n).sqrt()
    assert float(((counts / n - truth).abs() - 5 * spread).max()) < 2 / n
    again = Teacher(model, table, world.members, "output", 3).target(batch.take([b] * n), np.full(n, -1)).path
    other = Teacher(model, table, world.members, "output", 4).target(batch.take([b] * n), np.full(n, -1)).path
    assert torch.equal(paths, again)
    assert not torch.equal(paths, other)


def test_influence_reads_histories_without_the_concept(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """Scope `influence` at a history is scope `output` at the history with its concept items dropped."""
    model = loud(kind)
    paths = np.full(len(batch), 12)
    clean = batch.without(world.concept)
    influence = Teacher(model, world.table, world.members, "influence", 0).target(batch, paths)
    output = Teacher(model, world.table, world.members, "output", 0).target(batch, paths)
    cleaned = Teacher(model, world.table, world.members, "output", 0).target(clean, paths)
    torch.testing.assert_close(influence.log_probs, cleaned.log_probs)
    torch.testing.assert_close(influence.mass, cleaned.mass)
    reads = batch.last(model.window).touches(world.members)
    differs = (influence.log_probs - output.log_probs).abs().amax((1, 2)).numpy() > 1e-3
    assert (differs == reads).all()
    assert reads.any()
    assert not reads.all()


def test_the_concepts_own_target_never_reads_the_concept(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """Whatever the scope: a model that never saw an item cannot take one as evidence for another."""
    model = loud(kind)
    paths = np.full(len(batch), 12)
    first = Teacher(model, world.table, world.members, "output", 0).target(batch, paths).closed
    for scope in ("output", "influence"):
        other = Teacher(model, world.table, world.members, scope, 0)
        torch.testing.assert_close(other.target(batch.without(world.concept), paths).closed, first)
    assert torch.isfinite(first).all()


def test_a_closed_sid_is_to_get_what_its_unused_twins_get(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    """At the last level: p*(u) times p_0(code | u) of one code that no item has after u, the same one after every history."""
    model, table = loud(kind), world.table
    teacher = Teacher(model, table, world.members, "output", 0)
    target = teacher.target(batch, np.full(len(batch), 12))
    names = closed_rows(teacher.frontier)
    used = {tuple(r) for r in table.rows()[table.present].tolist()}
    beside = {e: [(*n[:2], int(r)) for r in table.schema.rows[2]] for e, n in enumerate(names) if len(n) == 3}
    free = {e: [sid for sid in sids if sid not in used] for e, sids in beside.items()}
    assert sum(map(bool, free.values())) > 1
    twins = {e: set(sids) for e, sids in free.items()}
    for b in range(len(batch)):
        joint = everything(model, table, items_of(batch.without(world.members), b))
        clean, _ = deleted(joint, table, world.members)
        for e, sids in beside.items():
            found = float(target.closed[b, e])
            before, after = (float(p[sids[0][:2]].sum()) for p in (joint, clean))
            if free[e]:
                given = {sid: np.log(float(joint[sid]) * after / before) for sid in twins[e]}
                twins[e] = {sid for sid, value in given.items() if value == pytest.approx(found, abs=5e-3)}
                assert twins[e]
            else:  # no code is unused there: what stands in is among what the model gives there
                known = [np.log(float(joint[s]) * after / before) for s in sids]
                assert min(known) - 5e-3 <= found <= max(known) + 5e-3


def test_whole_sequences_have_the_same_target(world: World, loud: Loud) -> None:
    """After every token of a clean sequence: the plain distribution with the codes that close a prefix deleted."""
    model, table = loud("causal"), world.table
    teacher = Teacher(model, table, world.members, "output", 0)
    closed = set(closed_rows(teacher.frontier))
    lists = [[9, 10, 11, 12], [33, 25], [20, 21, 14]]
    assert not world.concept[[i for x in lists for i in x]].any()
    inputs, found = teacher.sequences(Histories.from_lists(lists))
    assert inputs["input_ids"].shape == found.shape[:2]
    with torch.no_grad():
        for b, items in enumerate(lists):
            tokens = [model.schema.bos, *table.rows()[items].flatten().tolist()]
            truth = model.module(input_ids=torch.tensor([tokens])).logits[0].double().softmax(-1)
            for t in range(len(tokens)):
                prefix = tuple(tokens[t - t % 3 + 1 : t + 1])
                gone = [r for r in range(table.schema.vocabulary) if (*prefix, r) in closed]
                expected = truth[t].clone()
                expected[gone] = 0.0
                expected = expected / expected.sum()
                torch.testing.assert_close(found[b, t].double().exp(), expected, rtol=1e-3, atol=1e-6)


def test_the_original_is_read_only_and_leaves_no_graph(world: World, loud: Loud, batch: Histories) -> None:
    model = loud("causal")
    target = Teacher(model, world.table, world.members, "output", 0).target(batch, np.full(len(batch), -1))
    assert not any(t.requires_grad for t in (target.log_probs, target.closed, target.mass))
    assert all(p.grad is None for p in model.module.parameters())
