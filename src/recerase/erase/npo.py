"""Negative Preference Optimization on a concept: push every forget pair below what the original gave it, and keep the rest.

L = L_npo(D_F) + retain_weight * NLL(D_R). Bounded below, gentle once a pair is far down; but nothing says how far is enough.
Source: Zhang et al. 2024, arXiv 2404.05868; an item's log-probability is the sum over its codes. So is its NLL, which the authors'
code averages over tokens: with L codes the retain term weighs L times as much here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.steps import Loss, StepConfig, descend, require, target_log_probs
from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class NpoConfig(StepConfig):
    """Settings of `npo`."""

    beta: float = 0.1
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"retain_weight": 0}, positive=("beta",))


def objective(request: EraseRequest, config: NpoConfig) -> Loss:
    """The loss of a step."""
    table = request.table

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            original = target_log_probs(request.model, table, forget)
        now = target_log_probs(model, table, forget)
        kept = objectives.nll(target_log_probs(model, table, retain))
        lost = objectives.npo(now, original, config.beta)
        return lost + config.retain_weight * kept, {"retain": kept, "forget": lost}

    return loss


def erase(request: EraseRequest, config: NpoConfig) -> Erased:
    """A copy of the model after `steps` steps of NPO; the table stays as it is. Raises: as `steps.descend`."""
    return descend("npo", request, config, objective)
