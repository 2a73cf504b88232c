"""What a foreign checkpoint may say that no model of ours does: missing special tokens, odd starts, ranges and positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError
from recerase.model.batches import seq2seq_inputs
from recerase.model.decode import recommend
from recerase.model.mass import concept_mass, level_log_probs
from recerase.model.recommender import Recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.trie import Trie

Make = Callable[..., Recommender]


@pytest.mark.parametrize(("kind", "unread"), [("causal", "eos"), ("seq2seq", "bos")])
def test_a_token_that_is_never_read_may_be_missing(
    make: Make, table: SidTable, histories: Histories, kind: str, unread: str
) -> None:
    model = make(kind)
    bare = replace(table.schema, **{"pad": -1, unread: -1})
    other = wrap(model.module, bare, model.window)
    lists = [recommend(m, table, histories, k=5) for m in (model, other)]
    assert np.array_equal(lists[0].items, lists[1].items)
    np.testing.assert_allclose(lists[0].scores, lists[1].scores, atol=1e-5)


@pytest.mark.parametrize(("kind", "read"), [("causal", "bos"), ("seq2seq", "eos")])
def test_a_token_that_is_read_may_not(make: Make, schema: SidSchema, kind: str, read: str) -> None:
    model = make(kind)
    with pytest.raises(CheckpointError, match=f"names no {read} token"):
        wrap(model.module, replace(schema, **{read: -1}), model.window)


def test_training_begins_a_sid_with_what_decoding_begins_it_with(
    make: Make, table: SidTable, histories: Histories
) -> None:
    model = make("seq2seq")
    model.module.config.decoder_start_token_id = 2  # type: ignore[union-attr]
    known = histories.take(table.present[histories.targets])
    assert set(seq2seq_inputs(model, table, known)["decoder_input_ids"][:, 0].tolist()) == {2}
    model.module.config.decoder_start_token_id = None  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match="decoder_start_token_id"):
        wrap(model.module, model.schema, model.window)


def test_positions_that_depend_on_what_was_read_before_are_refused(make: Make) -> None:
    model = make("causal")
    config = model.module.config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}  # type: ignore[union-attr]
    wrap(model.module, model.schema, 2)
    config.max_position_embeddings = 12  # type: ignore[union-attr]
    wrap(model.module, model.schema, 1)
    with pytest.raises(CheckpointError, match=r"Lower recerase\.window"):
        wrap(model.module, model.schema, 6)


def test_a_float16_t5_stays_in_range_where_transformers_keeps_it(
    make: Make, table: SidTable, histories: Histories
) -> None:
    model = make("seq2seq")
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "decoder" in name and name.endswith((".o.weight", ".wo.weight")):
                weight.mul_(3e4 / weight.abs().max())
    model.module.half()
    history = histories.take([0])
    tokens, lengths = model.tokens(history, table)
    path = torch.from_numpy(table.rows()[[1]])
    before = torch.cat([torch.zeros_like(path[:, :1]), path[:, :-1]], 1)
    with torch.no_grad():
        truth = model.module(input_ids=tokens, decoder_input_ids=before).logits.float().log_softmax(-1)
        state = model.start(tokens, lengths)
        found = [state.log_probs]
        for level in range(1, table.levels):
            state = model.advance(
                state, path[:, level - 1 : level], None if level == 1 else torch.zeros(1, dtype=torch.int64)
            )
            found.append(state.log_probs[:, 0])
    assert bool(truth.isfinite().all())
    torch.testing.assert_close(torch.stack(found, 1), truth, atol=0.1, rtol=0.02)


def test_mass_keeps_no_distribution_of_a_step_that_is_done(make: Make, histories: Histories) -> None:
    """What a step says of all codes is let go before the next one: the memory of a concept is that of its nodes."""
    schema = SidSchema.native((64, 64, 64))
    rng = np.random.default_rng(0)
    codes = np.unique(rng.integers(0, 64, (900, 3)), axis=0).astype(np.int32)
    table = SidTable.build([str(i) for i in range(len(codes))], codes, schema)
    model = make("causal")
    model = type(model)(_grown(model, schema), schema, model.window)
    trie = Trie.build(table).torch()
    seen = []
    advance = model.advance

    def remembered(*arguments: object) -> object:
        state = advance(*arguments)  # type: ignore[arg-type]
        seen.append(state)
        return state

    model.advance = remembered  # type: ignore[method-assign, assignment]
    with torch.inference_mode():
        level_log_probs(model, model.start(*model.tokens(histories.take([3]), table)), trie, nodes=50)
    assert len(seen) > 10
    assert not any(state._cache for state in seen)


def _grown(model: Recommender, schema: SidSchema) -> torch.nn.Module:
    from recerase.model.recommender import ModelConfig, new_recommender

    return new_recommender(
        ModelConfig(width=16, layers=2, heads=2, feed_forward=24, window=model.window), schema
    ).module.eval()


def test_one_sid_of_very_many_items_costs_k_of_them(make: Make, histories: Histories) -> None:
    """Of the items that share a SID only the first k by id can be listed, so only they are looked at."""
    schema = SidSchema.native((4, 3, 5), collisions="allowed")
    codes = np.array([[0, 0, 0]] * 40 + [[1, 1, 1], [2, 2, 2], [3, 0, 1]], np.int32)
    table = SidTable.build([f"{i:03d}" for i in range(len(codes))], codes, schema)
    model = make("causal")
    short = recommend(model, table, histories.take([1, 3]), k=3)
    whole = recommend(model, table, histories.take([1, 3]), k=len(codes))
    assert np.array_equal(short.items, whole.items[:, :3])
    assert np.array_equal(np.sort(whole.items, 1), np.tile(np.arange(len(codes)), (2, 1)))


def test_mass_does_not_depend_on_how_much_is_stepped_to_at_once(
    make: Make, table: SidTable, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, concept = make("causal"), np.arange(len(table)) % 2 == 0
    whole = concept_mass(model, table, concept, histories).mass
    monkeypatch.setattr("recerase.model.mass.STEP_CELLS", 1)
    assert np.allclose(concept_mass(model, table, concept, histories).mass, whole, atol=1e-6)
