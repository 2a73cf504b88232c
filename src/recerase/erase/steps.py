"""Erasing by gradient steps: what npo and its kin share, so that each of their files is an equation and its settings.

The one decision: a method hands over a function from a model, a batch of D_F and a batch of D_R to one number, and everything
else (batches, optimiser, clipping, progress, figures) is here and the same for all, so that a difference between two methods is
a difference between two equations. Only weights that may change (`requires_grad`) do. D_R is every pair whose target is retained,
also those whose history holds the concept: under scope `output` it may inform. Under `influence` these methods do the same, and
`Method.run` says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.erase.examples import Examples, draw, examples
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows, sid_log_probs, start
from recerase.erase.precision import student
from recerase.errors import ConceptError, EraseError, UsageError
from recerase.model.recommender import Recommender
from recerase.sid.quantize import Codebooks
from recerase.sid.table import SidTable
from recerase.types import FloatArray

BATCHES, TEACHER = 13, 17
"""Streams of random numbers of a seed: the batches of every method are the same, those of a model over-fitted on D_F others."""

Loss = Callable[[Recommender, Histories, Histories], tuple[Tensor, dict[str, Tensor]]]
"""(model, batch of D_F, batch of D_R) -> the loss, a mean over each batch, and the figures to show of it."""


@dataclass(frozen=True)
class StepConfig:
    """Settings that every method of steps has; the defaults are sensible and untuned."""

    steps: int = 100
    lr: float = 1e-3
    batch: int = 32
    """Pairs of D_F and of D_R each, a step."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings with which no step could be taken."""
        require(self, least={"steps": 1, "batch": 1}, positive=("lr", "clip"))


def require(
    config: Any, least: Mapping[str, int] | None = None, positive: Sequence[str] = (), negative: Sequence[str] = ()
) -> None:
    """Raise UsageError with every setting of `config` that is under its least value, or on the wrong side of 0."""
    least = least or {}
    problems = [f"{name} must be at least {n}" for name, n in least.items() if not getattr(config, name) >= n]
    problems += [f"{name} must be above 0" for name in positive if not getattr(config, name) > 0]
    problems += [f"{name} must be below 0" for name in negative if not getattr(config, name) < 0]
    if problems:
        raise UsageError(f"These settings cannot work: {'; '.join(problems)}.", "Change them with --set key=value.")


def check(table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None, config: Any) -> None:
    """Refuse, with UsageError, SIDs that differ in length."""
    table.require_one_length("This method", "Use --method retrain or filter.")


def grounds(request: EraseRequest) -> Examples:
    """What there is to learn from.

    Raises:
        ConceptError: no training interaction leads to the concept, so there is nothing to push on.
        UsageError: SIDs differ in length.
    """
    check(request.table, None, None, None)
    found = examples(request.interactions, request.table, request.concept, request.model.window, request.gone)
    if len(found.forget) == 0:
        raise ConceptError(
            "No training interaction leads to the concept, so there is nothing to push on.",
            "Use --method tracer or renormalise, which need none.",
        )
    return found


def evidence(request: EraseRequest, found: Examples) -> dict[str, int]:
    """What was learned from, for the report: pairs, and the concept's items with a SID that none of D_F leads to.

    On those a method of steps presses only through codes that they share with others.
    """
    inside = np.flatnonzero(request.concept & request.table.present)
    without = np.setdiff1d(inside, found.forget.targets)
    return {"forget_pairs": len(found.forget), "retain_pairs": len(found.retain), "items_without_pairs": len(without)}


def trainable(model: Recommender) -> list[nn.Parameter]:
    """The weights that may change.

    Raises:
        EraseError: there are none.
    """
    return [weight for _, weight in named_trainable(model)]


def named_trainable(model: Recommender) -> list[tuple[str, nn.Parameter]]:
    """`trainable`, each with its name."""
    found = [(name, weight) for name, weight in model.module.named_parameters() if weight.requires_grad]
    if not found:
        raise EraseError("None of the model's weights may change.", "Use --method filter, or give a model that may.")
    return found


def target_log_probs(model: Recommender, table: SidTable, histories: Histories) -> Tensor:
    """[B] log p(T(i) | h) of each history's own target, the sum over its codes. Differentiable."""
    rows = item_rows(model, table, histories.targets)[:, None]  # [B, 1, L]
    return sid_log_probs(model, start(model, table, histories), rows).sum((1, 2))


def learn(
    task: str,
    request: EraseRequest,
    model: Recommender,
    found: Examples,
    config: StepConfig,
    loss: Loss,
    *,
    parameters: list[nn.Parameter] | None = None,
    stream: int = BATCHES,
    batches: Callable[[np.random.Generator], tuple[Histories, Histories]] | None = None,
) -> dict[str, float]:
    """Take `config.steps` AdamW steps on `model`, in place; the figures of the last.

    Args:
        parameters: the weights that move; default: all that may.
        batches: draws a batch of D_F and one of D_R; default: `config.batch` pairs of each of `found`.
    Raises:
        EraseError: the loss is no longer finite.
    """
    rng = np.random.default_rng([request.seed, stream])
    weights = trainable(model) if parameters is None else parameters
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=0.0)
    request.observer.start(task, config.steps)
    figures: dict[str, float] = {}
    for step in range(config.steps):
        if batches is not None:
            forget, retain = batches(rng)
        else:
            forget, retain = draw(found.forget, config.batch, rng), draw(found.retain, config.batch, rng)
        total, parts = loss(model, forget, retain)
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.step()
        figures = {name: float(value.detach()) for name, value in parts.items()}
        if not all(math.isfinite(value) for value in figures.values()):
            raise EraseError(
                f"{task} diverged: its loss was no longer finite at step {step + 1} of {config.steps}.",
                "Lower its learning rate, or its steps.",
            )
        request.observer.advance(task, 1, **figures)
    request.observer.finish(task)
    return figures


def finished(request: EraseRequest, model: Recommender, figures: Mapping[str, Any], began: float) -> Erased:
    """What a method that leaves the table alone has made; `figures` go before the common ones."""
    summary = {**figures, "moved_items": 0.0, "seconds": round(time.monotonic() - began, 3)}
    return Erased(model, request.table, summary)


def descend(
    name: str, request: EraseRequest, config: StepConfig, objective: Callable[[EraseRequest, Any], Loss]
) -> Erased:
    """A copy of the model after `config.steps` steps down `objective`; the table stays as it is.

    Raises: as `grounds` and `learn`.
    """
    began = time.monotonic()
    found, model = grounds(request), student(request.model)
    figures = learn(name, request, model, found, config, objective(request, config))
    return finished(request, model, {"losses": rounded(figures), **evidence(request, found)}, began)


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures as a summary shows them."""
    return {name: round(value, 5) for name, value in figures.items()}
