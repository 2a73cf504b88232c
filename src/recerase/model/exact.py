"""The k best items after a history with no beam: every listed item is scored, and the best are kept.

The trie is walked depth first, a block of nodes at a time, so that memory holds one block a level and one score an item;
what is asked of the model grows with the catalogue, hence the bound on its size. The order is that of `decode.recommend`: by
score, equal scores by item id.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import UsageError
from recerase.model.decode import Recommendations, _best, _items_of, length_batches
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.sid.trie import TorchTrie, Trie
from recerase.types import SILENT, FloatArray, Observer

MOST_ITEMS = 50_000
"""Listed items a catalogue may have."""
_SCORES = 1 << 21
"""Scores (histories x items) held at once: 8 MB, a few times over."""
_ROWS = 4096
"""Rows (histories x nodes) of one step of the model."""


def recommend_exact(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    *,
    k: int = 10,
    trie: Trie | None = None,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "recommend",
) -> Recommendations:
    """The k best items of the trie (default: the listed items) after each history, from the scores of all of them.

    What `recommend` gives with a beam as wide as the trie. `batch` is the most histories at once; large catalogues take fewer.
    Raises UsageError: k is not positive, or the trie has more than MOST_ITEMS items.
    """
    if k < 1:
        raise UsageError(f"k = {k} must be at least 1.", "Ask for at least one item.")
    trie = Trie.build(table) if trie is None else trie
    if len(trie.leaf_items) > MOST_ITEMS:
        raise UsageError(
            f"--exact scores every item, and {len(trie.leaf_items):,} are listed; it takes at most {MOST_ITEMS:,}.",
            "Leave --exact out and pass a wider --beam.",
        )
    items = np.full((len(histories), k), -1, np.int32)
    scores = np.full((len(histories), k), -np.inf, np.float32)
    leaves = trie.n_nodes(trie.levels)
    if leaves == 0 or len(histories) == 0:
        return Recommendations(items, scores)
    arrays = trie.torch(model.device)
    rank = torch.from_numpy(table.id_rank).to(model.device)
    first = torch.from_numpy(trie.smallest(table.id_rank)[trie.levels]).to(model.device)
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, max(1, min(batch, _SCORES // leaves))):
            state = model.start(*model.tokens(histories.take(rows), table))
            found = leaf_scores(model, state, arrays)
            nodes = torch.arange(leaves, device=found.device).expand_as(found)
            # An item that is not in one of the k best leaves has k better ones, the smallest of each.
            score, leaf = _best(found, k, nodes, first)
            best, score = _items_of(leaf, score, arrays, min(trie.max_leaf_items, k), rank, k)
            items[rows, : best.shape[1]] = best.cpu().numpy()
            scores[rows, : best.shape[1]] = score.cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return Recommendations(items, scores)


def catalogue_scores(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    trie: Trie,
    *,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "every item",
) -> FloatArray:
    """float32 [B, n_L] log p(SID | history) of every leaf of the trie; `table` spells the histories.

    All of it is held at once. Raises UsageError when the trie has more than MOST_ITEMS leaves.
    """
    leaves = trie.n_nodes(trie.levels)
    if leaves > MOST_ITEMS:
        raise UsageError(
            f"Every item is to be scored, and there are {leaves:,}; at most {MOST_ITEMS:,} are.", "Use a wide beam."
        )
    out = np.full((len(histories), leaves), -np.inf, np.float32)
    if leaves == 0 or len(histories) == 0:
        return out
    arrays = trie.torch(model.device)
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, max(1, min(batch, _SCORES // leaves))):
            state = model.start(*model.tokens(histories.take(rows), table))
            out[rows] = leaf_scores(model, state, arrays).cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return out


def leaf_scores(model: Recommender, state: State, trie: TorchTrie, nodes: int | None = None) -> Tensor:
    """float32 [B, n_L] log p(SID | history) of every leaf of the trie, for a state at the root.

    `nodes`: the most nodes of one step (default: _ROWS over the B histories); memory holds one step a level.
    """
    batch = len(state.lengths)
    out = torch.empty(batch, len(trie.tokens[-1]), device=state.hidden.device)
    nodes = max(16, _ROWS // batch) if nodes is None else nodes
    _descend(model, state, trie, 0, 0, torch.zeros(batch, 1, device=out.device), out, nodes)
    return out


def _descend(
    model: Recommender, state: State, trie: TorchTrie, depth: int, begin: int, totals: Tensor, out: Tensor, nodes: int
) -> None:
    """Fill `out` at the leaves below the nodes begin.. of `depth`, where the state stands; `totals` [B, Q] are their scores."""
    first = trie.first_child[depth]
    low, high = int(first[begin]), int(first[begin + totals.shape[1]])
    token, parent = trie.tokens[depth + 1][low:high], trie.parent[depth + 1][low:high] - begin
    chances = state.log_probs[:, token] if depth == 0 else state.log_probs[:, parent, token]
    certain = trie.certain[depth + 1]
    if certain is not None:
        chances = chances.masked_fill(certain[low:high], 0.0)
    totals = totals[:, parent] + chances
    if depth + 2 == len(trie.tokens):
        out[:, low:high] = totals
        return
    for at in range(0, high - low, nodes):
        to = min(high - low, at + nodes)
        here = model.advance(state, token[at:to], None if depth == 0 else parent[at:to])
        _descend(model, here, trie, depth + 1, low + at, totals[:, at:to], out, nodes)
