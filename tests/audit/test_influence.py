"""What dropping a history's concept items moves, and what dropping as many others does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit.cases import Case, concept_users_case, natural_case
from recerase.audit.influence import PERSISTENCE, history_influence, influence, rank_biased_overlap, without_matched
from recerase.audit.likeness import overlap
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.catalog.interactions import Histories
from recerase.model.recommender import Recommender
from recerase.types import Measurement

MEMBERS = np.arange(12) < 4


def figures(readings: Readings) -> dict[str, np.ndarray]:
    found = {m.metric: m.values for m in influence(readings) if isinstance(m, Measurement)}
    assert all(values is not None for values in found.values())
    return found  # type: ignore[return-value]


def by_hand(history: list[int]) -> list[int] | None:
    """The history without an other item for each concept item, found one after another; None: too few."""
    others = [place for place, item in enumerate(history) if not MEMBERS[item]]
    concept = [place for place, item in enumerate(history) if MEMBERS[item]]
    if len(others) <= len(concept):
        return None
    taken: list[int] = []
    for nth, place in enumerate(concept):
        latest = len(others) - (len(concept) - nth)  # leaves one for each of those that follow
        slot = sum(other < place for other in others)
        slot = max(slot, taken[-1] + 1 if taken else 0)
        taken.append(min(slot, latest))
    return [item for place, item in enumerate(history) if place not in {others[slot] for slot in taken}]


def test_as_many_others_are_dropped_as_by_hand() -> None:
    rng = np.random.default_rng(2)
    lists = [rng.integers(0, 12, size=rng.integers(1, 14)).tolist() for _ in range(400)]
    rows, fewer = without_matched(Histories.from_lists(lists), MEMBERS)
    wanted = {row: kept for row, history in enumerate(lists) if (kept := by_hand(history)) is not None}
    assert rows.tolist() == list(wanted)
    assert 0 < len(rows) < 400
    found = [fewer.items[fewer.offsets[i] : fewer.offsets[i + 1]].tolist() for i in range(len(rows))]
    assert found == list(wanted.values())


@pytest.mark.parametrize("lists", [[], [[0, 1], [2, 3]], [[5, 6]]])
def test_nothing_to_match_changes_nothing(lists: list[list[int]]) -> None:
    rows, fewer = without_matched(Histories.from_lists(lists), MEMBERS)
    assert fewer.items.tolist() == [item for row in rows for item in lists[row]]
    assert len(fewer) == len(rows) == sum(not MEMBERS[history].any() for history in lists)


def test_rank_biased_overlap_by_hand() -> None:
    a, b = np.array([[1, 2, 3], [1, 2, 3], [4, -1, -1]]), np.array([[1, 2, 3], [2, 1, 9], [-1, -1, -1]])
    p = PERSISTENCE
    swapped = (0.0 + p * 1.0 + p * p * 2 / 3) / (1 + p + p * p)
    np.testing.assert_allclose(rank_biased_overlap(a, b), [1.0, swapped, 0.0])


def test_the_figures_are_those_of_the_lists(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    readings = Readings(audited(untrained), world)
    found, case = figures(readings), concept_users_case(world)
    np.testing.assert_array_equal(found["influence.history"], history_influence(readings))
    rows, fewer = without_matched(case.histories, world.members)
    assert 0 < len(rows) <= len(case)
    np.testing.assert_array_equal(found["influence.matched.concept"], found["influence.history"][rows])
    lists = [readings.lists(Case("own", case.histories.take(rows))), readings.lists(Case("fewer", fewer))]
    kept = [[[i for i in row if i >= 0 and not world.members[i]][:10] for row in each.tolist()] for each in lists]
    by_set = [1 - 2 * len({*a} & {*b}) / max(len(a) + len(b), 1) for a, b in zip(*kept, strict=True)]
    np.testing.assert_allclose(found["influence.matched.other"], by_set)
    assert 0 < found["influence.matched.other"].mean() < 1


def test_a_reference_of_the_same_weights_moves_as_much(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    own = figures(Readings(audited(untrained), world))
    base = figures(Readings(audited(untrained, role="reference", reads_concept=False), world))
    for name, values in own.items():
        np.testing.assert_allclose(values, base[name], err_msg=name)


def test_a_model_that_looks_at_nothing_is_moved_by_nothing(
    world: AuditWorld, audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]
) -> None:
    for values in figures(Readings(audited(planted(1)), world)).values():
        np.testing.assert_array_equal(values, 0.0)


def test_neither_batches_nor_the_order_of_users_matter(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    everyone = replace(world, config=replace(world.config, mass_users=1000))
    turned = replace(everyone, histories=world.histories.take(np.arange(len(world.histories))[::-1]))
    small = replace(everyone, config=replace(everyone.config, batch=3))
    first, *others = (figures(Readings(audited(untrained), x)) for x in (everyone, small, turned))
    for name, values in first.items():
        np.testing.assert_allclose(others[0][name], values, atol=1e-6)
        np.testing.assert_allclose(others[1][name][::-1], values, atol=1e-6)


def test_the_same_list_overlaps_wholly(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    lists = Readings(audited(untrained), world).lists(natural_case(world))
    np.testing.assert_array_equal(rank_biased_overlap(lists, lists), 1.0)
    np.testing.assert_array_equal(overlap(lists, lists), 1.0)
