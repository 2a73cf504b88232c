"""What only a causal recommender has: grouped heads, and positions that run on from the history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recerase.catalog.interactions import Histories
from recerase.model.recommender import Recommender, wrap
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable


def grouped(schema: SidSchema) -> Recommender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.5,
            rope_parameters={"rope_type": "default", "rope_theta": 10.0},
        )
        return wrap(LlamaForCausalLM(shape), schema, 6)


def test_grouped_heads_a_wide_head_and_spare_vocabulary_rows_follow_the_plain_forward(
    schema: SidSchema, table: SidTable, histories: Histories, plain: Callable[..., Tensor]
) -> None:
    model = grouped(schema)
    paths = torch.from_numpy(table.rows()[[0, 3, 4, 8]])
    state = model.start(*model.tokens(histories, table))
    for level in range(3):
        if level:
            state = model.advance(state, paths[:, level - 1], None if level == 1 else torch.arange(4))
        found = state.log_probs if level else state.log_probs[:, None].expand(-1, 4, -1)
        for b in range(len(histories)):
            items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
            truth = plain(model, table, items, paths)[:, level]
            assert truth.shape[-1] == 20
            torch.testing.assert_close(found[b].double(), truth, rtol=0, atol=2e-5)
