"""Directories as OpenOneRec and OneRec-Think leave them: a real Qwen3, a real tokenizer, and every file that carries SIDs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts.causal_fixtures import CODES, TEXT, World, make_world
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from recerase.audit.probes import AuditConfig
from recerase.layouts.onerec_think import PROMPT as THINK
from recerase.layouts.openonerec import PROMPT as OPENONEREC

BEGIN, END = "<|sid_begin|>", "<|sid_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZE = 10
"""Codes a level that the tools add tokens for; some are those of no item."""


def audit_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let audits read 20 synthetic histories in place of 1,000: these tests look at files."""
    monkeypatch.setattr("recerase.audit.probes.AuditConfig", partial(AuditConfig, saturated_histories=20))


def whole(codes: Sequence[int]) -> str:
    return BEGIN + "".join(f"<s_{'abcd'[level]}_{code}>" for level, code in enumerate(codes) if code >= 0) + END


def the_world() -> World:
    """Items 0 to 7 are of the concept; item 0 shares its SID with item 20, items 10 and 11 share theirs; 12 users."""
    world = make_world()
    del world.histories[12:]
    world.codes[20] = world.codes[0]
    assert world.codes.max() < SIZE
    assert len(CODES) == world.codes.shape[1]
    return world


def make_tokenizer(path: Path, tokens: list[str], special: bool) -> int:
    """A byte-level BPE tokenizer as Qwen has it, with `tokens` added in order; its length."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [piece for template in (OPENONEREC, THINK) for piece in template.text] * 3
    bare.train_from_iterator([*TEXT, *prompts], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    made.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens])
    made.save_pretrained(path)
    return len(made)


def make_weights(path: Path, rows: int, dtype: torch.dtype, shard: str) -> None:
    """A tiny tied Qwen3 with loud weights, its vocabulary rounded up to a multiple of 256."""
    shape: dict[str, Any] = {
        "vocab_size": -(-rows // 256) * 256,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Qwen3ForCausalLM(Qwen3Config(**shape))
    made.to(dtype).save_pretrained(path, max_shard_size=shard)


def openonerec(path: Path, world: World, beside: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> None:
    """Weights in `path`; SID table and map in `beside`: codes first, then begin and end (generate_itemic_tokens)."""
    path.mkdir(parents=True, exist_ok=True)
    beside.mkdir(parents=True, exist_ok=True)
    tokens = [f"<s_{level}_{code}>" for level in "abc" for code in range(SIZE)]
    make_weights(path, make_tokenizer(path, [*tokens, BEGIN, END], special=False), dtype, shard)
    pids = np.arange(len(world.codes))
    frame = pa.table(
        {
            "pid": pa.array(pids, pa.int64()),
            "codes": pa.array(world.codes.tolist(), pa.list_(pa.int64())),
            "note": [f"n{pid}" for pid in pids],
        }
    )
    frame = frame.replace_schema_metadata({"pandas": '{"index_columns": []}'})
    pq.write_table(frame, beside / "pid2sid.parquet", row_group_size=16, compression="gzip")
    counts = np.random.default_rng(5).integers(1, 9, len(pids))
    rows: dict[str, list[dict[str, int]]] = {}
    for pid, (codes, count) in enumerate(zip(world.codes.tolist(), counts.tolist(), strict=True)):
        key = str(codes[0] * 8192**2 + codes[1] * 8192 + codes[2])
        rows.setdefault(key, []).append({"pid": pid, "count": count, "count_after_downsample": count // 2})
    for row in rows.values():
        row.sort(key=lambda one: -one["count"])
    (beside / "sid2pid.json").write_text(json.dumps(rows))


def onerec_think(path: Path, world: World, beside: Path, users: bool = True) -> None:
    """Weights in `path`, items and prompts in `beside`: begin and end first, then codes, all special (get_special_tokens)."""
    path.mkdir(parents=True, exist_ok=True)
    beside.mkdir(parents=True, exist_ok=True)
    tokens = [BEGIN, END, *(f"<s_{level}_{code}>" for level in "abc" for code in range(SIZE))]
    make_weights(path, make_tokenizer(path, tokens, special=True), torch.bfloat16, "8KB")
    items = {
        str(i): {"title": world.titles[i], "sid": whole(codes), "categories": "Beauty, Ünïcode"}
        for i, codes in enumerate(world.codes)
    }
    (beside / "Beauty.pretrain.json").write_text(json.dumps(items, ensure_ascii=False, indent=4) + "\n")
    if users:
        lines = [" ".join([str(u), *map(str, h)]) for u, h in enumerate(world.histories)]
        (beside / "sequential_data_processed.txt").write_text("\n".join(lines))
    write_prompts(beside, world)
    (beside / "exact_trie.pkl").write_bytes(b"never read")


def write_prompts(beside: Path, world: World) -> None:
    """As generate_sid_prediction_data.py and generate_RA_data.py write them."""
    for number, split in enumerate(("train", "val", "test")):
        cut = [h[: len(h) - 2 + number] for h in world.histories]
        said = "The user has purchased the following items: "
        rows: dict[str, Any] = {"user_id": [str(u) for u in range(len(cut))]}
        rows["description"] = [said + "; ".join(whole(world.codes[i]) for i in h[:-1]) + ";" for h in cut]
        rows["groundtruth"] = [whole(world.codes[h[-1]]) for h in cut]
        table = pa.table(rows).replace_schema_metadata({"pandas": "{}"})
        pq.write_table(table, beside / f"training_prediction_sid_data_{split}.parquet", row_group_size=5)
        titled = [
            said + "; ".join(f'{whole(world.codes[i])}, its title is "{world.titles[i]}"' for i in h[:-1]) + ";"
            for h in cut
        ]
        rows |= {"description": titled, "title": [world.titles[h[-1]] for h in cut], "n": list(range(len(cut)))}
        pq.write_table(pa.table(rows), beside / f"training_RA_{split}.parquet", compression="zstd")
