"""Differentiable log-probabilities of SIDs, and histories whose concept items are soft tokens.

Everything here goes through the recommender's own `start`/`advance`, so that it is the same for a causal and a seq2seq
model, and so that a gradient reaches the weights and the soft tokens alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.model.recommender import Recommender, State
from recerase.sid.table import SidTable
from recerase.types import BoolArray, IntArray


@dataclass(frozen=True)
class SoftTokens:
    """What stands in a history where a concept item stands: L vectors an item (METHODS 1, equation 6)."""

    slot: Tensor
    """int64 [N] row of an item in `vectors`, -1 for items outside the concept."""
    vectors: Tensor
    """[M, L, D]."""


def soft_tokens(model: Recommender, members: BoolArray, q: list[Tensor]) -> SoftTokens:
    """e~_i^l = sum_k q(s_i^l = k) e_k^l, for q a list over levels of [M, K_l]."""
    device = model.device
    slot = torch.full((len(members),), -1, dtype=torch.int64, device=device)
    index = torch.from_numpy(np.flatnonzero(members)).to(device)
    slot[index] = torch.arange(len(index), device=device)
    rows = [torch.from_numpy(np.asarray(r, dtype=np.int64)).to(device).clamp(min=0) for r in model.schema.rows]
    codewords = [model.embed(row) for row in rows]  # [K, D] each; a code without a row has no part in q
    vectors = torch.stack([q[level].to(e) @ e for level, e in enumerate(codewords)], 1)
    return SoftTokens(slot, vectors)


def start(model: Recommender, table: SidTable, histories: Histories, soft: SoftTokens | None = None) -> State:
    """The model after reading `histories` [B] under `table`, with soft tokens in the place of the concept's items.

    Items without a SID are left out, as everywhere.
    """
    if soft is None:
        tokens, lengths = model.tokens(histories, table)
        return model.start(tokens, lengths)
    tokens, lengths, (items, places) = model.placed(histories, table)
    embeds = model.embed(tokens)
    row, column, level = np.nonzero(places >= 0)
    spot = np.full((2, *tokens.shape), -1, np.int64)  # [2, B, T]: whose code a token is, and of which level
    spot[:, row, places[row, column, level]] = items[row, column], level
    owner, depth = torch.from_numpy(spot).to(tokens.device)
    slot = torch.where(owner >= 0, soft.slot[owner.clamp(min=0)], -1)
    mixed = soft.vectors[slot.clamp(min=0), depth.clamp(min=0)]  # [B, T, D]
    return model.start(tokens, lengths, embeds=torch.where((slot >= 0)[..., None], mixed, embeds))


def sid_log_probs(model: Recommender, state: State, rows: Tensor) -> Tensor:
    """log p(code | codes before it, history) along SIDs.

    Args:
        rows: vocabulary rows, [P, L] for the same P SIDs after every history or [B, P, L].
    Returns:
        [B, P, L]; its sum over levels is log p(SID | history).
    """
    batch = state.log_probs.shape[0]
    wide = rows if rows.dim() == 3 else rows[None].expand(batch, -1, -1)
    found = [state.log_probs.gather(1, wide[:, :, 0])]
    current = state
    same = torch.arange(wide.shape[1], device=rows.device)
    for level in range(1, wide.shape[2]):
        current = model.advance(current, rows[..., level - 1], None if level == 1 else same)
        found.append(current.log_probs.gather(2, wide[:, :, level, None]).squeeze(2))
    return torch.stack(found, 2)


def node_log_probs(model: Recommender, state: State, path: Tensor) -> Tensor:
    """The whole next-code distribution at every node of one SID a history: path [B, L] -> log-probabilities [B, L, V]."""
    found = [state.log_probs[:, None]]
    current = state
    same = torch.zeros(1, dtype=torch.int64, device=path.device)
    for level in range(1, path.shape[1]):
        current = model.advance(current, path[:, level - 1 : level], None if level == 1 else same)
        found.append(current.log_probs)
    return torch.cat(found, 1)


def item_rows(model: Recommender, table: SidTable, items: IntArray) -> Tensor:
    """int64 [..., L] vocabulary rows of the SIDs of `items`."""
    device = next(model.module.parameters()).device
    return torch.from_numpy(table.rows()[items]).to(device)
