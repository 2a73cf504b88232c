"""Exact concept mass: the probability that the next item is in the concept, summed over all its items, with no beam.

One tree step a level over the trie of the concept's SIDs gives every conditional probability needed; an item's
log-probability is the sum along its path. Nothing is sampled and nothing is renormalised, so the number can be compared
across models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.errors import ConceptError
from recerase.model.decode import length_batches
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.sid.trie import TorchTrie, Trie
from recerase.types import SILENT, BoolArray, FloatArray, IntArray, Observer

BATCH = 16
STEP_ROWS, STEP_CELLS = {"cpu": 512, "cuda": 1 << 16}, 1 << 28
"""Histories read together; rows (histories x nodes) a tree step takes at once, and these times the vocabulary at the most. On a
processor larger steps are slower: they leave its cache, and their results are as large as what malloc fetches afresh from the
system, page by page (1.3 times the time)."""


@dataclass(frozen=True, eq=False)
class Mass:
    """Concept mass after each of B histories."""

    mass: FloatArray
    """float64 [B] sum over items of p(SID | history); items that share a SID count it once."""
    best: FloatArray
    """float64 [B] log p(SID | history) of the likeliest of the items."""
    items: IntArray
    """int64 [M] the items counted, those of the concept that have a SID."""
    log_probs: FloatArray | None
    """float32 [B, M] log p(SID | history) an item, when asked for."""


def level_log_probs(model: Recommender, state: State, trie: TorchTrie, nodes: int | None = None) -> list[Tensor]:
    """Conditional log-probability of every node of a trie given its parent, for a state at the root.

    Args:
        nodes: the most nodes stepped to at once, which bounds memory; default: STEP_ROWS over the B histories. Children
            of a chunk need their own chunk only.
    Returns:
        list over depths 1..L of [B, n_d]. Differentiable.
    """
    levels = len(trie.tokens) - 1
    if nodes is None:
        rows = STEP_ROWS.get(state.hidden.device.type, STEP_ROWS["cuda"])
        nodes = max(16, min(rows, STEP_CELLS // state.log_probs.shape[-1]) // len(state.lengths))
    found = [state.log_probs[:, trie.tokens[1]]]
    blocks: list[tuple[State, int, int]] = [(state, 0, 1)]
    for depth in range(1, levels):
        following: list[tuple[State, int, int]] = []
        pieces = []
        for above, begin, end in blocks:
            low, high = int(trie.first_child[depth - 1][begin]), int(trie.first_child[depth - 1][end])
            for at in range(low, high, nodes):
                to = min(high, at + nodes)
                parents = None if depth == 1 else trie.parent[depth][at:to] - begin
                here = model.advance(above, trie.tokens[depth][at:to], parents)
                first, last = int(trie.first_child[depth][at]), int(trie.first_child[depth][to])
                child = trie.tokens[depth + 1][first:last]
                parent = trie.parent[depth + 1][first:last] - at
                chances = here.log_probs[:, parent, child]
                certain = trie.certain[depth + 1]
                pieces.append(chances if certain is None else chances.masked_fill(certain[first:last], 0.0))
                here.forget()  # what a step says of all codes is as large as everything else together
                if depth + 1 < levels:
                    following.append((here, at, to))
        blocks = following
        found.append(torch.cat(pieces, 1))
    return found


def leaf_log_probs(levels: list[Tensor], trie: TorchTrie) -> Tensor:
    """log p(SID | history) of every leaf [B, n_L] from the conditionals of `level_log_probs`."""
    total = levels[0]
    for depth in range(2, len(trie.tokens)):
        total = total[:, trie.parent[depth]] + levels[depth - 1]
    return total


def concept_mass(
    model: Recommender,
    table: SidTable,
    concept: BoolArray,
    histories: Histories,
    *,
    output: SidTable | None = None,
    batch: int = BATCH,
    per_item: bool = False,
    observer: Observer = SILENT,
    task: str = "concept mass",
) -> Mass:
    """Exact mass of the items of `concept` [N] after each history.

    Args:
        table: spells the histories; `output` (default: the same) spells the items that are scored.
    Unlisted items count: what is measured is the model, not the shop window.
    Raises:
        ConceptError: no item of the concept has a SID.
    """
    scored = table if output is None else output
    trie = Trie.build(scored, concept & scored.present)
    if len(trie.leaf_items) == 0:
        raise ConceptError(
            "No item of the concept has a SID, so it has no mass.", "Check the concept and the SID table."
        )
    arrays = trie.torch(model.device)
    items = np.flatnonzero(concept & scored.present)
    leaf = torch.from_numpy(trie.leaf_of(len(scored))[items]).to(model.device)
    mass, best = np.zeros(len(histories)), np.full(len(histories), -np.inf)
    log_probs = np.zeros((len(histories), len(items)), np.float32) if per_item else None
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, batch):
            state = model.start(*model.tokens(histories.take(rows), table))
            leaves = leaf_log_probs(level_log_probs(model, state, arrays), arrays)
            mass[rows] = leaves.double().exp().sum(1).cpu().numpy()
            best[rows] = leaves.amax(1).cpu().numpy()
            if log_probs is not None:
                log_probs[rows] = leaves[:, leaf].cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return Mass(mass, best, items, log_probs)


def catalogue_log_probs(
    model: Recommender, table: SidTable, histories: Histories, *, batch: int = BATCH, observer: Observer = SILENT
) -> FloatArray:
    """float32 [B, N] log p(SID | history) of every item of the catalogue, -inf for items without a SID."""
    out = np.full((len(histories), len(table)), -np.inf, np.float32)
    if table.present.any() and len(histories):
        found = concept_mass(
            model, table, table.present, histories, batch=batch, per_item=True, observer=observer, task="catalogue"
        )
        out[:, found.items] = found.log_probs
    return out


def first_entropy(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    *,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "entropy",
) -> FloatArray:
    """float64 [B] entropy, in nats, of what the model says of the first code after each history: how sure it is, whatever of."""
    found = np.zeros(len(histories))
    observer.start(task, len(histories))
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, batch):
            state = model.start(*model.tokens(histories.take(rows), table))
            chances = state.log_probs.double().exp()
            found[rows] = torch.special.entr(chances).sum(1).cpu().numpy()
            observer.advance(task, len(rows))
    observer.finish(task)
    return found


def target_log_probs(model: Recommender, table: SidTable, histories: Histories) -> Tensor:
    """float32 [B] log p(SID | history) of each history's target, which has a SID; the sum over its codes. Differentiable."""
    path = torch.from_numpy(table.rows()[histories.targets]).to(model.device)  # [B, L]
    certain, path = path < 0, path.clamp(min=0)  # what follows the end of a shorter SID
    state = model.start(*model.tokens(histories, table))
    total = state.log_probs.gather(1, path[:, :1])[:, 0]
    same = torch.zeros(1, dtype=torch.int64, device=model.device)
    for level in range(1, table.levels):
        state = model.advance(state, path[:, level - 1 : level], None if level == 1 else same)
        chance = state.log_probs[:, 0].gather(1, path[:, level : level + 1])[:, 0]
        total = total + chance.masked_fill(certain[:, level], 0.0)
    return total


def forced_log_probs(
    model: Recommender, table: SidTable, histories: Histories, items: IntArray, *, batch: int = 256
) -> FloatArray:
    """float32 [B] log p(SID | history) of one item a history, `items` [B]; -inf for an item without a SID."""
    out = np.full(len(histories), -np.inf, np.float32)
    known = np.flatnonzero(table.present[items])
    asked = replace(histories, targets=items.astype(np.int32))
    with torch.inference_mode():
        for some in length_batches(model, table, histories.take(known), batch):
            rows = known[some]
            out[rows] = target_log_probs(model, table, asked.take(rows)).cpu().numpy()
    return out
