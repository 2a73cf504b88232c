"""What a greedy decoder would do along given SIDs: one pass over the true codes tells it for every prefix at once.

The one decision: nothing is generated. With the first j codes given, a greedy decoder writes the rest of a SID if and only
if at every later level, *after the SID's own codes before it*, the SID's code is the likeliest. So whether a prefix of any
length is enough follows from one teacher-forced pass. A code that ties with the likeliest one counts as it: which of equals
a decoder writes is chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError
from recerase.model.decode import length_batches
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.sid.trie import TorchTrie, Trie
from recerase.types import SILENT, BoolArray, FloatArray, IntArray, Observer

TIE = 1e-4
"""Nats by which a code may be less likely than the likeliest and still tie with it."""


@dataclass(frozen=True, eq=False)
class Likeliest:
    """Whether the codes of P SIDs after each of B histories are the likeliest ones, level by level."""

    free: BoolArray
    """[B, P, L] among all vocabulary rows. What follows the end of a shorter SID always is."""
    within: BoolArray
    """[B, P, L] among the codes that the trie allows there."""


def likeliest(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    output: SidTable,
    items: IntArray,
    trie: Trie,
    *,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "forced prefixes",
) -> Likeliest:
    """Along the SIDs of `items` [B, P] (rows of `output`) after each history, which `table` spells.

    `trie` is of `output`; an item that is not in it has no likeliest code at all. Raises CheckpointError when the model gives
    no number.
    """
    shape = (*items.shape, output.levels)
    found = Likeliest(np.zeros(shape, bool), np.zeros(shape, bool))
    if trie.n_nodes(trie.levels) == 0 or items.size == 0:
        return found
    known = trie.leaf_of(len(output)) >= 0  # [N]
    every = np.arange(len(output))
    paths = torch.from_numpy(np.where(known[:, None], output.rows(), -1))  # [N, L]
    nodes = torch.from_numpy(np.stack([trie.node_of(every, d) for d in range(output.levels)], 1).clip(min=0))
    arrays = trie.torch(model.device)
    widths = [trie.max_children(depth) for depth in range(trie.levels)]
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, batch):
            asked = torch.from_numpy(items[rows].astype(np.int64))
            state = model.start(*model.tokens(histories.take(rows), table))
            path, node = paths[asked].to(model.device), nodes[asked].to(model.device)
            same = torch.arange(asked.shape[1], device=model.device)
            for level in range(output.levels):
                if level:
                    state = model.advance(state, path[..., level - 1].clamp(min=0), None if level == 1 else same)
                chances = state.log_probs if level else state.log_probs[:, None].expand(-1, asked.shape[1], -1)
                most = chances.amax(2)  # [B, P]
                if bool(torch.isnan(most).any()):
                    raise CheckpointError("The model gives no number.", "Check its weights for NaN or overflow.")
                ends = path[..., level] < 0
                own = chances.gather(2, path[..., level].clamp(min=0)[..., None])[..., 0]  # [B, P]
                free = own >= most - TIE
                within = own >= _best_child(chances, arrays, level, node[..., level], widths[level]) - TIE
                found.free[rows, :, level] = (free | ends).cpu().numpy()
                found.within[rows, :, level] = (within | ends).cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    found.free[~known[items]] = found.within[~known[items]] = False
    return found


def _best_child(log_probs: Tensor, trie: TorchTrie, depth: int, node: Tensor, most: int) -> Tensor:
    """[B, P] the highest of log_probs [B, P, V] among the children of nodes [B, P] at `depth`, which have `most` at the most."""
    first = trie.first_child[depth][node].long()
    count = trie.first_child[depth][node + 1].long() - first
    place = torch.arange(most, device=node.device)
    there = place < count[..., None]  # [B, P, C]
    token = trie.tokens[depth + 1][torch.where(there, first[..., None] + place, 0)]
    return log_probs.gather(2, token).masked_fill(~there, float("-inf")).amax(2)


def extraction_strength(hits: BoolArray, lengths: IntArray) -> FloatArray:
    """1 - j / L, with j the fewest first codes that must be given for all the others to follow (Carlini et al. 2021).

    Args:
        hits: [..., L] whether each code is the likeliest after those before it.
        lengths: [...] codes of each SID, with the eos of a shorter one; 0 for an item without a SID, which has strength 0.
    """
    level = np.arange(hits.shape[-1])
    needed = np.where(~hits & (level < lengths[..., None]), level + 1, 0).max(axis=-1)
    strength: FloatArray = np.where(lengths > 0, 1 - needed / np.maximum(lengths, 1), 0.0)
    return strength
