"""One step of a beam down the trie: what every child of every beam would score.

Two ways to one result. Where most codes may follow a node (below the first codes), a dense row a node is added to a slice of the
log-probabilities. Further down, where few may, the children are listed one after the other and only they are looked up: the cost is
theirs, not that of the codes a level, nor of the node that has the most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recerase.sid.trie import TorchTrie


@dataclass(frozen=True, eq=False)
class Children:
    """Of W beams after each of B histories, C places each."""

    totals: Tensor
    """float32 [B, W * C] score of each child, -inf at places without one."""
    each: int
    """C."""
    first: Tensor
    """int64 [B, W]: number of each beam's first child, or its row in `dense`."""
    count: Tensor | None
    """[B, W] children of each beam; None with `dense`."""
    dense: Tensor | None
    """int32 [n, C] node at each place, -1 for none."""

    def nodes(self, pick: Tensor) -> Tensor:
        """int64 [B, P] trie nodes at the places `pick` [B, P]; 0 where there is no child."""
        beam, place = pick // self.each, pick % self.each
        first = self.first.gather(1, beam)
        if self.dense is not None:
            return self.dense[first, place].long().clamp(min=0)
        assert self.count is not None
        return torch.where(place < self.count.gather(1, beam), first + place, 0)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """int64 [b, W * C] trie nodes at all places, of the histories `rows` (a mask or numbers)."""
        count = None if self.count is None else self.count[rows]
        some = Children(self.totals[rows], self.each, self.first[rows], count, self.dense)
        return some.nodes(torch.arange(self.totals.shape[1], device=self.first.device).expand_as(some.totals))


def children(trie: TorchTrie, depth: int, node: Tensor, score: Tensor, log_probs: Tensor, most: int) -> Children:
    """The children of nodes [B, W] at `depth`, the beams' own `score` [B, W] added to the chances of their tokens.

    Args:
        log_probs: [B, W, V] of what follows the nodes.
        most: the most children of any node at `depth`.
    """
    dense = trie.dense if depth == 1 else None
    if dense is not None:
        each = dense.mask.shape[1]
        total = dense.mask.index_select(0, node.flatten()).view(*node.shape, each)
        total += score[..., None]
        total += log_probs[..., dense.low : dense.low + each]
        return Children(total.flatten(1), each, node, None, dense.node)
    at = node.flatten()
    first = trie.first_child[depth].index_select(0, at).long()
    count = trie.first_child[depth].index_select(0, at + 1).long() - first
    owner = torch.repeat_interleave(count)  # the beam of each child, [S]
    place = torch.arange(len(owner), device=at.device) - (count.cumsum(0) - count).index_select(0, owner)
    child = first.index_select(0, owner) + place
    chance = log_probs.flatten(0, 1)[owner, trie.tokens[depth + 1].index_select(0, child)]
    certain = trie.certain[depth + 1]
    if certain is not None:  # after the end of a shorter SID
        chance = chance.masked_fill(certain.index_select(0, child), 0.0)
    total = torch.full((len(at) * most,), float("-inf"), device=at.device)
    total.index_copy_(0, owner * most + place, score.flatten().index_select(0, owner) + chance)
    return Children(total.view(len(node), -1), most, first.view_as(node), count.view_as(node), None)
