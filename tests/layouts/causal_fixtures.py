"""Directories as MiniOneRec and LC-Rec leave them: real transformers classes, a real tokenizer, and every file that carries SIDs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from recerase.catalog.readers import write_catalogue

N, USERS = 40, 60
CODES = (6, 5, 8)
TEXT = [
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    "Write a response that appropriately completes the request. \n\n### Instruction:\n### Response:\n### User Input: \n",
    "Can you predict the next possible item the user may expect, given the following chronological interaction history: ",
    "The user has interacted with items in chronological order., 0123456789",
] * 3


def sid(codes: Any) -> str:
    return "".join(f"<{'abcd'[level]}_{code}>" for level, code in enumerate(codes) if code >= 0)


@dataclass
class World:
    """Items, SIDs and histories before they are files."""

    codes: np.ndarray
    titles: list[str]
    histories: list[list[int]]
    index: dict[str, list[str]] = field(default_factory=dict)


def make_world(ragged: bool = False, collide: bool = True) -> World:
    """40 items; two share a SID; titles have commas, quotes, line ends and a SID in them; items 0 to 7 are of brand Acme."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.unravel_index(rng.permutation(int(np.prod(CODES)))[:N], CODES), 1).astype(np.int32)
    if collide:
        grid[11] = grid[10]
    codes = np.full((N, 3 + ragged), -1, np.int32)
    codes[:, :3] = grid
    if ragged:
        codes[10:12, 3] = [0, 1]
    titles = [f"Item {i}" for i in range(N)]
    titles[4] = 'A "quoted", title'
    titles[5] = "Two\nlines"
    titles[20] = "Speaks of <a_1><b_2><c_3>"
    histories = [rng.choice(N, size=int(rng.integers(3, 9))).tolist() for _ in range(USERS)]
    histories = [[*h, int(rng.integers(0, 8)), *rng.choice(N, 2).tolist()] for h in histories]
    index = {str(i): [f"<{'abcd'[x]}_{c}>" for x, c in enumerate(codes[i]) if c >= 0] for i in range(N)}
    return World(codes, titles, histories, index)


def make_tokenizer(path: Path, index: Mapping[str, list[str]], llama: bool) -> int:
    """A byte-level BPE tokenizer with SID tokens added as the tools add them, saved into `path`; its length.

    As a Llama has, with bos that it puts in front by itself; as Qwen has, without bos.
    """
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>"] if llama else ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator(TEXT, trainer)
    if llama:
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bare.token_to_id("<s>"))]
        )
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} if llama else {"eos_token": "<|endoftext|>"}
    made = PreTrainedTokenizerFast(tokenizer_object=bare, **names)
    tokens = sorted({token for tokens in index.values() for token in tokens})
    made.add_tokens([AddedToken(token) for token in tokens] if llama else tokens)
    made.save_pretrained(path)
    return len(made)


def make_weights(path: Path, rows: int, llama: bool, tied: bool, dtype: torch.dtype, shard: str = "5GB") -> None:
    """A tiny model with loud weights, saved by transformers."""
    shape: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "initializer_range": 0.3,
        "max_position_embeddings": 2048,
        "bos_token_id": 1 if llama else None,
        "eos_token_id": 2 if llama else 0,
        "pad_token_id": None,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LlamaForCausalLM(LlamaConfig(**shape)) if llama else Qwen2ForCausalLM(Qwen2Config(**shape))
        for name, parameter in made.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    made.to(dtype).save_pretrained(path, max_shard_size=shard)


def write_lists(path: Path, world: World) -> None:
    """info/*.txt as convert_dataset.py writes it: SID, title, id."""
    (path / "info").mkdir()
    lines = [
        f"{sid(codes)}\t{title}\t{i}\n" for i, (codes, title) in enumerate(zip(world.codes, world.titles, strict=True))
    ]
    (path / "info" / "Toys_5_2016-10-2018-11.txt").write_text("".join(lines))


def write_csvs(path: Path, world: World) -> None:
    """train, valid and test as convert_dataset.py writes them (pandas' quoting is csv's)."""
    columns = [
        "user_id",
        "history_item_title",
        "item_title",
        "history_item_id",
        "item_id",
        "history_item_sid",
        "item_sid",
    ]
    for number, split in enumerate(("train", "valid", "test")):
        (path / split).mkdir()
        with open(path / split / "Toys_5_2016-10-2018-11.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for user, whole in enumerate(world.histories):
                history, target = whole[: len(whole) - 3 + number][-10:], whole[len(whole) - 3 + number]
                sids = [sid(world.codes[i]) for i in history]
                titles = [world.titles[i] for i in history]
                writer.writerow(
                    [f"A{user}", titles, world.titles[target], history, target, sids, sid(world.codes[target])]
                )


def write_data(path: Path, world: World) -> Path:
    """The same catalogue and histories as a data directory."""
    items = pa.table(
        {
            "item_id": [str(i) for i in range(N)],
            "title": world.titles,
            "description": [f"words {i % 5} and {i % 3} of kind {c[0]} {c[1]}" for i, c in enumerate(world.codes)],
            "categories": pa.array([[]] * N, pa.list_(pa.string())),
            "brand": ["Acme" if i < 8 else "Other" for i in range(N)],
            "price": pa.array([None] * N, pa.float64()),
        }
    )
    rows = [(f"A{user}", str(item), t) for user, h in enumerate(world.histories) for t, item in enumerate(h)]
    users, bought, times = zip(*rows, strict=True)
    table = {
        "user_id": users,
        "item_id": bought,
        "timestamp": times,
        "rating": pa.array([None] * len(rows), pa.float64()),
    }
    write_catalogue(path, items, pa.table(table))
    return path


def minionerec(
    path: Path, world: World, tied: bool = True, dtype: torch.dtype = torch.bfloat16, shard: str = "5GB"
) -> Path:
    """A MiniOneRec directory."""
    path.mkdir(parents=True, exist_ok=True)
    rows = make_tokenizer(path, world.index, llama=False)
    make_weights(path, rows, False, tied, dtype, shard)
    (path / "Toys.index.json").write_text(json.dumps(world.index))
    write_lists(path, world)
    write_csvs(path, world)
    return path


def lc_rec(path: Path, world: World, tied: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """An LC-Rec directory: a whole LLaMA, its tokenizer, and the SID table."""
    path.mkdir(parents=True, exist_ok=True)
    rows = make_tokenizer(path, world.index, llama=True)
    make_weights(path, rows, True, tied, dtype)
    (path / "Toys.index.json").write_text(json.dumps(world.index))
    (path / "Toys.inter.json").write_text(json.dumps({str(u): h for u, h in enumerate(world.histories)}))
    return path
