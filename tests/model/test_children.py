"""A step down the trie against a dictionary of prefixes: the same children with the same totals, whichever way it takes."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recerase.model.children import children
from recerase.sid import trie as module
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie

SIZES = (3, 6, 4)


def random_table(rng: np.random.Generator, ragged: bool) -> SidTable:
    codes = np.stack([rng.integers(0, k, 30) for k in SIZES], 1)
    if ragged:
        lengths = rng.integers(1, 4, 30)
        lengths[0] = 3
        codes[np.arange(3) >= lengths[:, None]] = -1
    return SidTable.build([str(i) for i in range(30)], codes, SidSchema.native(SIZES, "allowed"))


@pytest.mark.parametrize("dense", [True, False])
@given(seed=st.integers(0, 2**20), ragged=st.booleans(), depth=st.sampled_from([1, 2]))
def test_every_child_of_every_beam_is_there_once(dense: bool, seed: int, ragged: bool, depth: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng, ragged)
    with mock.patch.object(module, "_DENSE", module._DENSE if dense else 0):
        trie = Trie.build(table)
        arrays = trie.torch()
    assert dense or arrays.dense is None
    node = torch.from_numpy(rng.integers(0, trie.n_nodes(depth), (3, 5)))
    score = torch.randn(3, 5).masked_fill(torch.from_numpy(rng.random((3, 5)) < 0.2), float("-inf"))
    log_probs = torch.randn(3, 5, table.schema.vocabulary + 2).log_softmax(-1)[..., :-2]  # a slice, as of a padded head
    found = children(arrays, depth, node, score, log_probs, trie.max_children(depth))
    places = torch.arange(found.totals.shape[1]).expand_as(found.totals)
    everyone = found[torch.arange(3)]
    assert torch.equal(found.nodes(places), everyone)
    assert torch.equal(found[torch.tensor([True, False, True])], everyone[[0, 2]])
    for b in range(3):
        for w in range(5):
            at = slice(w * found.each, (w + 1) * found.each)
            there = torch.isfinite(found.totals[b, at])
            got = dict(zip(everyone[b, at][there].tolist(), found.totals[b, at][there].tolist(), strict=True))
            below = np.flatnonzero(trie.parent[depth + 1] == int(node[b, w]))
            tokens = trie.tokens[depth + 1][below]
            chances = [0.0 if t < 0 else float(log_probs[b, w, t]) for t in tokens]
            wanted = {int(n): float(score[b, w]) + c for n, c in zip(below, chances, strict=True)}
            assert got == pytest.approx(wanted if torch.isfinite(score[b, w]) else {})
            assert there.sum() == len(got)


def test_dense_rows_are_made_where_most_codes_follow_and_only_there() -> None:
    full = np.stack(np.unravel_index(np.arange(36), (6, 6)), 1)
    table = SidTable.build([str(i) for i in range(36)], full)
    assert Trie.build(table).torch().dense is not None
    sparse = Trie.build(table, np.isin(np.arange(36), [0, 35])).torch()
    assert sparse.dense is None
    with mock.patch.object(module, "_DENSE", 35):
        assert Trie.build(table).torch().dense is None
    assert Trie.build(SidTable.build(["a"], np.array([[1]]))).torch().dense is None
