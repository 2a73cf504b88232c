"""Membership inference on models that never saw a pair, and on one that learned them by heart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.membership import _one_a_user_first, lowest, matched_pairs, membership
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.catalog.interactions import Catalogue, Interactions
from recerase.errors import CheckpointError
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.model.training import TrainConfig, train
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

AUCS = ("loss", "min_k", "min_k_plus", "ratio")


@pytest.fixture
def by_lot(world: AuditWorld) -> AuditWorld:
    """80 users whose items are drawn by lot: of what was not trained on there is nothing to know."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(6, 12, 80)
    items = rng.integers(0, 36, int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"u{u:03d}" for u in range(80)], dtype=object)
    made = Interactions(users, offsets, items, np.arange(len(items), dtype=np.int64), "by lot")
    return replace(world, catalogue=Catalogue(world.catalogue.items, made), histories=made.split().test)


def fresh(table: SidTable, seed: int) -> Recommender:
    shape = ModelConfig("causal", width=48, layers=1, heads=2, feed_forward=96, window=20, dropout=0.0)
    model = new_recommender(shape, table.schema, seed)
    model.module.eval()
    return model


def both(readings: Readings) -> tuple[dict[str, Measurement], dict[str, Skipped]]:
    found = membership(readings)
    return (
        {m.metric: m for m in found if isinstance(m, Measurement)},
        {s.metric: s for s in found if isinstance(s, Skipped)},
    )


def test_what_was_learned_by_heart_is_told_and_what_was_not_is_not(
    by_lot: AuditWorld, audited: Callable[..., AuditModel], table: SidTable
) -> None:
    learned = fresh(table, 0)
    config = TrainConfig(epochs=150, batch=80, lr=1e-2, weight_decay=0.0, dropout=0.0, validate_every=200)
    train(learned, table, by_lot.catalogue.interactions.split(), config)
    never = Readings(audited(fresh(table, 1), role="reference", reads_concept=False), by_lot)
    found, passed_over = both(Readings(audited(learned), by_lot, beside={"reference": never}))
    assert not passed_over
    for attack in AUCS:
        m = found[f"membership.{attack}.auc"]
        assert m.interval is not None
        assert m.interval.low > 0.65, attack
        assert found[f"membership.{attack}.tpr"].value > 0.03, attack
    best = found["membership.advantage"]
    assert best.value == pytest.approx(max(2 * found[f"membership.{a}.auc"].value - 1 for a in AUCS))
    for name in ("new", "heldout", "retained"):
        assert found[f"membership.{name}.auc"].value > 0.75, name
    found, passed_over = both(replace(never, beside={"reference": never}))
    assert {*passed_over} == {"membership.ratio.auc", "membership.ratio.tpr"}
    for name in ("loss", "min_k", "min_k_plus", "new", "heldout", "retained"):
        m = found[f"membership.{name}.auc"]
        assert m.interval is not None
        assert m.interval.low < 0.5 < m.interval.high, name
    assert found["membership.advantage"].value < 0.2


def test_members_less_likely_than_others_are_told_as_well(
    by_lot: AuditWorld, audited: Callable[..., AuditModel], table: SidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recerase.audit import membership as module

    model = audited(fresh(table, 0))
    real = module._codes

    def lowered(readings, name, *rest):  # type: ignore[no-untyped-def]
        codes = real(readings, name, *rest)
        return replace(codes, log_probs=codes.log_probs - 50.0) if name == "concept members" else codes

    monkeypatch.setattr(module, "_codes", lowered)
    found, _ = both(Readings(model, by_lot))
    assert found["membership.loss.auc"].value == 0
    assert found["membership.advantage"].value == 1


def test_a_member_and_its_counterpart_differ_in_membership_alone(by_lot: AuditWorld) -> None:
    made = by_lot.catalogue.interactions
    for among, purpose in ((by_lot.members, "concept"), (by_lot.retained, "retained")):
        pairs = matched_pairs(by_lot, among, 20, purpose)
        assert len(pairs.others) == len(pairs.histories) > 90
        counts = np.bincount(made.items)
        train = made.split().train
        for row, other in enumerate(pairs.others):
            user, target = int(pairs.histories.users[row]), int(pairs.histories.targets[row])
            took = made.items[made.offsets[user] : made.offsets[user + 1]]
            place = int(np.flatnonzero(train.users == user)[0])
            sequence = train.items[train.offsets[place] : train.offsets[place + 1]]
            history = pairs.histories.take([row]).items.tolist()
            assert sequence[: len(history) + 1].tolist() == [*history, target]  # trained on, as it was
            assert other not in took
            assert target not in history
            assert among[other]
            assert among[target]
        gap = np.abs(np.log1p(counts[pairs.others]) - np.log1p(counts[pairs.histories.targets]))
        assert gap.mean() < np.abs(np.log1p(counts[among]) - np.log1p(counts[among]).mean()).mean()


def test_a_model_that_holds_every_concept_item_for_the_same_is_at_one_half(
    world: AuditWorld, audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]
) -> None:
    found, _ = both(Readings(audited(planted(0)), world))
    assert found["membership.loss.auc"].value == pytest.approx(0.5, abs=0.08)


def test_the_lowest_third_of_the_codes() -> None:
    values = np.array([[-1.0, -5, -2], [-3, -4, np.nan], [-7, np.nan, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(lowest(values), [-5, -4, -7, np.nan])
    six = np.array([[-1.0, -2, -3, -4, -5, -9]])
    assert lowest(six).tolist() == [-7]


def test_without_reference_pairs_or_sids_it_says_why(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender, table: SidTable
) -> None:
    _, passed_over = both(Readings(audited(untrained), world))
    assert "needs a reference" in passed_over["membership.ratio.auc"].reason
    rare = replace(world, concept=replace(world.concept, members=np.arange(36) == 0))
    found, passed_over = both(Readings(audited(untrained), rare))
    assert {*found} == {"membership.retained.auc"}
    assert "counterpart" in passed_over["membership.loss.auc"].reason  # one item has no other of the concept
    codes = table.codes.copy()
    codes[:12] = -1
    gone = replace(table, codes=codes)
    found, passed_over = both(Readings(audited(untrained, table=gone, old_table=table), world))
    assert "no SIDs" in passed_over["membership.new.auc"].reason
    assert "membership.loss.auc" in found  # under the SIDs they had


def test_a_broken_model_is_no_secret_well_kept(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    with torch.no_grad():
        untrained.module.lm_head.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="finite"):
        membership(Readings(audited(untrained), world))


def test_order_batches_and_the_model_are_left_alone(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    before = {k: v.clone() for k, v in untrained.module.state_dict().items()}
    drawn = torch.get_rng_state()
    found, _ = both(Readings(audited(untrained), world))
    turned = replace(
        world,
        histories=world.histories.take(np.random.default_rng(1).permutation(len(world.histories))),
        config=replace(world.config, batch=5),
    )
    again, _ = both(Readings(audited(untrained), turned))
    assert {k: m.value for k, m in again.items()} == pytest.approx({k: m.value for k, m in found.items()}, abs=1e-3)
    same, _ = both(Readings(audited(untrained), world))
    assert all(same[k].value == m.value and same[k].interval == m.interval for k, m in found.items())
    assert all(torch.equal(v, before[k]) for k, v in untrained.module.state_dict().items())
    assert not untrained.module.training
    assert torch.equal(torch.get_rng_state(), drawn)


def test_nobody_is_asked_twice_while_somebody_is_not_asked() -> None:
    rng = np.random.default_rng(4)
    users = rng.integers(0, 30, 200)
    rows = rng.permutation(200)[:150]
    found = _one_a_user_first(rows, users)
    assert sorted(found.tolist()) == sorted(rows.tolist())
    seen: dict[int, int] = {}
    turns = []
    for row in found.tolist():
        turns.append(seen.get(int(users[row]), 0))
        seen[int(users[row])] = turns[-1] + 1
    assert turns == sorted(turns)
    for turn in range(max(turns) + 1):
        mine = [row for row, t in zip(found.tolist(), turns, strict=True) if t == turn]
        assert mine == [row for row in rows.tolist() if row in set(mine)]  # in the order drawn
