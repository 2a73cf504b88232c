"""The trie of SIDs as arrays: one sorted run of nodes a level, children contiguous (compressed rows).

Built by sorting once, with no loop over items. The children of node n at depth d are the nodes first_child[d][n] to
first_child[d][n + 1] of depth d + 1, so a decoding step costs the children of the live beams and nothing else, whatever
the size of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.sid.table import SidTable
from recerase.types import BoolArray, IntArray

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Trie:
    """Depth 0 holds the root alone; depth d nodes are the distinct prefixes of d codes, sorted."""

    tokens: tuple[IntArray, ...]
    """tokens[d] int64 [n_d] vocabulary row of each node's last code; tokens[0] is [-1]."""
    parent: tuple[IntArray, ...]
    """parent[d] int64 [n_d] node at depth d - 1; parent[0] is [-1]."""
    first_child: tuple[IntArray, ...]
    """first_child[d] int64 [n_d + 1] for d < L: where a node's children begin at depth d + 1."""
    leaf_start: IntArray
    """int64 [n_L + 1] where a leaf's items begin in `leaf_items`."""
    leaf_items: IntArray
    """int64 items by leaf; within a leaf in the order of their ids."""
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def levels(self) -> int:
        return len(self.tokens) - 1

    def n_nodes(self, depth: int) -> int:
        return len(self.tokens[depth])

    def max_children(self, depth: int) -> int:
        """Most children of any node at `depth`."""
        return int(np.diff(self.first_child[depth]).max(initial=0))

    @property
    def max_leaf_items(self) -> int:
        return int(np.diff(self.leaf_start).max(initial=0))

    @classmethod
    def build(cls, table: SidTable, items: BoolArray | None = None) -> Trie:
        """The trie of the items of `items` [N] (default: the listed ones) that have a SID. May be empty."""
        chosen = np.flatnonzero((table.listed if items is None else items) & table.present)
        rows = table.rows()[chosen]  # [n, L]
        ids = table.item_ids[chosen].astype(str)
        order = np.lexsort((ids, *rows.T[::-1]))
        rows, chosen = rows[order], chosen[order]
        new = np.ones((len(rows), table.levels), bool)
        if len(rows):
            new[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
        tokens, parents, firsts = [np.array([-1])], [np.array([-1])], []
        above = np.zeros(len(rows), np.int64)  # each item's node one level up
        for level in range(table.levels):
            begins = np.flatnonzero(new[:, level])
            tokens.append(rows[begins, level])
            parents.append(above[begins])
            firsts.append(np.searchsorted(above[begins], np.arange(len(tokens[level]) + 1)).astype(np.int64))
            above = np.cumsum(new[:, level]) - 1
        leaf_start = np.searchsorted(above, np.arange(len(tokens[-1]) + 1)).astype(np.int64)
        return cls(tuple(tokens), tuple(parents), tuple(firsts), leaf_start, chosen.astype(np.int64))

    def node_of(self, items: IntArray, depth: int | None = None) -> IntArray:
        """int64 [M] each item's node at `depth` (default: its leaf), -1 for items outside the trie."""
        node = self.leaf_of(int(max(items.max(initial=-1), self.leaf_items.max(initial=-1))) + 1)[items]
        for level in range(self.levels, self.levels if depth is None else depth, -1):
            node = np.append(self.parent[level], -1)[node]  # -1 stays -1
        return node

    def smallest(self, rank: IntArray) -> tuple[IntArray, ...]:
        """A depth, int64 [n_d]: the smallest `rank` [N] of the items below each node. The trie must not be empty."""
        found = [np.minimum.reduceat(rank[self.leaf_items], self.leaf_start[:-1])]
        for first in reversed(self.first_child):
            found.append(np.minimum.reduceat(found[-1], first[:-1]))
        return tuple(reversed(found))

    def leaf_of(self, n_items: int) -> IntArray:
        """int64 [N] leaf of every item, -1 for items outside the trie."""
        out = np.full(n_items, -1, np.int64)
        out[self.leaf_items] = np.repeat(np.arange(self.n_nodes(self.levels)), np.diff(self.leaf_start))
        return out

    def torch(self, device: torch.device | str = "cpu") -> TorchTrie:
        """The same arrays as tensors on `device`, made once."""
        import torch

        key = str(device)
        if key not in self._cache:
            self._cache[key] = TorchTrie(
                tuple(torch.from_numpy(t).to(device) for t in self.tokens),
                tuple(torch.from_numpy(p).to(device) for p in self.parent),
                tuple(torch.from_numpy(f).to(device) for f in self.first_child),
                torch.from_numpy(self.leaf_start).to(device),
                torch.from_numpy(self.leaf_items).to(device),
            )
        found: TorchTrie = self._cache[key]
        return found


@dataclass(frozen=True, eq=False)
class TorchTrie:
    """`Trie` as tensors."""

    tokens: tuple[torch.Tensor, ...]
    parent: tuple[torch.Tensor, ...]
    first_child: tuple[torch.Tensor, ...]
    leaf_start: torch.Tensor
    leaf_items: torch.Tensor
