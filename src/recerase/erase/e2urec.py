"""E2URec: two teachers, one for what to forget and one for what to keep; the first is the original without what D_F adds to it.

A copy of the original is over-fitted on D_F; what it has come to say more loudly than the original is what is known of D_F, and the
target says it that much more quietly: t = softmax(z_0 - alpha relu(z_F - z_0)). Then
L = (1 - w) KL(t || p) on D_F + w (NLL + KL(p_0 || p)) on D_R.
The trap: a teacher that did not over-fit gives t = p_0, and nothing is forgotten, quietly; so that is refused. A relu of logits
depends on the constant each softmax leaves open, so differences are taken between log-probabilities.
Source: Wang et al. 2024, arXiv 2403.03536, and the authors' unlearning_e2urec.py and utils.compute_forced_kl (weight .6, alpha 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.examples import Examples, draw
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows, node_log_probs, start
from recerase.erase.precision import student
from recerase.erase.steps import TEACHER, Loss, StepConfig, descend, grounds, learn, require, target_log_probs
from recerase.errors import EraseError, UsageError
from recerase.model.recommender import Recommender


@dataclass(frozen=True)
class E2urecConfig(StepConfig):
    """Settings of `e2urec`; untuned but for the published alpha and weight."""

    alpha: float = 2.0
    weight: float = 0.6
    """w: of what is to be kept; the rest is that of what is to be forgotten."""
    teacher_steps: int = 60
    """Steps in which the forgetting teacher is over-fitted on D_F."""
    teacher_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"teacher_steps": 1}, positive=("alpha", "teacher_lr"))
        if not 0 <= self.weight < 1:
            raise UsageError("These settings cannot work: weight must be from 0 to under 1.", "Change it with --set.")


def objective(request: EraseRequest, config: E2urecConfig) -> Loss:
    """The loss of a step; the forgetting teacher is trained first. Raises: as `teacher`."""
    table, taught = request.table, teacher(request, config, grounds(request))

    def told(model: Recommender, histories: Histories) -> Tensor:
        """[B, L, V] at the nodes of the histories' targets."""
        return node_log_probs(model, start(model, table, histories), item_rows(model, table, histories.targets))

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            target = quieter(told(request.model, forget), told(taught, forget), config.alpha)
            original = told(request.model, retain)
        lost = objectives.distil(told(model, forget), target)
        known = told(model, retain)  # [B, L, V]
        path = item_rows(model, table, retain.targets)
        kept = objectives.nll(known.gather(2, path[..., None]).sum((1, 2))) + objectives.distil(known, original)
        return (1 - config.weight) * lost + config.weight * kept, {"retain": kept, "forget": lost}

    return loss


def quieter(original: Tensor, taught: Tensor, alpha: float) -> Tensor:
    """log softmax(z_0 - alpha relu(z_F - z_0)), all [B, L, V] log-probabilities; what neither gives a chance has none."""
    louder = (taught - original).nan_to_num(0.0).relu()
    return (original - alpha * louder).log_softmax(-1)


def teacher(request: EraseRequest, config: E2urecConfig, found: Examples) -> Recommender:
    """A copy of the original, over-fitted on D_F.

    Raises:
        EraseError: it did not come to know D_F better than the original does, so it has nothing to teach.
    """
    taught = student(request.model)
    steps = StepConfig(config.teacher_steps, config.teacher_lr, config.batch, config.clip)

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        missed = objectives.nll(target_log_probs(model, request.table, forget))
        return missed, {"forget": missed}

    learn("teacher", request, taught, found, steps, loss, stream=TEACHER)
    some = draw(found.forget, 4 * config.batch, np.random.default_rng([request.seed, TEACHER, 1]))
    with torch.no_grad():
        before, after = (float(loss(m, some, some)[0]) for m in (request.model, taught))
    if not after < before:
        raise EraseError(
            f"The forgetting teacher did not over-fit: it misses the concept by {after:.3f} nats, the original by {before:.3f}.",
            "Change teacher_lr, or raise teacher_steps.",
        )
    return taught


def erase(request: EraseRequest, config: E2urecConfig) -> Erased:
    """A copy of the model after `steps` steps between two teachers. Raises: as `steps.descend` and `teacher`."""
    return descend("e2urec", request, config, objective)
