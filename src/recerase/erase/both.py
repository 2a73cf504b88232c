"""The concept under the SIDs it had and those it has got: what both are to get, and what a model gives them, in one walk.

The one decision: new SIDs are met as old ones are, at the shortest prefixes that only they have, so that every step reaches all of
them; an item's new SID is to get what its old one is, its part of its closed prefix's target. So the concept is, under either
table, as likely as if it had never been seen.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.frontier import Frontier, continuation, frontier_of_both, walk
from recerase.erase.paths import sid_log_probs, start
from recerase.erase.target import Target, Teacher
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.types import IntArray

_CELLS = 1 << 25
"""Log-probabilities (histories x items x vocabulary) that are read together."""
_LEAST = 1e-30


class Both:
    """One frontier over both tables; a *group* is the closed prefixes of the old or of the new SIDs."""

    def __init__(self, teacher: Teacher, table: SidTable) -> None:
        self.teacher, self.table = teacher, table
        self.frontier: Frontier = frontier_of_both(teacher.table, table, teacher.members, teacher.model.device)
        self._beyond = torch.zeros(self.frontier.closed, device=teacher.model.device)

    def found(self, model: Recommender, state: State, few: State) -> Tensor:
        """[B, E] log-probability of the concept's SIDs below each closed prefix.

        The prefix's own and its next code's (after `few`) are the model's; what follows those is as `look` saw it last, for it
        depends on little else and moves slowly.
        """
        onwards = continuation(model, few, self.frontier).mean(0)  # hardly depends on the history
        return walk(model, state, self.frontier).closed(self.frontier) + onwards + self._beyond

    def wanted(self, target: Target) -> Tensor:
        """[B, E] log p* of the same; -inf where nothing is known (an item that shared its whole SID, and so has no target)."""
        device = target.closed.device
        node, source = (torch.from_numpy(x).to(device) for x in self._sources)
        part = torch.from_numpy(self._items).to(device)
        offset = torch.where(part >= 0, self.teacher.parts(target.histories)[part.clamp(min=0)], 0.0)
        each = target.closed[:, source] + offset  # [B, S]
        peak = each.amax(1, keepdim=True) if each.shape[1] else each.new_zeros(len(each), 1)
        total = each.new_zeros(len(each), self.frontier.closed).index_add(1, node, (each - peak).exp())
        alone = torch.full_like(total, -torch.inf).scatter_reduce(1, node.expand(len(each), -1), each, "amax")
        return torch.where(total > 0, total.log() + peak, alone)  # so far below the peak that nothing is left of a sum

    def look(self, model: Recommender, histories: Histories) -> None:
        """See how much of each closed prefix's next codes goes on to whole SIDs of the concept, after a few histories."""
        device = model.device
        sids = torch.from_numpy(np.concatenate([self.teacher.table.rows(), self.table.rows()])).to(device)
        most = max(1, _CELLS // (len(histories) * self.table.schema.vocabulary))
        whole, at = torch.zeros(len(histories), self.frontier.closed, device=device), 0
        with torch.no_grad():
            state = start(model, self.teacher.table, histories)
            for depth, rank in enumerate(self.frontier.ranks):
                items = np.concatenate([*rank.below, np.empty(0, np.int64)]).astype(np.int64)
                node = np.repeat(np.arange(len(rank.below)), [len(below) for below in rank.below]) + at
                at += len(rank.below)
                for some in np.array_split(np.arange(len(items)), -(-len(items) // most)) if len(items) else ():
                    log_p = sid_log_probs(model, state, sids[torch.from_numpy(items[some]).to(device)])
                    rest = log_p[:, :, depth + 1 :].sum(2).exp()
                    whole = whole.index_add(1, torch.from_numpy(node[some]).to(device), rest)
            share = whole.clamp(min=_LEAST).log() - continuation(model, state, self.frontier)
        self._beyond = share.mean(0)

    @cached_property
    def groups(self) -> tuple[IntArray, ...]:
        """The closed prefixes with a target of the old SIDs and, where items moved, those of the new ones."""
        node, _ = self._sources
        old, new = (np.unique(node[some]) for some in (self._items < 0, self._items >= 0))
        return (old, new) if len(new) else (old,)

    def one_by_one(
        self, model: Recommender, state: State, target: Target, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 2, 2] log-probabilities of single concept items, log p* of the same, and where there is something to compare.

        First the item that a history leads to, where it is the concept's; then one drawn of those whose SID goes on below a closed
        prefix, of which `found` sees only all together. Each under the SID it had, and the one it has got.
        """
        theirs, *own = self._owners
        taken = target.histories.targets.astype(np.int64)
        drawn = rng.choice(self._below, len(taken)) if len(self._below) else np.full(len(taken), -1, np.int64)
        items = np.stack([taken, drawn], 1)  # [B, 2]
        known = np.stack([(node[items] >= 0) & (theirs[items] >= 0) & (items >= 0) for node in own], 2)  # [B, 2, 2]
        spelled = np.stack([table.rows()[items] for table in (self.teacher.table, self.table)], 2)  # [B, 2, 2, L]
        spelled[~known] = 0  # read, and not looked at
        device = target.closed.device
        rows = torch.from_numpy(spelled.reshape(len(items), -1, spelled.shape[3])).to(device)
        found = sid_log_probs(model, state, rows).sum(2).view(len(items), 2, 2)
        prefix = target.closed.gather(1, torch.from_numpy(np.maximum(theirs[items], 0)).to(device))
        part = self.teacher.parts(target.histories)[torch.from_numpy(np.maximum(items, 0)).to(device)]
        return found, (prefix + part)[:, :, None].expand(found.shape), torch.from_numpy(known).to(device)

    @cached_property
    def _below(self) -> IntArray:
        """The concept items with a closed prefix that is not their whole SID, under either table."""
        whole = self.frontier.closed - len(self.frontier.ranks[-1].closed)
        theirs, old, new = self._owners
        return np.flatnonzero((theirs >= 0) & (((old >= 0) & (old < whole)) | ((new >= 0) & (new < whole))))

    @cached_property
    def _owners(self) -> tuple[IntArray, IntArray, IntArray]:
        """[N] the teacher's closed prefix of each item, and ours under its old and under its new SID; -1: none."""
        n = len(self.table)
        own = self.frontier.owners(2 * n)
        return self.teacher.frontier.owners(n), own[:n], own[n:]

    @cached_property
    def _sources(self) -> tuple[IntArray, IntArray]:
        """[S], [S] what adds up to a target: our closed prefix, and the teacher's that it gets all of (old) or a part of (new)."""
        theirs, old, new = self._owners
        one = np.unique(np.stack([old, theirs], 1)[(old >= 0) & (theirs >= 0)], axis=0)
        moved = (new >= 0) & (theirs >= 0)
        return np.concatenate([one[:, 0], new[moved]]), np.concatenate([one[:, 1], theirs[moved]])

    @cached_property
    def _items(self) -> IntArray:
        """[S] the item of whose part a source is; -1: the whole of a prefix."""
        theirs, _, new = self._owners
        moved = np.flatnonzero((new >= 0) & (theirs >= 0))
        return np.concatenate([np.full(len(self._sources[0]) - len(moved), -1, np.int64), moved])
