"""UNDIAL: learn from the original's own answers with the forgotten code's logit turned down.

L = KL(softmax(z_0 - strength * onehot(code)) || p) at each code of a forget pair's SID + retain_weight * NLL(D_R). The target is
fixed, so there is nothing to run off to: a certain code is brought down by `strength` nats, and the others share what it had.
The trap: a code that retained items share is turned down for them too, after the histories of D_F; the retain term, which the
published method does without, is there to answer that.
Source: Dong et al. 2024, arXiv 2402.10052, with METHODS 4's strength; log-probabilities stand for logits, which softmax cannot tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows, node_log_probs, start
from recerase.erase.steps import Loss, StepConfig, descend, require, target_log_probs
from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class UndialConfig(StepConfig):
    """Settings of `undial`; untuned but for the published strength."""

    strength: float = 10.0
    """Nats taken off the forgotten code's logit."""
    retain_weight: float = 1.0
    """0: as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"retain_weight": 0}, positive=("strength",))


def objective(request: EraseRequest, config: UndialConfig) -> Loss:
    """The loss of a step."""
    table = request.table

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        path = item_rows(model, table, forget.targets)  # [B, L]
        with torch.no_grad():
            original = node_log_probs(request.model, start(request.model, table, forget), path)  # [B, L, V]
            target = turned_down(original, path, config.strength)
        lost = objectives.distil(node_log_probs(model, start(model, table, forget), path), target)
        kept = objectives.nll(target_log_probs(model, table, retain))
        return lost + config.retain_weight * kept, {"retain": kept, "forget": lost}

    return loss


def turned_down(log_probs: Tensor, path: Tensor, strength: float) -> Tensor:
    """log softmax(z - strength * onehot(path)) of z [B, L, V] at the nodes of path [B, L]."""
    less = torch.zeros_like(log_probs).scatter_(2, path[..., None], -strength)
    return (log_probs + less).log_softmax(-1)


def erase(request: EraseRequest, config: UndialConfig) -> Erased:
    """A copy of the model after `steps` steps of UNDIAL; the table stays as it is. Raises: as `steps.descend`."""
    return descend("undial", request, config, objective)
