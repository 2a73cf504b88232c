"""Gradient ascent: make every forget pair less likely, and nothing else. The floor is what keeps it from running off.

L = mean over D_F of max(log p(T(i)|h), floor). The published loss has no floor: it falls for ever, and takes the model with it
(METHODS 4). With one, a pair that is under it presses no more. There is no term for what is to be kept.
Source: gradient ascent on the forget set, as in Jang et al. 2022, arXiv 2210.01504, and as GA in the tables of METHODS 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.steps import Loss, StepConfig, descend, require, target_log_probs
from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class GaConfig(StepConfig):
    """Settings of `ga`; untuned."""

    steps: int = 50
    lr: float = 2e-4
    floor: float = -20.0
    """Nats under which a pair presses no more, below 0; -1e9 is the published loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, negative=("floor",))


def objective(request: EraseRequest, config: GaConfig) -> Loss:
    """The loss of a step."""
    table = request.table

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        lost = objectives.ascent(target_log_probs(model, table, forget), config.floor)
        return lost, {"forget": lost}

    return loss


def erase(request: EraseRequest, config: GaConfig) -> Erased:
    """A copy of the model after `steps` steps of ascent; the table stays as it is. Raises: as `steps.descend`."""
    return descend("ga", request, config, objective)
