"""The two ends of the scale: `filter`, which changes no weight, and `retrain`, which changes all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from typing import Any

from recerase.erase.method import Erased, EraseRequest
from recerase.erase.precision import student
from recerase.errors import UsageError
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.model.training import TrainConfig, train


@dataclass(frozen=True)
class FilterConfig:
    """`filter` has no settings."""


@dataclass(frozen=True)
class RetrainConfig:
    """Settings of `retrain`; the recipe itself is the one recorded in the checkpoint."""

    seed: int = -1
    """Seed of the new weights; -1 takes the original's."""


def filter_only(request: EraseRequest, config: FilterConfig) -> Erased:
    """The same weights with the concept out of the decoding trie. Not erasure, and the audit must say so."""
    model = student(request.model)
    return Erased(model, request.table.unlisted(request.concept), {"moved_items": 0.0, "seconds": 0.0})


def retrain(request: EraseRequest, config: RetrainConfig) -> Erased:
    """The reference: the original's recipe from fresh weights, without the interactions of the concept and of earlier ones.

    Their items keep their SIDs, unlisted.

    Raises:
        UsageError: the checkpoint does not say how it was trained, or is of another tool.
    """
    began = time.monotonic()
    try:
        shape = ModelConfig(**_known(ModelConfig, request.training["model"]))
        # a recipe that does not speak of this dropout was written when there was none
        recipe = TrainConfig(**{"dropout": 0.0, **_known(TrainConfig, request.training["training"])})
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            "The checkpoint does not record how it was trained, so it cannot be trained again the same way.",
            "Train a reference yourself with `recerase train --without CONCEPT`.",
        ) from error
    if request.model.prompt is not None or request.model.per_level:
        raise UsageError(
            "The checkpoint is of another tool, whose model recerase cannot train from fresh weights.",
            "Train a reference with that tool, without the concept's interactions, and give it as --reference.",
        )
    seed = recipe.seed if config.seed < 0 else config.seed
    recipe = TrainConfig(**{**vars(recipe), "seed": seed})
    model = new_recommender(shape, request.model.schema, seed)
    model.module.to(request.model.device)
    split = request.interactions.split().without(request.out)
    log = train(model, request.table, split, recipe, request.observer, request.state)
    summary = {
        "moved_items": 0.0,
        "epochs": log.epochs,
        "validation": dict(log.validation),
        "seconds": round(time.monotonic() - began, 3),
    }
    return Erased(model, request.table.unlisted(request.out), summary)


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values` that `kind` has; a recipe of a newer version may hold more."""
    names = {f.name for f in fields(kind)}
    return {k: v for k, v in values.items() if k in names}
