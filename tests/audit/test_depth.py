"""How far down the concept begins, against every item scored by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit.cases import some_users
from recerase.audit.depth import DEPTHS, TIE, depth, first_items
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.model.mass import forced_log_probs
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.table import SidSchema, SidTable
from recerase.types import Measurement, Skipped

Found = dict[str, Measurement]


def read(model: AuditModel, world: AuditWorld) -> Found:
    return {m.metric: m for m in depth(Readings(model, world)) if isinstance(m, Measurement)}


@pytest.fixture
def decoder(schema: SidSchema) -> Recommender:
    config = ModelConfig("seq2seq", width=16, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
    return new_recommender(config, schema, 1)


def alone(model: AuditModel, world: AuditWorld) -> np.ndarray:
    """[B, N] log p of each item, one item and its codes at a time."""
    histories = some_users(world, "depth users", world.config.depth_users).histories
    given = histories if model.reads_concept else histories.without(world.out)
    items = range(len(world.members))
    return np.stack([forced_log_probs(model.recommender, model.table, given, np.full(len(given), i)) for i in items], 1)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("listing", ["all", "filter", "reference"])
def test_every_place_is_that_of_items_scored_one_by_one(
    kind: str, listing: str, world: AuditWorld, audited: Callable, untrained: Recommender, decoder: Recommender
) -> None:
    model: AuditModel = audited(untrained if kind == "causal" else decoder, role="subject")
    model = replace(model, listed=~world.members) if listing == "filter" else model
    model = replace(model, reads_concept=False) if listing == "reference" else model
    found, scores = read(model, world), alone(model, world)
    places, shown = [], {k: [] for k in DEPTHS}
    for row in scores:
        best = row[world.members].max()
        places.append((1 + sum(row[~world.members] > best + TIE)) / 25)
        order = [i for i in sorted(range(36), key=lambda i: (-row[i], i)) if model.listed[i]]
        for k in DEPTHS:
            shown[k].append(sum(world.members[i] for i in order[:k]) / k)
    for side in ("old", "new"):
        np.testing.assert_allclose(found[f"depth.first_rank.{side}"].values, places)
    for k in DEPTHS:
        np.testing.assert_allclose(found[f"depth.exposure@{k}"].values, shown[k])
    assert len(set(places)) > 3


def test_lists_are_cut_where_they_are_asked_to_be() -> None:
    rng = np.random.default_rng(0)
    scores, items = rng.integers(0, 5, (20, 9)).astype(float), np.array([3, 1, 4, 0, 5, 9, 2, 6, 8])
    scores[:, 4] = -np.inf
    rank = rng.permutation(10)
    lists = first_items(scores, items, rank, 6)
    for row, found in zip(scores, lists, strict=True):
        expected = sorted((-s, rank[i], i) for s, i in zip(row, items, strict=True) if np.isfinite(s))
        assert found.tolist() == [i for _, _, i in expected][:6]
    assert (first_items(scores, items, rank, 20)[:, 8:] == -1).all()


def test_an_oracle_is_first_and_what_a_filter_hides_keeps_its_place(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    whole = read(audited(planted(0)), world)
    hidden = read(audited(planted(0), role="filter", listed=~world.members), world)
    for side in ("old", "new"):
        assert whole[f"depth.first_rank.{side}"].value == pytest.approx(1 / 25)
        assert hidden[f"depth.first_rank.{side}"].value == pytest.approx(1 / 25)
    assert whole["depth.exposure@50"].value == pytest.approx(12 / 50)
    assert hidden["depth.exposure@500"].value == 0
    # the favourites of group 1 come first; groups 0 and 2 tie, and a tie goes to the concept
    assert read(audited(planted(1)), world)["depth.first_rank.new"].value == pytest.approx(13 / 25)


def test_the_old_sids_are_placed_among_the_items_as_they_are_now(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], table: SidTable, moved: SidTable
) -> None:
    found = read(audited(planted(0), table=moved, old_table=table, listed=~world.members), world)
    assert found["depth.first_rank.old"].value == pytest.approx(1 / 25)
    liked = read(audited(planted(1), table=moved, old_table=table, listed=~world.members), world)
    assert liked["depth.first_rank.new"].value == pytest.approx(1 / 25)  # four concept items moved to group 1
    assert liked["depth.first_rank.old"].value == pytest.approx(13 / 25)


def test_a_concept_without_sids_is_behind_everything(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender], table: SidTable
) -> None:
    gone = replace(table, codes=np.where(world.members[:, None], -1, table.codes).astype(np.int32))
    found = read(audited(planted(0), table=gone, old_table=table, listed=~world.members), world)
    assert found["depth.first_rank.new"].value == 1
    assert found["depth.first_rank.old"].value == pytest.approx(1 / 25)


def test_a_filter_costs_nothing_beside_its_original(
    world: AuditWorld, audited: Callable, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: dict = {}
    depth(Readings(audited(untrained), world, cache))
    monkeypatch.setattr("recerase.model.exact.leaf_scores", None)
    depth(Readings(audited(untrained, role="filter", listed=~world.members), world, cache))
    with pytest.raises(TypeError):
        depth(Readings(audited(untrained), world))


def test_a_catalogue_too_large_to_score_has_lists_of_a_wide_beam_and_no_rank(
    world: AuditWorld, audited: Callable, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = read(audited(untrained), world)
    monkeypatch.setattr("recerase.model.exact.MOST_ITEMS", 35)
    found = depth(Readings(audited(untrained), world))
    skipped = {s.metric: s.reason for s in found if isinstance(s, Skipped)}
    assert set(skipped) == {"depth.first_rank.old", "depth.first_rank.new"}
    assert all("36" in reason for reason in skipped.values())
    lists = [m for m in found if isinstance(m, Measurement)]
    assert [m.metric for m in lists] == [f"depth.exposure@{k}" for k in DEPTHS]
    for m in lists:
        np.testing.assert_array_equal(m.values, exact[m.metric].values)


def test_a_list_without_retained_items_has_no_depth(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    (skipped,) = depth(Readings(audited(untrained, listed=world.members), world))
    assert isinstance(skipped, Skipped)
    assert skipped.metric == "depth.*"


def test_as_many_users_are_read_as_are_asked_for(world: AuditWorld, audited: Callable, untrained: Recommender) -> None:
    few = replace(world, config=replace(world.config, depth_users=7))
    found = read(audited(untrained), few)
    assert {m.n for m in found.values()} == {7}
