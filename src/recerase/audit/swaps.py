"""Search over histories: whose items, exchanged one at a time, bring the greatest probability of the concept.

The one decision: a gradient only proposes. The exact log-mass is differentiated by the input embeddings of every slot, the codes of
each item are put into that linear guess (HotFlip, Ebrahimi et al. 2018; GCG, Zou et al. 2023), and the moves it likes best are then
read exactly; the best of these is made, or none. So a figure is always the exact mass of a history that can be sent.

Processes that share an audit read the proposed histories in turns; the main one proposes for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recerase.audit.cases import synthetic
from recerase.errors import CheckpointError
from recerase.model.decode import length_batches
from recerase.model.mass import STEP_CELLS, leaf_log_probs, level_log_probs
from recerase.parallel import workers
from recerase.sid.trie import Trie
from recerase.types import FloatArray, IntArray

if TYPE_CHECKING:
    from recerase.audit.probes import AuditModel
    from recerase.catalog.interactions import Histories
    from recerase.sid.table import SidTable
    from recerase.types import BoolArray, Observer

PROPOSED = 32
"""Moves a history that are read exactly in a round."""
MARGIN = 1e-4
"""What the log-mass must gain for a move to be made; below it a gain may be rounding."""
_DECIMALS = 5
"""Log-masses that agree so far are equal: the first move among them is made, whatever the batch they were read in."""


class Target:
    """What is searched for: the mass of `members` [N] under the SIDs of `output`, after histories that `model.table` spells.

    At least one of the members has a SID in `output`.
    """

    def __init__(self, model: AuditModel, output: SidTable, members: BoolArray, batch: int) -> None:
        trie = Trie.build(output, members & output.present)
        inner = sum(trie.n_nodes(depth) for depth in range(1, trie.levels))
        cells = max(1, inner) * model.recommender.schema.vocabulary
        self.model, self.output, self.members, self.batch = model, output, members & output.present, batch
        self.graph_batch = max(1, min(batch, STEP_CELLS // cells))
        """Histories whose gradient is taken at once: a backward pass keeps what every node said of all codes."""
        self._trie = trie.torch(model.recommender.device)

    def log_mass(self, tokens: Tensor, lengths: Tensor, embeds: Tensor | None = None) -> Tensor:
        """float64 [B] exact log-mass after tokens [B, T]; differentiable by `embeds` [B, T, D]."""
        model, trie = self.model.recommender, self._trie
        state = model.start(tokens, lengths, embeds)
        return leaf_log_probs(level_log_probs(model, state, trie), trie).double().logsumexp(1)

    def read(self, histories: Histories) -> FloatArray:
        """float64 [B] exact log-mass after each history; -inf where the mass is 0. Raises CheckpointError when it is no number."""
        model, table = self.model.recommender, self.model.table
        batches, who = list(length_batches(model, table, histories, self.batch)), workers()
        mine: dict[int, FloatArray] = {}
        with torch.inference_mode():
            for number in who.mine(len(batches)).tolist():
                some = histories.take(batches[number])
                mine[number] = self.log_mass(*model.tokens(some, table)).cpu().numpy()
        found = np.full(len(histories), -np.inf)
        for parts in who.gathered(mine):
            for number, values in parts.items():
                found[batches[number]] = values
        if np.isnan(found).any() or (found == np.inf).any():
            raise CheckpointError(
                f"The {self.model.role} model gives no finite probability after {int((~(found < np.inf)).sum())} histories.",
                "Check its weights for NaN or overflow.",
            )
        return found


@dataclass(frozen=True, eq=False)
class Found:
    """Where a search ended, a history a start."""

    items: IntArray
    """int64 [S, m] from the left, oldest first; -1 behind them."""
    log_mass: FloatArray
    """float64 [S]."""
    read: int
    """Histories whose mass was read."""

    @property
    def best(self) -> int:
        """The start that led farthest."""
        return int(np.argmax(np.round(self.log_mass, _DECIMALS)))


def as_histories(items: IntArray) -> Histories:
    """Histories of nobody from items [B, m], which stand from the left with -1 behind them."""
    return synthetic(items, np.count_nonzero(items >= 0, axis=1))


def search(
    target: Target, starts: IntArray, candidates: IntArray, rounds: int, observer: Observer, *, proposed: int = PROPOSED
) -> Found:
    """Greedy search from each of the starts: in a round, the best of the proposed moves, where it gains.

    A move puts a candidate into one slot, or behind a history of fewer than m items. Where no proposed move gains, those that the
    gradient liked next are read in the next round.

    Args:
        starts: int64 [S, m] items from the left, -1 behind them; all can be read under the model's table.
        candidates: int64 [C] items that may be put into a history, which can be read too. Items may repeat in a history.
    """
    items = starts.copy()
    current, page, read = target.read(as_histories(items)), np.zeros(len(items), np.int64), len(items)
    who = workers()
    observer.start("worst case", rounds)
    for _ in range(rounds):
        moves = who.told(propose(target, items, candidates, page, proposed) if who.main else None)
        tried = moved(items, *moves)  # [S, K, m]
        values = target.read(as_histories(tried.reshape(-1, items.shape[1]))).reshape(tried.shape[:2])
        read += values.size
        pick = np.argmax(np.round(values, _DECIMALS), axis=1)
        every = np.arange(len(items))
        best = values[every, pick]
        gains = best > current + MARGIN
        items = np.where(gains[:, None], tried[every, pick], items)
        current, page = np.where(gains, best, current), np.where(gains, 0, page + 1)
        observer.advance("worst case", 1)
    observer.finish("worst case")
    return Found(items, current, read)


def moved(items: IntArray, slots: IntArray, chosen: IntArray) -> IntArray:
    """int64 [S, K, m] the histories [S, m] after each of K moves: item `chosen` [S, K] in slot `slots` [S, K]; -1: no move."""
    wide = np.broadcast_to(items[:, None], (*slots.shape, items.shape[1]))
    here = (np.arange(items.shape[1]) == slots[..., None]) & (chosen >= 0)[..., None]
    return np.where(here, chosen[..., None], wide)


def propose(
    target: Target, items: IntArray, candidates: IntArray, page: IntArray, proposed: int
) -> tuple[IntArray, IntArray]:
    """The moves that the gradient likes best: slots and items, int64 [S, K] each, -1 where there are no more.

    `page` [S]: how many times K moves were liked better, and have been read.
    """
    guess = guesses(target, items, candidates)  # [S, m, C]
    flat = guess.flatten(1)
    k = min(proposed, flat.shape[1])
    order = torch.argsort(flat, dim=1, descending=True, stable=True).cpu().numpy()
    at = page[:, None] % -(-flat.shape[1] // k) * k + np.arange(k)
    inside = at < flat.shape[1]
    best = np.take_along_axis(order, np.where(inside, at, 0), 1)
    allowed = np.take_along_axis(torch.isfinite(flat).cpu().numpy(), best, 1) & inside
    slots, chosen = best // len(candidates), candidates[best % len(candidates)]
    return np.where(allowed, slots, -1), np.where(allowed, chosen, -1)


def guesses(target: Target, items: IntArray, candidates: IntArray) -> Tensor:
    """float32 [S, m, C] what the log-mass would gain, to first order, by candidate c in slot j; -inf where that is no move.

    The slot behind a shorter history is asked about by the mean embedding of the candidates' codes.
    """
    model, table = target.model.recommender, target.model.table
    filled = np.count_nonzero(items >= 0, axis=1)
    every, width = np.arange(len(items)), items.shape[1]
    room = filled < width
    asked = items.copy()
    longest = candidates[np.argmax(table.lengths[candidates])]  # stands where the mean embedding is put
    asked[every[room], filled[room]] = longest
    rows = torch.from_numpy(table.rows()[candidates]).to(model.device)  # [C, L]
    coded = torch.from_numpy(table.codes[candidates] >= 0).to(model.device)
    with torch.no_grad():
        embeds = torch.where(coded[..., None], model.embed(rows.clamp(min=0)), 0.0).float()  # [C, L, D]
    mean = embeds.sum(0) / coded.sum(0).clamp(min=1)[:, None]  # [L, D]
    new = torch.from_numpy((np.arange(width) == filled[:, None]) & room[:, None]).to(model.device)  # [S, m]
    grads, now = gradients(target, asked, torch.where(new[..., None, None], mean, torch.nan))
    gain = torch.einsum("sjld,cld->sjc", grads, embeds) - (grads * now).sum((2, 3))[..., None]
    there = torch.from_numpy(asked >= 0).to(model.device)
    same = torch.from_numpy(items[..., None] == candidates).to(model.device)
    return gain.nan_to_num(0.0).masked_fill(~there[..., None] | same, float("-inf"))


def gradients(target: Target, items: IntArray, instead: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient of the log-mass by the input embedding of every code of a history, and these embeddings.

    Args:
        items: int64 [S, m] from the left, -1 behind them.
        instead: [(S), m, L, D] embeddings that stand in place of the items' own where they are numbers.
    Returns:
        two float32 [S, m, L, D], 0 where there is no code.
    """
    model, table = target.model.recommender, target.model.table
    histories = as_histories(items)
    width = model.embed(torch.zeros(1, 1, dtype=torch.int64, device=model.device)).shape[-1]
    shape = (*items.shape, table.levels, width)
    found, stood = (torch.zeros(shape, device=model.device) for _ in range(2))
    for some in length_batches(model, table, histories, target.graph_batch):
        tokens, lengths, (_, places) = model.placed(histories.take(some), table)
        at = np.nonzero(places >= 0)
        b, j, level = (torch.from_numpy(x).to(model.device) for x in at)
        own = torch.from_numpy(some).to(model.device)[b]
        column = torch.from_numpy(places[at]).to(model.device)
        with torch.enable_grad():
            embeds = model.embed(tokens).detach()
            if instead is not None:
                put = instead[own, j, level]
                put = torch.where(put.isnan(), embeds[b, column].float(), put)
                embeds[b, column] = put.to(embeds.dtype)
            embeds.requires_grad_(True)
            total = target.log_mass(tokens, lengths, embeds)
            total = total[torch.isfinite(total)].sum()
            (grad,) = torch.autograd.grad(total, embeds)
        found[own, j, level] = grad[b, column].float()
        stood[own, j, level] = embeds.detach()[b, column].float()
    return found, stood
