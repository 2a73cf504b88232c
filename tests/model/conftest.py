"""Small recommenders with strong opinions, and the twin of every fast path: transformers, one history at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

CODES = (4, 3, 5)
N = 26
KINDS = ("causal", "seq2seq")

Plain = Callable[[Recommender, SidTable, list[int], Tensor], Tensor]


@pytest.fixture
def schema() -> SidSchema:
    return SidSchema.native(CODES, collisions="allowed")


@pytest.fixture
def table(schema: SidSchema) -> SidTable:
    """26 items with random SIDs: 3 and 7 share one, 5 and 11 have none, 2 and 9 are unlisted. Ids sort unlike rows."""
    rng = np.random.default_rng(4)
    grid = np.stack(np.unravel_index(rng.permutation(int(np.prod(CODES)))[:N], CODES), 1).astype(np.int32)
    grid[7] = grid[3]
    grid[[5, 11]] = -1
    listed = np.ones(N, bool)
    listed[[2, 5, 9, 11]] = False
    ids = [f"item{(i * 7) % N:02d}" for i in range(N)]
    return SidTable.build(ids, grid, schema, listed=listed)


@pytest.fixture
def histories() -> Histories:
    """Every shape of history: empty, without a single readable item, one item, longer than the window, with repeats."""
    return Histories.from_lists(
        [[0, 1, 5, 2], [], [11, 5], [8], list(range(20)), [3, 7, 3, 7], [11, 21, 22], [24, 25, 1, 0, 4, 6]],
        targets=[3, 4, 5, 7, 0, 25, 9, 10],
    )


@pytest.fixture
def make(schema: SidSchema) -> Callable[..., Recommender]:
    """make(kind, seed=0, **shape): a recommender with weights so large that every token and position matters."""

    def build(kind: str, seed: int = 0, **shape: object) -> Recommender:
        config = ModelConfig(width=16, layers=2, heads=2, feed_forward=24, window=6, dropout=0.1)
        model = new_recommender(replace(config, kind=kind, **shape), schema, seed)  # type: ignore[arg-type]
        with torch.no_grad():
            for name, weight in model.module.named_parameters():
                if weight.dim() == 2:
                    weight.mul_({"causal": 8.0, "seq2seq": 1.5}[kind] if "relative" not in name else 4.0)
        model.module.eval()
        return model

    return build


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, make: Callable[..., Recommender]) -> Recommender:
    found: Recommender = make(request.param)
    return found


@pytest.fixture
def plain() -> Plain:
    """plain(model, table, items, paths [P, L]): next-row log-probs [P, L, V] along paths, by transformers' forward."""

    def forward(model: Recommender, table: SidTable, items: list[int], paths: Tensor) -> Tensor:
        read = [i for i in items if table.codes[i, 0] >= 0][-model.window :]
        history = [int(r) for i in read for r in table.rows()[i]]
        many, levels = paths.shape
        with torch.inference_mode():
            if model.kind == "causal":
                before = torch.tensor([[model.schema.bos, *history]]).expand(many, -1)
                logits = model.module(input_ids=torch.cat([before, paths], 1)).logits[:, -levels - 1 : -1]
            else:
                before = torch.tensor([[*history, model.schema.eos]]).expand(many, -1)
                begin = torch.full((many, 1), model.schema.pad)
                decoder = torch.cat([begin, paths[:, :-1]], 1)
                logits = model.module(input_ids=before, decoder_input_ids=decoder).logits
        return logits.double().log_softmax(-1)

    return forward


@pytest.fixture
def item_log_probs(plain: Plain) -> Callable[[Recommender, SidTable, Histories], np.ndarray]:
    """Brute force: float64 [B, N] log p(SID | history) of every item, -inf for items without a SID."""

    def enumerate_items(model: Recommender, table: SidTable, histories: Histories) -> np.ndarray:
        out = np.full((len(histories), len(table)), -np.inf)
        known = np.flatnonzero(table.present)
        paths = torch.from_numpy(table.rows()[known])
        for b in range(len(histories)):
            items = histories.items[histories.offsets[b] : histories.offsets[b + 1]].tolist()
            steps = plain(model, table, items, paths).gather(2, paths[..., None])[..., 0]
            out[b, known] = steps.sum(1).numpy()
        return out

    return enumerate_items
