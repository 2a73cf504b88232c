"""The worst history that no item spells: free vectors where the codes of its items stand, moved up the gradient.

The one decision: the vectors may be anything no longer than the longest embedding of a code of their level, so every history of as
many items is among what they can be; and the ascent begins at the worst histories that worst_case found (and at random ones) and
keeps the best it saw, so that its figure is never below that search's. It bounds histories from above only as far as the ascent
gets: it is a local one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recerase.audit.probes import counted
from recerase.audit.readings import SIDES, Side
from recerase.audit.swaps import Target, as_histories
from recerase.audit.worst_case import history_items, shop_window, target_of, worst
from recerase.errors import CheckpointError
from recerase.types import Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings
    from recerase.types import FloatArray, IntArray

STARTS = 6
"""Half of them the worst histories found by worst_case among all items, half drawn items."""
STEPS = 60
RATE = 0.05
"""Adam's, as a share of the longest embedding of a code divided by the square root of its width: of one coordinate of it."""


def soft_prompt(readings: Readings) -> list[Measurement | Skipped]:
    """Greatest exact mass that free vectors in the place of a history's codes reach."""
    role = readings.model.role
    if not shop_window(readings).any():
        return [Skipped("soft_prompt.*", role, "no listed item outside the concept can stand in a history")]
    found: list[Measurement | Skipped] = []
    cache: dict[bytes, FloatArray] = {}
    for side in SIDES:
        target = target_of(readings, side)
        if target is None:  # what has no SID is never generated
            found.append(counted(readings, f"soft_prompt.mass.{side}", 0.0, 1, exact=True))
            continue
        moved = target.output.codes[target.members].tobytes()
        if moved not in cache:
            cache[moved] = np.exp(ascend(target, _starts(readings, side)))
        masses = cache[moved]
        found.append(counted(readings, f"soft_prompt.mass.{side}", float(masses.max()), len(masses), exact=True))
    return found


def _starts(readings: Readings, side: Side) -> IntArray:
    """int64 [S, m] the worst histories of worst_case, best first, and as many of items drawn among all that can be read."""
    ends, masses = worst(readings, side, anything=True)
    best = ends[np.argsort(-masses, kind="stable")[: STARTS - STARTS // 2]]
    known = np.flatnonzero(readings.model.table.readable)
    rng = readings.world.random("soft prompt")
    return np.concatenate([best, known[rng.integers(len(known), size=(STARTS // 2, history_items(readings)))]])


def ascend(target: Target, starts: IntArray, steps: int = STEPS) -> FloatArray:
    """float64 [S] the greatest log-mass seen on `steps` steps up from the histories [S, m], whose mass is seen first.

    Adam on the vectors, put back after each step onto the ball of their level's longest code embedding.
    """
    order = np.argsort(np.count_nonzero(starts >= 0, axis=1), kind="stable")
    size = target.graph_batch
    found = [_ascend(target, starts[order[at : at + size]], steps) for at in range(0, len(order), size)]
    out = np.empty(len(starts))
    out[order] = np.concatenate(found)
    return out


def _ascend(target: Target, starts: IntArray, steps: int) -> FloatArray:
    model = target.model.recommender
    tokens, lengths, (_, places) = model.placed(as_histories(starts), target.model.table)
    at = np.nonzero(places >= 0)
    row = torch.from_numpy(at[0]).to(model.device)
    column = torch.from_numpy(places[at]).to(model.device)
    with torch.no_grad():
        hard = model.embed(tokens)
        longest = torch.stack([model.embed(rows).float().norm(dim=-1).amax() for rows in model.level_rows])
        bound = longest[torch.from_numpy(at[2]).to(model.device)][:, None]  # [n, 1]
        vectors = hard[row, column].float()  # [n, D]
    best = np.full(len(starts), -np.inf)
    rate = RATE * float(longest.mean()) / vectors.shape[-1] ** 0.5
    vectors.requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=rate)
    for step in range(steps + 1):
        with torch.enable_grad():
            log_mass = _log_mass(target, tokens, lengths, hard, (row, column), vectors)
            seen = log_mass.detach().cpu().numpy()
            if np.isnan(seen).any():
                raise CheckpointError(
                    f"The {target.model.role} model gives no finite probability after soft prompts.",
                    "Check its weights for NaN or overflow.",
                )
            best = np.maximum(best, seen)
            if step == steps:
                break
            (grad,) = torch.autograd.grad(-log_mass[torch.isfinite(log_mass)].sum(), vectors)
        vectors.grad = grad.nan_to_num(0.0)
        optimizer.step()
        with torch.no_grad():
            vectors.mul_((bound / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0))
    return best


def _log_mass(
    target: Target, tokens: Tensor, lengths: Tensor, hard: Tensor, spot: tuple[Tensor, Tensor], vectors: Tensor
) -> Tensor:
    """float64 [S] with `vectors` [n, D] at the places `spot` of the embeddings [S, T, D]."""
    embeds = hard.index_put(spot, vectors.to(hard.dtype))
    return target.log_mass(tokens, lengths, embeds)
