"""Gradient difference: ascend on the forget pairs while descending on the retained ones.

L = retain_weight * NLL(D_R) + mean over D_F of max(log p(T(i)|h), floor). The retain term holds the rest back only as far as it
weighs: the forget term's gradient does not fade (as NPO's does), so the floor of erase/ga.py stands here too.
Source: Liu et al. 2022, arXiv 2203.12817, as GradDiff in Maini et al. 2024, arXiv 2401.06121.
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
class GradDiffConfig(StepConfig):
    """Settings of `graddiff`; untuned."""

    floor: float = -20.0
    """Nats under which a pair presses no more, below 0; -1e9 is the published loss."""
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"retain_weight": 0}, negative=("floor",))


def objective(request: EraseRequest, config: GradDiffConfig) -> Loss:
    """The loss of a step."""
    table = request.table

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        lost = objectives.ascent(target_log_probs(model, table, forget), config.floor)
        kept = objectives.nll(target_log_probs(model, table, retain))
        return lost + config.retain_weight * kept, {"retain": kept, "forget": lost}

    return loss


def erase(request: EraseRequest, config: GradDiffConfig) -> Erased:
    """A copy of the model after `steps` steps; the table stays as it is. Raises: as `steps.descend`."""
    return descend("graddiff", request, config, objective)
