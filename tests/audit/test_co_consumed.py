"""Histories of what people take with the concept: which items these are, and what models with a known taste say to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit import co_consumed as probe
from recerase.audit.co_consumed import co_consumed, co_consumed_case, pmi
from recerase.audit.probes import AuditWorld
from recerase.audit.readings import Readings
from recerase.catalog.interactions import Catalogue
from recerase.model.recommender import Recommender
from recerase.types import Measurement, Skipped


def brute_force(world: AuditWorld) -> np.ndarray:
    """PMI by walking every user's training interactions, one pair at a time."""
    beside, held, seen = Counter[int](), Counter[int](), Counter[int]()
    train = world.catalogue.interactions.split().train
    for begin, end in zip(train.offsets[:-1], train.offsets[1:], strict=True):
        items = train.items[begin:end].tolist()
        seen.update(items)
        for at, item in enumerate(items):
            for other in items[max(0, at - probe.WINDOW) : at] + items[at + 1 : at + 1 + probe.WINDOW]:
                beside[item] += 1
                held[item] += bool(world.members[other])
    out = np.full(len(world.members), -np.inf)
    for item, n in seen.items():
        if n >= probe.FLOOR and held[item] and world.retained[item]:
            out[item] = np.log(held[item] / beside[item]) - np.log(sum(held.values()) / sum(beside.values()))
    return out


def test_pmi_is_the_brute_force_one(world: AuditWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    for window, floor in ((5, 5), (2, 1), (1, 8)):
        monkeypatch.setattr(probe, "WINDOW", window)
        monkeypatch.setattr(probe, "FLOOR", floor)
        expected = brute_force(world)
        assert np.isfinite(expected).any()
        assert np.isinf(expected[~world.members]).any() or floor == 1
        np.testing.assert_allclose(pmi(world), expected, atol=1e-12)


def test_what_is_held_out_has_no_part_in_it(world: AuditWorld) -> None:
    """The last two interactions of every user may be anything."""
    interactions, before = world.catalogue.interactions, pmi(world)
    items = interactions.items.copy()
    for end in interactions.offsets[1:]:
        items[end - 2 : end] = 0  # a concept item
    other = replace(world, catalogue=Catalogue(world.catalogue.items, replace(interactions, items=items)))
    np.testing.assert_array_equal(pmi(other), before)
    train = interactions.split().train
    every = replace(interactions, items=np.where(np.isin(items, train.items), 0, items).astype(np.int32))
    assert not np.array_equal(pmi(replace(world, catalogue=Catalogue(world.catalogue.items, every))), before)


def test_histories_are_of_the_highest_and_end_with_the_highest(
    world: AuditWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "POOL", 7)
    score, case = pmi(world), co_consumed_case(world)
    best = set(np.sort(score)[-7:])
    assert len(case) == world.config.saturated_histories
    np.testing.assert_array_equal(case.histories.lengths, np.minimum(np.arange(40) % 20 + 1, 7))
    drawn = set()
    for history in case.histories.padded(20):
        held = history[history >= 0]
        drawn |= set(held.tolist())
        assert len(set(held.tolist())) == len(held)
        assert set(score[held]) <= best
        assert (np.diff(score[held]) >= 0).all()
        assert not world.members[held].any()
    assert len(drawn) == 7
    np.testing.assert_array_equal(co_consumed_case(world).histories.items, case.histories.items)


@pytest.mark.parametrize(("favourite", "shown"), [(0, 1), (1, 0)])
def test_an_oracle_of_the_concept_is_fully_exposed_and_one_of_others_not_at_all(
    favourite: int, shown: float, world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = co_consumed(Readings(audited(planted(favourite)), world))
    values = {m.metric: m.value for m in found if isinstance(m, Measurement)}
    assert values["co_consumed.exposure@10"] == shown
    for side in ("old", "new"):
        assert values[f"co_consumed.mass.{side}"] == pytest.approx(shown * 12 / 16, abs=1e-3)


def test_nothing_above_the_floor_is_said_and_not_zero(
    world: AuditWorld, audited: Callable, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "FLOOR", 1000)
    (skipped,) = co_consumed(Readings(audited(untrained), world))
    assert isinstance(skipped, Skipped)
    assert skipped.metric == "co_consumed.*"
    assert "1000 training interactions" in skipped.reason
