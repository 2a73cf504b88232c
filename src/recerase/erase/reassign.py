"""TRACER's reassignment: a learnable distribution over codes for each concept item, and the commit that makes it a table.

q_phi (equation 6) is the quantiser's own softmax over distances with a learnable bias phi. While it is learned, concept items
stand in histories as soft tokens. The commit does not take an argmax a level, which could land on a retained item's SID and uses
residuals of the old path: it walks the levels with residuals recomputed under each candidate's own path, allows only SIDs nobody
has, and solves one assignment over all items at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from recerase.erase.vacant import exclusive_prefixes, free_sids, keys_of, rows_left, usable
from recerase.errors import EraseError, TableError
from recerase.sid.codebooks import Codebooks, squared_distances
from recerase.sid.table import SidTable
from recerase.types import BoolArray, FloatArray, IntArray

NEVER = 1e6
"""Squared distance of a code that may not be chosen (no vocabulary row, or no codeword)."""
TIE = 1e-9
"""Squared distances closer than this are equal: above the rounding of any order of summation, below any real gap."""


@dataclass(frozen=True, eq=False)
class Quantiser:
    """The distances behind q, for the M concept items."""

    distances: tuple[Tensor, ...]
    """A level: float64 [M, K_l] squared distance of the stored residual to each codeword."""
    pinned: tuple[Tensor, ...]
    """A level: float64 [M, K_l] what is added to minus the distance so that phi = 0 gives the stored code: 0 where the code is
    the nearest, and alone in that."""
    stored: Tensor
    """int64 [M, L]."""
    share: tuple[Tensor, ...]
    """A level: float64 [K_l] rho, share of the retained items with each code."""
    agreement: tuple[float, ...]
    """Share of the concept's unresolved items whose stored code is nearest, a level."""


def quantiser(
    table: SidTable,
    members: BoolArray,
    codebooks: Codebooks,
    embeddings: FloatArray,
    margin: float = 0.02,
    offered: Sequence[IntArray] = (),
    gone: BoolArray | None = None,
) -> Quantiser:
    """Distances under the stored codes, with the stored code pinned where it is not the nearest.

    Items `gone` [N] with earlier concepts are not counted among the retained ones.

    Pinning is for items that collision resolution moved, for codebooks that were fitted to a table made elsewhere, and for ties.
    Codebooks that claim to have made the table and do not reproduce it are refused (METHODS 1a).
    Raises:
        TableError: codebooks and table do not belong together.
    """
    items = np.flatnonzero(members & table.present)
    stored, own = table.codes[items].astype(np.int64), ~table.resolved[items]
    distances, pins, agreement = [], [], []
    for level, known in enumerate(usable(table, codebooks, offered)):
        d = np.zeros((len(items), len(known)))  # a level without a codebook: every code is as near as the others
        if level < codebooks.levels:
            d[:, len(codebooks.vectors[level]) :] = NEVER
            d[:, : len(codebooks.vectors[level])] = codebooks.distances(embeddings[items], table.codes[items], level)
        d = np.where(known, d, NEVER)
        rows = np.arange(len(items))
        mine = d[rows, stored[:, level]]
        others = d.copy()
        others[rows, stored[:, level]] = np.inf
        gap = mine - others.min(1)
        agrees = gap <= TIE * (1.0 + mine)
        agreement.append(float(agrees[own].mean()) if own.any() else 1.0)
        if not codebooks.fitted and level < codebooks.levels and not agrees[own].all():
            raise TableError(
                f"The codebooks give {agreement[-1]:.1%} of the concept's stored codes at level {level + 1}, not 100 %: "
                "codebooks and SID table do not belong together.",
                "Use the codebooks the table was made with, or fit new ones with `recerase train --sids TABLE`.",
            )
        pin = np.zeros_like(d)
        pin[rows, stored[:, level]] = np.where(gap < 0, 0.0, gap + margin)
        distances.append(torch.from_numpy(d))
        pins.append(torch.from_numpy(pin))
    kept = table.present & ~members if gone is None else table.present & ~members & ~gone
    share = tuple(
        torch.from_numpy(np.bincount(table.codes[kept, x], minlength=k) / max(1, kept.sum()))
        for x, k in enumerate(table.schema.codes)
    )
    return Quantiser(tuple(distances), tuple(pins), torch.from_numpy(stored), share, tuple(agreement))


def q_phi(quantiser: Quantiser, phi: list[Tensor], tau: float) -> list[Tensor]:
    """Equation 6, in float64: a level [M, K_l]. phi = 0 gives equation 5."""
    return [
        torch.softmax((pin - d + p) / tau, 1)
        for d, pin, p in zip(quantiser.distances, quantiser.pinned, phi, strict=True)
    ]


def gradient_mask(
    quantiser: Quantiser, q: list[Tensor], forget_gradient: list[Tensor], without_current: bool
) -> list[Tensor]:
    """Equation 11: 1[rho_l(k) > rhobar_{i,l}] 1[dL_F/dphi > 0], a level [M, K_l], in float64.

    Args:
        forget_gradient: the gradient of L_F alone.
        without_current: leave the item's current code out of rhobar = E_q rho. At small tau q is one-hot, rhobar equals the
            current code's rho to the last bit, and float32 then decides by its rounding.
    """
    masks = []
    for level, (probabilities, gradient) in enumerate(zip(q, forget_gradient, strict=True)):
        weights = probabilities.detach().clone()
        if without_current:
            weights[torch.arange(len(weights)), weights.argmax(1)] = 0.0
            weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-300)
        mean = (weights * quantiser.share[level]).sum(1, keepdim=True)
        masks.append(((quantiser.share[level][None] > mean) & (gradient > 0)).double())
    return masks


def require_needed(table: SidTable, members: BoolArray, quantiser: Quantiser, needed: int | None) -> None:
    """Raises EraseError when a `needed` code is that of concept items alone, and no SID that they may get can have it."""
    if needed is None or (table.codes[~members] == needed).any():
        return
    later = quantiser.distances[1:]  # as a first code it is the concept's alone, and may not be given again
    if not any(needed < level.shape[1] and bool((level[:, needed] < NEVER).any()) for level in later):
        raise _lost(needed)


def _lost(needed: int) -> EraseError:
    return EraseError(
        f"Only items of the concept have the code {needed}, the largest in the table, from which the other tool takes the shape of "
        "its model, and none of them could keep it.",
        "Use --method renormalise or npo, which move no item.",
    )


@dataclass(frozen=True)
class CommitConfig:
    """How the commit weighs candidates."""

    tau: float = 0.1
    """Temperature of -log q_phi as a cost."""
    candidates: int = 48
    """SIDs offered to each item."""
    beam: int = 12
    """Prefixes kept an item and level."""
    sharing: float = 0.5
    """Cost of log(1 + retained items below the prefix of L - 1 codes)."""


def commit(
    table: SidTable,
    members: BoolArray,
    codebooks: Codebooks,
    embeddings: FloatArray,
    quantiser: Quantiser,
    phi: list[Tensor],
    config: CommitConfig,
    needed: int | None = None,
    gone: BoolArray | None = None,
    left: IntArray | None = None,
) -> SidTable:
    """A table in which every concept item has a SID that nobody had before, and no two share one.

    A candidate may pass through prefixes of retained items or through unused ones, never through one that only the concept used:
    what the model knew of the concept below it would come along. The same holds for the items `gone` [N] with earlier concepts and
    for the SIDs they have `left` [n, L]. A code that is `needed` stays some item's on some level.
    Raises:
        EraseError: phi is not finite, or some item has no candidate left; the message says how to widen the search.
    """
    if not all(bool(p.isfinite().all()) for p in phi):
        raise EraseError("The reassignment diverged: phi is no longer finite.", "Lower lr or phi_lr.")
    items = np.flatnonzero(members & table.present)
    free, _ = free_sids(table, members, [d[0].numpy() < NEVER for d in quantiser.distances], gone, left)
    if free < len(items):
        raise EraseError(
            f"The concept's {len(items)} items need SIDs that nobody had, and the codes that can be used leave {free}.",
            "Add vocabulary rows with --grow-vocabulary auto, or tokenize with more codes a level.",
        )
    forbidden = [exclusive_prefixes(table, members, depth + 1, gone, left) for depth in range(table.levels)]
    used = keys_of(np.concatenate([table.codes[table.present], rows_left(left, table)]), table.schema.codes)
    retained = table.codes[table.present & ~(members if gone is None else members | gone)]
    rare = needed is not None and not (table.codes[~members] == needed).any()
    crowd_keys, crowd = np.unique(keys_of(retained[:, :-1], table.schema.codes), return_counts=True)
    prefix = np.zeros((len(items), 1, 0), np.int64)
    cost = np.zeros((len(items), 1))
    residual = codebooks.enter(embeddings[items])[:, None]  # [M, W, D]
    for level in range(table.levels):
        last = level == table.levels - 1
        step = _level_cost(table, codebooks, residual, prefix, quantiser, phi, level, config.tau)  # [M, W, K]
        total = cost[..., None] + step
        if last:
            keys = keys_of(prefix.reshape(-1, level), table.schema.codes).reshape(prefix.shape[:2])
            at = np.minimum(np.searchsorted(crowd_keys, keys), len(crowd_keys) - 1)
            below = np.where(crowd_keys[at] == keys, crowd[at], 0) if len(crowd_keys) else np.zeros(keys.shape)
            total = total + config.sharing * np.log1p(below)[..., None]
        longer = _extended(prefix, table.schema.codes[level])  # [M, W, K, level + 1]
        banned = np.isin(keys_of(longer.reshape(-1, level + 1), table.schema.codes), used if last else forbidden[level])
        total = np.where(banned.reshape(total.shape), np.inf, total).reshape(len(items), -1)
        width = min(config.candidates if last else config.beam, total.shape[1])
        best = np.argpartition(total, width - 1, axis=1)[:, :width]
        if last and rare:  # a candidate more: the cheapest with the code
            with_it = (longer == needed).any(3).reshape(total.shape)
            best = np.concatenate([best, np.where(with_it, total, np.inf).argmin(1)[:, None]], 1)
        cost = np.take_along_axis(total, best, 1)
        if last and rare:
            cost[(best[:, :-1] == best[:, -1:]).any(1), -1] = np.inf  # it was among them
        parent, code = np.divmod(best, table.schema.codes[level])
        prefix = np.concatenate([np.take_along_axis(prefix, parent[..., None], 1), code[..., None]], 2)
        if not last and level < codebooks.levels:
            above = np.take_along_axis(residual, parent[..., None], 1)
            known = np.minimum(code.reshape(-1), len(codebooks.vectors[level]) - 1)  # a code beyond costs infinity
            residual = codebooks.leave(above.reshape(-1, above.shape[2]), known, level).reshape(above.shape)
    keys = keys_of(prefix.reshape(-1, table.levels), table.schema.codes).reshape(cost.shape)
    chosen = _assign(cost, keys)
    having = (prefix == needed).any(2) & np.isfinite(cost)  # [M, W]
    if rare and not having[np.arange(len(items)), chosen].any():
        if not having.any():
            raise _lost(int(needed or 0))
        more = np.where(having, cost - cost[np.arange(len(items)), chosen][:, None], np.inf)
        item, candidate = divmod(int(more.argmin()), more.shape[1])  # whom it costs least
        cost[item, np.arange(cost.shape[1]) != candidate] = np.inf
        chosen = _assign(cost, keys)
    return table.replace(items, prefix[np.arange(len(items)), chosen].astype(np.int32))


def _level_cost(
    table: SidTable,
    codebooks: Codebooks,
    residual: FloatArray,
    prefix: IntArray,
    quantiser: Quantiser,
    phi: list[Tensor],
    level: int,
    tau: float,
) -> FloatArray:
    """-log q_phi of every next code [M, W, K], distances taken under each candidate's own path."""
    m, w, codes = prefix.shape[0], prefix.shape[1], table.schema.codes[level]
    bias = (phi[level].detach() + quantiser.pinned[level]).numpy()[:, None]
    if level < codebooks.levels:
        flat = squared_distances(residual.reshape(m * w, -1), codebooks.vectors[level])
        distance = flat.reshape(m, w, -1)
        if distance.shape[2] < codes:
            distance = np.pad(distance, ((0, 0), (0, 0), (0, codes - distance.shape[2])), constant_values=NEVER)
    else:
        distance = np.zeros((m, w, codes))
    never = quantiser.distances[level].numpy()[0] >= NEVER
    logits = np.where(never, -np.inf, (bias - distance) / tau)
    peak = logits.max(2, keepdims=True)
    cost: FloatArray = peak + np.log(np.exp(logits - peak).sum(2, keepdims=True)) - logits
    return cost


def _extended(prefix: IntArray, codes: int) -> IntArray:
    """[M, W, K, level + 1] every prefix with every next code."""
    m, w, level = prefix.shape
    out = np.empty((m, w, codes, level + 1), np.int64)
    out[..., :level] = prefix[:, :, None]
    out[..., level] = np.arange(codes)
    return out


def _assign(cost: FloatArray, keys: IntArray) -> IntArray:
    """int64 [M] the candidate each item gets: the cheapest assignment in which no SID is given twice."""
    allowed = np.isfinite(cost)
    _, column = np.unique(keys, return_inverse=True)
    column = column.reshape(keys.shape)
    rows = np.broadcast_to(np.arange(len(cost))[:, None], cost.shape)
    weight = np.where(allowed, cost, 0.0)
    weight = weight - weight.min() + 1.0
    graph = csr_array((weight[allowed], (rows[allowed], column[allowed])), shape=(len(cost), int(column.max()) + 1))
    try:
        row, given = min_weight_full_bipartite_matching(graph)
    except ValueError:  # some item, or where SIDs are fewer some SID, cannot be matched
        row = np.empty(0, np.int64)
    if len(row) < len(cost):
        raise EraseError(
            "The concept's items cannot all be given a SID that nobody has: too few candidates.",
            "Widen the search with --set commit_candidates=200, add codes with --grow-vocabulary auto, or tokenize with more codes "
            "a level.",
        )
    matched = np.empty(len(cost), np.int64)
    matched[row] = given
    return np.argmax((column == matched[:, None]) & allowed, axis=1)
