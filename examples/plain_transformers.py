"""Recommend from a recerase checkpoint with plain transformers: recerase itself need not be installed.

A checkpoint directory is a transformers directory with two more files: sids.parquet says which codes spell which item
and which items are listed, sid_schema.json says which vocabulary row each code is. That is all a server needs to
generate items and nothing else. The lists are those of `recerase recommend`, which is much faster (see
benchmarks/bench_decode.py).

    python examples/plain_transformers.py CHECKPOINT DATA --top 10 --users u00001 u00002
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM


def read_sids(checkpoint: Path) -> tuple[dict, dict[str, tuple[int, ...]], dict[tuple[int, ...], list[str]]]:
    """The schema, item -> vocabulary rows of its SID, and vocabulary rows -> the listed items they spell."""
    schema = json.loads((checkpoint / "sid_schema.json").read_text("utf-8"))
    spelling, listed = {}, defaultdict(list)
    for item in pq.read_table(checkpoint / "sids.parquet").to_pylist():
        if item["codes"] is None:
            continue
        rows = tuple(level[code] for level, code in zip(schema["rows"], item["codes"], strict=True))
        spelling[item["item_id"]] = rows
        if item["listed"]:
            listed[rows].append(item["item_id"])
    return schema, spelling, listed


def read_histories(data: Path, users: Sequence[str]) -> list[list[str]]:
    """The item ids of each user's whole history, oldest first."""
    table = pq.read_table(data / "interactions.parquet", columns=["user_id", "item_id", "timestamp"])
    histories: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in table.to_pylist():
        histories[row["user_id"]].append((row["timestamp"], row["item_id"]))
    return [[item for _, item in sorted(histories[user], key=lambda seen: seen[0])] for user in users]


def recommend(checkpoint: Path, histories: Sequence[Sequence[str]], top: int) -> list[list[tuple[str, float]]]:
    """The `top` (item id, log-probability) after each history, best first."""
    schema, spelling, listed = read_sids(checkpoint)
    config = AutoConfig.from_pretrained(checkpoint)
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_pretrained(checkpoint, dtype=torch.float32).eval()
    special, levels, window = schema["special"], len(schema["codes"]), config.recerase["window"]

    prompts = []
    for history in histories:
        read = [item for item in history if item in spelling][-window:]
        rows = [row for item in read for row in spelling[item]]
        prompts.append([*rows, special["eos"]] if config.is_encoder_decoder else [special["bos"], *rows])
    tokens, mask = padded(prompts, special["pad"], left=not config.is_encoder_decoder)
    begin = 1 if config.is_encoder_decoder else tokens.shape[1]  # where the generated codes start

    children: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for rows in listed:
        for depth in range(levels):
            children[rows[:depth]].add(rows[depth])
    allowed = {prefix: sorted(following) for prefix, following in children.items()}

    beams = max(20, 2 * top)
    with torch.inference_mode():
        out = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            # A beam that left the trie has probability 0, but transformers wants some token for it.
            prefix_allowed_tokens_fn=lambda _, ids: allowed.get(tuple(ids[begin:].tolist()), [special["pad"]]),
            num_beams=beams,
            num_return_sequences=beams,
            min_new_tokens=levels,
            max_new_tokens=levels,
            length_penalty=0.0,  # scores stay sums of log-probabilities
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
    found = []
    sequences, scores = out.sequences[:, begin:].tolist(), out.sequences_scores.tolist()
    for first in range(0, len(sequences), beams):
        beam = zip(sequences[first : first + beams], scores[first : first + beams], strict=True)
        best = [(item, score) for rows, score in beam for item in listed.get(tuple(rows), ())]
        found.append(sorted(best, key=lambda pair: (-pair[1], pair[0]))[:top])
    return found


def padded(prompts: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, T]; a decoder that goes on writing needs its padding on the left."""
    length = max(len(prompt) for prompt in prompts)
    blank = [[0] * (length - len(prompt)) for prompt in prompts]
    sides = [(gap, [1] * len(p)) if left else ([1] * len(p), gap) for p, gap in zip(prompts, blank, strict=True)]
    mask = torch.tensor([[*before, *after] for before, after in sides])
    tokens = torch.full(mask.shape, pad)
    tokens[mask.bool()] = torch.tensor([row for prompt in prompts for row in prompt])
    return tokens, mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--users", nargs="+", required=True)
    given = parser.parse_args()
    lists = recommend(given.checkpoint, read_histories(given.data, given.users), given.top)
    for user, best in zip(given.users, lists, strict=True):
        for rank, (item, score) in enumerate(best, start=1):
            print(user, rank, item, f"{score:.4f}", sep="\t")


if __name__ == "__main__":
    main()
