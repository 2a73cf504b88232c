"""Exact recommendations are those of a search that drops nothing: same items, same order, scores to the last places."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recerase.catalog.interactions import Histories
from recerase.errors import UsageError
from recerase.model import exact
from recerase.model.decode import recommend
from recerase.model.exact import leaf_scores, recommend_exact
from recerase.model.mass import leaf_log_probs, level_log_probs
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie

Enumerate = Callable[[Recommender, SidTable, Histories], np.ndarray]


@pytest.mark.parametrize("k", [1, 5, 40])
def test_it_is_a_beam_as_wide_as_the_trie(model: Recommender, table: SidTable, histories: Histories, k: int) -> None:
    found = recommend_exact(model, table, histories, k=k)
    searched = recommend(model, table, histories, k=k, beam=len(table))
    assert np.array_equal(found.items, searched.items)
    np.testing.assert_allclose(found.scores, searched.scores, rtol=1e-5, atol=1e-5)
    assert (found.items[:, -1] == -1).all() == (k == 40)


def test_it_is_the_sorted_enumeration(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: Enumerate
) -> None:
    truth = np.where(table.listed, item_log_probs(model, table, histories), -np.inf)
    found = recommend_exact(model, table, histories, k=4)
    np.testing.assert_allclose(found.scores, -np.sort(-truth, axis=1)[:, :4], rtol=1e-4, atol=1e-4)
    assert np.isfinite(np.take_along_axis(truth, found.items.astype(np.int64), 1)).all()


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_and_their_order_change_nothing(
    model: Recommender, table: SidTable, histories: Histories, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recommend_exact(model, table, histories, k=6)
    order = np.random.default_rng(0).permutation(len(histories))
    parts = recommend_exact(model, table, histories.take(order), k=6, batch=batch)
    assert np.array_equal(parts.items, whole.items[order])
    monkeypatch.setattr(exact, "_SCORES", 1)  # a catalogue so large that users come one by one
    assert np.array_equal(recommend_exact(model, table, histories, k=6).items, whole.items)


@pytest.mark.parametrize("nodes", [1, 2, 3, 1000])
def test_blocks_of_any_size_give_the_scores_of_a_whole_walk(
    model: Recommender, table: SidTable, histories: Histories, nodes: int
) -> None:
    arrays = Trie.build(table).torch(model.device)
    with torch.inference_mode():
        state = model.start(*model.tokens(histories, table))
        walked = leaf_log_probs(level_log_probs(model, state, arrays), arrays)
        torch.testing.assert_close(leaf_scores(model, state, arrays, nodes), walked, rtol=1e-5, atol=1e-5)


def test_without_a_preference_the_smallest_ids_come_first(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    """Every step is uniform, so every item has one score: at the edge of k as everywhere, ids decide."""
    with torch.no_grad():
        model.module.lm_head.weight.zero_()  # type: ignore[union-attr, operator]
    listed = np.flatnonzero(table.listed & table.present)
    smallest = listed[np.argsort(table.item_ids[listed].astype(str))]
    found = recommend_exact(model, table, histories, k=7)
    assert np.array_equal(found.items, np.tile(smallest[:7], (len(histories), 1)))


def test_nothing_to_recommend_and_nobody(model: Recommender, table: SidTable, histories: Histories) -> None:
    nothing = table.unlisted(np.ones(len(table), bool))
    assert (recommend_exact(model, nothing, histories, k=3).items == -1).all()
    assert recommend_exact(model, table, histories.take(np.zeros(0, np.int64)), k=3).items.shape == (0, 3)


def test_what_is_too_large_or_asks_for_nothing_is_refused(
    model: Recommender, table: SidTable, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        recommend_exact(model, table, histories, k=0)
    monkeypatch.setattr(exact, "MOST_ITEMS", int((table.listed & table.present).sum()))
    recommend_exact(model, table, histories)
    monkeypatch.setattr(exact, "MOST_ITEMS", exact.MOST_ITEMS - 1)
    with pytest.raises(UsageError, match="--exact") as error:
        recommend_exact(model, table, histories)
    assert "--beam" in error.value.remedy
