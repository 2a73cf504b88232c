"""Llama, Qwen2 and Qwen3 as they come: what is computed here is transformers' own forward, and what is not is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError
from recerase.layouts.native import load_checkpoint, save_checkpoint
from recerase.model.recommender import Recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import publish

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama with biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama3 angles": (
        LlamaConfig,
        LlamaForCausalLM,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            },
            "max_position_embeddings": 64,
        },
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
}


def built(
    family: str, schema: SidSchema, heads: int = 2, dtype: torch.dtype = torch.float32, **more: Any
) -> Recommender:
    """A model so loud that every token and position matters, biases and norms drawn too; its weights are those of `dtype`."""
    config, model, own = FAMILIES[family]
    shape = {
        "vocab_size": 20,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": heads,
        "initializer_range": 0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
        "tie_word_embeddings": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = model(config(**{**shape, **own, **more}))
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1:
                torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.4)
        for parameter in module.parameters():  # not `to`: transformers keeps the angles in float32
            parameter.data = parameter.data.to(dtype)
    return wrap(module, schema, 6)


@pytest.fixture
def paths(table: SidTable) -> Tensor:
    return torch.from_numpy(table.rows()[[0, 3, 4, 8]])


def along(model: Recommender, table: SidTable, histories: Histories, paths: Tensor) -> list[Tensor]:
    """Logits [B, P, V] at each depth of `paths` [P, L]."""
    state = model.start(*model.tokens(histories, table))
    found = [state.logits[:, None].expand(-1, len(paths), -1)]
    for level in range(1, paths.shape[1]):
        state = model.advance(state, paths[:, level - 1], None if level == 1 else torch.arange(len(paths)))
        found.append(state.logits)
    return found


def plainly(model: Recommender, table: SidTable, histories: Histories, b: int, paths: Tensor) -> Tensor:
    """The same by transformers' own forward over one history, [P, L, V]."""
    tokens, lengths = model.tokens(histories, table)
    before = tokens[b, : int(lengths[b])][None].expand(len(paths), -1)
    logits: Tensor = model.module(input_ids=torch.cat([before, paths[:, :-1]], 1), use_cache=False).logits  # type: ignore[operator]
    return logits[:, -paths.shape[1] :]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_along_sids_are_those_of_the_plain_forward(
    family: str, heads: int, tied: bool, schema: SidSchema, table: SidTable, histories: Histories, paths: Tensor
) -> None:
    model = built(family, schema, heads, torch.float64, tie_word_embeddings=tied)
    with torch.no_grad():
        found = along(model, table, histories, paths)
        for b in range(len(histories)):
            truth = plainly(model, table, histories, b, paths)
            for level in range(3):
                torch.testing.assert_close(found[level][b], truth[:, level], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bfloat16_weights_are_computed_as_exactly_as_transformers_does(
    family: str, schema: SidSchema, table: SidTable, histories: Histories, paths: Tensor
) -> None:
    """The same weights in float64 agree to 1e-5; in bfloat16 neither is nearer to the truth than rounding lets it be."""
    model = built(family, schema, dtype=torch.bfloat16)
    exact = built(family, schema, dtype=torch.bfloat16)
    for parameter in exact.module.parameters():
        parameter.data = parameter.data.double()
    with torch.no_grad():
        found, wide = along(model, table, histories, paths), along(exact, table, histories, paths)
        off = theirs = 0.0
        for b in range(len(histories)):
            truth, plain = plainly(exact, table, histories, b, paths), plainly(model, table, histories, b, paths)
            for level in range(3):
                assert found[level].dtype == torch.bfloat16
                torch.testing.assert_close(wide[level][b], truth[:, level], rtol=1e-5, atol=1e-5)
                off = max(off, float((found[level][b] - truth[:, level]).abs().max()))
                theirs = max(theirs, float((plain[:, level] - truth[:, level]).abs().max()))
    assert off <= 2 * theirs


def test_every_weight_of_a_family_is_read(
    schema: SidSchema, table: SidTable, histories: Histories, paths: Tensor
) -> None:
    """A test of the tests above: another bias or head norm gives other logits."""
    for family, name in (
        ("qwen2", "k_proj.bias"),
        ("qwen2", "v_proj.bias"),
        ("qwen3", "q_norm.weight"),
        ("qwen3", "k_norm.weight"),
    ):
        model = built(family, schema)
        with torch.no_grad():
            before = along(model, table, histories, paths)[2].clone()
            dict(model.module.named_parameters())[f"model.layers.1.self_attn.{name}"].mul_(-1.5).add_(
                torch.linspace(0, 1, dict(model.module.named_parameters())[f"model.layers.1.self_attn.{name}"].numel())
            )
            assert not torch.allclose(before, along(model, table, histories, paths)[2], atol=1e-3), name


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window that slides": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "sliding_attention' in 1 of its layers",
    ),
    "angles by length": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10.0, "factor": 2.0}, "max_position_embeddings": 28},
        r"rope_type 'dynamic'.* longest",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused_in_one_sentence(case: str, schema: SidSchema) -> None:
    family, more, said = REFUSED[case]
    with pytest.raises(CheckpointError, match=said) as told:
        built(family, schema, **more)
    assert told.value.remedy
    assert told.value.message.count(". ") == 0


def test_heads_that_turn_in_part_are_refused(schema: SidSchema) -> None:
    model = built("llama", schema)
    model.module.config.rope_parameters = {"rope_type": "default", "rope_theta": 10.0, "partial_rotary_factor": 0.5}  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match=r"only 0\.5 of each head"):
        wrap(model.module, schema, 6)


def test_an_unused_window_is_no_reason_to_refuse(schema: SidSchema) -> None:
    """Qwen's configs name a window and switch it off."""
    assert built("qwen2", schema, use_sliding_window=False, sliding_window=4).kind == "causal"


def test_experts_are_refused_by_name(schema: SidSchema) -> None:
    shape: Callable[..., Any] = Qwen3MoeConfig
    module = Qwen3MoeForCausalLM(
        shape(
            vocab_size=20, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, num_experts=2, num_experts_per_tok=1,
        )
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="'qwen3_moe' is not supported"):
        wrap(module, schema, 6)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_native_checkpoint_may_be_of_any_family(
    family: str, schema: SidSchema, table: SidTable, tmp_path: Path
) -> None:
    model = built(family, schema, dtype=torch.bfloat16)
    with publish(tmp_path / "out") as result:
        save_checkpoint(result.directory, model, table, None, None)
    again = load_checkpoint(tmp_path / "out").recommender
    before, after = model.module.state_dict(), again.module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    tokens = torch.arange(12)[None]
    assert torch.equal(model.module(input_ids=tokens).logits, again.module(input_ids=tokens).logits)  # type: ignore[operator]
