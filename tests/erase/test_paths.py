"""Log-probabilities of SIDs against transformers' own forward, and soft tokens in the place of concept items."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tests.erase.conftest import CODES, N, World, forward, items_of

from recerase.catalog.interactions import Histories
from recerase.erase.paths import item_rows, node_log_probs, sid_log_probs, soft_tokens, start
from recerase.model.recommender import Recommender

Loud = Callable[..., Recommender]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def one_hot(world: World) -> list[torch.Tensor]:
    """q that is sure of each concept item's stored codes."""
    codes = torch.from_numpy(world.table.codes[world.members]).long()
    return [torch.nn.functional.one_hot(codes[:, x], k).double() for x, k in enumerate(CODES)]


def even(world: World, seed: int = 0) -> list[torch.Tensor]:
    """q that is sure of nothing."""
    generator = torch.Generator().manual_seed(seed)
    m = int(world.members.sum())
    return [torch.softmax(torch.randn(m, k, generator=generator, dtype=torch.float64), 1) for k in CODES]


def test_sids_and_nodes_have_the_probabilities_that_transformers_gives(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    model = loud(kind)
    items = np.flatnonzero(world.table.present)[::5]
    rows = item_rows(model, world.table, items)  # [P, L]
    path = rows[torch.arange(len(batch)) % len(rows)]  # [B, L]
    with torch.no_grad():
        state = start(model, world.table, batch)
        shared = sid_log_probs(model, state, rows)
        own = sid_log_probs(model, state, rows[None].repeat(len(batch), 1, 1).flip(1))
        nodes = node_log_probs(model, state, path)
        for b in range(len(batch)):
            truth = forward(model, world.table, items_of(batch, b), rows)  # [P, L, V]
            steps = truth.gather(2, rows[..., None])[..., 0].float()
            torch.testing.assert_close(shared[b], steps, **CLOSE)
            torch.testing.assert_close(own[b].flip(0), steps, **CLOSE)
            torch.testing.assert_close(nodes[b], truth[b % len(rows)].float(), **CLOSE)
    torch.testing.assert_close(nodes.exp().sum(2), torch.ones(len(batch), 3), **CLOSE)


def test_sure_soft_tokens_are_the_hard_tokens(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """With q one-hot on the stored codes, nothing changes: the embeddings are the same, row by row."""
    model = loud(kind)
    rows = item_rows(model, world.table, np.arange(9, 14))
    with torch.no_grad():
        hard = sid_log_probs(model, start(model, world.table, batch), rows)
        soft = soft_tokens(model, world.members, one_hot(world))
        found = sid_log_probs(model, start(model, world.table, batch, soft), rows)
        other = soft_tokens(model, world.members, even(world))
        changed = sid_log_probs(model, start(model, world.table, batch, other), rows)
    torch.testing.assert_close(found, hard)
    reads = np.array([world.members[items_of(batch, b)[-model.window :]].any() for b in range(len(batch))])
    same = torch.isclose(changed, hard, rtol=1e-6, atol=1e-6).all(2).all(1).numpy()
    assert (same == ~reads).all()  # and only histories that hold the concept feel an unsure q
    assert reads.any()
    assert not reads.all()


def test_soft_tokens_are_the_expected_embeddings(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """Equation 6: sum_k q(k) e_k at the place of each concept item, and transformers' forward on just that."""
    model, q = loud(kind), even(world)
    weight = model.module.get_input_embeddings().weight.detach()
    members = np.flatnonzero(world.members)
    by_hand = {
        int(i): torch.stack(
            [
                sum(float(q[x][m, k]) * weight[world.table.schema.rows[x][k]] for k in range(CODES[x]))  # type: ignore[misc]
                for x in range(3)
            ]
        )
        for m, i in enumerate(members)
    }
    soft = soft_tokens(model, world.members, q)
    assert soft.slot.tolist() == [members.tolist().index(i) if i in members else -1 for i in range(N)]
    torch.testing.assert_close(soft.vectors.detach(), torch.stack([by_hand[int(i)] for i in members]))
    rows = item_rows(model, world.table, np.arange(9, 12))
    with torch.no_grad():
        found = node_log_probs(model, start(model, world.table, batch, soft), rows[:1].expand(len(batch), -1))
        for b in range(len(batch)):
            truth = forward(model, world.table, items_of(batch, b), rows[:1], by_hand)
            torch.testing.assert_close(found[b], truth[0].float(), **CLOSE)


def test_a_gradient_reaches_the_weights_and_every_q_in_use(
    world: World, loud: Loud, kind: str, batch: Histories
) -> None:
    model = loud(kind)
    q = [x.requires_grad_() for x in even(world)]
    soft = soft_tokens(model, world.members, q)
    rows = item_rows(model, world.table, np.arange(9, 12))
    sid_log_probs(model, start(model, world.table, batch, soft), rows).sum().backward()
    members = np.flatnonzero(world.members).tolist()
    read = {i for b in range(len(batch)) for i in items_of(batch, b)[-model.window :]}
    for x in q:
        assert x.grad is not None
        assert x.grad.dtype == torch.float64
        assert [bool(g.any()) for g in x.grad] == [i in read for i in members]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.module.parameters())


def test_histories_without_a_readable_item_are_read(world: World, loud: Loud, kind: str) -> None:
    model = loud(kind)
    soft = soft_tokens(model, world.members, even(world))
    nothing = Histories.from_lists([[], [39, 6]])
    with torch.no_grad():
        found = start(model, world.table, nothing, soft).log_probs
        torch.testing.assert_close(found, start(model, world.table, nothing).log_probs)
        torch.testing.assert_close(found[0], found[1])


def test_a_state_may_be_cut_to_some_histories(world: World, loud: Loud, kind: str, batch: Histories) -> None:
    """What the tree says after histories `rows` of a batch is what it says of them alone."""
    model, rows = loud(kind), torch.tensor([5, 1])
    sids = item_rows(model, world.table, np.arange(9, 14))
    with torch.no_grad():
        state = start(model, world.table, batch)
        whole = sid_log_probs(model, state, sids)[rows]
        torch.testing.assert_close(sid_log_probs(model, state.take(rows), sids), whole)
        below = model.advance(state, sids[:, 0], None)
        torch.testing.assert_close(below.take(rows).log_probs, below.log_probs[rows])
        deeper = model.advance(below, sids[:, 1], torch.arange(len(sids)))
        cut = model.advance(below.take(rows), sids[:, 1], torch.arange(len(sids)))
        torch.testing.assert_close(cut.log_probs, deeper.log_probs[rows])
