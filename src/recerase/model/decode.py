"""Beam search: constrained to the trie of SIDs (`recommend`) or free over the vocabulary (`generate_free`).

Scores are sums of exact log-softmax values over the whole vocabulary, so constrained and free decoding agree on every
SID and a model cannot look better than it is by being renormalised. Histories are batched by length and answered in the
order given. Equal scores are decided by item id, also at the edge of the beam. What holds of other batch sizes: scores agree
to a few units in the last place, because a matrix product of another shape rounds otherwise; lists agree wherever the scores
of neighbours are farther apart than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import UsageError
from recerase.model.children import Children, children
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.sid.trie import TorchTrie, Trie
from recerase.types import SILENT, FloatArray, IntArray, Observer


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The best k items after each of B histories, best first."""

    items: IntArray
    """int32 [B, k] catalogue rows, -1 where the trie holds fewer than k items."""
    scores: FloatArray
    """float32 [B, k] log p(SID | history), -inf where there is no item."""


@dataclass(frozen=True, eq=False)
class Free:
    """What the model writes when nothing constrains it: W sequences of L vocabulary rows a history, best first."""

    rows: IntArray
    """int64 [B, W, L]; may be no SID at all. -1 behind the eos that ends one, where SIDs differ in length."""
    scores: FloatArray
    """float32 [B, W]."""


def length_batches(model: Recommender, table: SidTable, histories: Histories, batch: int) -> Iterator[IntArray]:
    """Rows of `histories` in batches of nearly equal length, every row once."""
    read = np.minimum(histories.without(~table.readable).lengths, model.window)
    order = np.argsort(read, kind="stable")
    for begin in range(0, len(order), batch):
        yield order[begin : begin + batch]


def recommend(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    *,
    k: int = 10,
    beam: int | None = None,
    trie: Trie | None = None,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "recommend",
) -> Recommendations:
    """The k best items of the trie after each history, by constrained beam search.

    Args:
        table: spells the histories; `trie` (default: its listed items) spells what may be recommended.
        beam: W, default max(20, 2 k). A beam as wide as the trie makes the search exact.
    Equal scores are ordered by item id; of prefixes that tie at the edge of the beam, those stay that lead to the smallest
    ids, so that a model with no preference gives the k smallest ids whatever the beam (of at least k). Items that share a
    SID all appear, with the same score.
    Raises:
        UsageError: k or beam is not positive.
    """
    width = max(20, 2 * k) if beam is None else beam
    if k < 1 or width < 1:
        raise UsageError(f"k = {k} and beam = {width} must be at least 1.", "Ask for at least one item.")
    trie = Trie.build(table) if trie is None else trie
    items = np.full((len(histories), k), -1, np.int32)
    scores = np.full((len(histories), k), -np.inf, np.float32)
    if trie.n_nodes(trie.levels) == 0 or len(histories) == 0:
        return Recommendations(items, scores)
    arrays = trie.torch(model.device)
    id_rank = table.id_rank
    rank = torch.from_numpy(id_rank).to(model.device)
    firsts = [torch.from_numpy(first).to(model.device) for first in trie.smallest(id_rank)]
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, batch):
            leaves, found = _search(model, table, histories.take(rows), arrays, trie, firsts, width)
            best, score = _items_of(leaves, found, arrays, min(trie.max_leaf_items, k), rank, k)
            items[rows, : best.shape[1]] = best.cpu().numpy()
            scores[rows, : best.shape[1]] = score.cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return Recommendations(items, scores)


def _search(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    arrays: TorchTrie,
    trie: Trie,
    firsts: list[Tensor],
    width: int,
) -> tuple[Tensor, Tensor]:
    """Leaves [B, W'] and scores [B, W'] of the beams alive at the last level; dead ones score -inf.

    `firsts`: a depth, [n_d] the smallest id rank of the items below each node.
    """
    state = model.start(*model.tokens(histories, table))
    score = state.log_probs[:, arrays.tokens[1]]  # [B, n_1]
    nodes = torch.arange(score.shape[1], device=score.device).expand_as(score)
    score, node = _best(score, width, nodes, firsts[1])
    parents: Tensor | None = None
    for depth in range(1, trie.levels):
        state = model.advance(state, arrays.tokens[depth][node], parents)
        below = children(arrays, depth, node, score, state.log_probs, trie.max_children(depth))
        score, pick = _best(below.totals, width, below, firsts[depth + 1])
        parents, node = pick // below.each, below.nodes(pick)
    return node, score


def _best(scores: Tensor, width: int, nodes: Tensor | Children, firsts: Tensor) -> tuple[Tensor, Tensor]:
    """The `width` best of scores [B, M] and where they stand, in no order; ties for the last places go by `firsts`.

    One candidate more than needed is looked at: the ranks of `nodes` [B, M] count only where it ties with the last one kept.
    """
    if scores.shape[1] <= width:
        return scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    found, pick = scores.topk(width + 1, dim=1)
    last = found[:, width - 1 : width]
    tied = ((found[:, width:] == last) & torch.isfinite(last))[:, 0]
    found, pick = found[:, :width], pick[:, :width]
    if bool(tied.any()):
        rows, edge = scores[tied], last[tied]
        never = torch.iinfo(torch.int64).max
        order = torch.where(rows == edge, firsts[nodes[tied]], never).masked_fill(rows > edge, -1)
        pick = pick.clone()
        pick[tied] = order.topk(width, dim=1, largest=False).indices
        found = scores.gather(1, pick)
    return found, pick


def _items_of(
    leaves: Tensor, scores: Tensor, arrays: TorchTrie, most: int, rank: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best items of leaves [B, W]: by score, equal scores by id; -1 and -inf where there are none."""
    step = torch.arange(most, device=leaves.device)
    begin = arrays.leaf_start[leaves]
    alive = (step < (arrays.leaf_start[leaves + 1] - begin)[..., None]) & torch.isfinite(scores)[..., None]
    items = arrays.leaf_items[torch.where(alive, begin[..., None] + step, 0)]
    items = torch.where(alive, items, -1).flatten(1)
    score = torch.where(alive, scores[..., None], float("-inf")).flatten(1)
    place = torch.where(items >= 0, rank[items.clamp(min=0)], len(rank))
    by_id = place.argsort(dim=1, stable=True)
    by_score = score.gather(1, by_id).argsort(dim=1, descending=True, stable=True)
    order = by_id.gather(1, by_score)[:, :k]
    return items.gather(1, order), score.gather(1, order)


def generate_free(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    *,
    beam: int = 20,
    ends: bool | None = None,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "free decoding",
) -> Free:
    """The W most likely sequences of L vocabulary rows after each history, with no trie: any row may follow any row.

    Where `ends` (default: where SIDs of the table differ in length), eos ends a sequence; -1 follows it.
    """
    ends = table.ragged if ends is None else ends
    if beam < 1:
        raise UsageError(f"beam = {beam} must be at least 1.", "Ask for at least one beam.")
    rows_out = np.zeros((len(histories), beam, table.levels), np.int64)
    scores_out = np.full((len(histories), beam), -np.inf, np.float32)
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, batch):
            state = model.start(*model.tokens(histories.take(rows), table))
            score, token = state.log_probs.topk(min(beam, state.log_probs.shape[1]), dim=1)
            path, parents = token[..., None], None
            for _ in range(1, table.levels):
                state = model.advance(state, path[..., -1].clamp(min=0), parents)
                ended = (path[..., -1] < 0) | (path[..., -1] == table.schema.eos) if ends else None
                total = (score[..., None] + _following(state.log_probs, ended)).flatten(1)
                score, pick = total.topk(min(beam, total.shape[1]), dim=1)
                vocabulary = state.log_probs.shape[2]
                parents = pick // vocabulary
                past = path.gather(1, parents[..., None].expand(-1, -1, path.shape[2]))
                token = pick % vocabulary
                if ended is not None:
                    token = token.masked_fill(ended.gather(1, parents), -1)
                path = torch.cat([past, token[..., None]], 2)
            if ends:  # there may be fewer sequences than beams
                path = torch.where(torch.isfinite(score)[..., None], path, 0)
            rows_out[rows, : path.shape[1]] = path.cpu().numpy()
            scores_out[rows, : path.shape[1]] = score.cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return Free(rows_out, scores_out)


def _following(log_probs: Tensor, ended: Tensor | None) -> Tensor:
    """log_probs [B, W, V], but of beams that have `ended` [B, W]: they go on in one way, which costs nothing."""
    if ended is None:
        return log_probs
    nothing = torch.full_like(log_probs[0, 0], float("-inf"))
    nothing[0] = 0.0
    return torch.where(ended[..., None], nothing, log_probs)
