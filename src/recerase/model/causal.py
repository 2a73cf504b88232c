"""The causal recommender: a Llama from transformers, trained from scratch on bos + SIDs.

History and tree of next codes go through the layers of the transformers model here, because it has no attention in which
many nodes share one history and see only their own ancestors, and computes what nobody asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from recerase.errors import CheckpointError
from recerase.model.recommender import ModelConfig, Recommender
from recerase.model.tree import KeyValues, Kin, State, padding_bias, tree_attention
from recerase.sid.schema import SidSchema

_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change once a text is longer than `max_position_embeddings`."""


def new_causal(config: ModelConfig, schema: SidSchema) -> Causal:
    """A Llama of the given shape; dropout acts on attention."""
    shape = LlamaConfig(
        vocab_size=schema.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=(config.window + 2) * schema.levels + 1,
        attention_dropout=config.dropout,
        tie_word_embeddings=config.tie,
        pad_token_id=schema.pad,
        bos_token_id=schema.bos,
        eos_token_id=schema.eos,
    )
    return Causal(LlamaForCausalLM(shape), schema, config.window)


class Causal(Recommender):
    """`module` is a LlamaForCausalLM; position of a node = length of the history + depth - 1.

    Of the last layer a history needs its keys and values, and the output at its last token alone; nothing else is computed.
    """

    kind = "causal"

    def __init__(self, module: nn.Module, schema: SidSchema, window: int) -> None:
        super().__init__(module, schema, window)
        config: Any = module.config
        kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        longest = (window + 1) * (schema.levels + 1) + 1
        if kind in _BY_LENGTH and longest > config.max_position_embeddings:
            raise CheckpointError(
                f"Its rotary embedding ({kind}) changes with the longest history read before, so no number could be repeated.",
                f"Lower recerase.window in config.json until {longest} tokens fit in {config.max_position_embeddings}.",
            )

    def start(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> State:
        model: Any = self.module.model
        hidden = self.embed(tokens) if embeds is None else embeds  # [B, T, D]
        width = hidden.shape[1]
        turn = model.rotary_emb(hidden, torch.arange(width, device=hidden.device)[None])
        bias = padding_bias(lengths, width, hidden.dtype)
        last = (lengths - 1)[:, None, None]
        prompt = []
        for index, layer in enumerate(model.layers):
            normed = layer.input_layernorm(hidden)
            keys, values = _keys_values(layer.self_attn, normed, turn)
            prompt.append((keys, values))
            if index + 1 < len(model.layers):
                q = _queries(layer.self_attn, normed, turn)
                mixed = scaled_dot_product_attention(q, keys, values, is_causal=True, scale=layer.self_attn.scaling)
                hidden = _onwards(layer, hidden, mixed)
                continue
            there = tuple(x.expand(len(lengths), -1, -1).gather(1, last.expand(-1, 1, x.shape[2])) for x in turn)
            wide = last.expand(-1, 1, hidden.shape[2])
            q = _queries(layer.self_attn, normed.gather(1, wide), there)
            mixed = scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=layer.self_attn.scaling)
            hidden = _onwards(layer, hidden.gather(1, wide), mixed)
        return State(
            hidden=model.norm(hidden)[:, 0],
            head=self.module.lm_head,  # type: ignore[arg-type]
            depth=0,
            prompt=tuple(prompt),
            prompt_bias=bias,
            lengths=lengths,
        )

    def advance(self, state: State, rows: Tensor, parents: Tensor | None) -> State:
        model: Any = self.module.model
        hidden = self.embed(rows)
        hidden = hidden.expand(len(state.lengths), -1, -1) if rows.dim() == 1 else hidden  # [B, Q, D]
        turn = model.rotary_emb(
            hidden, (state.lengths + state.depth)[:, None]
        )  # one position for all nodes of a history
        to = state.descend(parents, hidden.shape[1])
        kin: Kin | None = None
        nodes = []
        for index, layer in enumerate(model.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            nodes.append(state.joined(index, *_keys_values(attention, normed, turn), to.kept))
            if kin is None:
                kin = Kin.of(to.lineage, nodes[0], state.prompt_bias, state.prompt[0][0].shape[2])
            q = _queries(attention, normed, turn)
            mixed = tree_attention(q, state.prompt[index], nodes[index], kin, attention.scaling)
            hidden = _onwards(layer, hidden, mixed)
        return State(
            hidden=model.norm(hidden),
            head=state.head,
            depth=state.depth + 1,
            prompt=state.prompt,
            prompt_bias=state.prompt_bias,
            lengths=state.lengths,
            nodes=tuple(nodes),
            lineage=to.lineage,
        )


Turn = tuple[Tensor, Tensor]
"""cos and sin of the rotary embedding, [B or 1, T or 1, d]."""


def _queries(attention: Any, normed: Tensor, turn: Turn) -> Tensor:
    """[B, n, D] -> [B, h, n, d], rotated."""
    return _rotate(_split(attention.q_proj(normed), attention), *turn)


def _keys_values(attention: Any, normed: Tensor, turn: Turn) -> KeyValues:
    """Keys (rotated) and values [B, h, n, d] of [B, n, D], repeated to the number of query heads."""
    keys = _rotate(_split(attention.k_proj(normed), attention), *turn)
    groups = attention.num_key_value_groups
    return _widen(keys, groups), _widen(_split(attention.v_proj(normed), attention), groups)


def _onwards(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """The rest of a layer after attention: [B, n, D] and [B, h, n, d] -> [B, n, D]."""
    hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    rest: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return rest


def _split(x: Tensor, attention: Any) -> Tensor:
    """[B, n, h * d] -> [B, h, n, d]."""
    return x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _widen(x: Tensor, groups: int) -> Tensor:
    """Grouped-query attention: repeat each of the key/value heads `groups` times, [B, h/g, ., d] -> [B, h, ., d]."""
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, h, n, d]; cos and sin [B or 1, n or 1, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]
