"""The seq2seq recommender: a T5 (as in TIGER) whose encoder reads SIDs + eos and whose decoder writes one SID.

The encoder runs as transformers runs it, once a history; its keys and values for cross-attention are computed once too.
The tree of next codes goes through the decoder's layers here: all nodes are queries of one cross-attention, and in
self-attention each sees its own ancestors only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import T5Config, T5ForConditionalGeneration

from recerase.errors import CheckpointError
from recerase.model.prompt import Prompt
from recerase.model.recommender import ModelConfig, Recommender
from recerase.model.tree import Kin, Own, State, padding_bias, tree_attention
from recerase.sid.schema import SidSchema

_LARGEST = torch.finfo(torch.float16).max - 1000


def new_seq2seq(config: ModelConfig, schema: SidSchema) -> Seq2Seq:
    """A T5 of the given shape, `layers` deep on either side.

    Untied, the output head has weights of its own and is not scaled by width ** -0.5; transformers ties every new T5.
    """
    shape = T5Config(
        vocab_size=schema.vocabulary,
        d_model=config.width,
        d_kv=config.width // config.heads,
        d_ff=config.feed_forward,
        num_layers=config.layers,
        num_heads=config.heads,
        dropout_rate=config.dropout,
        tie_word_embeddings=config.tie,
        pad_token_id=schema.pad,
        bos_token_id=schema.bos,
        eos_token_id=schema.eos,
        decoder_start_token_id=schema.pad,
    )
    module = T5ForConditionalGeneration(shape)
    if not config.tie:
        module.lm_head.weight = nn.Parameter(torch.randn(schema.vocabulary, config.width) * config.width**-0.5)
        module.all_tied_weights_keys.pop("lm_head.weight", None)
    return Seq2Seq(module, schema, config.window)


class Seq2Seq(Recommender):
    """`module` is a T5ForConditionalGeneration; a node of depth d stands at decoder position d, its root at 0."""

    kind = "seq2seq"

    def __init__(
        self,
        module: nn.Module,
        schema: SidSchema,
        window: int,
        prompt: Prompt | None = None,
        per_level: bool = False,
    ) -> None:
        super().__init__(module, schema, window, prompt, per_level)
        config: Any = module.config
        if not isinstance(config.decoder_start_token_id, int) or config.decoder_start_token_id < 0:
            raise CheckpointError(
                "The model's config names no decoder_start_token_id, with which its decoder begins.",
                "Name it in config.json (pad_token_id, for most T5).",
            )

    def embed(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.module.encoder.embed_tokens(tokens)  # type: ignore[union-attr, operator]
        return embedded

    def start(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> State:
        module: Any = self.module
        valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]  # [B, T]
        inputs = {"inputs_embeds": embeds} if embeds is not None else {"input_ids": tokens}
        read = module.encoder(**inputs, attention_mask=valid.long()).last_hidden_state  # [B, T, D]
        bias = padding_bias(lengths, tokens.shape[1], read.dtype)
        crosses = [block.layer[1].EncDecAttention for block in module.decoder.block]
        prompt = tuple((_heads(c.k(read), c), _heads(c.v(read), c)) for c in crosses)
        first = tokens.new_full((1,), module.config.decoder_start_token_id)
        scale = module.config.d_model**-0.5 if module.config.scale_decoder_outputs else 1.0
        own = Own(self.level_rows, self.schema.vocabulary) if self.per_level else None
        root = State(read[:, 0], module.lm_head, -1, prompt, bias, lengths, scale=scale, own=own)
        at = self.advance(root, first, None)
        return State(at.hidden[:, 0], at.head, 0, prompt, bias, lengths, at.nodes, at.lineage, scale, own)

    def advance(self, state: State, rows: Tensor, parents: Tensor | None) -> State:
        decoder: Any = self.module.decoder
        hidden = decoder.dropout(decoder.embed_tokens(rows))
        hidden = hidden.expand(len(state.lengths), -1, -1) if rows.dim() == 1 else hidden  # [B, Q, D]
        if state.depth == 0:
            parents = torch.zeros(hidden.shape[1], dtype=torch.int64, device=hidden.device)  # the root, to all
        place = decoder.block[0].layer[0].SelfAttention
        distance = place.compute_bias(1, state.depth + 2, hidden.device, state.depth + 1)  # [1, h, 1, s]
        to = state.descend(parents, hidden.shape[1])
        kin: Kin | None = None
        nodes = []
        for index, block in enumerate(decoder.block):
            own, cross, forward = block.layer
            q, k, v = _projected(own.SelfAttention, own.layer_norm(hidden))
            nodes.append(state.joined(index, k, v, to.kept))
            kin = Kin.of(to.lineage, nodes[0], own_bias=distance) if kin is None else kin
            mixed = tree_attention(q, None, nodes[index], kin, 1.0)  # T5 does not divide by sqrt(d)
            hidden = _in_range(hidden + own.dropout(own.SelfAttention.o(mixed.transpose(1, 2).flatten(2))))
            q = _heads(cross.EncDecAttention.q(cross.layer_norm(hidden)), cross.EncDecAttention)
            keys, values = state.prompt[index]
            mixed = scaled_dot_product_attention(q, keys, values, attn_mask=state.prompt_bias, scale=1.0)
            hidden = _in_range(hidden + cross.dropout(cross.EncDecAttention.o(mixed.transpose(1, 2).flatten(2))))
            hidden = _in_range(forward(hidden))
        return State(
            hidden=decoder.dropout(decoder.final_layer_norm(hidden)),
            head=state.head,
            depth=state.depth + 1,
            prompt=state.prompt,
            prompt_bias=state.prompt_bias,
            lengths=state.lengths,
            nodes=tuple(nodes),
            lineage=to.lineage,
            scale=state.scale,
            own=state.own,
        )


def _in_range(hidden: Tensor) -> Tensor:
    """float16 held below infinity, as transformers does for T5 after every part of a layer; other types as they are."""
    return hidden.clamp(-_LARGEST, _LARGEST) if hidden.dtype == torch.float16 else hidden


def _projected(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, h, Q, d] of nodes [B, Q, D]."""
    q, k, v = (_heads(project(normed), attention) for project in (attention.q, attention.k, attention.v))
    return q, k, v


def _heads(x: Tensor, attention: Any) -> Tensor:
    """[B, n, h * d] -> [B, h, n, d]."""
    return x.unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)
