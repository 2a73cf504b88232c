"""Free generation, what it means, and SIDs that two items share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.audit.aliasing import aliasing
from recerase.audit.free import contains, free
from recerase.audit.nearest import compass, nearest, nearest_items, random_codes
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped


def read(probe: Callable, model: AuditModel, world: AuditWorld) -> dict[str, Measurement]:
    return {m.metric: m for m in probe(Readings(model, world)) if isinstance(m, Measurement)}


def oracle_share(model: AuditModel, world: AuditWorld) -> float:
    return read(free, model, world)["free.old_concept"].value


def test_an_oracle_generates_old_concept_sids_and_another_does_not(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    """Second codes are even over 16, of which 12 are items: six generations of the favourite group, all concept."""
    assert oracle_share(audited(planted(0)), world) > 0.6
    assert oracle_share(audited(planted(1)), world) == 0


def test_old_concept_sids_are_found_whatever_the_current_table_says(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], table: SidTable
) -> None:
    model = planted(0)
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes).astype(np.int32))
    erased = audited(model, table=gone, old_table=table, listed=~world.members)
    found = read(free, erased, world)
    assert found["free.old_concept"].value > 0.6
    assert found["free.invalid"].value == pytest.approx(1.0)  # nothing the oracle says is listed any more


def test_a_sid_that_a_retained_item_held_too_is_no_leak(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], table: SidTable
) -> None:
    twins = table.replace(np.arange(12, 24), table.codes[:12])
    assert oracle_share(audited(planted(0), table=twins, old_table=twins), world) == 0


def test_an_oracle_leaks_by_meaning_and_another_does_not(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    leaky, clean = read(nearest, audited(planted(0)), world), read(nearest, audited(planted(1)), world)
    assert leaky["nearest.leak@r50"].value > 0.6
    assert clean["nearest.leak@r50"].value == 0
    assert leaky["nearest.random"].value == clean["nearest.random"].value
    assert 0 < leaky["nearest.random"].value < 0.5


def test_wider_radii_leak_more(world: AuditWorld, audited: Callable, untrained: Recommender) -> None:
    found = read(nearest, audited(untrained), world)
    shares = [found[f"nearest.leak@r{r}"].values for r in (10, 25, 50)]
    assert (shares[0] <= shares[1]).all()
    assert (shares[1] <= shares[2]).all()


def test_nearest_items_are_the_brute_force_ones(world: AuditWorld, table: SidTable) -> None:
    assert world.embeddings is not None
    assert world.codebooks is not None
    codes = random_codes(world, table.schema)[:200]
    gaps = np.linalg.norm(world.codebooks.point(codes)[:, None] - world.embeddings[None], axis=2)
    distance, item = nearest_items(world, codes)
    np.testing.assert_allclose(distance, gaps.min(axis=1), atol=1e-3)
    np.testing.assert_allclose(gaps[np.arange(200), item], gaps.min(axis=1), atol=1e-3)


def test_radii_are_percentiles_of_the_concepts_own_distances(world: AuditWorld, table: SidTable) -> None:
    """Concept items off their points, retained ones right on them: only the concept's own distances count."""
    assert world.embeddings is not None
    assert world.codebooks is not None
    points = world.codebooks.point(table.codes[world.members])
    off = points + np.random.default_rng(1).normal(size=points.shape)
    world = replace(world, embeddings=np.concatenate([off, points, world.embeddings[24:]]).astype(np.float32))
    gaps = np.linalg.norm(points[:, None] - world.embeddings[world.members][None], axis=2).min(axis=1)
    np.testing.assert_allclose(compass(world, table).radii, np.percentile(gaps, [10, 25, 50]), rtol=1e-4)


def test_a_row_outside_its_level_has_no_point(world: AuditWorld, table: SidTable) -> None:
    leaks = compass(world, table).leaks(np.array([[[0, 0], [-1, 0], [0, -1]]]))
    assert leaks.shape == (1, 3, 3)
    assert leaks[0, 0].all()  # the embedding of item 0 is its point
    assert not leaks[0, 1:].any()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=8), st.data())
def test_contains_is_set_membership(known: list[tuple[int, int]], data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
    found = contains(np.array(asked), np.array(known, dtype=int).reshape(-1, 2))
    assert found.tolist() == [sid in set(known) for sid in asked]


def test_aliasing_counts_items_that_share_a_sid_or_a_prefix(
    world: AuditWorld, audited: Callable, untrained: Recommender, table: SidTable, moved: SidTable
) -> None:
    apart = read(aliasing, audited(untrained), world)
    assert apart["aliasing.shared_sid"].value == 0
    assert apart["aliasing.shared_prefix"].value == 0
    beside = read(aliasing, audited(untrained, table=moved), world)
    assert beside["aliasing.shared_sid"].value == 0
    assert beside["aliasing.shared_prefix"].value == pytest.approx(8 / 12)
    twins = replace(table, codes=np.concatenate([table.codes[12:15], table.codes[3:]]))
    shared = read(aliasing, audited(untrained, table=twins), world)["aliasing.shared_sid"]
    assert shared.value == pytest.approx(3 / 12)
    assert shared.interval is not None
    assert (shared.interval.low, shared.interval.high) == (shared.value, shared.value)


def test_without_concept_users_free_generation_is_skipped(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    clean = replace(world, histories=world.histories.without(world.members))
    for probe in (free, nearest):
        assert [type(x) for x in probe(Readings(audited(untrained), clean))] == [Skipped]
