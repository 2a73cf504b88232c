"""What only a seq2seq recommender has: a scaled output when tied, and weights that transformers reads unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from recerase.catalog.interactions import Histories
from recerase.model.recommender import Recommender, wrap
from recerase.sid.table import SidTable


@pytest.mark.parametrize("tie", [True, False])
def test_tied_and_untied_heads_follow_the_plain_forward_and_survive_saving(
    make: Callable[..., Recommender],
    table: SidTable,
    histories: Histories,
    plain: Callable[..., Tensor],
    tmp_path: Path,
    tie: bool,
) -> None:
    model = make("seq2seq", tie=tie, heads=4)
    paths = torch.from_numpy(table.rows()[[0, 3]])
    root = model.start(*model.tokens(histories, table))
    state = model.advance(model.advance(root, paths[:, 0], None), paths[:, 1], torch.arange(2))
    for b in range(len(histories)):
        items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
        torch.testing.assert_close(
            state.log_probs[b].double(), plain(model, table, items, paths)[:, 2], rtol=0, atol=2e-5
        )
    model.module.save_pretrained(tmp_path)
    again = wrap(T5ForConditionalGeneration.from_pretrained(tmp_path), model.schema, model.window)
    torch.testing.assert_close(again.start(*model.tokens(histories, table)).log_probs, root.log_probs, rtol=0, atol=0)
