"""Where the concept begins in the trie: the shortest prefixes that only concept items have.

Below such a *closed* prefix everything is the concept's, so a model that gives the prefix nothing gives its items nothing. Losses
and targets therefore walk only the *open* prefixes (shared with retained items), a small part of the concept's trie, and reach
every concept item in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.types import BoolArray, IntArray


@dataclass(frozen=True, eq=False)
class Rank:
    """The frontier's nodes of one depth."""

    rows: Tensor
    """int64 [n] vocabulary row of the node's last code."""
    parent: Tensor
    """int64 [n] index among the open nodes one depth up (0 = the root)."""
    open: Tensor
    """int64 [n_open] nodes that retained items share, to be walked on from."""
    closed: Tensor
    """int64 [n_closed] nodes that only concept items have."""
    virgin: Tensor
    """float32 [n_closed, V] even weights over the codes that no item has after the closed node's parent; 0 if there are none.
    [0, V] where nobody asks."""
    codes: Tensor
    """int64 [K] vocabulary rows of the codes of this depth."""
    below: tuple[IntArray, ...]
    """For each closed node the concept items below it."""
    owner: Tensor
    """int64 [C] for each code that follows a closed node in some item's SID, the node's place in `closed`."""
    following: Tensor
    """int64 [C] vocabulary row of that code; empty at the last depth."""


@dataclass(frozen=True, eq=False)
class Frontier:
    """Ranks of depth 1..L. An item whose whole SID a retained item shares has no closed node: `unreachable`."""

    ranks: tuple[Rank, ...]
    unreachable: IntArray
    """int64 concept items that no closed prefix covers."""

    @property
    def closed(self) -> int:
        return sum(len(r.closed) for r in self.ranks)

    def owners(self, n: int) -> IntArray:
        """int64 [n] for each item its closed prefix, in the order of `Walk.closed`; -1: none."""
        owner = np.full(n, -1, np.int64)
        closed = [items for rank in self.ranks for items in rank.below]
        owner[np.concatenate([*closed, np.empty(0, np.int64)]).astype(np.int64)] = np.repeat(
            np.arange(len(closed)), [len(items) for items in closed]
        )
        return owner


def frontier(table: SidTable, members: BoolArray, device: torch.device | str = "cpu") -> Frontier:
    """The frontier of the concept `members` [N] in a table."""
    found = _frontier(table, table.rows(), table.present & members, table.present & ~members, device)
    virgin = [_virgin(table, depth, [int(items[0]) for items in rank.below]) for depth, rank in enumerate(found.ranks)]
    ranks = (replace(rank, virgin=torch.from_numpy(v).to(device)) for rank, v in zip(found.ranks, virgin, strict=True))
    return replace(found, ranks=tuple(ranks))


def frontier_of_both(before: SidTable, after: SidTable, members: BoolArray, device: torch.device | str) -> Frontier:
    """The frontier of the concept under the SIDs it had and those it has got, walked at once; without `virgin`.

    Items are numbered as in the tables where they are meant under the SID of `before`, and N further under that of `after`, which
    counts only where it is another one.
    """
    moved = members & after.moved(before) & after.present
    rows, none = np.concatenate([before.rows(), after.rows()]), np.zeros(len(before), bool)
    inside = np.concatenate([before.present & members, moved])
    return _frontier(before, rows, inside, np.concatenate([before.present & ~members, none]), device)


def _frontier(
    table: SidTable, rows: IntArray, inside: BoolArray, outside: BoolArray, device: torch.device | str
) -> Frontier:
    """The frontier of the SIDs `inside` [M] beside those `outside`, among rows [M, L] of vocabulary rows."""
    present, alive, above = inside | outside, inside.copy(), np.zeros(len(rows), np.int64)
    ranks = []
    for depth in range(1, table.levels + 1):
        prefix, group = np.unique(rows[present][:, :depth], axis=0, return_inverse=True)
        of = np.full(len(rows), -1, np.int64)
        of[present] = group.reshape(-1)
        shared = np.bincount(of[outside], minlength=len(prefix)) > 0
        nodes = np.unique(of[alive])
        place = np.full(len(prefix), -1, np.int64)
        place[nodes] = np.arange(len(nodes))
        parent = np.zeros(len(nodes), np.int64)
        parent[place[of[alive]]] = above[alive]
        open_nodes, closed = np.flatnonzero(shared[nodes]), np.flatnonzero(~shared[nodes])
        mine = place[of]
        order = np.flatnonzero(alive)
        below = tuple(order[mine[order] == c] for c in closed)
        owner, following = _children(rows, below, depth) if depth < table.levels else (mine[:0], mine[:0])
        ranks.append(
            Rank(
                rows=torch.from_numpy(prefix[nodes, depth - 1]).to(device),
                parent=torch.from_numpy(parent).to(device),
                open=torch.from_numpy(open_nodes).to(device),
                closed=torch.from_numpy(closed).to(device),
                virgin=torch.zeros(0, table.schema.vocabulary, device=device),
                codes=torch.from_numpy(table.schema.rows[depth - 1][table.schema.rows[depth - 1] >= 0]).to(device),
                below=below,
                owner=torch.from_numpy(owner).to(device),
                following=torch.from_numpy(following).to(device),
            )
        )
        slot = np.full(len(nodes) + 1, -1, np.int64)
        slot[open_nodes] = np.arange(len(open_nodes))
        above = slot[np.where(alive, mine, -1)]
        alive = alive & (above >= 0)
    return Frontier(tuple(ranks), np.flatnonzero(alive))


def _children(rows: IntArray, below: tuple[IntArray, ...], depth: int) -> tuple[IntArray, IntArray]:
    """int64 [C], [C] the distinct (closed node, next code) pairs of the items below closed nodes."""
    items = np.concatenate([*below, np.empty(0, np.int64)]).astype(np.int64)
    owner = np.repeat(np.arange(len(below)), [len(b) for b in below])
    pairs = np.unique(np.stack([owner, rows[items, depth]], 1), axis=0)
    return pairs[:, 0], pairs[:, 1]


def _virgin(table: SidTable, depth: int, examples: list[int]) -> np.ndarray:
    """[E, V] even weights over codes that no item has after the first `depth` codes of each example item."""
    out = np.zeros((len(examples), table.schema.vocabulary), np.float32)
    if not examples:
        return out
    rows, spelled = table.rows(), table.schema.rows[depth]
    spelled = spelled[spelled >= 0]
    _, group = np.unique(rows[:, :depth], axis=0, return_inverse=True)
    group = group.reshape(-1)
    counts = np.zeros((group.max() + 1, table.schema.vocabulary))
    np.add.at(counts, (group[table.present], rows[table.present, depth]), 1)
    used = counts[group[examples]][:, spelled]  # [E, K]
    out[:, spelled] = (used == 0) / np.maximum((used == 0).sum(1, keepdims=True), 1)
    return out


@dataclass(frozen=True, eq=False)
class Walk:
    """A model's distributions over a frontier, after B histories. Differentiable."""

    joint: tuple[Tensor, ...]
    """A depth: [B, n] log p(prefix | history) of every node."""
    step: tuple[Tensor, ...]
    """A depth: [B, n] log p(code | parent, history)."""
    virgin: tuple[Tensor, ...]
    """A depth: [B, n_closed] log p(twin | history) of each closed node, the same prefix with another last code; empty unless
    asked for."""

    def closed(self, found: Frontier) -> Tensor:
        """[B, E] log p(closed prefix | history), depth by depth."""
        return torch.cat([j[:, r.closed] for j, r in zip(self.joint, found.ranks, strict=True)], 1)


def walk(model: Recommender, state: State, found: Frontier, twins: Sequence[Tensor] | None = None) -> Walk:
    """Every node's probability by one tree step a depth over the open nodes.

    `twins`: a depth, int64 [n_closed] the vocabulary row that stands for the last code of each closed node, -1 for the least
    likely code of its level; None: they are not read.
    """
    joint, step, beside = [], [], []
    current, reach = state, None
    for depth, rank in enumerate(found.ranks):
        log_probs = current.log_probs if depth else current.log_probs[:, None]  # [B, n_open, V]
        here = log_probs[:, rank.parent, rank.rows]
        total = here if reach is None else here + reach[:, rank.parent]
        joint.append(total)
        step.append(here)
        if twins is not None and len(rank.closed):
            parent, twin = rank.parent[rank.closed], twins[depth]
            least = log_probs[:, :, rank.codes].min(2).values[:, parent]
            own = torch.where(twin >= 0, log_probs[:, parent, twin.clamp(min=0)], least)
            beside.append(own if reach is None else own + reach[:, parent])
        elif twins is not None:
            beside.append(total[:, :0])
        if not len(rank.open):
            break
        reach = total[:, rank.open]
        if depth + 1 < len(found.ranks):
            current = model.advance(current, rank.rows[rank.open], None if depth == 0 else rank.parent[rank.open])
    while len(joint) < len(found.ranks):
        joint.append(state.hidden.new_zeros(len(state.lengths), 0))
        step.append(joint[-1])
        if twins is not None:
            beside.append(joint[-1])
    return Walk(tuple(joint), tuple(step), tuple(beside))


def besides(model: Recommender, state: State, found: Frontier) -> tuple[Tensor, ...]:
    """A depth: [n_closed, V] mean over histories of the probability of each closed node's prefix with every other code of its level
    in the place of its last; 0 for rows that are no such code."""
    out: list[Tensor] = []
    current, reach = state, None
    for depth, rank in enumerate(found.ranks):
        log_probs = current.log_probs if depth else current.log_probs[:, None]  # [B, n_open, V]
        before = log_probs.new_zeros(len(log_probs), 1) if reach is None else reach
        joint = (log_probs[:, :, rank.codes] + before[:, :, None]).exp().mean(0)  # [n_open, K]
        near = log_probs.new_zeros(len(rank.closed), log_probs.shape[2])
        near[:, rank.codes] = joint[rank.parent[rank.closed]]
        out.append(near)
        if not len(rank.open):
            break
        reach = (log_probs[:, rank.parent, rank.rows] + before[:, rank.parent])[:, rank.open]
        if depth + 1 < len(found.ranks):
            current = model.advance(current, rank.rows[rank.open], None if depth == 0 else rank.parent[rank.open])
    while len(out) < len(found.ranks):
        out.append(state.hidden.new_zeros(0, found.ranks[0].virgin.shape[1]))
    return tuple(out)


def continuation(model: Recommender, state: State, found: Frontier) -> Tensor:
    """[B, E] log p(some code of the concept | closed prefix, history): how surely the concept goes on once it has begun.

    0 for closed nodes that are whole SIDs. With `Walk.closed` it bounds the mass of the items below a prefix from above.
    """
    out, current = [], state
    batch = len(state.lengths)
    for depth, rank in enumerate(found.ranks):
        if len(rank.following):
            here = model.advance(current, rank.rows[rank.closed], rank.parent[rank.closed] if depth else None)
            chance = here.log_probs[:, rank.owner, rank.following].exp()
            total = chance.new_zeros(batch, len(rank.closed)).index_add(1, rank.owner, chance)
            out.append(total.clamp(min=1e-30).log())
        else:
            out.append(state.hidden.new_zeros(batch, len(rank.closed)))
        if len(rank.open) and depth + 1 < len(found.ranks):
            current = model.advance(current, rank.rows[rank.open], rank.parent[rank.open] if depth else None)
    return torch.cat(out, 1)
