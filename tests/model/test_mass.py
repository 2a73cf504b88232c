"""Exact concept mass against enumeration: every SID of the concept, one plain forward each, summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.catalog.interactions import Histories
from recerase.errors import ConceptError
from recerase.model.decode import recommend
from recerase.model.mass import (
    catalogue_log_probs,
    concept_mass,
    forced_log_probs,
    leaf_log_probs,
    level_log_probs,
)
from recerase.model.recommender import Recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie

ItemLogProbs = Callable[[Recommender, SidTable, Histories], np.ndarray]
CONCEPT = np.isin(np.arange(26), [0, 2, 3, 5, 7, 13, 14, 20])  # 2 unlisted, 3 and 7 share a SID, 5 has none


def test_mass_is_the_sum_over_the_concepts_sids(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    truth = np.exp(item_log_probs(model, table, histories))
    found = concept_mass(model, table, CONCEPT, histories, batch=3, per_item=True)
    once = [0, 2, 3, 13, 14, 20]
    assert found.mass.dtype == np.float64
    np.testing.assert_allclose(found.mass, truth[:, once].sum(1), rtol=1e-4)
    assert found.items.tolist() == [0, 2, 3, 7, 13, 14, 20]
    assert found.log_probs is not None
    np.testing.assert_allclose(found.log_probs, np.log(truth[:, found.items]), atol=5e-5)
    np.testing.assert_array_equal(found.log_probs[:, 2], found.log_probs[:, 3])
    assert concept_mass(model, table, CONCEPT, histories).log_probs is None


def test_every_item_of_the_catalogue_is_scored_exactly(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    found = catalogue_log_probs(model, table, histories, batch=3)
    assert (found.shape, found.dtype) == ((8, 26), np.float32)
    np.testing.assert_allclose(found, item_log_probs(model, table, histories), atol=5e-5)
    assert np.isneginf(found[:, ~table.present]).all()


def test_one_item_a_history_is_scored_exactly(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    truth = item_log_probs(model, table, histories)
    found = forced_log_probs(model, table, histories, histories.targets, batch=3)
    assert np.isneginf(found[histories.targets == 5]).all()
    np.testing.assert_allclose(found, truth[np.arange(8), histories.targets], atol=5e-5)


def test_mass_and_exposure_read_the_same_model(model: Recommender, table: SidTable, histories: Histories) -> None:
    best = recommend(model, table, histories, k=4, beam=60)
    scores = catalogue_log_probs(model, table, histories)
    np.testing.assert_allclose(best.scores, np.take_along_axis(scores, best.items.astype(np.int64), 1), atol=5e-5)


def test_all_sequences_there_are_have_mass_one(make: Callable[..., Recommender]) -> None:
    """A table that spells every sequence of vocabulary rows, specials included: the mass of everything is 1."""
    everything = np.stack(np.unravel_index(np.arange(64), (4, 4, 4)), 1)
    rows = tuple(np.arange(4, dtype=np.int64) for _ in range(3))
    schema = SidSchema((4, 4, 4), rows, 4, 0, 1, 2)
    table = SidTable.build([str(i) for i in range(64)], everything, schema)
    for kind in ("causal", "seq2seq"):
        module = make(kind).module
        module.resize_token_embeddings(4)
        model = wrap(module, schema, 6)
        found = concept_mass(model, table, np.ones(64, bool), Histories.from_lists([[1, 60], [5]]))
        np.testing.assert_allclose(found.mass, 1.0, rtol=1e-5)


def test_mass_of_parts_adds_up_and_batching_changes_nothing(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    rest = table.present & ~CONCEPT
    parts = [concept_mass(model, table, c, histories, batch=b).mass for c, b in ((CONCEPT, 2), (rest, 5))]
    whole = concept_mass(model, table, table.present, histories).mass
    np.testing.assert_allclose(parts[0] + parts[1], whole, rtol=1e-5)
    assert (whole < 1).all()
    order = np.array([5, 5, 0, 7])
    again = concept_mass(model, table, CONCEPT, histories.take(order), batch=2).mass
    np.testing.assert_allclose(again, parts[0][order], rtol=1e-5)


def test_taking_the_concept_off_the_list_leaves_its_mass(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    """A filter hides what the model would say; the mass still shows it."""
    before = concept_mass(model, table, CONCEPT, histories).mass
    np.testing.assert_array_equal(concept_mass(model, table.unlisted(CONCEPT), CONCEPT, histories).mass, before)


@pytest.mark.parametrize("nodes", [1, 2, 3, 1000])
def test_stepping_a_few_nodes_at_a_time_changes_nothing(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs, nodes: int
) -> None:
    trie = Trie.build(table, table.present)
    arrays = trie.torch("cpu")
    with torch.inference_mode():
        state = model.start(*model.tokens(histories, table))
        levels = level_log_probs(model, state, arrays, nodes)
        leaves = leaf_log_probs(levels, arrays)
    assert [x.shape[1] for x in levels] == [trie.n_nodes(d) for d in (1, 2, 3)]
    truth = item_log_probs(model, table, histories)[:, trie.leaf_items[trie.leaf_start[:-1]]]
    np.testing.assert_allclose(leaves.numpy(), truth, atol=5e-5)


def test_gradients_reach_the_weights_through_the_mass(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    """One gradient step against the mass must lower it."""
    arrays = Trie.build(table, CONCEPT & table.present).torch("cpu")
    before = concept_mass(model, table, CONCEPT, histories).mass
    state = model.start(*model.tokens(histories, table))
    leaf_log_probs(level_log_probs(model, state, arrays), arrays).exp().sum().backward()
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
    assert concept_mass(model, table, CONCEPT, histories).mass.sum() < before.sum()


def test_another_table_may_spell_the_concept(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    """Histories read under the new table, SIDs scored under the old: what an audit calls the old mass."""
    old = replace(table, codes=np.ascontiguousarray(table.codes[::-1]), listed=table.listed[::-1].copy())
    truth = np.exp(item_log_probs(model, table, histories)[:, ::-1])
    one = np.isin(np.arange(26), [1, 4])
    found = concept_mass(model, table, one, histories, output=old)
    np.testing.assert_allclose(found.mass, truth[:, [1, 4]].sum(1), rtol=1e-4)


def test_a_concept_without_sids_is_refused(model: Recommender, table: SidTable, histories: Histories) -> None:
    with pytest.raises(ConceptError):
        concept_mass(model, table, np.isin(np.arange(26), [5, 11]), histories)


def test_no_histories_have_no_mass(model: Recommender, table: SidTable) -> None:
    assert concept_mass(model, table, CONCEPT, Histories.from_lists([])).mass.shape == (0,)
    assert catalogue_log_probs(model, table, Histories.from_lists([])).shape == (0, 26)
