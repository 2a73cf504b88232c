"""Negative Preference Optimization on a concept: push every forget pair below what the original gave it, and keep the rest.

L = L_npo(D_F) + retain_weight * NLL(D_R). Bounded below, gentle once a pair is far down; but nothing says how far is enough.
Source: Zhang et al. 2024, arXiv 2404.05868, equation 4; an item's log-probability is the sum over its codes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from recerase.erase import objectives
from recerase.erase.examples import draw, examples
from recerase.erase.methods import Erased, EraseRequest
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.precision import student
from recerase.errors import ConceptError


@dataclass(frozen=True)
class NpoConfig:
    """Settings of `npo`."""

    steps: int = 100
    lr: float = 1e-3
    beta: float = 0.1
    retain_weight: float = 1.0
    batch: int = 32
    """Pairs of D_F and of D_R each, a step."""
    clip: float = 1.0


def erase(request: EraseRequest, config: NpoConfig) -> Erased:
    """A copy of the model after `steps` steps of NPO; the table stays as it is.

    Raises:
        ConceptError: no training interaction leads to the concept, so there is nothing to push on.
        UsageError: SIDs differ in length.
    """
    began = time.monotonic()
    request.table.require_one_length("This method", "Use --method retrain or filter.")
    model = student(request.model)
    rng = np.random.default_rng([request.seed, 13])
    found = examples(request.interactions, request.table, request.concept, model.window)
    if len(found.forget) == 0:
        raise ConceptError("No training interaction leads to the concept.", "Use --method tracer, which needs none.")
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=config.lr, weight_decay=0.0)
    request.observer.start("npo", config.steps)
    figures: dict[str, float] = {}
    for _ in range(config.steps):
        forget, retain = draw(found.forget, config.batch, rng), draw(found.retain, config.batch, rng)
        rows = item_rows(model, request.table, forget.targets)[:, None]  # [B, 1, L]
        with torch.no_grad():
            original = sid_log_probs(request.model, start(request.model, request.table, forget), rows).sum((1, 2))
        now = sid_log_probs(model, start(model, request.table, forget), rows).sum((1, 2))
        kept_rows = item_rows(model, request.table, retain.targets)[:, None]
        kept = objectives.nll(sid_log_probs(model, start(model, request.table, retain), kept_rows).sum((1, 2)))
        lost = objectives.npo(now, original, config.beta)
        optimizer.zero_grad()
        (lost + config.retain_weight * kept).backward()
        torch.nn.utils.clip_grad_norm_(model.module.parameters(), config.clip)
        optimizer.step()
        figures = {"retain": float(kept.detach()), "forget": float(lost.detach())}
        request.observer.advance("npo", 1, **figures)
    request.observer.finish("npo")
    summary = {
        "losses": {k: round(v, 5) for k, v in figures.items()},
        "moved_items": 0.0,
        "seconds": round(time.monotonic() - began, 3),
    }
    return Erased(model, request.table, summary)
