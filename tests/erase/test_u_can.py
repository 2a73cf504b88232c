"""U-CAN: what goes into a layer is what transformers puts there, the scale is its equation, and nothing else moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.erase.cases import bits
from tests.erase.conftest import SHAPE, items_of
from torch import Tensor, nn

from recerase.erase import u_can
from recerase.erase.examples import examples
from recerase.erase.method import EraseRequest
from recerase.erase.u_can import UCanConfig
from recerase.errors import EraseError, UsageError
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.types import SILENT

PLACES = {
    "causal": "model.layers.{}.mlp.down_proj",
    "seq2seq": "decoder.block.{}.layer.2.DenseReluDense.wo",
}


@pytest.fixture
def deep(kind: str, ask: Callable[..., EraseRequest]) -> EraseRequest:
    """A request on an untrained model of two layers."""
    request = ask(kind)
    shape = ModelConfig(**{**SHAPE, "kind": kind, "layers": 2, "dropout": 0.0})  # type: ignore[arg-type]
    model = new_recommender(shape, request.table.schema, 1)
    model.module.eval()
    return dataclasses.replace(request, model=model)


def by_hand(request: EraseRequest, read: list[int], target: int, name: str) -> Tensor:
    """[T, in] what goes into a layer in one forward of transformers: the history, and the codes before the last."""
    table, model, module = request.table, request.model, request.model.module
    rows, heard = torch.from_numpy(table.rows()), []
    spelled = rows[[i for i in read if table.codes[i, 0] >= 0][-model.window :]].flatten()
    path = rows[target][:-1]
    handle = module.get_submodule(name).register_forward_pre_hook(lambda _, given: heard.append(given[0][0]))
    with torch.no_grad():
        if model.kind == "causal":
            module(input_ids=torch.cat([torch.tensor([model.schema.bos]), spelled, path])[None])
        else:
            ids = torch.cat([spelled, torch.tensor([model.schema.eos])])[None]
            module(input_ids=ids, decoder_input_ids=torch.cat([torch.tensor([model.schema.pad]), path])[None])
    handle.remove()
    return torch.cat(heard)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("batch", [3, 64])
def test_strengths_are_those_of_transformers_without_padding(deep: EraseRequest, layer: int, batch: int) -> None:
    pairs = examples(deep.interactions, deep.table, deep.concept, 5).forget.take(np.arange(8))
    assert len(set(pairs.lengths.tolist())) > 2
    layers, adapters = u_can.attenuated(deep.model)
    assert not adapters
    request = dataclasses.replace(deep, observer=SILENT)
    name = PLACES[deep.model.kind].format(layer)
    found = u_can._strengths(request, deep.model, layers, pairs, batch)[name]
    seen = [by_hand(deep, items_of(pairs, b), int(pairs.targets[b]), name) for b in range(8)]
    if deep.model.kind == "causal" and layer == 1:  # of the history the last token alone
        seen = [x[-deep.table.levels :] for x in seen]
    wanted = torch.cat(seen).double().square().mean(0).sqrt()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in deep.model.module.modules()), "somebody still listens"


def test_the_scale_is_the_equation_by_hand() -> None:
    """Three dimensions: the second answers to the forget set, the third carries the retained one."""
    weight = torch.tensor([[3.0, 0.0, 0.0], [4.0, 1.0, 2.0]])  # norms 5, 1, 2
    forget, retain = torch.tensor([1.0, 4.0, 1.0]).double(), torch.tensor([1.0, 1.0, 4.0]).double()
    config = UCanConfig(balance=0.25, strength=2.0, threshold=0.1)
    apart = np.array([0.0, 3.0, -3.0])  # mean 0, deviation sqrt 6
    risk = np.maximum(apart / 6**0.5, 0)
    carried = np.array([5.0, 1.0, 8.0])  # mean 14/3, deviation sqrt(74/9)
    use = (carried - 14 / 3) / (74 / 9) ** 0.5
    score = 0.25 * risk - 0.75 * use
    wanted = np.exp(-2 * np.maximum(score - 0.1, 0))
    found = u_can.scale(weight, forget, retain, config)
    assert found.numpy() == pytest.approx(wanted)
    assert wanted[1] < 0.2
    assert found[2] == 1


def test_dimensions_that_answer_alike_are_told_apart_by_their_use_alone() -> None:
    same = torch.ones(3).double()
    flat = u_can.scale(torch.eye(3), same, same, UCanConfig())
    assert flat.tolist() == [1.0, 1.0, 1.0]


def test_of_a_dense_model_whole_columns_of_the_second_matrices_change(deep: EraseRequest) -> None:
    erased = u_can.erase(deep, UCanConfig())
    before, after = deep.model.module.state_dict(), erased.model.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers, _ = u_can.attenuated(deep.model)
    assert moved == {f"{name}.weight" for name in layers}
    assert moved >= {PLACES[deep.model.kind].format(i) + ".weight" for i in (0, 1)}
    for name in moved:
        ratio = after[name] / before[name]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-5)
        assert float(ratio.max()) <= 1 + 1e-6
        assert float(ratio.min()) > 0
    assert erased.summary["adapters"] is False
    assert 0 < erased.summary["least_scale"] < 1
    assert 0 < erased.summary["dimensions_turned_down"] < 1


def adapted(model: Recommender) -> Recommender:
    """The model with LoRA factors on its attention, trained ones; nothing else may change, as in an adapter checkpoint."""
    names = {"causal": ["q_proj", "v_proj"], "seq2seq": ["q", "v"]}[model.kind]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        whole: Any = get_peft_model(model.module, LoraConfig(r=4, lora_alpha=8, target_modules=names))  # type: ignore[arg-type]
        for name, parameter in whole.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.around(whole.get_base_model())


def test_where_there_are_factors_they_alone_change(deep: EraseRequest) -> None:
    request = dataclasses.replace(deep, model=adapted(deep.model))
    for name, weight in request.model.module.named_parameters():
        weight.requires_grad_("lora_" in name or "embed" in name)
    erased = u_can.erase(request, UCanConfig())
    before, after = bits(request.model), bits(erased.model)
    moved = {name for name in before if before[name] != after[name]}
    assert moved
    assert all(".lora_A." in name or ".lora_B." in name for name in moved)
    assert {".lora_A." in name for name in moved} == {True, False}
    assert erased.summary["adapters"] is True


def test_what_changes_nothing_is_an_error_and_not_a_result(deep: EraseRequest) -> None:
    with pytest.raises(EraseError, match="no dimension whose score is above") as caught:
        u_can.erase(deep, UCanConfig(threshold=1e6))
    assert caught.value.remedy


def test_a_model_without_layers_to_turn_down_is_refused(deep: EraseRequest) -> None:
    for name, weight in deep.model.module.named_parameters():
        weight.requires_grad_("embed" in name)
    with pytest.raises(EraseError, match="none that may change"):
        u_can.erase(deep, UCanConfig())


@pytest.mark.parametrize("wrong", [{"balance": 0.0}, {"balance": 1.5}, {"strength": 0.0}, {"pairs": 0}, {"batch": 0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be"):
        UCanConfig(**wrong)


def test_more_strength_turns_down_further(deep: EraseRequest) -> None:
    weak, strong = (u_can.erase(deep, UCanConfig(strength=s)).summary["least_scale"] for s in (0.5, 2.0))
    assert strong == pytest.approx(weak**4, abs=2e-5)
