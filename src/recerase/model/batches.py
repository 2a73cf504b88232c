"""Batches of the training loop: sequences cut into windows or pairs, and the tensors that a model is given of them.

The one decision: cutting and batching are functions of histories and a random generator alone, so that an epoch's batches are those
of its (seed, epoch) whoever makes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import UsageError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import IntArray

IGNORED = -100


def with_sids(sequences: Histories, table: SidTable) -> Histories:
    """Sequences without the items the table has no SID for, and without users left with fewer than two items."""
    kept = sequences.without(table.codes[:, 0] < 0)
    return kept.take(np.flatnonzero(kept.lengths >= 2))


def windows(sequences: Histories, size: int, rng: np.random.Generator) -> Histories:
    """Cut every sequence into pieces of at most `size` items, at offsets drawn anew by `rng`.

    A sequence of at most `size` items stays whole; pieces of one item are dropped.
    """
    lengths = sequences.lengths
    first = np.where(lengths > size, rng.integers(1, size + 1, len(sequences)), lengths)
    pieces = 1 + -(-np.maximum(lengths - first, 0) // size)
    owner = np.repeat(np.arange(len(sequences)), pieces)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.where(nth == 0, 0, first[owner] + (nth - 1) * size)
    end = np.minimum(np.where(nth == 0, first[owner], begin + size), lengths[owner])
    keep = end - begin >= 2
    owner, begin, end = owner[keep], begin[keep], end[keep]
    sizes = end - begin
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    source = np.repeat(sequences.offsets[owner] + begin - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Histories(
        items=sequences.items[source],
        offsets=offsets,
        users=sequences.users[owner],
        targets=np.full(len(owner), -1, np.int32),
    )


def pairs(sequences: Histories, window: int) -> Histories:
    """Every (history, next item) pair of every sequence; a history is the last `window` items before the target."""
    following = np.maximum(sequences.lengths - 1, 0)
    owner = np.repeat(np.arange(len(sequences)), following)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(following) - following, following) + 1
    sizes = np.minimum(position, window)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    last = sequences.offsets[owner] + position
    source = np.repeat(last - sizes - offsets[:-1], sizes) + np.arange(offsets[-1])
    return Histories(
        items=sequences.items[source],
        offsets=offsets,
        users=sequences.users[owner],
        targets=sequences.items[last].astype(np.int32),
    )


def batch_rows(lengths: IntArray, batch: int, rng: np.random.Generator) -> list[IntArray]:
    """Rows grouped by nearly equal length (so that little is padding), the groups and the ties in random order."""
    order = np.lexsort((rng.random(len(lengths)), lengths))
    groups = [order[i : i + batch] for i in range(0, len(order), batch)]
    return [groups[i] for i in rng.permutation(len(groups))]


def causal_inputs(model: Recommender, table: SidTable, pieces: Histories) -> dict[str, Tensor]:
    """Input ids, mask and labels [B, T] of whole pieces; the label of a position is the code that follows it.

    Raises UsageError for a model with a prompt, in which other things than codes follow.
    """
    if model.prompt is not None:
        raise UsageError("A model that is asked inside a prompt is not trained here.", "Train it with its own tool.")
    tokens, lengths = model.tokens(pieces, table, window=int(pieces.lengths.max()))
    position = torch.arange(tokens.shape[1], device=tokens.device)
    valid = position[None] < lengths[:, None]
    labels = torch.full_like(tokens, IGNORED)
    labels[:, :-1] = torch.where(valid[:, 1:], tokens[:, 1:], torch.full_like(tokens[:, 1:], IGNORED))
    return {"input_ids": tokens, "labels": labels}


def seq2seq_inputs(model: Recommender, table: SidTable, histories: Histories) -> dict[str, Tensor]:
    """Encoder ids and mask [B, T], decoder inputs (start + all but the last code) and labels [B, L].

    A shorter SID is learned with the eos that ends it; nothing is asked after that.
    """
    tokens, lengths = model.tokens(histories, table)
    target = torch.from_numpy(table.rows()[histories.targets]).to(tokens.device)
    module: Any = model.module
    start = torch.full_like(target[:, :1], module.config.decoder_start_token_id)
    return {
        "input_ids": tokens,
        "attention_mask": (torch.arange(tokens.shape[1], device=tokens.device)[None] < lengths[:, None]).long(),
        "decoder_input_ids": torch.cat([start, target[:, :-1].clamp(min=0)], 1),
        "labels": target.masked_fill(target < 0, IGNORED),
    }
