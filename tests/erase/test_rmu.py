"""RMU: hidden states are transformers' own, one layer is steered, and nothing but its feed-forward outputs moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.cases import bits
from tests.erase.conftest import SHAPE, items_of

from recerase.erase import rmu
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.precision import student
from recerase.erase.rmu import RmuConfig, said_at
from recerase.errors import EraseError, UsageError
from recerase.model.recommender import ModelConfig, Recommender, new_recommender

PLACES = {
    "causal": "model.layers.{}.mlp.down_proj.weight",
    "seq2seq": "decoder.block.{}.layer.2.DenseReluDense.wo.weight",
}


@pytest.fixture
def deep(kind: str, ask: Callable[..., EraseRequest]) -> EraseRequest:
    """A request on an untrained model of four layers."""
    request = ask(kind)
    shape = ModelConfig(**{**SHAPE, "kind": kind, "layers": 4, "dropout": 0.0})  # type: ignore[arg-type]
    model = new_recommender(shape, request.table.schema, 1)
    model.module.eval()
    return dataclasses.replace(request, model=model)


def by_hand(model: Recommender, request: EraseRequest, read: list[int], target: int, layer: int) -> torch.Tensor:
    """[L, D] by transformers' forward; the last layer's stream is not among its hidden states, but is heard at the norm."""
    table, module = request.table, model.module
    rows = torch.from_numpy(table.rows())
    spelled = rows[[i for i in read if table.codes[i, 0] >= 0][-model.window :]].flatten()
    path = rows[target]
    with torch.no_grad():
        if model.kind == "causal":
            tokens = torch.cat([torch.tensor([model.schema.bos]), spelled, path[:-1]])
            states = module(input_ids=tokens[None], output_hidden_states=True).hidden_states
            return states[layer + 1][0, -len(path) :]
        decoder = torch.cat([torch.tensor([model.schema.pad]), path[:-1]])
        encoder = torch.cat([spelled, torch.tensor([model.schema.eos])])
        out = module(input_ids=encoder[None], decoder_input_ids=decoder[None], output_hidden_states=True)
        return out.decoder_hidden_states[layer + 1][0]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_hidden_states_are_those_of_transformers(deep: EraseRequest, layer: int) -> None:
    pairs = examples(deep.interactions, deep.table, deep.concept, 5).forget.take(np.arange(6))
    with torch.no_grad():
        found = said_at(deep.model, deep.table, pairs, layer)
    assert not any(module._forward_pre_hooks for module in deep.model.module.modules()), "somebody still listens"
    assert found.shape == (6, deep.table.levels, SHAPE["width"])
    for b in range(6):
        wanted = by_hand(deep.model, deep, items_of(pairs, b), int(pairs.targets[b]), layer)
        torch.testing.assert_close(found[b], wanted, rtol=1e-4, atol=1e-4)


def test_only_the_feed_forward_outputs_of_three_layers_move(deep: EraseRequest) -> None:
    erased = rmu.erase(deep, RmuConfig(steps=2, batch=8, layer=3))
    before, after = bits(deep.model), bits(erased.model)
    moved = {name for name in before if before[name] != after[name]}
    place = PLACES[deep.model.kind]
    assert moved == {place.format(i) for i in (1, 2, 3)}
    assert erased.summary["layer"] == 3


def test_forget_states_come_nearer_to_one_direction_and_retained_ones_stay(deep: EraseRequest) -> None:
    config = RmuConfig(steps=20, batch=16, lr=0.1, layer=2)
    loss, found = rmu.objective(deep, config), examples(deep.interactions, deep.table, deep.concept, 5)
    erased = rmu.erase(deep, config).model
    with torch.no_grad():
        was, now = (loss(m, found.forget, found.retain)[1] for m in (deep.model, erased))
    assert float(now["forget"]) < 0.9 * float(was["forget"])
    assert float(was["retain"]) == 0.0
    assert float(now["forget"] + now["retain"]) < float(was["forget"])


def test_the_direction_is_a_unit_vector_times_the_steering(deep: EraseRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(
        rmu.objectives, "apart", lambda now, target: heard.append(target) or (now - target).square().mean()
    )
    pairs = examples(deep.interactions, deep.table, deep.concept, 5)
    some = (pairs.forget.take(np.arange(3)), pairs.retain.take(np.arange(3)))
    for seed in (0, 0, 1):
        rmu.objective(dataclasses.replace(deep, seed=seed), RmuConfig(steering=3.0))(student(deep.model), *some)
    one, same, other = heard[::2]
    assert float(one[0, 0].norm()) == pytest.approx(3.0, rel=1e-5)
    assert (one == one[0, 0]).all()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_layer_that_is_not_there_is_refused_and_the_middle_is_chosen(deep: EraseRequest) -> None:
    with pytest.raises(UsageError, match="has 4 layers, and no layer 4") as caught:
        rmu.erase(deep, RmuConfig(layer=4))
    assert "0 to 3" in caught.value.remedy
    assert rmu.chosen(deep.model, -1) == 1
    assert [rmu.chosen(deep.model, i) for i in range(4)] == [0, 1, 2, 3]


def test_a_model_of_another_build_is_refused(deep: EraseRequest) -> None:
    twin = student(deep.model)
    inner = twin.module.decoder if twin.kind == "seq2seq" else twin.module.model
    delattr(inner, "final_layer_norm" if twin.kind == "seq2seq" else "norm")
    with pytest.raises(UsageError, match="does not know where the layers"):
        rmu.chosen(twin, 0)


def test_where_feed_forward_outputs_may_not_move_what_may_does(deep: EraseRequest) -> None:
    """As with adapters on attention alone; and where nothing there may, that is an error."""
    query = {"causal": "self_attn.q_proj", "seq2seq": "SelfAttention.q"}[deep.model.kind]
    for name, weight in deep.model.module.named_parameters():
        weight.requires_grad_(query in name)
    erased = rmu.erase(deep, RmuConfig(steps=1, batch=4, layer=1))
    before, after = bits(deep.model), bits(erased.model)
    moved = {name for name in before if before[name] != after[name]}
    assert moved
    assert all(query in name and "encoder" not in name and (".0." in name or ".1." in name) for name in moved)
    for name, weight in deep.model.module.named_parameters():
        weight.requires_grad_("layers.3." in name or "encoder" in name)
    with pytest.raises(EraseError, match="layer 1 and the two before it"):
        rmu.erase(deep, RmuConfig(steps=1, batch=4, layer=1))
