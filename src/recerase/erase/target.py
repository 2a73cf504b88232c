"""What the erased model should say: the original with the concept deleted, and of the concept what it says of the unknown.

Both parts are read off the original alone; no reference is looked at.

*The rest.* Deleting C and renormalising has an exact autoregressive form. With R(v|h) the share of prefix v's probability that
belongs to the concept, p*(k|u,h) = p_0(k|u,h) (1 - R(uk|h)) / (1 - R(u|h)); for any SID outside the concept this telescopes to
p*(s|h) = p_0(s|h) / (1 - mass). A prefix that only concept items have is deleted whole (R = 1).

*The concept's SIDs.* Exactly zero would be a signal of its own (over-forgetting), and cannot be reached. A model that never saw
an item still gives its SID something: what it gives to a SID nobody ever had. So a closed prefix (erase/frontier.py) is to get
what its **virgin twins** have, the same prefixes with a last code that no item uses there. To a model that never saw the concept
its code is one of those, and which of them nobody knows, so what it expects is their mean; what goes before them has p*, without
what the concept lent it (else the concept's own popularity would come back as its twins'). What follows a closed prefix is what
follows its twins, by the geometric mean. All of it after the history *without* its concept items, whatever the scope: a model
that never saw an item cannot take one as evidence for another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.frontier import Frontier, Walk, frontier, walk
from recerase.erase.paths import item_rows, node_log_probs, start
from recerase.erase.twins import Unseen, drawn_twins
from recerase.model.batches import causal_inputs
from recerase.model.recommender import Recommender, State
from recerase.parallel import workers
from recerase.sid.table import SidTable
from recerase.types import BoolArray, IntArray, Scope

FEW = 128
"""Histories after which twins are drawn and what follows them is read."""
NOTHING = 1e-30
"""Stands for probability 0 where a logarithm is taken."""


@dataclass(frozen=True, eq=False)
class Target:
    """One batch of histories and what to say after them. All tensors are constants."""

    histories: Histories
    path: Tensor
    """int64 [B, L] a SID outside the concept, along which the whole distribution is given."""
    log_probs: Tensor
    """[B, L, V] log p* at each node of `path`."""
    closed: Tensor
    """[B, E] log p* of the frontier's closed prefixes: what their virgin twins get."""
    mass: Tensor
    """[B] the original's probability of all closed prefixes."""


class Teacher:
    """The original model, asked what it would say without the concept."""

    def __init__(self, model: Recommender, table: SidTable, members: BoolArray, scope: Scope, seed: int) -> None:
        self.model, self.table, self.members, self.scope = model, table, members, scope
        self.frontier: Frontier = frontier(table, members, model.device)
        self._rng = np.random.default_rng([seed, 101])
        self._unseen: Unseen | None = None

    def read(self, histories: Histories) -> State:
        """The original after the histories; with scope `influence`, as if they had no concept items."""
        seen = histories.without(self.members) if self.scope == "influence" else histories
        return start(self.model, self.table, seen)

    def target(self, histories: Histories, paths: IntArray) -> Target:
        """The target after each history; `paths` int [B] are items outside the concept, -1 draws a SID from p*.

        Processes that share an erasure read a part of the histories each, and have the targets of all of them.
        """
        mine = _mine(len(histories))
        own, drawn = histories.take(mine), bool((paths < 0).any())
        with torch.no_grad():
            state = self.read(own)
            seen = walk(self.model, state, self.frontier)
            mass = seen.closed(self.frontier).exp().sum(1).clamp(max=1 - 1e-4)
            shares = self._shares(seen)
            path = self._path(state, shares, paths[mine], len(histories)) if drawn else self._given(paths[mine])
            log_probs = self._renormalised(node_log_probs(self.model, state, path), path, shares)
            self._twins(histories)
            closed = self._unknown(own)
        path, log_probs, closed, mass = (_everyones(t, len(histories)) for t in (path, log_probs, closed, mass))
        return Target(histories, path, log_probs, closed, mass)

    def sequences(self, pieces: Histories) -> tuple[dict[str, Tensor], Tensor]:
        """Whole sequences for a causal model: its inputs, and log p* [B, T, V] after every token.

        For sequences without concept items, of a model on bare SIDs (elsewhere codes do not follow one another). Closed prefixes
        are deleted where they begin; the few per mille an open prefix owes the concept after such histories are left to the
        batches of `target`.
        """
        with torch.no_grad():
            inputs = causal_inputs(self.model, self.table, pieces)
            tokens = inputs["input_ids"]
            log_probs = self.model.module(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
            depth = torch.arange(tokens.shape[1], device=tokens.device) % self.table.levels
            for d, (prefixes, closed) in enumerate(self._begin):
                at = torch.nonzero(depth == d)[:, 0]
                at = at[at >= d]
                if not len(prefixes) or not len(at):
                    continue
                back = (
                    torch.stack([tokens[:, at - d + 1 + i] for i in range(d)], 2) if d else tokens[:, at, None][..., :0]
                )
                here = (back[:, :, None] == prefixes).all(3).to(log_probs.dtype) @ closed  # [B, t, V]
                log_probs[:, at] = log_probs[:, at].masked_fill(here > 0, np.log(NOTHING))
            return inputs, log_probs.log_softmax(-1)

    @cached_property
    def _begin(self) -> list[tuple[Tensor, Tensor]]:
        """A depth d: the open prefixes [n_open, d] and which codes close them, 0 or 1 [n_open, V]."""
        out, prefixes = [], torch.zeros(1, 0, dtype=torch.int64, device=self.model.device)
        for rank in self.frontier.ranks:
            closed = torch.zeros(len(prefixes), self.table.schema.vocabulary, device=prefixes.device)
            closed[rank.parent[rank.closed], rank.rows[rank.closed]] = 1.0
            out.append((prefixes, closed))
            prefixes = torch.cat([prefixes[rank.parent[rank.open]], rank.rows[rank.open, None]], 1)
        return out

    def _unknown(self, histories: Histories) -> Tensor:
        """[B, E] log p* of the closed prefixes' virgin twins: what precedes them has p*, so without what the concept lent it."""
        unseen = self._twins(histories)
        clean = histories.without(self.members)
        seen = walk(self.model, start(self.model, self.table, clean), self.frontier, unseen.twins)
        mass = seen.closed(self.frontier).exp().sum(1).clamp(max=1 - 1e-4)
        return torch.cat(seen.virgin, 1) + self._lent(seen) + unseen.continued - torch.log1p(-mass)[:, None]

    def meet(self, histories: Histories) -> None:
        """Draw the twins of every closed prefix after these histories, once; else it is done after the first that are asked for."""
        self._twins(histories)

    def _twins(self, histories: Histories) -> Unseen:
        if self._unseen is None:
            few = histories.without(self.members).take(np.arange(min(FEW, len(histories))))
            with torch.no_grad():
                self._unseen = drawn_twins(self.model, self.table, self.frontier, few, self._lent, self._rng)
        return self._unseen

    def _lent(self, seen: Walk) -> Tensor:
        """[B, E] log(1 - R) of the open prefix before each closed one."""
        shares, found = self._shares(seen), []
        for depth, rank in enumerate(self.frontier.ranks):
            above = shares[depth][:, self.frontier.ranks[depth - 1].open] if depth else shares[0]
            found.append(torch.log1p(-above[:, rank.parent[rank.closed]].clamp(max=1 - 1e-4)))
        return torch.cat(found, 1)

    def parts(self, histories: Histories) -> Tensor:
        """[N] log of each concept item's part of what its closed prefix is to get; `histories`: as for `meet`."""
        return self._twins(histories).part

    def _shares(self, seen: Walk) -> list[Tensor]:
        """R of every frontier node, a depth [B, n_d] (depth 0: [B, 1]), bottom-up: 1 if closed, else what flows below."""
        found: list[Tensor] = []
        flow: Tensor | None = None  # R of the open nodes of this depth, from below
        for rank, step in zip(reversed(self.frontier.ranks), reversed(seen.step), strict=True):
            share = step.new_zeros(step.shape)
            share[:, rank.closed] = 1.0
            if flow is not None and len(rank.open):
                share[:, rank.open] = flow[:, : len(rank.open)]
            found.insert(0, share)
            above = int(rank.parent.max()) + 1 if len(rank.parent) else 1
            flow = step.new_zeros(len(step), above).index_add(1, rank.parent, step.exp() * share)
        assert flow is not None
        return [flow.clamp(max=1 - 1e-4), *found]

    def _given(self, paths: IntArray) -> Tensor:
        """[B, L] the SIDs of the items `paths`, those of item 0 where it is -1."""
        return item_rows(self.model, self.table, np.maximum(paths, 0))

    def _path(self, state: State, shares: list[Tensor], paths: IntArray, whole: int) -> Tensor:
        """[B, L] the SIDs of `paths`, and SIDs drawn level by level from p* where it is -1.

        Draws are made for the `whole` batch, of which these are this process's histories: its size decides what is drawn.
        """
        given = self._given(paths)
        free = torch.from_numpy(paths < 0).to(given.device)
        mine = torch.from_numpy(_mine(whole)).to(given.device)
        generator = torch.Generator(given.device).manual_seed(int(self._rng.integers(2**62)))
        drawn = torch.zeros_like(given)
        zero = torch.zeros(1, dtype=torch.int64, device=given.device)
        current, node = state, torch.zeros(len(paths), dtype=torch.int64, device=given.device)
        for level in range(given.shape[1]):
            here = current.log_probs[:, 0] if level else current.log_probs
            log_p, children = self._delete(here, node, level, shares)
            code = torch.multinomial(_everyones(log_p, whole).exp(), 1, generator=generator)[mine]
            drawn[:, level : level + 1] = code
            node = children.gather(1, code)[:, 0]
            if level + 1 < given.shape[1]:
                current = self.model.advance(current, code, zero if level else None)
        return torch.where(free[:, None], drawn, given)

    def _renormalised(self, log_probs: Tensor, path: Tensor, shares: list[Tensor]) -> Tensor:
        """p* at every node of `path` from p_0 there: [B, L, V]."""
        node = torch.zeros(len(path), dtype=torch.int64, device=path.device)
        out = []
        for level in range(path.shape[1]):
            found, children = self._delete(log_probs[:, level], node, level, shares)
            out.append(found)
            node = children.gather(1, path[:, level : level + 1])[:, 0]
        return torch.stack(out, 1)

    def _delete(self, log_probs: Tensor, node: Tensor, depth: int, shares: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Delete the concept's share below open nodes [B] of `depth` (-1: outside the frontier), and renormalise.

        Returns:
            log p* [B, V], and for every code the open node it leads to [B, V] (-1: outside).
        """
        rank = self.frontier.ranks[depth]
        mine = rank.parent[None] == node[:, None]  # [B, n]
        share = torch.zeros_like(log_probs).index_add(1, rank.rows, torch.where(mine, shares[depth + 1], 0.0))
        number = torch.zeros_like(rank.rows)
        number[rank.open] = torch.arange(1, len(rank.open) + 1, device=number.device)
        children = torch.zeros(log_probs.shape, dtype=torch.int64, device=node.device)
        children = children.index_add(1, rank.rows, torch.where(mine, number, 0))
        kept = log_probs.exp() * (1 - share)
        return (kept / kept.sum(1, keepdim=True).clamp(min=NOTHING)).clamp(min=NOTHING).log(), children - 1


def _mine(n: int) -> IntArray:
    """Which of n histories this process reads; all of them where there are fewer than processes."""
    return workers().mine(n) if n >= workers().size else np.arange(n)


def _everyones(found: Tensor, n: int) -> Tensor:
    """[n, ...] what all processes found, from what this one found for `_mine(n)`."""
    who = workers()
    if who.size == 1 or n < who.size:
        return found
    whole = found.new_empty((n, *found.shape[1:]))
    for rank, part in enumerate(who.gathered(found.cpu())):
        whole[rank :: who.size] = part.to(found.device)
    return whole
