"""RQ-VAE-Recommender: a .pt of train_decoder.py (iter, model, optimizer, scheduler), whose buffer `codebooks` [N, L] is the SID table.

The one decision: the buffer is the table, and there is no other. An item's id is its row; the digit that would keep items of one SID
apart is cut off before the model (_strip_dedup_col, modules/model.py), so items may share a SID. Names begin with `_orig_mod.` where
the model was compiled.

What its own code does with the file is not all from the file: train_decoder.py spells histories by SIDs that it computes anew from
the RQ-VAE (precompute_corpus_ids), and knows nothing of items that have moved; that is told wherever the checkpoint is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recerase.errors import TableError
from recerase.layouts import levels
from recerase.layouts.level_stacks import Names, Stacks
from recerase.layouts.levels import Codes
from recerase.layouts.native import Checkpoint
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.torch_zip import Contents

NAME = "rqvae-recommender"
_TABLE, _FINAL = "item_sid_embedding_table.weight", "t5_decoder.final_layer_norm.weight"
_NAMES = Names(
    model="model",
    moments="optimizer",
    encoder=("encoder.encoder.",),
    decoder="t5_decoder.",
    table=_TABLE,
    heads="decoder_mlp.",
    bos="bos_token",
)
_WINDOW = 20
"""Items of a history of Amazon's (DATASET_NAME_TO_MAX_SEQ_LEN, data/processed.py), the one dataset that it trains on."""


def _checkpoints(path: Path) -> list[str]:
    return levels.holding(path, "*.pt", _TABLE, _FINAL)


def _detect(path: Path) -> str | None:
    return f"a .pt with {_TABLE}" if _checkpoints(path) else None


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a directory with a checkpoint of train_decoder.py; see `Layout.load`."""
    weights = levels.chosen(path, _checkpoints(path), request)

    def table_of(contents: Contents, found: Stacks) -> Codes:
        buffers = [keys for keys in contents.tensors if keys[0] == _NAMES.model and keys[-1].endswith("codebooks")]
        codes = levels.whole_numbers(contents.tensors[buffers[0]]) if len(buffers) == 1 else None
        if codes is None or codes.shape[1] != found.levels or not 0 <= codes.min() <= codes.max() < found.size:
            raise TableError(
                f"{path / weights} has no buffer codebooks [items, {found.levels}] of codes below {found.size}.",
                "Give a checkpoint of train_decoder.py as it wrote it.",
            )
        return Codes(np.ascontiguousarray(codes, np.int32), ((path / weights, buffers[0]),), across=False)

    return levels.load(path, request, NAME, _NAMES, weights, lambda _: _WINDOW, table_of)


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    file = levels.chosen(path, _checkpoints(path), LoadRequest(options=options, trust_pickle=True))
    return levels.digest(path, [], path / file)


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout, each with its remedy."""
    return (
        *levels.user_remark(checkpoint),
        *levels.moment_remark(checkpoint),
        (
            "train_decoder.py spells histories by SIDs computed anew from the RQ-VAE, and items that were moved by their old ones.",
            "After loading, put the buffer into its tokenizer: tokenizer.cached_ids[:, :L] = model.codebooks.",
        ),
        (
            "Its generate() draws up to 64 codes a level at random; recerase searches the likeliest.",
            "Compare lists over several seeds.",
        ),
    )


LAYOUTS = (
    Layout(
        name=NAME,
        users="RQ-VAE-Recommender: a .pt of train_decoder.py, whose buffer codebooks is the SID table",
        marks=(f"*.pt with {_TABLE}",),
        detect=_detect,
        load=load,
        write_back=levels.write_back,
        digest=digest,
        remarks=remarks,
        options=levels.OPTIONS,
    ),
)
