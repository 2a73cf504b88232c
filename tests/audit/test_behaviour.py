"""Natural, saturated, neighbours and replay against models whose every probability is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit.natural import natural
from recerase.audit.neighbours import neighbours, neighbours_case, outside_neighbours
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.replay import replay
from recerase.audit.saturated import by_popularity, lengths, saturated, saturated_case
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

Found = dict[str, Measurement]


def read(probe: Callable[[Readings], list[Measurement | Skipped]], model: AuditModel, world: AuditWorld) -> Found:
    return {m.metric: m for m in probe(Readings(model, world)) if isinstance(m, Measurement)}


@pytest.mark.parametrize(
    ("probe", "stem"), [(natural, "natural"), (saturated, "saturated"), (neighbours, "neighbours")]
)
def test_an_oracle_of_the_concept_is_fully_exposed(
    probe: Callable, stem: str, world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = read(probe, audited(planted(0)), world)
    assert found[f"{stem}.exposure@10"].value == 1
    assert found[f"{stem}.exposure@20"].value == pytest.approx(12 / 20)  # there are twelve concept items
    for side in ("old", "new"):
        assert found[f"{stem}.mass.{side}"].value == pytest.approx(12 / 16, abs=1e-3)


@pytest.mark.parametrize(
    ("probe", "stem"), [(natural, "natural"), (saturated, "saturated"), (neighbours, "neighbours")]
)
def test_a_filter_hides_the_exposure_and_keeps_the_mass(
    probe: Callable, stem: str, world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = read(probe, audited(planted(0), role="filter", listed=~world.members), world)
    shown = found[f"{stem}.exposure@10"]
    assert shown.value == 0
    assert shown.interval is not None
    assert shown.interval.high == pytest.approx(-np.log(0.05) / shown.n, rel=1e-6)
    assert found[f"{stem}.mass.new"].value == pytest.approx(12 / 16, abs=1e-3)


def test_a_model_without_taste_for_the_concept_shows_none(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = read(natural, audited(planted(1)), world)
    assert found["natural.exposure@10"].value == 0
    assert found["natural.hit@10"].value == 0
    assert found["natural.mass.new"].value < 1e-3


def test_natural_concept_users_are_those_whose_history_holds_the_concept(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    found = read(natural, audited(untrained), world)
    touched = [world.members[h[h >= 0]].any() for h in world.histories.padded(20)]
    assert found["natural_concept_users.exposure@10"].n == sum(touched)
    assert found["natural.exposure@10"].n == len(world.histories)


def test_replay_finds_what_moving_the_sids_hides(
    world: AuditWorld,
    audited: Callable,
    planted: Callable[[int], Recommender],
    moved: SidTable,
    table: SidTable,
) -> None:
    """The oracle loves the OLD codes of the concept; the table moved eight of twelve items away from them."""
    gone = np.stack([np.full(12, -1), np.full(12, -1)], axis=1).astype(np.int32)
    erased = replace(table, codes=np.concatenate([gone, table.codes[12:]]))
    model = audited(planted(0), table=erased, old_table=table, listed=~world.members)
    assert read(natural, model, world)["natural.exposure@10"].value == 0
    found = read(replay, model, world)
    assert found["replay.exposure@10"].value == 1
    assert found["replay.mass.old"].value == pytest.approx(12 / 16, abs=1e-3)


def test_replay_undoes_a_move_of_sids_on_both_sides(
    world: AuditWorld, audited: Callable, untrained: Recommender, moved: SidTable, table: SidTable
) -> None:
    """Same weights: a moved table with the old one put back is the model from before the move."""
    before = read(natural, audited(untrained), world)
    after = read(replay, audited(untrained, table=moved, old_table=table, listed=~world.members), world)
    np.testing.assert_array_equal(after["replay.exposure@10"].values, before["natural.exposure@10"].values)
    np.testing.assert_array_equal(after["replay.mass.old"].values, before["natural.mass.old"].values)


def test_replay_of_an_unchanged_table_is_the_natural_reading(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    readings = Readings(audited(untrained), world)
    now = {m.metric: m for m in natural(readings) if isinstance(m, Measurement)}
    then = {m.metric: m for m in replay(readings) if isinstance(m, Measurement)}
    np.testing.assert_array_equal(now["natural.exposure@10"].values, then["replay.exposure@10"].values)
    np.testing.assert_array_equal(now["natural.mass.new"].values, then["replay.mass.old"].values)


def test_saturated_histories_are_the_concept_alone_without_repetition(world: AuditWorld) -> None:
    case = saturated_case(world)
    sizes = case.histories.lengths
    np.testing.assert_array_equal(sizes, lengths(world))
    assert sizes.min() == 1
    assert sizes.max() == 20
    assert world.members[case.histories.items].all()
    for size, history in zip(sizes, case.histories.padded(20), strict=True):
        assert len(set(history[history >= 0].tolist())) == min(size, 12)
    again = saturated_case(world).histories.items
    np.testing.assert_array_equal(case.histories.items, again)


def test_saturated_items_follow_popularity() -> None:
    counts = np.array([1, 9, 0])
    order = by_popularity(np.random.default_rng(0), counts, 4000, 3)
    assert (order[:, 0] == 1).mean() == pytest.approx(0.9, abs=0.02)
    assert (order[:, 2] == 2).all()  # never seen comes last
    assert (np.sort(order, axis=1) == [0, 1, 2]).all()


def test_a_reference_is_read_on_the_concepts_users_instead_of_empty_histories(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    readings = Readings(audited(untrained, role="reference", reads_concept=False), world)
    by_probe = {m.metric: m for m in [*natural(readings), *saturated(readings)] if isinstance(m, Measurement)}
    np.testing.assert_array_equal(
        by_probe["saturated.mass.old"].values, by_probe["natural_concept_users.mass.old"].values
    )


def test_a_concept_nobody_touched_leaves_a_reference_unread_on_saturated(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    clean = replace(world, histories=world.histories.without(world.members))
    found = saturated(Readings(audited(untrained, role="reference", reads_concept=False), clean))
    assert all(isinstance(x, Skipped) for x in found)


def test_outside_neighbours_are_the_brute_force_ones(world: AuditWorld) -> None:
    assert world.embeddings is not None
    rng = np.random.default_rng(5)
    points = rng.normal(size=world.embeddings.shape)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    cosine = unit[world.members] @ unit.T
    cosine[:, world.members] = -np.inf
    expected = np.argsort(-cosine, axis=1)[:, :4]
    np.testing.assert_array_equal(outside_neighbours(points, world.members, 4), expected)
    assert outside_neighbours(points, world.members, 99).shape == (12, 24)


def test_neighbours_histories_hold_no_concept_item_and_end_with_the_nearest(world: AuditWorld) -> None:
    assert world.embeddings is not None
    case = neighbours_case(world)
    assert not world.members[case.histories.items].any()
    near = outside_neighbours(world.embeddings, world.members, world.config.neighbours)
    pools = [list(row) for row in near]
    for history in case.histories.padded(20):
        held = history[history >= 0].tolist()
        assert 1 <= len(held) <= world.config.neighbours
        assert any(
            set(held) <= set(pool) and [pool.index(i) for i in held] == sorted(map(pool.index, held), reverse=True)
            for pool in pools
        )
