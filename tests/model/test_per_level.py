"""A softmax a level: everything that reads a model agrees with transformers' own logits, normalised over one level's rows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.frontier import frontier, walk
from recerase.erase.paths import node_log_probs, start
from recerase.erase.target import Teacher
from recerase.errors import CheckpointError
from recerase.model.batches import IGNORED, seq2seq_inputs
from recerase.model.decode import generate_free, recommend
from recerase.model.exact import recommend_exact
from recerase.model.mass import catalogue_log_probs, concept_mass, forced_log_probs
from recerase.model.prompt import Prompt
from recerase.model.recommender import Recommender, wrap
from recerase.model.training import sequence_loss
from recerase.sid.table import SidTable


@pytest.fixture
def model(make: Callable[..., Recommender]) -> Recommender:
    made = make("seq2seq")
    return wrap(made.module, made.schema, made.window, per_level=True)


def steps(model: Recommender, table: SidTable, items: list[int], paths: Tensor) -> list[Tensor]:
    """A level: float64 [P, K_l] log-probabilities of its codes along paths [P, L], by transformers' forward."""
    read = [item for item in items if table.codes[item, 0] >= 0][-model.window :]
    before = torch.tensor([[*table.rows()[read].reshape(-1), model.schema.eos]]).expand(len(paths), -1)
    decoder = torch.cat([torch.full((len(paths), 1), model.schema.pad), paths[:, :-1]], 1)
    with torch.inference_mode():
        logits = model.module(input_ids=before, decoder_input_ids=decoder).logits.double()
    return [logits[:, level, rows].log_softmax(-1) for level, rows in enumerate(model.schema.rows)]


@pytest.fixture
def brute(model: Recommender, table: SidTable, histories: Histories) -> np.ndarray:
    """float64 [B, N] log p(SID | history), -inf for items without a SID."""
    out = np.full((len(histories), len(table)), -np.inf)
    known = np.flatnonzero(table.present)
    paths = torch.from_numpy(table.rows()[known])
    for row in range(len(histories)):
        items = histories.items[histories.offsets[row] : histories.offsets[row + 1]].tolist()
        found = steps(model, table, items, paths)
        out[row, known] = sum(
            s.gather(1, torch.from_numpy(table.codes[known, level : level + 1]).long())[:, 0].numpy()
            for level, s in enumerate(found)
        )
    return out


def test_scores_mass_and_lists_are_brute_force(
    model: Recommender, table: SidTable, histories: Histories, brute: np.ndarray
) -> None:
    assert np.allclose(catalogue_log_probs(model, table, histories), brute, atol=1e-5)
    concept = np.zeros(len(table), bool)
    concept[[1, 3, 4, 9, 13, 20]] = True
    assert np.allclose(concept_mass(model, table, concept, histories).mass, np.exp(brute)[:, concept].sum(1), rtol=1e-5)
    forced = forced_log_probs(model, table, histories, histories.targets)
    assert np.allclose(forced, brute[np.arange(len(brute)), histories.targets], atol=1e-5)
    scores = np.where(table.listed, brute, -np.inf)
    order = np.lexsort((np.broadcast_to(table.id_rank, scores.shape), -np.round(scores, 9)), axis=1)[:, :8]
    for found in (
        recommend(model, table, histories, k=8, beam=60),
        recommend_exact(model, table, histories, k=8),
    ):
        assert found.items.tolist() == order.tolist()
        assert np.allclose(found.scores, np.take_along_axis(scores, order, 1), atol=1e-5)


def test_all_sids_together_have_probability_one(model: Recommender, table: SidTable, histories: Histories) -> None:
    every = np.array(list(product(*map(range, model.schema.codes))), np.int32)
    whole = SidTable.build([f"x{i}" for i in range(len(every))], every, model.schema)
    read = Histories.from_lists([[0, 1, 2], [30]])
    everything = np.ones(len(every), bool)
    assert np.allclose(concept_mass(model, whole, everything, read).mass, 1.0, atol=1e-5)
    flat = wrap(model.module, model.schema, model.window)
    assert (concept_mass(flat, whole, everything, read).mass < 0.999).all()  # so that the two are told apart


def test_free_decoding_writes_codes_of_its_own_level(model: Recommender, table: SidTable, histories: Histories) -> None:
    many = int(np.prod(model.schema.codes))
    found = generate_free(model, table, histories, beam=many + 7)
    real = np.isfinite(found.scores)
    assert (real.sum(1) == many).all()
    codes = model.schema.codes_of(found.rows)
    assert (codes[real] >= 0).all()
    assert not (codes[~real] >= 0).all(-1).any()  # what stands where there is nothing is no SID
    assert np.allclose(np.exp(found.scores).sum(1), 1.0, atol=1e-5)


def test_the_loss_is_over_one_levels_codes(model: Recommender, table: SidTable, histories: Histories) -> None:
    known = histories.take(np.flatnonzero(table.present[histories.targets]))
    found = sequence_loss(model.module, seq2seq_inputs(model, table, known), model.level_rows)
    labels = seq2seq_inputs(model, table, known)["labels"]
    assert not (labels == IGNORED).any()
    total = []
    for row in range(len(known)):
        items = known.items[known.offsets[row] : known.offsets[row + 1]].tolist()
        path = torch.from_numpy(table.rows()[known.targets[row : row + 1]])
        found_steps = steps(model, table, items, path)
        total += [float(s[0, table.codes[known.targets[row], level]]) for level, s in enumerate(found_steps)]
    assert float(found.detach()) == pytest.approx(-np.mean(total), abs=1e-5)
    found.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.module.parameters())


def test_targets_and_losses_are_finite_and_nothing_is_lost_to_other_levels(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    members = np.isin(np.arange(len(table)), [1, 4, 13, 20]) & table.present
    teacher = Teacher(model, table, members, "output", 0)
    read = histories.take(np.array([0, 3, 4]))
    target = teacher.target(read, np.array([0, -1, 8]))
    for level, rows in enumerate(model.level_rows):
        inside = torch.zeros(target.log_probs.shape[-1], dtype=torch.bool)
        inside[rows] = True
        assert torch.allclose(target.log_probs[:, level, inside].exp().sum(1), torch.ones(len(read)), atol=1e-5)
        assert (target.log_probs[:, level, ~inside].exp() < 1e-20).all()
    assert target.closed.isfinite().all()
    found = frontier(table, members)
    least = [torch.full((len(rank.closed),), -1) for rank in found.ranks]
    ahead = walk(model, start(model, table, read), found, least)
    assert all(beside.isfinite().all() for beside in ahead.virgin)
    loss = objectives.distil(node_log_probs(model, start(model, table, read), target.path), target.log_probs)
    assert loss.isfinite()
    assert loss > 0  # p* differs from p
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.module.parameters())


def test_rows_that_are_only_read_take_no_room(model: Recommender, table: SidTable, histories: Histories) -> None:
    """Those of hashed users may be more than all codes together."""
    few = replace(model.schema, vocabulary=int(max(rows.max() for rows in model.schema.rows)) + 1)
    module = copy.deepcopy(model.module)
    more = torch.randn(50, 16)
    module.set_input_embeddings(nn.Embedding.from_pretrained(torch.cat([module.shared.weight.detach(), more])))
    module.lm_head.weight = nn.Parameter(torch.cat([module.lm_head.weight.detach(), more]))
    wide = wrap(module, few, model.window, per_level=True)
    tokens, lengths = model.tokens(histories, table)
    with torch.inference_mode():
        wanted, found = (m.start(tokens, lengths).log_probs for m in (model, wide))
    assert found.shape == (len(histories), few.vocabulary)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_it_is_kept_around_another_module_and_refused_for_causal_models(
    model: Recommender, make: Callable[..., Recommender], table: SidTable, histories: Histories
) -> None:
    other = model.around(make("seq2seq", 5).module)
    assert other.per_level
    assert not make("seq2seq").per_level
    tokens, lengths = other.tokens(histories, table)
    with torch.inference_mode():
        state = other.start(tokens, lengths).take(torch.tensor([2, 0]))
        assert (state.log_probs == float("-inf")).sum(1).tolist() == [
            model.schema.vocabulary - model.schema.codes[0]
        ] * 2
        assert torch.equal(state.logits.softmax(-1) > 0, state.log_probs.exp() > 0)
    causal = make("causal")
    with pytest.raises(CheckpointError, match="softmax a level"):
        wrap(causal.module, causal.schema, causal.window, Prompt((), (), (), (1,)), per_level=True)
