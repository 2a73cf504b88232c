"""The causal recommender: a Llama from transformers, trained from scratch on bos + SIDs.

The history goes through the model as transformers runs it; the tree of next codes goes through the same layers here,
because transformers has no attention in which many nodes share one history and see only their own ancestors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from recerase.model.recommender import ModelConfig, Recommender, State, gather_ancestors, tree_attention
from recerase.sid.schema import SidSchema


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
    """`module` is a LlamaForCausalLM; position of a node = length of the history + depth - 1."""

    kind = "causal"

    def start(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> State:
        model: Any = self.module.model
        cache = DynamicCache()
        inputs = {"inputs_embeds": embeds} if embeds is not None else {"input_ids": tokens}
        out = model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state  # [B, T, D]
        last = (lengths - 1)[:, None, None].expand(-1, 1, out.shape[-1])
        groups = model.config.num_attention_heads // model.config.num_key_value_heads
        valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        bias = torch.zeros(valid.shape, dtype=out.dtype, device=out.device).masked_fill(~valid, float("-inf"))
        return State(
            hidden=out.gather(1, last).squeeze(1),
            head=self.module.lm_head,  # type: ignore[arg-type]
            depth=0,
            prompt=tuple((_widen(x.keys, groups), _widen(x.values, groups)) for x in cache.layers),
            prompt_bias=bias[:, None, None],
            lengths=lengths,
        )

    def advance(self, state: State, rows: Tensor, parents: Tensor | None) -> State:
        model: Any = self.module.model
        batch = state.lengths.shape[0]
        hidden = self.embed(rows)
        hidden = hidden.expand(batch, -1, -1) if rows.dim() == 1 else hidden  # [B, Q, D]
        position = (state.lengths + state.depth)[:, None]  # one position for all nodes of a history
        cos, sin = model.rotary_emb(hidden, position)  # [B, 1, d]
        kept = []
        for index, layer in enumerate(model.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            heads = (batch, hidden.shape[1], -1, attention.head_dim)
            q = _rotate(attention.q_proj(normed).view(heads).transpose(1, 2), cos, sin)
            k = _rotate(attention.k_proj(normed).view(heads).transpose(1, 2), cos, sin)
            v = attention.v_proj(normed).view(heads).transpose(1, 2)
            k, v = (_widen(x, attention.num_key_value_groups)[:, :, :, None] for x in (k, v))  # [B, h, Q, 1, d]
            if state.ancestors is not None:
                past = state.ancestors[index]
                k = torch.cat([gather_ancestors(past[0], parents), k], 3)
                v = torch.cat([gather_ancestors(past[1], parents), v], 3)
            kept.append((k, v))
            mixed = tree_attention(q * attention.scaling, state.prompt[index], state.prompt_bias, (k, v), None)
            hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return State(
            hidden=model.norm(hidden),
            head=state.head,
            depth=state.depth + 1,
            prompt=state.prompt,
            prompt_bias=state.prompt_bias,
            lengths=state.lengths,
            ancestors=tuple(kept),
        )


def _widen(x: Tensor, groups: int) -> Tensor:
    """Grouped-query attention: repeat each of the key/value heads `groups` times, [B, h/g, ., d] -> [B, h, ., d]."""
    return x if groups == 1 else x.repeat_interleave(groups, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, h, Q, d] at one position a history, cos and sin [B, 1, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + turned * sin[:, None]
