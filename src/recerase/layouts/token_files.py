"""What a transformers directory with a token a code says in its files: weights, rows of tokens, limits of decoding.

The one decision: which row spells a code is read from the tokenizer's own JSON, never worked out and never asked of a tokenizer,
so that tokens for codes in use alone, in any order, are as good as a block a level. A code without a token has no row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import CheckpointError, TableError
from recerase.layouts.adapters import adapter_weights, is_adapter
from recerase.layouts.foreign import require_trust
from recerase.layouts.index_json import IndexFile
from recerase.layouts.native import Checkpoint
from recerase.layouts.spelling import PLAIN, Spelling
from recerase.layouts.weights import CONFIG
from recerase.sid.schema import SidSchema
from recerase.store import read_bytes
from recerase.types import IntArray

TOKEN_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


def token_rows(path: Path, spelling: Spelling = PLAIN) -> dict[str, int]:
    """Row of every code's token that the tokenizer's JSON files name. Raises TableError when they contradict."""
    return rows_of(path, lambda token: spelling.place(token) is not None)


def rows_of(path: Path, wanted: Callable[[str], bool]) -> dict[str, int]:
    """Row of every wanted token that the tokenizer's JSON files name. Raises TableError when they contradict."""
    found: dict[str, tuple[int, str]] = {}
    for name in TOKEN_FILES:
        if not (path / name).is_file():
            continue
        try:
            named = _named(name, json.loads(read_bytes(path / name)), wanted)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TableError(f"{path / name} names no tokens as it should: {error!s:.100}.", "Restore it.") from error
        for token, row in named:
            other = found.setdefault(token, (row, name))
            if other[0] != row:
                raise TableError(
                    f"{token} is row {other[0]} in {path / other[1]} and row {row} in {name}.",
                    "Tokenizer files are of different runs: restore those of this training.",
                )
    rows = {token: row for token, (row, _) in found.items()}
    if len(set(rows.values())) != len(rows):
        raise TableError(f"The tokenizer of {path} gives one row to two codes.", "Restore its files.")
    return rows


def _named(name: str, said: Any, wanted: Callable[[str], bool]) -> list[tuple[str, int]]:
    """(token, row) pairs of wanted tokens in the content of one of the `TOKEN_FILES`."""
    if name == "added_tokens.json":
        pairs = list(said.items())
    elif name == "tokenizer.json":
        pairs = [(entry["content"], entry["id"]) for entry in said.get("added_tokens") or []]
    else:
        pairs = [(entry["content"], int(row)) for row, entry in (said.get("added_tokens_decoder") or {}).items()]
    codes = [(token, row) for token, row in pairs if isinstance(token, str) and wanted(token)]
    if any(type(row) is not int or not 0 <= row < 1 << 31 for _, row in codes):
        raise ValueError("a row is no whole number")
    return codes


def weight_files(path: Path, trust_pickle: bool) -> list[str]:
    """The files of the weights: an adapter's, or safetensors, in shards or whole, else a trusted pytorch_model.bin.

    Raises CheckpointError for weights in shards beside whole ones, which transformers would take: one of both is of another training.
    """
    if is_adapter(path):
        return adapter_weights(path, trust_pickle)
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{whole}.index.json"
        names = _shards(index) if index.is_file() else [whole]
        if (path / whole).is_file() and whole not in names:
            raise CheckpointError(
                f"{path} holds {whole} and {index.name}, which names other weights.", "Keep one of both."
            )
        if not index.is_file() and not (path / whole).is_file():
            continue
        if whole.endswith(".bin"):
            require_trust(path / names[0], trust_pickle)
        return names
    raise CheckpointError(f"{path} has no model.safetensors.", "Give a directory that holds the weights.")


def _shards(index: Path) -> list[str]:
    """The files that an index of weights names, beside it. Raises CheckpointError."""
    try:
        said = json.loads(read_bytes(index))["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} names no weights.", "Restore it.") from error
    names = sorted({str(name) for name in said})
    if not names or any("/" in name or name.startswith(".") for name in names):
        raise CheckpointError(f"{index} names no files, or files elsewhere.", "Restore it.")
    return names


def generation_of(path: Path) -> Mapping[str, Any]:
    try:
        said = (
            json.loads(read_bytes(path / "generation_config.json"))
            if (path / "generation_config.json").is_file()
            else {}
        )
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def schema_of(
    path: Path,
    index: IndexFile,
    tokens: Mapping[str, int],
    module: Any,
    special: tuple[int, int] | None = None,
    spelling: Spelling = PLAIN,
) -> SidSchema:
    """How the codes of `index` are spelled; `special` are the rows of pad and eos where the config does not say them.

    Raises TableError when a code has no token, or a token no row.
    """
    levels = index.codes.shape[1]
    places = [(*place, row) for token, row in tokens.items() if (place := spelling.place(token))]
    vocabulary = int(module.get_input_embeddings().weight.shape[0])
    if max((row for _, _, row in places), default=0) >= vocabulary:
        raise TableError(
            f"The tokenizer of {path} names row {max(row for _, _, row in places)}, the model has {vocabulary}.",
            "Tokenizer and weights are of different runs: restore those of one training.",
        )
    rows: list[IntArray] = []
    for level in range(levels):
        mine = [(code, row) for at, code, row in places if at == level]
        size = 1 + max([code for code, _ in mine] + [int(index.codes[:, level].max())])
        spelled = np.full(size, -1, np.int64)
        for code, row in mine:
            spelled[code] = row
        rows.append(spelled)
        without = np.flatnonzero((index.codes[:, level] >= 0) & (spelled[index.codes[:, level]] < 0))
        if len(without):
            code = index.codes[without[0], level]
            raise TableError(
                f"Item {index.items[without[0]]} has {spelling.token(level, int(code))}, which the tokenizer of {path} lacks: "
                "the model reads it as unknown.",
                "Give the table that the model was trained with, with --layout-set sids=FILE.",
            )
    config = module.config
    present = index.codes[index.codes[:, 0] >= 0]
    unique = len(np.unique(present, axis=0)) == len(present)
    named = special or (config.pad_token_id, config.eos_token_id)
    pad, eos = (int(value) if type(value) is int else -1 for value in named)
    if pad < 0 or eos < 0:
        raise TableError(f"{path / CONFIG} names no pad or no eos token.", "Restore the config.")
    return SidSchema(
        codes=tuple(len(level) for level in rows),
        rows=tuple(rows),
        vocabulary=vocabulary,
        pad=pad,
        bos=-1,
        eos=eos,
        collisions="unique" if unique else "allowed",
    )


def limits(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The remark about a generation_config.json that narrows decoding."""
    found = [key for key in ("top_k", "top_p", "num_beams", "temperature") if key in checkpoint.extra["generation"]]
    if not found:
        return ()
    what = f"generation_config.json sets {', '.join(found)}, which may leave no valid beam."
    return ((what, "It is copied, and never used when recerase decodes."),)
