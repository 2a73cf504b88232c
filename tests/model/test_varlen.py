"""SIDs of different lengths against transformers alone: every item's codes, then eos where it is short, one plain forward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recerase.catalog.interactions import Histories, Interactions
from recerase.erase.method import EraseRequest
from recerase.erase.methods import METHODS, make_config
from recerase.errors import UsageError
from recerase.model.batches import IGNORED, causal_inputs, seq2seq_inputs
from recerase.model.decode import generate_free, recommend
from recerase.model.exact import recommend_exact
from recerase.model.mass import (
    catalogue_log_probs,
    concept_mass,
    forced_log_probs,
    leaf_log_probs,
    level_log_probs,
)
from recerase.model.recommender import Recommender
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie

N = 26
CONCEPT = np.isin(np.arange(N), [0, 2, 3, 5, 7, 13, 14, 20])


@pytest.fixture
def table(schema: SidSchema) -> SidTable:
    """1 to 3 codes: 1 begins 8 and 12, 3 and 7 share a short SID, 5 and 11 have none, 2 and 9 are unlisted."""
    rng = np.random.default_rng(4)
    codes = np.stack([rng.integers(0, k, N) for k in schema.codes], 1).astype(np.int32)
    codes[np.arange(3) >= rng.integers(1, 4, N)[:, None]] = -1
    codes[[1, 8, 12]] = [[2, -1, -1], [2, 1, -1], [2, 1, 4]]
    codes[[3, 7]] = [3, 2, -1]
    codes[[5, 11]] = -1
    listed = np.ones(N, bool)
    listed[[2, 5, 9, 11]] = False
    return SidTable.build([f"item{(i * 7) % N:02d}" for i in range(N)], codes, schema, listed=listed)


def spelled(table: SidTable, item: int) -> list[int]:
    """The tokens of an item: its codes' rows, and eos where there are fewer than L."""
    codes = [int(c) for c in table.codes[item] if c >= 0]
    rows = [int(table.schema.rows[level][code]) for level, code in enumerate(codes)]
    return rows if len(rows) == table.levels or not rows else [*rows, table.schema.eos]


def forwards(model: Recommender, table: SidTable, history: list[int], paths: list[list[int]]) -> list[float]:
    """log p(path | history) of paths of one length, by one plain forward of the transformers model."""
    read = [i for i in history if table.codes[i, 0] >= 0][-model.window :]
    tokens = [t for i in read for t in spelled(table, i)]
    asked = torch.tensor(paths)
    many, length = asked.shape
    with torch.inference_mode():
        if model.kind == "causal":
            before = torch.tensor([[model.schema.bos, *tokens]]).expand(many, -1)
            logits = model.module(input_ids=torch.cat([before, asked], 1)).logits[:, -length - 1 : -1]
        else:
            before = torch.tensor([[*tokens, model.schema.eos]]).expand(many, -1)
            after = torch.cat([torch.full((many, 1), model.schema.pad), asked[:, :-1]], 1)
            logits = model.module(input_ids=before, decoder_input_ids=after).logits
    found: list[float] = logits.double().log_softmax(-1).gather(2, asked[..., None]).sum((1, 2)).tolist()
    return found


def forward(model: Recommender, table: SidTable, history: list[int], path: list[int]) -> float:
    return forwards(model, table, history, [path])[0]


@pytest.fixture
def truth(model: Recommender, table: SidTable, histories: Histories) -> np.ndarray:
    """float64 [B, N] log p(SID | history), -inf for items without a SID."""
    out = np.full((len(histories), N), -np.inf)
    paths = {item: spelled(table, item) for item in np.flatnonzero(table.present).tolist()}
    for b in range(len(histories)):
        history = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        for length in (2, 3):
            items = [item for item, path in paths.items() if len(path) == length]
            out[b, items] = forwards(model, table, history, [paths[item] for item in items])
    return out


def test_histories_are_spelled_without_gaps(model: Recommender, table: SidTable, histories: Histories) -> None:
    tokens, lengths = model.tokens(histories, table)
    for b in range(len(histories)):
        history = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        read = [i for i in history if table.codes[i, 0] >= 0][-model.window :]
        codes = [t for i in read for t in spelled(table, i)]
        wanted = [model.schema.bos, *codes] if model.kind == "causal" else [*codes, model.schema.eos]
        assert tokens[b].tolist() == wanted + [model.schema.pad] * (tokens.shape[1] - len(wanted))
        assert lengths[b] == len(wanted)
    assert tokens.shape[1] == lengths.max()


def test_every_item_is_scored_exactly(
    model: Recommender, table: SidTable, histories: Histories, truth: np.ndarray
) -> None:
    found = catalogue_log_probs(model, table, histories, batch=3)
    np.testing.assert_allclose(found, truth, atol=5e-5)
    forced = forced_log_probs(model, table, histories, histories.targets, batch=3)
    np.testing.assert_allclose(forced, truth[np.arange(8), histories.targets], atol=5e-5)
    once = np.unique(table.groups(), return_index=True)[1][1:]  # of items that share a SID, one
    assert (np.exp(truth[:, once]).sum(1) < 1).all()


def test_a_wide_beam_is_the_sorted_enumeration(
    model: Recommender, table: SidTable, histories: Histories, truth: np.ndarray
) -> None:
    found = recommend(model, table, histories, k=22, beam=60)
    listed = np.flatnonzero(table.listed)
    for b in range(len(histories)):
        order = sorted(listed, key=lambda i: (-round(truth[b, i], 9), str(table.item_ids[i])))
        assert found.items[b].tolist() == order
        np.testing.assert_allclose(found.scores[b], truth[b, order], atol=5e-5)
    exact = recommend_exact(model, table, histories, k=22)
    np.testing.assert_array_equal(exact.items, found.items)
    np.testing.assert_allclose(exact.scores, found.scores, atol=5e-5)


@pytest.mark.parametrize("beam", [1, 3, 6])
def test_a_narrow_beam_never_misjudges_an_item(
    model: Recommender, table: SidTable, histories: Histories, truth: np.ndarray, beam: int
) -> None:
    """Twin: at every depth the W best prefixes; a SID that has ended competes with its whole probability."""
    found = recommend(model, table, histories, k=9, beam=beam)
    listed = np.flatnonzero(table.listed)
    rows = [tuple(r) for r in table.rows().tolist()]
    for b in range(len(histories)):
        history = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        alive: set[tuple[int, ...]] = {()}
        for depth in range(1, 4):
            grown = {rows[i][:depth] for i in listed if rows[i][: depth - 1] in alive}
            score = {p: forward(model, table, history, [t for t in p if t >= 0]) for p in grown}
            alive = set(sorted(grown, key=lambda p: -score[p])[:beam])
        there = found.items[b][found.items[b] >= 0].tolist()
        wanted = [i for i in listed if rows[i] in alive]
        assert set(there) <= set(wanted)
        assert len(there) == min(9, len(wanted))
        np.testing.assert_allclose(found.scores[b][: len(there)], truth[b, there], atol=5e-5)


def test_mass_is_the_sum_over_the_concepts_sids(
    model: Recommender, table: SidTable, histories: Histories, truth: np.ndarray
) -> None:
    found = concept_mass(model, table, CONCEPT, histories, batch=3, per_item=True)
    members = np.flatnonzero(CONCEPT & table.present)
    once = members[np.unique(table.groups()[members], return_index=True)[1]]
    assert len(once) < len(members)
    np.testing.assert_allclose(found.mass, np.exp(truth[:, once]).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.log_probs, truth[:, members], atol=5e-5)


def test_company_and_order_change_nothing(model: Recommender, table: SidTable, histories: Histories) -> None:
    whole = recommend(model, table, histories, k=5)
    mass = concept_mass(model, table, CONCEPT, histories).mass
    for batch in (1, 3):
        np.testing.assert_array_equal(recommend(model, table, histories, k=5, batch=batch).items, whole.items)
        np.testing.assert_allclose(concept_mass(model, table, CONCEPT, histories, batch=batch).mass, mass, rtol=1e-5)
    order = np.array([6, 6, 0, 4, 1, 1, 3, 7, 2, 5, 6])
    np.testing.assert_array_equal(
        recommend(model, table, histories.take(order), k=5, batch=4).items, whole.items[order]
    )
    turned = np.random.default_rng(0).permutation(N)
    place = np.argsort(turned)
    other = table.aligned(table.item_ids[turned])
    moved = Histories.from_lists(
        [place[histories.items[a:b]].tolist() for a, b in zip(histories.offsets, histories.offsets[1:], strict=False)]
    )
    np.testing.assert_array_equal(turned[recommend(model, other, moved, k=5).items], whole.items)


@pytest.mark.parametrize("nodes", [1, 3])
def test_nodes_may_be_stepped_to_a_few_at_a_time_and_gradients_flow(
    model: Recommender, table: SidTable, histories: Histories, truth: np.ndarray, nodes: int
) -> None:
    trie = Trie.build(table, table.present)
    state = model.start(*model.tokens(histories, table))
    leaves = leaf_log_probs(level_log_probs(model, state, trie.torch(), nodes), trie.torch())
    np.testing.assert_allclose(leaves.detach().numpy(), truth[:, trie.leaf_items[trie.leaf_start[:-1]]], atol=5e-5)
    leaves.exp().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.module.parameters())


def test_free_decoding_stops_at_eos(model: Recommender, table: SidTable) -> None:
    """All that can be written: 15 rows at most three times, or fewer and eos."""
    schema = table.schema
    codes = [t for t in range(schema.vocabulary) if t != schema.eos]
    every = [
        [schema.eos],
        *([a, schema.eos] for a in codes),
        *([a, b, c] for a in codes[:2] for b in codes for c in (3, schema.eos)),
    ]
    history = Histories.from_lists([[0, 1, 8]])
    found = generate_free(model, table, history, beam=4000)
    rows = [tuple(r) for r in found.rows[0][np.isfinite(found.scores[0])].tolist()]
    assert len(rows) == 1 + 14 + 14 * 14 * 15 == len(set(rows))
    scores = dict(zip(rows, found.scores[0].tolist(), strict=False))
    assert np.exp(list(scores.values())).sum() == pytest.approx(1.0, abs=1e-4)
    for path in every:
        assert scores[(*path, -1, -1)[:3]] == pytest.approx(forward(model, table, [0, 1, 8], path), abs=1e-4)
    best = generate_free(model, table, history, beam=5)
    for path, score in zip(best.rows[0].tolist(), best.scores[0].tolist(), strict=True):
        assert scores[tuple(path)] == pytest.approx(score, abs=1e-4)
    constrained = recommend(model, table, history, k=22, beam=60)
    for item, score in zip(constrained.items[0].tolist(), constrained.scores[0].tolist(), strict=True):
        assert scores[tuple(table.rows()[item].tolist())] == pytest.approx(score, abs=1e-4)


def test_a_seq2seq_model_learns_codes_and_the_end(
    make: Callable[..., Recommender], table: SidTable, histories: Histories
) -> None:
    model = make("seq2seq")
    known = histories.take(np.flatnonzero(table.present[histories.targets]))
    inputs = seq2seq_inputs(model, table, known)
    for b, item in enumerate(known.targets.tolist()):
        path = spelled(table, item)
        assert inputs["labels"][b].tolist() == path + [IGNORED] * (3 - len(path))
        assert inputs["decoder_input_ids"][b, : len(path)].tolist() == [model.schema.pad, *path[:-1]]
    assert inputs["decoder_input_ids"].min() >= 0


def test_a_causal_model_learns_codes_and_the_end(
    make: Callable[..., Recommender], table: SidTable, histories: Histories
) -> None:
    model = make("causal")
    inputs = causal_inputs(model, table, histories.take([0, 5]))
    for b, items in enumerate(([0, 1, 2], [3, 7, 3, 7])):
        tokens = [t for i in items for t in spelled(table, i)]
        assert inputs["labels"][b][inputs["labels"][b] != IGNORED].tolist() == tokens


def test_the_shorter_of_two_sids_needs_its_end(model: Recommender, table: SidTable, histories: Histories) -> None:
    """The prefix alone is worth its own end and all that goes on from it."""
    deep = catalogue_log_probs(model, table, histories)
    prefix = forward(model, table, [8], [int(table.schema.rows[0][2])])
    assert np.exp(deep[3, [1, 8, 12]]).sum() < np.exp(prefix)


def test_methods_that_count_on_one_length_refuse_and_the_others_run(model: Recommender, table: SidTable) -> None:
    rng = np.random.default_rng(0)
    items, users = rng.integers(0, N, 60).astype(np.int32), np.array([f"u{u}" for u in range(10)], object)
    interactions = Interactions(users, np.arange(0, 61, 6), items, np.arange(60), "")
    request = EraseRequest(model, table, interactions, CONCEPT)
    for name in ("tracer", "renormalise", "npo"):
        with pytest.raises(
            UsageError, match="needs SIDs of one length; those of this table have 1 to 3 codes"
        ) as caught:
            METHODS[name].run(request, make_config(METHODS[name], None, {}))
        assert caught.value.remedy.startswith("Use --method retrain or filter.")
    erased = METHODS["filter"].run(request, make_config(METHODS["filter"], None, {}))
    assert not (erased.table.listed & CONCEPT).any()
