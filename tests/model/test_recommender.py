"""What every kind of recommender promises: how histories are spelled, and that tree steps are the plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, UsageError
from recerase.model.recommender import ModelConfig, Recommender, new_recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

CLOSE = {"rtol": 0.0, "atol": 2e-5}


def of(histories: Histories, b: int) -> list[int]:
    return histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()


def test_tokens_spell_the_last_items_that_have_a_sid(model: Recommender, table: SidTable, histories: Histories) -> None:
    tokens, lengths = model.tokens(histories, table)
    for b, row in enumerate(tokens.tolist()):
        read = [i for i in of(histories, b) if table.present[i]][-model.window :]
        codes = [int(r) for i in read for r in table.rows()[i]]
        spelled = [model.schema.bos, *codes] if model.kind == "causal" else [*codes, model.schema.eos]
        assert int(lengths[b]) == len(spelled)
        assert row == spelled + [model.schema.pad] * (len(row) - len(spelled))
    assert tokens.shape[1] == int(lengths.max())


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@settings(max_examples=15)
@given(lists=st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=5), window=st.integers(1, 5))
def test_tokens_of_a_history_do_not_depend_on_its_batch(kind: str, lists: list[list[int]], window: int) -> None:
    schema = SidSchema.native((4, 4))
    codes = np.stack(np.unravel_index(np.arange(10), (4, 4)), 1).astype(np.int32)
    codes[[2, 6]] = -1
    table = SidTable.build([str(i) for i in range(10)], codes, schema)
    shape = ModelConfig(kind, width=4, layers=1, heads=1, feed_forward=4, window=window)  # type: ignore[arg-type]
    model = new_recommender(shape, schema)
    tokens, lengths = model.tokens(Histories.from_lists(lists), table)
    for b, items in enumerate(lists):
        alone, length = model.tokens(Histories.from_lists([items]), table)
        assert int(length[0]) == int(lengths[b]) <= window * 2 + 1
        assert tokens[b, : int(lengths[b])].tolist() == alone[0].tolist()


def tree(model: Recommender, rng: np.random.Generator, shared: bool) -> list[tuple[Tensor, Tensor | None]]:
    """Random nodes a level: (rows, parents), the same for all histories or drawn for each of 8."""
    shape: tuple[int, ...] = () if shared else (8,)
    steps: list[tuple[Tensor, Tensor | None]] = []
    before = 0
    for width in (5, 7, 4):
        rows = torch.from_numpy(rng.integers(0, model.schema.vocabulary, (*shape, width)))
        steps.append((rows, torch.from_numpy(rng.integers(0, before, (*shape, width))) if before else None))
        before = width
    return steps


@pytest.mark.parametrize("shared", [True, False])
def test_every_node_of_a_tree_is_the_plain_forward_of_its_path(
    model: Recommender, table: SidTable, histories: Histories, shared: bool, plain: Callable[..., Tensor]
) -> None:
    """Paths of any vocabulary rows, special ones included; nodes share parents, and some have no children."""
    state = model.start(*model.tokens(histories, table))
    paths = torch.empty(8, 1, 0, dtype=torch.int64)
    for depth, (rows, parents) in enumerate(tree(model, np.random.default_rng(1), shared), 1):
        state = model.advance(state, rows, parents)
        up = torch.zeros(1, dtype=torch.int64).expand(rows.shape) if parents is None else parents
        up, down = up.expand(8, rows.shape[-1]), rows.expand(8, rows.shape[-1])
        paths = torch.cat([paths.gather(1, up[..., None].expand(-1, -1, depth - 1)), down[..., None]], 2)
        assert state.depth == depth
        assert state.log_probs.shape == (8, rows.shape[-1], model.schema.vocabulary)
        for b in range(8):
            spare = torch.zeros(paths.shape[1], 1, dtype=torch.int64)
            truth = plain(model, table, of(histories, b), torch.cat([paths[b], spare], 1))[:, -1]
            torch.testing.assert_close(state.log_probs[b].double(), truth, **CLOSE)


def test_the_root_is_the_plain_forward(
    model: Recommender, table: SidTable, histories: Histories, plain: Callable[..., Tensor]
) -> None:
    state = model.start(*model.tokens(histories, table))
    assert state.log_probs.shape == (8, model.schema.vocabulary)
    for b in range(8):
        truth = plain(model, table, of(histories, b), torch.zeros(1, 1, dtype=torch.int64))[0, 0]
        torch.testing.assert_close(state.log_probs[b].double(), truth, **CLOSE)


def test_no_parents_below_the_root_means_one_child_a_node_in_order(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    rows = torch.tensor([[4, 5], [8, 9], [12, 11]])
    root = model.start(*model.tokens(histories, table))
    short = model.advance(model.advance(model.advance(root, rows[0], None), rows[1], None), rows[2], None)
    same = torch.arange(2)
    long = model.advance(model.advance(model.advance(root, rows[0], None), rows[1], same), rows[2], same)
    torch.testing.assert_close(short.log_probs, long.log_probs)


def test_a_state_can_be_advanced_twice(model: Recommender, table: SidTable, histories: Histories) -> None:
    """Walking one branch leaves the state as it was, so another branch may be walked later."""
    root = model.start(*model.tokens(histories, table))
    first = model.advance(root, torch.tensor([3, 4]), None)
    before = first.log_probs.clone()
    model.advance(first, torch.tensor([7, 8, 9]), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(model.advance(root, torch.tensor([3, 4]), None).log_probs, before, rtol=0, atol=0)


def test_embeddings_given_are_the_embeddings_read(model: Recommender, table: SidTable, histories: Histories) -> None:
    tokens, lengths = model.tokens(histories, table)
    embeds = model.embed(tokens)
    plain = model.start(tokens, lengths).log_probs
    torch.testing.assert_close(model.start(tokens, lengths, embeds).log_probs, plain)
    changed = embeds.clone()
    changed[4, 0] += 5.0
    moved = (model.start(tokens, lengths, changed).log_probs - plain).abs().amax(1) > 1e-4
    assert moved.tolist() == [b == 4 for b in range(8)]


def test_padding_is_never_read(model: Recommender, table: SidTable, histories: Histories) -> None:
    tokens, lengths = model.tokens(histories, table)
    filled = tokens.clone()
    filled[torch.arange(tokens.shape[1]) >= lengths[:, None]] = 6
    rows, parents = torch.tensor([3, 5]), torch.tensor([0, 0])
    for inputs in (filled, torch.cat([tokens, torch.full((8, 3), 9)], 1)):
        one, two = model.start(tokens, lengths), model.start(inputs, lengths)
        torch.testing.assert_close(one.log_probs, two.log_probs, **CLOSE)
        one, two = (model.advance(model.advance(s, rows, None), rows, parents) for s in (one, two))
        torch.testing.assert_close(one.log_probs, two.log_probs, **CLOSE)


def test_gradients_are_those_of_the_plain_forward(model: Recommender, table: SidTable) -> None:
    """The likelihood of two SIDs after one history: the tree step gives weights what transformers gives them."""
    history, paths = Histories.from_lists([[0, 1, 3]]), torch.from_numpy(table.rows()[[4, 6]])
    state = model.start(*model.tokens(history, table))
    total = state.log_probs[0, paths[:, 0]].sum()
    for level in (1, 2):
        state = model.advance(state, paths[:, level - 1], None if level == 1 else torch.arange(2))
        total = total + state.log_probs[0].gather(1, paths[:, level, None]).sum()
    total.backward()
    found = {n: p.grad for n, p in model.module.named_parameters()}
    model.module.zero_grad()
    tokens = model.tokens(history, table)[0].expand(2, -1)
    if model.kind == "causal":
        logits = model.module(input_ids=torch.cat([tokens, paths], 1)).logits[:, -4:-1]
    else:
        decoder = torch.cat([torch.full((2, 1), model.schema.pad), paths[:, :-1]], 1)
        logits = model.module(input_ids=tokens, decoder_input_ids=decoder).logits
    logits.log_softmax(-1).gather(2, paths[..., None]).sum().backward()
    for name, parameter in model.module.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_half_precision_stays_finite_and_scores_in_float32(
    model: Recommender, table: SidTable, histories: Histories
) -> None:
    exact = model.start(*model.tokens(histories, table)).log_probs.detach()
    model.module.to(torch.bfloat16)
    state = model.start(*model.tokens(histories, table))
    deeper = model.advance(model.advance(state, torch.tensor([3, 4]), None), torch.tensor([7, 8]), torch.tensor([1, 1]))
    for probs in (state.log_probs, deeper.log_probs):
        assert probs.dtype == torch.float32
        torch.testing.assert_close(probs.exp().sum(-1), torch.ones(probs.shape[:-1]), rtol=0, atol=1e-5)
    assert float((state.log_probs.detach().exp() - exact.exp()).abs().max()) < 0.2


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_fresh_weights_follow_the_seed_and_leave_the_global_generator_alone(kind: str, schema: SidSchema) -> None:
    config = ModelConfig(kind, width=8, layers=1, heads=2, feed_forward=8)  # type: ignore[arg-type]
    before = torch.random.get_rng_state()
    one, two, other = (new_recommender(config, schema, s).module.state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_tied_is_one_tensor_untied_is_two(kind: str, tie: bool, schema: SidSchema) -> None:
    config = ModelConfig(kind, width=8, layers=1, heads=2, feed_forward=8, tie=tie)  # type: ignore[arg-type]
    module = new_recommender(config, schema).module
    assert (module.lm_head.weight is module.get_input_embeddings().weight) == tie


def test_a_width_that_heads_cannot_share_is_refused(schema: SidSchema) -> None:
    with pytest.raises(UsageError, match=r"10.*4 heads"):
        new_recommender(ModelConfig(width=10, heads=4), schema)


def test_a_model_smaller_than_its_schema_is_refused(model: Recommender, schema: SidSchema) -> None:
    with pytest.raises(CheckpointError, match="15 vocabulary rows"):
        wrap(model.module, replace(schema, vocabulary=16), 6)


def test_an_unknown_architecture_is_refused(schema: SidSchema) -> None:
    with pytest.raises(CheckpointError, match="Linear"):
        wrap(nn.Linear(2, 2), schema, 6)


def test_wrapping_a_module_gives_the_same_recommender(
    model: Recommender, schema: SidSchema, table: SidTable, histories: Histories
) -> None:
    again = wrap(model.module, schema, model.window)
    assert (again.kind, again.window, again.schema) == (model.kind, model.window, schema)
    inputs = model.tokens(histories, table)
    torch.testing.assert_close(again.start(*inputs).log_probs, model.start(*inputs).log_probs)
