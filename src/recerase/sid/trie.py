"""The trie of SIDs as arrays: one sorted run of nodes a level, children contiguous (compressed rows).

Built by sorting once: the codes of a SID and the number of its item are packed into one 64-bit key (sid/packing.py), so
that no item is ever touched by itself, and ids are looked at only where items share a SID. The children of node n at
depth d are the nodes first_child[d][n] to first_child[d][n + 1] of depth d + 1, so a decoding step costs the children of
the live beams and nothing else, whatever the size of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from recerase.sid.packing import Packed
from recerase.sid.table import SidTable, text_rank
from recerase.types import BoolArray, IntArray

if TYPE_CHECKING:
    import torch

_DENSE = 1 << 22
"""Entries of the dense rows at most: 32 MB."""
_SPARSE = 4
"""Entries a child at most: a child in the list costs about 10 ns, an entry of a dense row 3, the choice of the best included."""


@dataclass(frozen=True, eq=False)
class Trie:
    """Depth 0 holds the root alone; depth d nodes are the distinct prefixes of d codes, sorted by vocabulary row.

    A SID of fewer than L codes goes on with the row of eos and then with -1, one child each: every leaf is at depth L.
    """

    tokens: tuple[IntArray, ...]
    """tokens[d] int64 [n_d] vocabulary row of each node's last code; tokens[0] is [-1]."""
    parent: tuple[IntArray, ...]
    """parent[d] int32 [n_d] node at depth d - 1; parent[0] is [-1]. Every int32 here is int64 from 2 ** 31 items on."""
    first_child: tuple[IntArray, ...]
    """first_child[d] int32 [n_d + 1] for d < L: where a node's children begin at depth d + 1."""
    leaf_start: IntArray
    """int32 [n_L + 1] where a leaf's items begin in `leaf_items`."""
    leaf_items: IntArray
    """int32 items by leaf; within a leaf in the order of their ids."""
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def levels(self) -> int:
        return len(self.tokens) - 1

    def n_nodes(self, depth: int) -> int:
        return len(self.tokens[depth])

    def max_children(self, depth: int) -> int:
        """Most children of any node at `depth`; counted once."""
        return self._most(f"children {depth}", self.first_child[depth])

    @property
    def max_leaf_items(self) -> int:
        return self._most("items", self.leaf_start)

    def _most(self, name: str, starts: IntArray) -> int:
        if name not in self._cache:
            self._cache[name] = int(np.diff(starts).max(initial=0))
        found: int = self._cache[name]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; the tensors of `torch` on the processor are the same memory."""
        return sum(a.nbytes for a in (*self.tokens, *self.parent, *self.first_child, self.leaf_start, self.leaf_items))

    @classmethod
    def build(cls, table: SidTable, items: BoolArray | None = None) -> Trie:
        """The trie of the items of `items` [N] (default: the listed ones) that have a SID. May be empty."""
        chosen = np.flatnonzero((table.listed if items is None else items) & table.present)
        packed, order = Packed.of(table, chosen).sorted()
        change = packed.changes()
        small = _small(len(table))
        tokens, parents, firsts = [np.array([-1])], [np.array([-1], small)], []
        for level in range(table.levels):
            begins = np.flatnonzero(change <= level)  # the first item of every node
            opens = np.flatnonzero(change[begins] < level) if level else np.zeros(1, np.int64)  # first children
            tokens.append(packed.tokens(level, begins))
            firsts.append(np.append(opens, len(begins)).astype(small))
            parents.append(np.repeat(np.arange(len(opens), dtype=small), np.diff(firsts[-1])))
        leaf_start = np.append(begins, len(chosen)).astype(small)
        leaf_items = chosen[order].astype(small)
        _by_id(table, leaf_items, change == table.levels)
        return cls(tuple(tokens), tuple(parents), tuple(firsts), leaf_start, leaf_items)

    def without(self, items: BoolArray) -> Trie:
        """The trie less the items of `items` [N]: what `build` gives without them, from the sorted arrays as they are.

        O(N) array steps and nothing is sorted, so blocked items may change while the catalogue stays.
        """
        stays = ~items[self.leaf_items]
        alive, leaf_start = _fewer(stays, self.leaf_start)
        tokens, parents, firsts = [], [], []
        for depth in range(self.levels, 0, -1):
            tokens.append(self.tokens[depth][alive])
            alive, first = _fewer(alive, self.first_child[depth - 1], root=depth == 1)
            firsts.append(first)
            parents.append(np.repeat(np.arange(len(first) - 1, dtype=first.dtype), np.diff(first)))
        return Trie(
            (self.tokens[0], *reversed(tokens)),
            (self.parent[0], *reversed(parents)),
            tuple(reversed(firsts)),
            leaf_start,
            self.leaf_items[stays],
        )

    def node_of(self, items: IntArray, depth: int | None = None) -> IntArray:
        """[M] each item's node at `depth` (default: its leaf), -1 for items outside the trie."""
        node = self.leaf_of(int(max(items.max(initial=-1), self.leaf_items.max(initial=-1))) + 1)[items]
        for level in range(self.levels, self.levels if depth is None else depth, -1):
            node = np.append(self.parent[level], -1)[node]  # -1 stays -1
        return node

    def smallest(self, rank: IntArray) -> tuple[IntArray, ...]:
        """A depth, int64 [n_d]: the smallest `rank` [N] of the items below each node. The trie must not be empty.

        Computed once for a rank: O(N), which a search for few users would notice.
        """
        known = self._cache.get("smallest")
        if known is None or known[0] is not rank:
            found = [np.minimum.reduceat(rank[self.leaf_items], self.leaf_start[:-1])]
            for first in reversed(self.first_child):
                found.append(np.minimum.reduceat(found[-1], first[:-1]))
            known = self._cache["smallest"] = (rank, tuple(reversed(found)))
        smallest: tuple[IntArray, ...] = known[1]
        return smallest

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
            gaps = [None, *((t < 0 if (t < 0).any() else None) for t in self.tokens[1:])]
            rows = (t if gap is None else t.clip(min=0) for t, gap in zip(self.tokens, gaps, strict=True))
            self._cache[key] = TorchTrie(
                tuple(torch.from_numpy(t).to(device) for t in rows),
                tuple(torch.from_numpy(p).to(device) for p in self.parent),
                tuple(torch.from_numpy(f).to(device) for f in self.first_child),
                torch.from_numpy(self.leaf_start).to(device),
                torch.from_numpy(self.leaf_items).to(device),
                tuple(None if gap is None else torch.from_numpy(gap).to(device) for gap in gaps),
                _dense_rows(self, device),
            )
        found: TorchTrie = self._cache[key]
        return found


@dataclass(frozen=True, eq=False)
class Dense:
    """The children of every node of depth 1 by vocabulary row: a step there is an addition."""

    low: int
    """The vocabulary row of the first column."""
    node: torch.Tensor
    """int32 [n_1, C] the child, -1 for none."""
    mask: torch.Tensor
    """float32 [n_1, C] 0 where there is a child, else -inf."""


@dataclass(frozen=True, eq=False)
class TorchTrie:
    """`Trie` as tensors."""

    tokens: tuple[torch.Tensor, ...]
    parent: tuple[torch.Tensor, ...]
    first_child: tuple[torch.Tensor, ...]
    leaf_start: torch.Tensor
    leaf_items: torch.Tensor
    certain: tuple[torch.Tensor | None, ...]
    """certain[d] bool [n_d]: the token is -1, so that a step there costs nothing whatever the model says; `tokens` has 0 in
    its place. None where no node's is."""
    dense: Dense | None
    """None where it would be large, or mostly empty."""


def _dense_rows(trie: Trie, device: torch.device | str) -> Dense | None:
    """Rows for the nodes of depth 1, where a fair share of the vocabulary rows from the first to the last follows each."""
    import torch

    if trie.levels < 2 or not trie.n_nodes(2):
        return None
    low, high = int(trie.tokens[2].min()), int(trie.tokens[2].max())
    shape = (trie.n_nodes(1), high - low + 1)
    if shape[0] * shape[1] > min(_DENSE, trie.n_nodes(2) * _SPARSE):
        return None
    node = np.full(shape, -1, np.int32)
    node[trie.parent[2], trie.tokens[2] - low] = np.arange(trie.n_nodes(2))
    mask = np.where(node < 0, -np.inf, 0.0).astype(np.float32)
    return Dense(low, torch.from_numpy(node).to(device), torch.from_numpy(mask).to(device))


def _small(n: int) -> DTypeLike:
    """The smallest type that counts n items."""
    return np.int32 if n < 2**31 else np.int64


def _fewer(stays: BoolArray, starts: IntArray, root: bool = False) -> tuple[BoolArray, IntArray]:
    """Which parents keep a child (the root stays without), and where the children that stay begin below those.

    `starts` [n + 1] says where each of n parents' children begin, `stays` which of these stay.
    """
    before = np.zeros(len(stays) + 1, starts.dtype)
    np.cumsum(stays, out=before[1:])
    at = before[starts]
    alive: BoolArray = (at[1:] > at[:-1]) | root
    return alive, np.append(at[:-1][alive], at[-1])


def _by_id(table: SidTable, items: IntArray, same: BoolArray) -> None:
    """Put `items` [n], sorted by SID, in the order of their ids where they share one; `same`: as the item before."""
    if not same.any():
        return
    tied = same.copy()
    tied[:-1] |= same[1:]
    places = np.flatnonzero(tied)
    leaf = np.cumsum(~same[places])
    mine = items[places]
    rank = table.id_rank[mine] if "id_rank" in vars(table) else text_rank(table.item_ids[mine])
    items[places] = mine[np.lexsort((rank, leaf))]
