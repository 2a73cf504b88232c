"""What the erased model should say: the original with the concept deleted, and nothing below what it says of the unknown.

Two parts, both read off the original alone (no reference is looked at):

*The rest.* Deleting C and renormalising has an exact autoregressive form. With R(v|h) the share of prefix v's probability that
belongs to concept items, p*(k|u,h) = p_0(k|u,h) (1 - R(uk|h)) / (1 - R(u|h)); for any SID outside C this telescopes to
p*(s|h) = p_0(s|h) / (1 - mass).

*The concept's SIDs.* Exactly zero would be a signal of its own (over-forgetting), and cannot be reached. A model that never saw
an item still gives its SID something: what it gives to a SID nobody ever had. So the target of a concept item's SID is p* of its
**virgin twin**: the same SID with the first code that only the concept leads to replaced by a code no item uses there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.paths import item_rows, node_log_probs, sid_log_probs, start
from recerase.model.mass import leaf_log_probs, level_log_probs
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.sid.trie import TorchTrie, Trie
from recerase.types import BoolArray, FloatArray, IntArray, Scope

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Target:
    """One batch of histories and what to say after them. All tensors are constants."""

    histories: Histories
    path: Tensor
    """int64 [B, L] a SID outside the concept, along which the whole distribution is given."""
    log_probs: Tensor
    """[B, L, V] log p* at each node of `path`."""
    items: IntArray
    """int64 [P] concept items whose SIDs are given a target."""
    concept: Tensor
    """[B, P] log p* of the items' virgin twins."""
    mass: Tensor
    """[B] concept mass of the original."""
    moved: Tensor | None = None
    """[B, P] log p* of the items' new SIDs, once there are any."""


@dataclass(frozen=True, eq=False)
class Shares:
    """R(v|h) for every node v of the concept's trie, and for the root."""

    root: Tensor
    """[B] concept mass."""
    nodes: tuple[Tensor, ...]
    """nodes[d] [B, n_d] for d = 1..L (nodes[0] is `root` with one column)."""


class Teacher:
    """The original model, asked what it would say without the concept."""

    def __init__(self, model: Recommender, table: SidTable, members: BoolArray, scope: Scope, seed: int) -> None:
        self.model, self.table, self.members, self.scope = model, table, members, scope
        self._concept = Trie.build(table, members & table.present)
        self._arrays: TorchTrie = self._concept.torch(model.device)
        self._exclusive = exclusive_level(table, members)
        self._rng = np.random.default_rng([seed, 101])
        mine = np.flatnonzero(members & table.present)
        self._slot = np.full(len(table), -1, np.int64)
        self._slot[mine] = np.arange(len(mine))
        self._siblings = sibling_counts(table, mine, self._exclusive[mine])

    def read(self, histories: Histories) -> State:
        """The original after the histories; with scope `influence`, as if they had no concept items."""
        seen = histories.without(self.members) if self.scope == "influence" else histories
        return start(self.model, self.table, seen)

    def target(self, histories: Histories, paths: IntArray, items: IntArray, twins: int = 2) -> Target:
        """The target after each history.

        Args:
            paths: int [B] items outside the concept; -1 draws a SID from p* itself.
            items: int [P] concept items.
            twins: virgin twins averaged for each item.
        """
        with torch.no_grad():
            state = self.read(histories)
            shares = self.shares(state)
            drawn = self._draw(state, shares, histories, paths)
            log_probs = self._renormalised(node_log_probs(self.model, state, drawn), drawn, shares)
            concept = self._twin_log_probs(state, shares, items, twins)
        return Target(histories, drawn.clone(), log_probs.clone(), items, concept.clone(), shares.root.clone())

    def outside(self, histories: Histories, rows: IntArray) -> Tensor:
        """[B, P] log p* of SIDs that no concept item had, vocabulary rows [P, L]: p_0 / (1 - mass)."""
        with torch.no_grad():
            state = self.read(histories)
            log_p = sid_log_probs(self.model, state, torch.from_numpy(rows).to(self.model.device)).sum(2)
            return log_p - torch.log1p(-self.shares(state).root)[:, None]

    def shares(self, state: State) -> Shares:
        """R by one bottom-up pass over the concept's trie: R(leaf) = 1, R(u) = sum over children of p(k|u) R(uk)."""
        levels = level_log_probs(self.model, state, self._arrays)
        found = [torch.ones_like(levels[-1])]
        for depth in range(len(levels), 0, -1):
            flow = levels[depth - 1].exp() * found[0]
            above = torch.zeros(flow.shape[0], self._concept.n_nodes(depth - 1), device=flow.device)
            found.insert(0, above.index_add(1, self._arrays.parent[depth], flow))
        return Shares(found[0][:, 0].clamp(max=1 - 1e-6), tuple(found))

    def _draw(self, state: State, shares: Shares, histories: Histories, paths: IntArray) -> Tensor:
        """[B, L] the SIDs of `paths`, and SIDs drawn from p* where it is -1."""
        given = item_rows(self.model, self.table, np.maximum(paths, 0))
        free = torch.from_numpy(paths < 0).to(given.device)
        if not bool(free.any()):
            return given
        generator = torch.Generator(given.device).manual_seed(int(self._rng.integers(2**62)))
        drawn = torch.zeros_like(given)
        zero = torch.zeros(1, dtype=torch.int64, device=given.device)
        current, node = state, torch.zeros(len(histories), dtype=torch.int64, device=given.device)
        for level in range(given.shape[1]):
            here = current.log_probs if level == 0 else current.log_probs[:, 0]
            log_p, children = self._delete(here, node, level, shares)
            code = torch.multinomial(log_p.exp(), 1, generator=generator)
            drawn[:, level : level + 1] = code
            node = children.gather(1, code)[:, 0]
            if level + 1 < given.shape[1]:
                current = self.model.advance(current, code, None if level == 0 else zero)
        return torch.where(free[:, None], drawn, given)

    def _renormalised(self, log_probs: Tensor, path: Tensor, shares: Shares) -> Tensor:
        """p* at every node of `path` from p_0 there: [B, L, V]."""
        node = torch.zeros(len(path), dtype=torch.int64, device=path.device)
        out = []
        for level in range(path.shape[1]):
            found, children = self._delete(log_probs[:, level], node, level, shares)
            out.append(found)
            node = children.gather(1, path[:, level : level + 1])[:, 0]
        return torch.stack(out, 1)

    def _delete(self, log_probs: Tensor, node: Tensor, depth: int, shares: Shares) -> tuple[Tensor, Tensor]:
        """Delete the concept's share below concept-trie nodes [B] (-1: outside it), and renormalise.

        Returns:
            log p* [B, V], and the concept-trie node of every child [B, V] (-1 outside).
        """
        vocabulary = log_probs.shape[1]
        tokens, parent = self._arrays.tokens[depth + 1], self._arrays.parent[depth + 1]
        mine = parent[None] == node[:, None]  # [B, n]
        share = torch.zeros_like(log_probs)
        share.index_add_(1, tokens, torch.where(mine, shares.nodes[depth + 1], 0.0))
        children = torch.zeros(log_probs.shape, dtype=torch.int64, device=log_probs.device)
        number = torch.arange(1, len(tokens) + 1, device=tokens.device)
        children.index_add_(1, tokens, torch.where(mine, number, 0))
        kept = log_probs.exp() * (1 - share).clamp(min=TINY)
        log_p = (kept / kept.sum(1, keepdim=True)).clamp(min=1e-30).log()
        return log_p.view(-1, vocabulary), children - 1

    def _twin_log_probs(self, state: State, shares: Shares, items: IntArray, twins: int) -> Tensor:
        """[B, P] log of the mean over twins of p*(twin)."""
        rows = np.concatenate([self._twins(items) for _ in range(twins)])  # [twins * P, L]
        log_p = sid_log_probs(self.model, state, torch.from_numpy(rows).to(self.model.device)).sum(2)
        spread = log_p.unflatten(1, (twins, len(items)))
        return spread.logsumexp(1) - np.log(twins) - torch.log1p(-shares.root)[:, None]

    def _twins(self, items: IntArray) -> IntArray:
        """int64 [P, L] vocabulary rows of one virgin twin an item.

        Where every code of the level is in use after the prefix, the code that fewest items use there stands in.
        """
        counts = self._siblings[self._slot[items]]  # [P, K]
        draw = self._rng.random(counts.shape)
        code = np.argmin(counts + draw, axis=1)  # the least used, at random among equals; codes without a row are inf
        codes = self.table.codes[items].astype(np.int64)
        codes[np.arange(len(items)), self._exclusive[items]] = code
        return np.stack([self.table.schema.rows[x][codes[:, x]] for x in range(self.table.levels)], 1)


def sibling_counts(table: SidTable, items: IntArray, level: IntArray) -> FloatArray:
    """[M, max K] how many items of the table have each code at `level` [M] after the prefix of `items` [M]; inf: no such code."""
    widest = max(table.schema.codes)
    out = np.full((len(items), widest), np.inf)
    for depth in range(table.levels):
        here = np.flatnonzero(level == depth)
        if not len(here):
            continue
        _, group = np.unique(table.codes[:, :depth], axis=0, return_inverse=True)
        group = group.reshape(-1)
        counts = np.zeros((group.max() + 1, widest))
        np.add.at(counts, (group[table.present], table.codes[table.present, depth]), 1)
        spelled = np.zeros(widest, bool)
        spelled[: table.schema.codes[depth]] = table.schema.rows[depth] >= 0
        out[here] = np.where(spelled, counts[group[items[here]]], np.inf)
    return out


def exclusive_level(table: SidTable, members: BoolArray) -> IntArray:
    """int64 [N] the first level (from 0) at which an item's prefix belongs to concept items only; L where none does.

    Only concept items are asked for; for others the value is L. The last level is used for an item that shares its whole SID.
    """
    retained = Trie.build(table, table.present & ~members)
    out = np.full(len(table), table.levels, np.int64)
    items = np.flatnonzero(members & table.present)
    rows = table.rows()[items]
    node = np.zeros(len(items), np.int64)
    for level in range(table.levels):
        key = retained.parent[level + 1] * table.schema.vocabulary + retained.tokens[level + 1]
        wanted = node * table.schema.vocabulary + rows[:, level]
        at = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        found = (node >= 0) & (key[at] == wanted) if len(key) else np.zeros(len(items), bool)
        leaves = (node >= 0) & ~found
        out[items[leaves]] = level
        node = np.where(found, at, -1)
    out[items] = np.minimum(out[items], table.levels - 1)
    return out
