"""What a model says of one SID after each history, code by code: how likely a code is, and how likely codes are there at all.

The one decision: a code's log-probability is told beside the mean and the spread of the log-probabilities at the place where
it stands, under the model's own distribution, so that a code that is likely because every code there is can be told from one
that is known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.model.decode import length_batches
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.types import SILENT, FloatArray, IntArray, Observer

_LEAST = 1e-6
"""Smallest spread, in nats, that is divided by: where a model is sure of a code there is none."""


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of one item's SID after each of B histories; NaN behind the end of a SID, and throughout where there is none."""

    log_probs: FloatArray
    """float64 [B, L] log p(code | codes before it, history), over the whole vocabulary."""
    standing: FloatArray
    """float64 [B, L] the same less its mean, over its standard deviation, were the code drawn from the model."""


def forced_codes(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    items: IntArray,
    *,
    output: SidTable | None = None,
    batch: int = 256,
    observer: Observer = SILENT,
    task: str = "codes",
) -> Codes:
    """The codes of `items` [B], one item a history.

    Args:
        table: spells the histories; `output` (default: the same) spells the items.
    """
    scored = table if output is None else output
    shape = (len(histories), scored.levels)
    log_probs, standing = np.full(shape, np.nan), np.full(shape, np.nan)
    known = np.flatnonzero(scored.present[items])
    asked = replace(histories, targets=np.asarray(items, np.int32)).take(known)
    paths = scored.rows()
    observer.start(task, len(known))
    with torch.inference_mode():
        for some in length_batches(model, table, asked, batch):
            part = asked.take(some)
            path = torch.from_numpy(paths[part.targets]).to(model.device)
            state = model.start(*model.tokens(part, table))
            found = _walked(model, state, path)
            log_probs[known[some]], standing[known[some]] = (x.cpu().numpy() for x in found)
            observer.advance(task, len(some))
    observer.finish(task)
    return Codes(log_probs, standing)


def _walked(model: Recommender, state: State, path: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and standing [B, L] of the codes along `path` int64 [B, L], -1 behind the end of a SID."""
    steps, same = [], torch.zeros(1, dtype=torch.int64, device=path.device)
    for level in range(path.shape[1]):
        chances = state.log_probs if level == 0 else state.log_probs[:, 0]
        steps.append(_at(chances.double(), path[:, level]))
        if level + 1 < path.shape[1]:
            state = model.advance(state, path[:, level : level + 1].clamp(min=0), None if level == 0 else same)
    log_probs, standing = (torch.stack(part, 1) for part in zip(*steps, strict=True))
    ended = path < 0
    return log_probs.masked_fill(ended, torch.nan), standing.masked_fill(ended, torch.nan)


def _at(chances: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of `chances` [B, V]: the log-probability [B] of `rows` [B], and how many standard deviations it is above the mean."""
    share, finite = chances.exp(), chances.clamp(min=torch.finfo(chances.dtype).min)
    mean = (share * finite).sum(1)
    spread = (share * (finite - mean[:, None]) ** 2).sum(1).sqrt().clamp(min=_LEAST)
    own = chances.gather(1, rows.clamp(min=0)[:, None])[:, 0]
    return own, (own - mean) / spread
