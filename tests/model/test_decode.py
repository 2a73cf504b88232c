"""Beam search against enumeration: a beam as wide as the trie is exact, and every score is an exact log-probability."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import UsageError
from recerase.model.decode import _best, generate_free, length_batches, recommend
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie
from recerase.types import Silent

ItemLogProbs = Callable[[Recommender, SidTable, Histories], np.ndarray]


def ranking(scores: np.ndarray, table: SidTable, allowed: np.ndarray) -> list[int]:
    """Allowed items by score, equal scores (items of one SID) by id."""
    return sorted(np.flatnonzero(allowed), key=lambda i: (-round(scores[i], 9), str(table.item_ids[i])))


def test_a_wide_beam_finds_the_best_listed_items_in_order(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    truth = item_log_probs(model, table, histories)
    found = recommend(model, table, histories, k=10, beam=60)
    assert (found.items.dtype, found.scores.dtype) == (np.int32, np.float32)
    for b in range(len(histories)):
        assert found.items[b].tolist() == ranking(truth[b], table, table.listed)[:10]
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.items.astype(np.int64), 1), atol=5e-5)


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_narrow_beam_may_miss_items_but_never_misjudges_one(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs, beam: int
) -> None:
    truth = item_log_probs(model, table, histories)
    found = recommend(model, table, histories, k=6, beam=beam)
    there = found.items >= 0
    assert there[:, 0].all()
    assert (there == np.isfinite(found.scores)).all()
    score = np.take_along_axis(truth, np.maximum(found.items, 0).astype(np.int64), 1)
    np.testing.assert_allclose(found.scores[there], score[there], atol=5e-5)
    assert table.listed[found.items[there]].all()
    assert (np.diff(np.where(there, found.scores, -1e9), axis=1) <= 0).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found.items)


def test_a_beam_follows_the_textbook_search(
    model: Recommender, table: SidTable, histories: Histories, plain: Callable[..., Tensor]
) -> None:
    """Twin: at every level keep the W best prefixes that some listed item has."""
    width, rows = 3, table.rows()
    for b in range(len(histories)):
        items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        known = np.flatnonzero(table.listed & table.present)
        paths = torch.from_numpy(rows[known])
        steps = plain(model, table, items, paths).gather(2, paths[..., None])[..., 0].numpy()
        alive = {(): 0.0}
        for level in range(1, 4):
            grown = {
                tuple(path[:level]): alive[tuple(path[: level - 1])] + step[level - 1]
                for path, step in zip(rows[known].tolist(), steps, strict=True)
                if tuple(path[: level - 1]) in alive
            }
            alive = dict(sorted(grown.items(), key=lambda x: -x[1])[:width])
        wanted = [i for p in alive for i in sorted(known, key=lambda j: str(table.item_ids[j])) if tuple(rows[i]) == p]
        found = recommend(model, table, histories.take([b]), k=8, beam=width).items[0]
        assert found[found >= 0].tolist() == wanted


def test_answers_do_not_depend_on_batching_order_or_company(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    whole = recommend(model, table, histories, k=5)
    for batch in (1, 3):
        split = recommend(model, table, histories, k=5, batch=batch)
        np.testing.assert_array_equal(split.items, whole.items)
        np.testing.assert_allclose(split.scores, whole.scores, atol=2e-5)
    order = np.array([6, 6, 0, 4, 1, 1, 3, 7, 2, 5, 6])
    shuffled = recommend(model, table, histories.take(order), k=5, batch=4)
    np.testing.assert_array_equal(shuffled.items, whole.items[order])


def test_equal_scores_are_ordered_by_item_id(
    make: Callable[..., Recommender], table: SidTable, histories: Histories
) -> None:
    """A head of zeros makes all SIDs equally likely."""
    model = make("causal")
    with torch.no_grad():
        model.module.lm_head.weight.zero_()
    found = recommend(model, table, histories, k=24, beam=60)
    by_id = sorted(np.flatnonzero(table.listed), key=lambda i: str(table.item_ids[i]))
    assert found.items[0, : len(by_id)].tolist() == by_id
    np.testing.assert_allclose(found.scores[0, : len(by_id)], -3 * np.log(model.schema.vocabulary), rtol=1e-6)


def test_items_of_one_sid_stand_side_by_side_with_one_score(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    found = recommend(model, table, histories, k=22, beam=60)
    for items, scores in zip(found.items.tolist(), found.scores, strict=True):
        places = sorted((items.index(3), items.index(7)))
        assert places[1] == places[0] + 1
        assert scores[places[0]] == scores[places[1]]
        assert str(table.item_ids[items[places[0]]]) < str(table.item_ids[items[places[1]]])


def test_a_trie_with_fewer_items_than_asked_for_leaves_the_rest_empty(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    few = np.isin(np.arange(len(table)), [2, 4, 8])
    found = recommend(model, table, histories, k=6, trie=Trie.build(table, few))
    assert all(set(row[:3].tolist()) == {2, 4, 8} for row in found.items)
    assert (found.items[:, 3:] == -1).all()
    assert np.isneginf(found.scores[:, 3:]).all()
    none = recommend(model, table, histories, k=4, trie=Trie.build(table, np.zeros(len(table), bool)))
    assert (none.items == -1).all()


def test_no_histories_give_no_answers(model: Recommender, table: SidTable) -> None:
    nobody = Histories.from_lists([])
    assert recommend(model, table, nobody, k=4).items.shape == (0, 4)
    assert generate_free(model, table, nobody, beam=4).rows.shape == (0, 4, 3)


def test_taking_an_item_off_the_list_closes_the_gap_and_keeps_every_score(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    """A filtered trie is not erasure: nothing is renormalised."""
    whole = recommend(model, table, histories, k=20, beam=60)
    best = np.isin(np.arange(len(table)), whole.items[:, 0])
    rest = recommend(model, table.unlisted(best), histories, k=8, beam=60)
    for b in range(len(histories)):
        kept = ~best[whole.items[b]]
        assert rest.items[b].tolist() == whole.items[b][kept][:8].tolist()
        np.testing.assert_allclose(rest.scores[b], whole.scores[b][kept][:8], atol=2e-5)


@pytest.mark.parametrize(("k", "beam"), [(0, 5), (5, 0)])
def test_a_search_for_nothing_is_refused(
    model: Recommender, table: SidTable, histories: Histories, k: int, beam: int
) -> None:
    with pytest.raises(UsageError):
        recommend(model, table, histories, k=k, beam=beam)
    if not beam:
        with pytest.raises(UsageError):
            generate_free(model, table, histories, beam=beam)


def test_weights_and_mode_are_left_alone(model: Recommender, table: SidTable, histories: Histories) -> None:
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    recommend(model, table, histories)
    generate_free(model, table, histories)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    assert not model.module.training


def test_the_observer_counts_every_history(model: Recommender, table: SidTable, histories: Histories) -> None:
    class Counting(Silent):
        counted = 0
        total: int | None = 0

        def start(self, task: str, total: int | None) -> None:
            self.total = total

        def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
            self.counted += step

    observer = Counting()
    recommend(model, table, histories, batch=3, observer=observer)
    assert observer.counted == observer.total == len(histories)


def test_batches_hold_every_row_once_shortest_first(model: Recommender, table: SidTable, histories: Histories) -> None:
    batches = list(length_batches(model, table, histories, 3))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(histories)))
    assert [len(b) for b in batches] == [3, 3, 2]
    tops = [int(model.tokens(histories.take(b), table)[1].max()) for b in batches]
    assert tops == sorted(tops)


def test_free_decoding_with_a_wide_beam_is_enumeration_of_the_vocabulary(
    make: Callable[..., Recommender], table: SidTable, plain: Callable[..., Tensor]
) -> None:
    """All 15 ** 3 sequences of rows, special tokens and misplaced codes included."""
    for kind in ("causal", "seq2seq"):
        model = make(kind)
        vocabulary = model.schema.vocabulary
        every = torch.cartesian_prod(*[torch.arange(vocabulary)] * 3)
        history = Histories.from_lists([[0, 1]])
        steps = plain(model, table, [0, 1], every).gather(2, every[..., None])[..., 0]
        score, place = steps.sum(1).sort(descending=True)
        found = generate_free(model, table, history, beam=vocabulary**2)
        np.testing.assert_allclose(found.scores[0], score[: vocabulary**2].numpy(), atol=1e-4)
        assert found.rows[0, :20].tolist() == every[place[:20]].tolist()


def test_free_scores_are_exact_and_agree_with_the_constrained_search(
    model: Recommender, table: SidTable, histories: Histories, plain: Callable[..., Tensor]
) -> None:
    found = generate_free(model, table, histories, beam=300, batch=3)
    assert found.rows.shape == (8, 300, 3)
    listed = recommend(model, table, histories, k=26, beam=60)
    met = 0
    spelled = {tuple(r): i for i, r in reversed(list(enumerate(table.rows().tolist())))}
    for b in range(8):
        items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        paths = torch.from_numpy(found.rows[b])
        truth = plain(model, table, items, paths).gather(2, paths[..., None])[..., 0].sum(1)
        np.testing.assert_allclose(found.scores[b], truth.numpy(), atol=5e-5)
        assert len({tuple(r) for r in found.rows[b].tolist()}) == 300
        constrained = dict(zip(listed.items[b].tolist(), listed.scores[b].tolist(), strict=True))
        for row, score in zip(found.rows[b].tolist(), found.scores[b].tolist(), strict=True):
            item = spelled.get(tuple(row))
            if item in constrained:
                assert constrained[item] == pytest.approx(score, abs=5e-5)
                met += 1
    assert met > 0


def test_a_table_of_other_sids_may_spell_the_output(
    model: Recommender, table: SidTable, histories: Histories, item_log_probs: ItemLogProbs
) -> None:
    """Histories are encoded with `table`, answers come from `trie`, as the replay of an old client needs."""
    other = replace(table, codes=np.ascontiguousarray(table.codes[::-1]), listed=table.listed[::-1].copy())
    found = recommend(model, table, histories, k=5, beam=60, trie=Trie.build(other))
    truth = item_log_probs(model, table, histories)[:, ::-1]  # the SID of item N - 1 - i belongs to item i
    np.testing.assert_allclose(found.scores, np.take_along_axis(truth, found.items.astype(np.int64), 1), atol=5e-5)


@pytest.mark.parametrize("beam", [6, 7, 20])
def test_ties_at_the_edge_of_the_beam_go_to_the_smallest_ids(
    make: Callable[..., Recommender], table: SidTable, histories: Histories, beam: int
) -> None:
    """Every prefix ties, so any beam may keep any; the k smallest ids must come out, whatever the order of the rows."""
    model = make("causal")
    with torch.no_grad():
        model.module.lm_head.weight.zero_()
    by_id = sorted(str(i) for i in table.item_ids[table.listed])
    turned = np.random.default_rng(0).permutation(len(table))
    shuffled = SidTable.build(
        table.item_ids[turned], table.codes[turned], table.schema, listed=table.listed[turned]
    )  # the same shop, its rows in another order
    for spelled, seen in ((table, histories), (shuffled, Histories.from_lists([[3, 8], [1]]))):
        found = recommend(model, spelled, seen, k=6, beam=beam)
        for row in found.items:
            assert [str(i) for i in spelled.item_ids[row]] == by_id[:6]


@pytest.mark.parametrize("width", [1, 3, 8, 12, 20])
def test_the_best_are_those_of_a_full_sort(width: int) -> None:
    """Few distinct scores, some dead: the candidates kept are the first by score, then by rank."""
    rng = np.random.default_rng(width)
    scores = rng.integers(-3, 1, (40, 12)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    firsts, nodes = rng.permutation(50), rng.permuted(np.tile(np.arange(50), (40, 1)), axis=1)[:, :12]
    found, pick = _best(torch.from_numpy(scores), width, torch.from_numpy(nodes), torch.from_numpy(firsts))
    assert torch.equal(found, torch.from_numpy(scores).gather(1, pick))
    for row, node, kept in zip(scores, nodes, pick.tolist(), strict=True):
        full = sorted(np.flatnonzero(np.isfinite(row)), key=lambda i: (-row[i], firsts[node[i]]))[:width]
        assert sorted(i for i in kept if np.isfinite(row[i])) == sorted(full)
