"""What must hold of every causal directory that was written back."""

from __future__ import annotations

import csv
import json
from ast import literal_eval
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

EASY = 'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n[[rule]]\nid = "list"\nmetric = "natural.exposure@10"\nmax = 1.0\n'
FAST = ["min_agreement=0", "reassign_steps=2", "settle_steps=2", "pool=1", "batch=8", "sequences=8"]
OURS = {"recerase.json", "report.json", "erased.json", "codebooks.safetensors"}


def files_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        if file.name not in OURS:
            with safe_open(file, "pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    return found


def old_reader(path: Path) -> dict[str, list[int]]:
    """What the original tools make of index and tokenizer: item -> token ids."""
    own = AutoTokenizer.from_pretrained(path, local_files_only=True)
    index = json.loads((path / "Toys.index.json").read_text())
    return {item: own("".join(tokens), add_special_tokens=False).input_ids for item, tokens in index.items()}


def info_reader(path: Path) -> dict[str, str]:
    """What evaluate.py reads of the item list: id -> SID."""
    text = next((path / "info").glob("*.txt")).read_text()
    return {line.split("\t")[-1]: line.split("\t")[0] for line in text.replace("Two\nlines", "Two lines").splitlines()}


def csv_reader(path: Path) -> list[tuple[list[str], list[str], str, str]]:
    """Ids and SIDs of every record of every CSV file."""
    out = []
    for split in ("train", "valid", "test"):
        with open(next((path / split).glob("*.csv")), newline="") as file:
            for row in csv.DictReader(file):
                ids = [str(i) for i in literal_eval(row["history_item_id"])]
                out.append((ids, literal_eval(row["history_item_sid"]), row["item_id"], row["item_sid"]))
    return out


def loads(path: Path) -> torch.nn.Module:
    """The model as its users load it; every tensor that is stored is what the model then has."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, local_files_only=True, dtype="auto")
    state = model.state_dict()
    for name, tensor in tensors_of(path).items():
        assert torch.equal(state[name], tensor), name
    return model
