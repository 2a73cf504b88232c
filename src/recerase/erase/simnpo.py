"""SimNPO: NPO without a reference model, on the log-probability a code instead of an item.

L = forget_weight * -(2/b) log sigmoid(-(b/L) log p(T(i)|h) - margin) over D_F + retain_weight * NLL(D_R) / L. A pair presses as long
as it is likely in itself, not against the original: what the original hardly knew is left alone, and nothing is computed twice.
Source: Fan et al. 2024, arXiv 2410.07163. Of METHODS' b 4.5 and g .125 the second is what weighs the forget term (`npo_coeff` in the
authors' code, where the margin, gamma, is 0), and here it does.
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
class SimNpoConfig(StepConfig):
    """Settings of `simnpo`; untuned but for the published beta and forget_weight."""

    beta: float = 4.5
    margin: float = 0.0
    """The paper's gamma: how much less likely than certain a code must be, times beta."""
    forget_weight: float = 0.125
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"retain_weight": 0}, positive=("beta", "forget_weight"))


def objective(request: EraseRequest, config: SimNpoConfig) -> Loss:
    """The loss of a step."""
    table = request.table

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        now = target_log_probs(model, table, forget)
        lost = objectives.simnpo(now, table.levels, config.beta, config.margin)
        kept = objectives.nll(target_log_probs(model, table, retain)) / table.levels
        return config.forget_weight * lost + config.retain_weight * kept, {"retain": kept, "forget": lost}

    return loss


def erase(request: EraseRequest, config: SimNpoConfig) -> Erased:
    """A copy of the model after `steps` steps of SimNPO; the table stays as it is. Raises: as `steps.descend`."""
    return descend("simnpo", request, config, objective)
