"""The trie is exactly the set of its items' prefixes: compared with a dictionary of prefixes built one by one."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recerase.sid import packing
from recerase.sid.table import SidSchema, SidTable
from recerase.sid.trie import Trie


@st.composite
def tables(draw: st.DrawFn) -> SidTable:
    """Up to 25 items with collisions, gaps and flags; SIDs of one length or of several; rows in any order."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n = draw(st.integers(1, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    codes = np.stack([rng.integers(0, k, n) for k in sizes], axis=1)
    if draw(st.booleans()):
        lengths = rng.integers(1, len(sizes) + 1, n)
        lengths[0] = len(sizes)
        codes[np.arange(len(sizes)) >= lengths[:, None]] = -1
    codes[1:][rng.random(n - 1) < 0.2] = -1
    native = SidSchema.native(sizes, "allowed")
    pad, bos, eos, *shuffled = rng.permutation(native.vocabulary)  # rows need not follow the order of the codes
    rows = tuple(np.split(np.array(shuffled), np.cumsum(sizes)[:-1]))
    schema = SidSchema(native.codes, rows, native.vocabulary, int(pad), int(bos), int(eos), "allowed")
    ids = [f"i{v}" for v in rng.permutation(n)]
    return SidTable.build(ids, codes, schema, listed=rng.random(n) < 0.8)


def arrays(trie: Trie) -> list[np.ndarray]:
    return [*trie.tokens, *trie.parent, *trie.first_child, trie.leaf_start, trie.leaf_items]


def same(a: Trie, b: Trie) -> bool:
    """Every array has the same values and type."""
    return all(x.dtype == y.dtype and x.tolist() == y.tolist() for x, y in zip(arrays(a), arrays(b), strict=True))


def prefixes(trie: Trie) -> list[list[tuple[int, ...]]]:
    """Each depth's nodes as prefixes of rows, read upwards through `parent`."""
    out: list[list[tuple[int, ...]]] = [[()]]
    for depth in range(1, trie.levels + 1):
        out.append(
            [(*out[-1][p], t) for p, t in zip(trie.parent[depth].tolist(), trie.tokens[depth].tolist(), strict=True)]
        )
    return out


@pytest.mark.parametrize("bits", [3, 7, 12, 64])
@given(table=tables(), default=st.booleans())
def test_nodes_are_the_prefixes_and_leaves_hold_the_items(table: SidTable, default: bool, bits: int) -> None:
    """With keys of few bits: SIDs of several words, and words without room for the item's number."""
    chosen = table.listed if default else ~table.listed
    with mock.patch.object(packing, "_BITS", bits):
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
    held = [*tensors.tokens, *tensors.parent, *tensors.first_child, tensors.leaf_start, tensors.leaf_items]
    for array, tensor in zip(arrays(trie), held, strict=True):
        assert tensor.tolist() == array.tolist()
        assert tensor.data_ptr() == array.ctypes.data  # one memory
    assert {t.dtype for t in tensors.tokens} == {torch.int64}  # as gather wants them
    assert {t.dtype for t in held[len(tensors.tokens) :]} == {torch.int32}
    assert tensors.certain == (None, None, None)
    assert trie.nbytes == sum(array.nbytes for array in arrays(trie))


def test_what_follows_the_end_of_a_sid_is_certain() -> None:
    codes = np.array([[1, 2, 0], [1, 2, -1], [1, -1, -1], [0, -1, -1]])
    table = SidTable.build(list("abcd"), codes)
    tensors = Trie.build(table).torch()
    eos, one, zero = table.schema.eos, table.schema.rows[0][1], table.schema.rows[0][0]
    assert tensors.tokens[1].tolist() == [zero, one]
    assert tensors.tokens[2].tolist() == [eos, eos, table.schema.rows[1][2]]
    assert tensors.tokens[3].tolist() == [0, 0, eos, table.schema.rows[2][0]]
    assert tensors.certain[:3] == (None, None, None)
    assert tensors.certain[3] is not None
    assert tensors.certain[3].tolist() == [True, True, False, False]


@given(tables(), st.integers(0, 2**20), st.floats(0, 1))
def test_a_trie_without_items_is_the_one_built_without_them(table: SidTable, seed: int, share: float) -> None:
    trie = Trie.build(table)
    before = [a.copy() for a in arrays(trie)]
    gone = np.random.default_rng(seed).random(len(table)) < share
    assert same(trie.without(gone), Trie.build(table, table.listed & ~gone))
    assert same(trie.without(gone).without(~gone), Trie.build(table, np.zeros(len(table), bool)))
    assert same(trie.without(np.zeros(len(table), bool)), trie)
    assert all((x == y).all() for x, y in zip(before, arrays(trie), strict=True))


@given(tables())
def test_the_order_within_a_leaf_is_that_of_the_ids_whether_or_not_they_are_ranked(table: SidTable) -> None:
    plain = Trie.build(table, table.present)
    assert (table.id_rank.argsort() == sorted(range(len(table)), key=lambda i: table.item_ids[i])).all()
    assert same(Trie.build(table, table.present), plain)


def test_sids_of_more_than_64_bits_are_sorted_as_any_other() -> None:
    rng = np.random.default_rng(0)
    sizes = [1 << 14] * 6
    codes = rng.integers(0, 3, (300, 6)) * ((1 << 13) - 1)
    table = SidTable.build([f"{i:03}" for i in range(300)], codes, SidSchema.native(sizes, "allowed"))
    trie = Trie.build(table)
    assert prefixes(trie)[-1] == sorted({tuple(row) for row in table.rows().tolist()})
    leaves = np.repeat(np.arange(trie.n_nodes(6)), np.diff(trie.leaf_start))
    assert [prefixes(trie)[-1][leaf] for leaf in leaves] == [tuple(r) for r in table.rows()[trie.leaf_items].tolist()]


def test_blocks_of_packing_change_nothing() -> None:
    rng = np.random.default_rng(1)
    table = SidTable.build(
        [str(i) for i in range(500)], rng.integers(0, 5, (500, 3)), SidSchema.native([5] * 3, "allowed")
    )
    whole = Trie.build(table)
    for block in (1, 7, 500):
        with mock.patch.object(packing, "_BLOCK", block):
            assert same(Trie.build(table), whole)


@given(tables(), st.integers(0, 2**20))
def test_the_smallest_rank_below_each_node(table: SidTable, seed: int) -> None:
    trie = Trie.build(table)
    if trie.n_nodes(table.levels):
        rank = np.random.default_rng(seed).permutation(len(table))
        for depth, found in enumerate(trie.smallest(rank)):
            at = trie.node_of(trie.leaf_items, depth)
            below = [rank[trie.leaf_items[at == node]].min() for node in range(trie.n_nodes(depth))]
            assert found.tolist() == below
