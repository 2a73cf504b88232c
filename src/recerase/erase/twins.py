"""Virgin twins: for each prefix that only the concept has, a code that no item has there, to stand for what was never seen.

To a model that never saw the concept its codes are among the unused ones, and which of them nobody knows. So a code is *drawn* for
each prefix: what such codes get is very uneven (a few of them are plausible, most are not), and a mean over them would spread the
concept's rest evenly over its items, which a model that never saw it does not. Of many drawings the one is kept whose total is
nearest to what all of them have on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase.frontier import Frontier, Walk, besides, walk
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable

DRAWINGS = 256
_SETS = 8
"""Drawings after which what follows is read, for every `_AT_ONCE` histories."""
_AT_ONCE = 32
_LEAST = 1e-30


@dataclass(frozen=True, eq=False)
class Unseen:
    """What stands for each of E closed prefixes of a frontier, and for the items below."""

    twins: tuple[Tensor, ...]
    """A depth: int64 [n_closed] the row that stands for the prefix's last code, -1 where the level has no unused code."""
    continued: Tensor
    """[E] log of the sum, over the items below, of p_0(rest of the SID | twin); 0 for whole SIDs. A geometric mean over histories
    and drawings: what follows hardly depends on the history, but much on the twin, so that with four drawings the concept's
    target differed twelvefold between five seeds, and with 32 twofold (hatchbox)."""
    part: Tensor
    """[N] log of each item's part of that sum; 0 elsewhere."""


def drawn_twins(
    model: Recommender,
    table: SidTable,
    found: Frontier,
    histories: Histories,
    lent: Callable[[Walk], Tensor],
    rng: np.random.Generator,
) -> Unseen:
    """Draw the twins of a frontier's closed prefixes, and read what follows them.

    Args:
        histories: a few, without concept items.
        lent: of a walk, [B, E] log of the share of what precedes each closed prefix that is not the concept's.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    picks = _picks(found, DRAWINGS, generator)
    kept, continued, each, *near = _means(model, table, found, histories, lent, picks)
    weight = (kept * continued.exp()).cpu().split([len(rank.below) for rank in found.ranks])
    mean = total = torch.zeros(DRAWINGS)
    for rank, rows, beside, w in zip(found.ranks, picks, near, weight, strict=True):
        own = beside.cpu().gather(1, rows.T.clamp(min=0)).T * (rows >= 0) * w  # [DRAWINGS, n_closed]
        total = total + own.sum(1)
        mean = mean + (beside.cpu() * rank.virgin.cpu()).sum(1) @ w
    best = int((total.clamp(min=_LEAST).log() - mean.clamp(min=_LEAST).log()).abs().argmin())
    twins = tuple(rows[best].to(continued.device) for rows in picks)
    return Unseen(twins, continued, _parts(found, each))


def _means(
    model: Recommender,
    table: SidTable,
    found: Frontier,
    histories: Histories,
    lent: Callable[[Walk], Tensor],
    picks: Sequence[Tensor],
) -> list[Tensor]:
    """Means over the histories, _AT_ONCE at a time: what `lent` gives [E], what `_continued` gives [E] and [N], and `besides`."""
    sums: list[Tensor] = []
    for turn, rows in enumerate(np.array_split(np.arange(len(histories)), max(1, -(-len(histories) // _AT_ONCE)))):
        state, others = start(model, table, histories.take(rows)), [of.roll(-_SETS * turn, 0) for of in picks]
        free = lent(walk(model, state, found)).exp().mean(0)
        parts = [free, *_continued(model, table, found, state, others), *besides(model, state, found)]
        parts = [part * (len(rows) / len(histories)) for part in parts]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    return sums


def _picks(found: Frontier, n: int, generator: torch.Generator) -> list[Tensor]:
    """A depth: int64 [n, n_closed] rows drawn evenly among each closed prefix's unused codes, -1 where there are none."""
    out = []
    for rank in found.ranks:
        weights = rank.virgin.cpu()
        rows = torch.full((n, len(weights)), -1, dtype=torch.int64)
        some = weights.sum(1) > 0
        if some.any():
            rows[:, some] = torch.multinomial(weights[some], n, replacement=True, generator=generator).T
        out.append(rows)
    return out


def _continued(
    model: Recommender, table: SidTable, found: Frontier, state: State, picks: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """`continued` [E] of Unseen and [N] log p_0(rest of each item's SID | twin), over the first _SETS of the twins picked, each after
    a part of the histories.

    Where a level has no unused code what follows is taken to be even: 1 / K a level.
    """
    device, batch = state.hidden.device, len(state.lengths)
    sets = min(_SETS, batch)
    totals, part = [], torch.zeros(len(table), device=device)
    for depth, (rank, rows) in enumerate(zip(found.ranks, picks, strict=True)):
        items = np.concatenate([*rank.below, np.empty(0, np.int64)]).astype(np.int64)
        owner = torch.from_numpy(np.repeat(np.arange(len(rank.below)), [len(b) for b in rank.below])).to(device)
        rest = torch.zeros(1, len(items), device=device)
        if depth + 1 < table.levels and len(items):
            known, parts = item_rows(model, table, items), []
            for turn in range(sets):
                own, sids = rows[turn].to(device)[owner], known.clone()
                sids[:, depth] = torch.where(own >= 0, own, known[:, depth])
                some = state.take(torch.arange(turn, batch, sets, device=device))
                parts.append(sid_log_probs(model, some, sids)[:, :, depth + 1 :].sum(2))
            even = -float(np.log([int((level >= 0).sum()) for level in table.schema.rows[depth + 1 :]]).sum())
            rest = torch.where(rows[0].to(device)[owner] >= 0, torch.cat(parts), even)  # [B, P]
        chance = torch.zeros(len(rest), len(rank.below), device=device).index_add(1, owner, rest.exp())
        totals.append(chance.clamp(min=_LEAST).log().mean(0))
        part[torch.from_numpy(items).to(device)] = rest.mean(0)
    return torch.cat(totals), part


def _parts(found: Frontier, each: Tensor) -> Tensor:
    """`part` [N] of Unseen, from the mean log p_0(rest | twin) of every item [N]."""
    part = torch.zeros_like(each)
    for rank in found.ranks:
        items = torch.from_numpy(np.concatenate([*rank.below, np.empty(0, np.int64)]).astype(np.int64)).to(each.device)
        owner = torch.from_numpy(np.repeat(np.arange(len(rank.below)), [len(b) for b in rank.below])).to(each.device)
        below = each.new_zeros(len(rank.below)).index_add(0, owner, each[items].exp()).clamp(min=_LEAST).log()
        part[items] = each[items] - below[owner]
    return part
