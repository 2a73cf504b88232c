"""The trie is exactly the set of its items' prefixes: compared with a dictionary of prefixes built one by one."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from recerase.sid.table import SidSchema, SidTable
from recerase.sid.trie import Trie


@st.composite
def tables(draw: st.DrawFn) -> SidTable:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    codes = np.stack([rng.integers(0, k, n) for k in sizes], axis=1)
    codes[rng.random(n) < 0.2] = -1
    native = SidSchema.native(sizes, "allowed")
    shuffled = rng.permutation(np.arange(3, native.vocabulary))  # rows need not follow the order of the codes
    rows = tuple(np.split(shuffled, np.cumsum(sizes)[:-1]))
    schema = SidSchema(native.codes, rows, native.vocabulary, 0, 1, 2, "allowed")
    ids = [f"i{v}" for v in rng.permutation(n)]
    return SidTable.build(ids, codes, schema, listed=rng.random(n) < 0.8)


def prefixes(trie: Trie) -> list[list[tuple[int, ...]]]:
    """Each depth's nodes as prefixes of rows, read upwards through `parent`."""
    out: list[list[tuple[int, ...]]] = [[()]]
    for depth in range(1, trie.levels + 1):
        out.append(
            [(*out[-1][p], t) for p, t in zip(trie.parent[depth].tolist(), trie.tokens[depth].tolist(), strict=True)]
        )
    return out


@given(tables(), st.booleans())
def test_nodes_are_the_prefixes_and_leaves_hold_the_items(table: SidTable, default: bool) -> None:
    chosen = table.listed if default else ~table.listed
    trie = Trie.build(table) if default else Trie.build(table, chosen)
    rows = {i: tuple(table.rows()[i].tolist()) for i in np.flatnonzero(chosen & table.present).tolist()}
    nodes = prefixes(trie)
    for depth in range(table.levels + 1):
        assert nodes[depth] == (sorted({r[:depth] for r in rows.values()}) if depth else [()])
        assert trie.n_nodes(depth) == len(nodes[depth])
    for leaf, prefix in enumerate(nodes[-1]):
        items = trie.leaf_items[trie.leaf_start[leaf] : trie.leaf_start[leaf + 1]].tolist()
        same = [i for i, r in rows.items() if r == prefix]
        assert items == sorted(same, key=lambda i: str(table.item_ids[i]))
    assert len(trie.leaf_items) == len(rows)


@given(tables())
def test_children_are_the_nodes_that_call_a_node_parent(table: SidTable) -> None:
    trie = Trie.build(table)
    for depth in range(table.levels):
        first = trie.first_child[depth]
        assert first[0] == 0
        assert first[-1] == trie.n_nodes(depth + 1)
        most = 0
        for node in range(trie.n_nodes(depth)):
            children = np.flatnonzero(trie.parent[depth + 1] == node)
            assert children.tolist() == list(range(first[node], first[node + 1]))
            assert (np.diff(trie.tokens[depth + 1][children]) > 0).all()
            most = max(most, len(children))
        assert trie.max_children(depth) == most


@given(tables())
def test_node_of_walks_from_leaf_to_root(table: SidTable) -> None:
    trie, nodes = Trie.build(table), prefixes(Trie.build(table))
    items = np.arange(len(table))
    np.testing.assert_array_equal(trie.node_of(items), trie.leaf_of(len(table)))
    for depth in range(table.levels + 1):
        for item, node in zip(items, trie.node_of(items, depth), strict=True):
            inside = table.listed[item] and table.present[item]
            assert (nodes[depth][node] == tuple(table.rows()[item][:depth])) if inside else node == -1


@given(tables(), st.randoms())
def test_the_order_of_the_items_does_not_matter(table: SidTable, random: object) -> None:
    order = list(range(len(table)))
    random.shuffle(order)  # type: ignore[attr-defined]
    a, b = Trie.build(table), Trie.build(table.aligned(table.item_ids[order]))
    for x, y in zip((*a.tokens, *a.first_child, a.leaf_start), (*b.tokens, *b.first_child, b.leaf_start), strict=True):
        np.testing.assert_array_equal(x, y)
    ids = table.item_ids
    assert ids[a.leaf_items].tolist() == ids[order][b.leaf_items].tolist()


def test_a_trie_of_nothing_is_empty() -> None:
    table = SidTable.build(["a"], np.array([[1, 2]]))
    trie = Trie.build(table, np.array([False]))
    assert [trie.n_nodes(d) for d in range(3)] == [1, 0, 0]
    assert trie.max_children(0) == trie.max_leaf_items == len(trie.leaf_items) == 0
    assert trie.node_of(np.array([0])).tolist() == [-1]


def test_tensors_are_the_arrays_and_made_once() -> None:
    table = SidTable.build(["a", "b", "c"], np.array([[1, 2], [1, 0], [0, 0]]))
    trie = Trie.build(table)
    tensors = trie.torch("cpu")
    assert tensors is trie.torch("cpu")
    for array, tensor in zip((*trie.tokens, trie.leaf_items), (*tensors.tokens, tensors.leaf_items), strict=True):
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == array.tolist()


@given(tables(), st.integers(0, 2**20))
def test_the_smallest_rank_below_each_node(table: SidTable, seed: int) -> None:
    trie = Trie.build(table)
    if trie.n_nodes(table.levels):
        rank = np.random.default_rng(seed).permutation(len(table))
        for depth, found in enumerate(trie.smallest(rank)):
            at = trie.node_of(trie.leaf_items, depth)
            below = [rank[trie.leaf_items[at == node]].min() for node in range(trie.n_nodes(depth))]
            assert found.tolist() == below
