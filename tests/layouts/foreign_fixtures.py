"""Directories as LETTER-TIGER and tiger-cf leave them, made with the real classes of transformers, tiny.

Run as a script (`python -m tests.layouts.foreign_fixtures OUT`), or called by the tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import T5Config, T5ForConditionalGeneration

N, TASTES = 60, 6
BASE = 20
"""Rows of the pieces of T5's own vocabulary; real ones have 32,100."""


def codes(levels: int = 4, sizes: int = 9, seed: int = 0) -> np.ndarray:
    """[N, L] SIDs: level 1 says the taste, codes leave gaps, and items 58 and 59 share theirs."""
    rng = np.random.default_rng(seed)
    out = rng.integers(0, sizes, size=(N, levels)) * 2 + 1  # odd numbers only: <a_0>, <a_2> have no row
    out[:, 0] = np.arange(N) % TASTES * 2 + 1
    out[:, 1] = np.arange(N) // TASTES % 5 * 2 + 1
    out[59] = out[58]
    return out


def index_of(sids: np.ndarray, ids: Sequence[str] | None = None) -> dict[str, list[str]]:
    ids = ids or [str(row) for row in range(len(sids))]
    return {
        i: [f"<{chr(97 + level)}_{c}>" for level, c in enumerate(sid)]
        for i, sid in zip(ids, sids.tolist(), strict=True)
    }


def letter(out: Path, index: Mapping[str, Sequence[str]] | None = None, *, tie: bool = True, width: int = 16) -> Path:
    """A directory as LETTER-TIGER's Trainer leaves it, with the table beside it."""
    out.mkdir(parents=True)
    index = index or index_of(codes())
    tokens = sorted({token for sid in index.values() for token in sid})
    added = {token: BASE + place for place, token in enumerate(tokens)}
    config = T5Config(
        vocab_size=BASE + len(tokens), d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=tie,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = T5ForConditionalGeneration(config)
        module.save_pretrained(out)
    said = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**said, "architectures": ["LETTER"]}, indent=2) + "\n")
    (out / "added_tokens.json").write_text(json.dumps({**added, "<extra_id_0>": 19}, indent=2) + "\n")
    decoder = {str(row): {"content": token, "special": False} for token, row in added.items()}
    (out / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "model_max_length": 512}))
    (out / "special_tokens_map.json").write_text('{"eos_token": "</s>", "pad_token": "<pad>"}\n')
    (out / "generation_config.json").write_text('{"num_beams": 4, "top_k": 20}\n')
    torch.save({"step": torch.zeros(1)}, out / "optimizer.pt")
    (out / "Toy.index.json").write_text(json.dumps(index))
    (out / "Toy.inter.json").write_text(json.dumps({"0": [1, 2, 3]}))
    return out


def tiger_cf_state(levels: int = 4, size: int = 32, users: int = 12, tie: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of its TigerModel (transformers 4, tie_word_embeddings=False): T5 under `model.`, `shared` and head apart."""
    rows = levels * size + users + 10
    config = T5Config(
        vocab_size=rows, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=2,
        pad_token_id=rows - 1, eos_token_id=rows - 2, decoder_start_token_id=rows - 3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = T5ForConditionalGeneration(config).state_dict()
        head = state["shared.weight"] if tie else torch.randn(rows, 16) * 0.1
    state["lm_head.weight"] = head
    return {f"model.{name}": tensor for name, tensor in state.items()}


def tiger_cf(out: Path, sids: np.ndarray | None = None, *, size: int = 32, users: int = 12, tie: bool = False) -> Path:
    """A directory with what tiger-cf needs: weights, training config, table with unsorted keys."""
    out.mkdir(parents=True)
    sids = codes() if sids is None else sids
    torch.save(tiger_cf_state(sids.shape[1], size, users, tie), out / "tiger_toy_final_state.pth")
    config: dict[str, Any] = {
        "experiment_name": "tiger_toy",
        "dataset": {
            "index_json_path": "../data/Toy/index_rqkmeans.json",
            "inter_json_path": "../data/Toy/inter.json",
            "num_codebooks": sids.shape[1],
            "max_sequence_length": 6,
            "sampler_type": "tiger",
        },
        "model": {
            "embedding_dim": 16, "codebook_size": size, "num_positions": 20, "user_ids_count": users, "num_heads": 2,
            "num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 24, "d_kv": 8, "dropout": 0.1,
            "activation": "relu", "num_beams": 10, "top_k": 5, "layer_norm_eps": 1e-6, "initializer_range": 0.02,
        },
    }  # fmt: skip
    (out / "tiger_kmeans_train_config.json").write_text(json.dumps(config, indent=2) + "\n")
    order = np.random.default_rng(5).permutation(len(sids))
    (out / "index_rqkmeans.json").write_text(json.dumps({str(row): sids[row].tolist() for row in order}))
    return out


def data(out: Path, n: int = N, seed: int = 0) -> Path:
    """Items of six tastes, which are their brand and words, and users who stay with one."""
    out.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    words = [f"taste{item % TASTES} thing{item // TASTES % 5} number{item}" for item in range(n)]
    pq.write_table(
        pa.table(
            {
                "item_id": [str(item) for item in range(n)],
                "title": words,
                "description": words,
                "categories": [[f"c{item // TASTES % 5}"] for item in range(n)],
                "brand": [f"brand{item % TASTES}" for item in range(n)],
                "price": pa.nulls(n, pa.float64()),
            }
        ),
        out / "items.parquet",
    )
    users, items, times = [], [], []
    for user in range(40):
        for time in range(8):
            users.append(f"{user:03d}")
            items.append(
                str(
                    int(rng.integers(n // TASTES)) * TASTES + user % TASTES
                    if rng.random() < 0.7
                    else int(rng.integers(n))
                )
            )
            times.append(time)
    pq.write_table(
        pa.table(
            {"user_id": users, "item_id": items, "timestamp": times, "rating": pa.nulls(len(users), pa.float64())}
        ),
        out / "interactions.parquet",
    )
    return out


if __name__ == "__main__":
    import sys

    place = Path(sys.argv[1])
    letter(place / "letter")
    tiger_cf(place / "tiger-cf")
    data(place / "data")
