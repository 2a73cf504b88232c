"""The causal recommender: a Llama, Qwen2 or Qwen3 from transformers; one made here is a Llama, on bos + SIDs.

History and tree of next codes go through the layers of the transformers model here, because it has no attention in which
many nodes share one history and see only their own ancestors, and computes what nobody asked for. What these layers do that is
not done here (a sliding window, angles that change with the lengths to be read) is refused, not approximated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from recerase.errors import CheckpointError
from recerase.model.prompt import Prompt
from recerase.model.recommender import ModelConfig, Recommender
from recerase.model.tree import KeyValues, Kin, State, padding_bias, tree_attention
from recerase.sid.schema import SidSchema

FAMILIES = ("llama", "qwen2", "qwen3")
"""`model_type` of what is computed here; the biases of Qwen2 and the head norms of Qwen3 are the module's own."""
_STEADY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles are the same however long the history is."""
_BY_LENGTH = ("dynamic", "longrope")
"""Rotary embeddings that change once a text is longer than those they were made for."""


def require_known(config: Any, longest: int) -> None:
    """Raises CheckpointError for a config of FAMILIES that asks for what is not computed here with texts of up to `longest`."""
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    sliding = [kind for kind in getattr(config, "layer_types", None) or () if kind != "full_attention"]
    reach = min(config.max_position_embeddings, rope.get("original_max_position_embeddings") or longest)
    if sliding:
        problem = f"uses {sliding[0]!r:.40} in {len(sliding)} of its layers, and only full attention is computed"
    elif kind not in _STEADY + _BY_LENGTH or any(isinstance(value, dict) for value in rope.values()):
        problem = f"turns by rope_type {kind!r:.40}; only {', '.join(_STEADY)} are known not to depend on the length"
    elif rope.get("partial_rotary_factor", 1.0) != 1.0:
        problem = f"turns only {rope['partial_rotary_factor']!r:.10} of each head, and only whole heads are computed"
    elif kind in _BY_LENGTH and longest > reach:
        raise CheckpointError(
            f"Its rotary embedding (rope_type {kind!r}) changes with the longest history read before, so no number could be "
            "repeated.",
            f"Lower recerase.window in config.json (--layout-set window=N for another tool's) until {longest} tokens fit in "
            f"{reach}.",
        )
    else:
        return
    raise CheckpointError(
        f"The model ({config.model_type}) {problem}.",
        "Give a checkpoint with full attention and plain rotary positions; for histories that are short enough, "
        "the same weights work with use_sliding_window false or rope_type default in its config.",
    )


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
    """`module` is a causal transformers model of FAMILIES; position of a node = length of the history + depth - 1.

    Of the last layer a history needs its keys and values, and the output at its last token alone; nothing else is computed.
    """

    kind = "causal"

    def __init__(self, module: nn.Module, schema: SidSchema, window: int, prompt: Prompt | None = None) -> None:
        super().__init__(module, schema, window, prompt)
        longest = (window + 1) * (schema.levels + 1) + 1
        if prompt is not None:
            longest = prompt.longest(window, schema.levels) + schema.levels
        require_known(module.config, longest)

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
    return _rotate(_normed(_split(attention.q_proj(normed), attention), attention, "q_norm"), *turn)


def _keys_values(attention: Any, normed: Tensor, turn: Turn) -> KeyValues:
    """Keys (rotated) and values [B, h, n, d] of [B, n, D], repeated to the number of query heads."""
    keys = _rotate(_normed(_split(attention.k_proj(normed), attention), attention, "k_norm"), *turn)
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


def _normed(x: Tensor, attention: Any, name: str) -> Tensor:
    """x [B, h, n, d] through the norm over each head that Qwen3 has, and others have not."""
    norm = getattr(attention, name, None)
    return x if norm is None else norm(x)


def _widen(x: Tensor, groups: int) -> Tensor:
    """Grouped-query attention: repeat each of the key/value heads `groups` times, [B, h/g, ., d] -> [B, h, ., d]."""
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, h, n, d]; cos and sin [B or 1, n or 1, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]
