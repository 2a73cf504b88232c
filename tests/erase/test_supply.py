"""What TRACER learns from: targets are computed once, the same seed draws the same, and new SIDs above their target come first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from tests.erase.conftest import World

from recerase.erase.method import EraseRequest
from recerase.erase.supply import Supply
from recerase.erase.target import Teacher
from recerase.erase.tracer_config import TracerConfig
from recerase.errors import UsageError
from recerase.model.recommender import Recommender

Loud = Callable[..., Recommender]
CONFIG = TracerConfig(batch=6, pool=4, sequences=3)


def request_of(world: World, model: Recommender, seed: int = 0) -> EraseRequest:
    return EraseRequest(
        model=model,
        table=world.table,
        interactions=world.interactions,
        concept=world.concept,
        embeddings=world.embeddings,
        codebooks=world.codebooks,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("natural", 2.0, "natural must be from 0 to 1"),
        ("natural", -0.1, "natural must be from 0 to 1"),
        ("natural", math.nan, "natural must be from 0 to 1"),
        ("stale", 1.5, "stale must be from 0 to 1"),
        ("own_weight", -1.0, "own_weight must be at least 0"),
        ("own_weight", math.nan, "own_weight must be at least 0"),
        ("sequences", -1, "sequences must be at least 0"),
        ("settle_steps", -1, "settle_steps must be at least 0"),
        ("reassign_steps", -1, "reassign_steps must be at least 0"),
        ("batch", 3, "batch must be at least 4"),
        ("settle_lr", 0.0, "settle_lr must be above 0"),
    ],
)
def test_settings_of_which_nothing_can_be_drawn_are_refused(name: str, value: float, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        dataclasses.replace(CONFIG, **{name: value})
    assert refused.value.message == f"These settings cannot work: {told}."


def test_settings_at_the_ends_can_work() -> None:
    for natural in (0.0, 1.0):
        assert TracerConfig(natural=natural, stale=natural, own_weight=0.0, sequences=0).natural == natural


def test_targets_are_computed_once_and_used_in_turn(world: World, loud: Loud, monkeypatch: pytest.MonkeyPatch) -> None:
    supply, asked = Supply(request_of(world, loud("causal")), CONFIG), []
    real = Teacher.target
    monkeypatch.setattr(Teacher, "target", lambda self, *given: asked.append(given) or real(self, *given))
    batches = supply.batches()
    first = [next(batches) for _ in range(CONFIG.pool)]
    again = [next(batches) for _ in range(CONFIG.pool)]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len(asked) == CONFIG.pool
    assert sum(len(target.histories) for target in first) == CONFIG.pool * CONFIG.batch
    lengths = [(int(t.histories.lengths.min()), int(t.histories.lengths.max())) for t in first]
    assert all(a[1] <= b[0] for a, b in zip(sorted(lengths), sorted(lengths)[1:], strict=False))


def test_a_seed_draws_the_same_and_another_something_else(world: World, loud: Loud) -> None:
    model = loud("causal")
    one, two, other = (Supply(request_of(world, model, seed), CONFIG) for seed in (0, 0, 1))
    for index in range(CONFIG.pool):
        a, b = one.batch(index), two.batch(index)
        assert torch.equal(a.closed, b.closed)
        assert torch.equal(a.path, b.path)
    tokens = [supply.sequences()[0]["input_ids"] for supply in (one, two, other)]
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[0].shape != tokens[2].shape or not torch.equal(tokens[0], tokens[2])


def test_retained_sequences_hold_no_concept_item(world: World, loud: Loud) -> None:
    supply = Supply(request_of(world, loud("causal")), CONFIG)
    rows = {tuple(row) for row in world.table.rows()[world.members].tolist()}
    for _ in range(12):
        tokens = supply.sequences()[0]["input_ids"][:, 1:]
        sids = tokens[:, : tokens.shape[1] // 3 * 3].reshape(-1, 3).tolist()
        assert not rows & {tuple(sid) for sid in sids}
