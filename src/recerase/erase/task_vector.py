"""Task vector: learn the concept even better, and go as far in the other direction.

theta = theta_0 - scale (theta_F - theta_0), theta_F the original fine-tuned on D_F. One fine-tune and one subtraction; nothing
says what is to be kept, and `scale` is given here where the paper looks for the largest that leaves a control task alone.
Source: Ilharco et al. 2022, arXiv 2212.04089 (forgetting by negation).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.precision import student
from recerase.erase.steps import (
    Loss,
    StepConfig,
    evidence,
    finished,
    grounds,
    learn,
    require,
    rounded,
    target_log_probs,
    trainable,
)  # fmt: skip
from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class TaskVectorConfig(StepConfig):
    """Settings of `task-vector`; untuned. Steps, rate, batch and clip are those of the fine-tune on D_F."""

    steps: int = 50
    lr: float = 5e-4
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, positive=("scale",))


def objective(request: EraseRequest, config: TaskVectorConfig) -> Loss:
    """The loss of the fine-tune: NLL on D_F, which is to fall."""

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        missed = objectives.nll(target_log_probs(model, request.table, forget))
        return missed, {"forget": missed}

    return loss


def erase(request: EraseRequest, config: TaskVectorConfig) -> Erased:
    """The original minus `scale` times what a fine-tune on D_F adds to it. Raises: as `steps.grounds` and `steps.learn`."""
    began = time.monotonic()
    found, model = grounds(request), student(request.model)
    before = [weight.detach().clone() for weight in trainable(model)]
    figures = learn("task-vector", request, model, found, config, objective(request, config))
    with torch.no_grad():
        for weight, was in zip(trainable(model), before, strict=True):
            vector = weight.float() - was.float()
            weight.copy_(was.float() - config.scale * vector)
    return finished(request, model, {"losses": rounded(figures), **evidence(request, found)}, began)
