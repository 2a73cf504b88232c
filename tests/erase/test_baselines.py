"""`filter` changes what may be shown and nothing else; `retrain` is training without the concept and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.erase.conftest import RECIPE, World, interactions_of, small, walks

from recerase.erase.baselines import FilterConfig, RetrainConfig, filter_only, retrain
from recerase.erase.method import EraseRequest
from recerase.errors import UsageError
from recerase.model.decode import recommend
from recerase.model.mass import concept_mass
from recerase.model.recommender import Recommender, new_recommender
from recerase.model.training import train

BRIEF = replace(RECIPE, epochs=2, validate_every=1)


def recipe(kind: str) -> dict[str, Any]:
    return {"model": asdict(small(kind)), "training": asdict(BRIEF)}


def same(first: Recommender, second: Recommender) -> bool:
    a, b = first.module.state_dict(), second.module.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_filter_hides_the_concept_and_forgets_nothing(
    world: World, ask: Callable[..., EraseRequest], kind: str
) -> None:
    request = ask(kind)
    erased = filter_only(request, FilterConfig())
    assert same(erased.model, request.model)
    assert (erased.table.listed == request.table.listed & ~world.concept).all()
    assert (erased.table.codes == request.table.codes).all()
    histories = world.interactions.split().test
    shown = recommend(erased.model, erased.table, histories, k=10).items
    assert not world.concept[shown[shown >= 0]].any()
    assert world.concept[recommend(request.model, request.table, histories, k=10).items].any()
    before = concept_mass(request.model, request.table, world.concept, histories).mass
    np.testing.assert_array_equal(concept_mass(erased.model, erased.table, world.concept, histories).mass, before)


def test_retraining_is_the_recorded_recipe_without_the_concept(
    world: World, ask: Callable[..., EraseRequest], kind: str
) -> None:
    erased = retrain(ask(kind, training=recipe(kind)), RetrainConfig())
    model = new_recommender(small(kind), world.table.schema, BRIEF.seed)
    log = train(model, world.table, world.interactions.split().without(world.concept), BRIEF)
    assert same(erased.model, model)
    assert erased.summary["epochs"] == log.epochs == 2
    assert erased.summary["validation"] == dict(log.validation)
    assert not erased.table.listed[world.concept].any()
    assert (erased.table.codes == world.table.codes).all()


def test_retraining_does_not_depend_on_the_concepts_interactions(
    world: World, ask: Callable[..., EraseRequest]
) -> None:
    """Which of the concept's items were consumed leaves no trace: the same weights to the bit."""
    rng = np.random.default_rng(4)
    inside = np.flatnonzero(world.concept)
    other = [[int(rng.choice(inside)) if world.concept[i] else i for i in walk] for walk in walks(80, 1)]
    assert other != [list(walk) for walk in walks(80, 1)]
    first = retrain(ask(training=recipe("causal")), RetrainConfig())
    second = retrain(ask(training=recipe("causal"), interactions=interactions_of(other)), RetrainConfig())
    assert same(first.model, second.model)


def test_another_seed_gives_another_reference(ask: Callable[..., EraseRequest]) -> None:
    first = retrain(ask(training=recipe("causal")), RetrainConfig())
    again = retrain(ask(training=recipe("causal")), RetrainConfig(seed=BRIEF.seed))
    other = retrain(ask(training=recipe("causal")), RetrainConfig(seed=BRIEF.seed + 1))
    assert same(first.model, again.model)
    assert not same(first.model, other.model)


def test_a_recipe_of_a_newer_version_may_hold_more(ask: Callable[..., EraseRequest]) -> None:
    plain = recipe("causal")
    newer = {name: {**values, "flux": 1.21} for name, values in plain.items()}
    first, second = (retrain(ask(training=t), RetrainConfig()) for t in (plain, newer))
    assert same(first.model, second.model)


@pytest.mark.parametrize("training", [{}, {"model": asdict(small("causal"))}, {"model": None, "training": {}}])
def test_a_checkpoint_that_does_not_say_how_it_was_trained_is_refused(
    ask: Callable[..., EraseRequest], training: Mapping[str, Any]
) -> None:
    with pytest.raises(UsageError, match="does not record how it was trained") as caught:
        retrain(ask(training=training), RetrainConfig())
    assert "recerase train --without" in caught.value.remedy
