"""Probes of the hidden state on a model whose state is the last code it read, in worlds where that does or does not tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.hidden import CONTROLS, FOLDS, _rows, control_sets, crossed, hidden, hidden_states, matched_items
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.catalog.interactions import Catalogue, Interactions
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

Found = dict[str, Measurement]
USERS, N, GROUP = 240, 36, 12
Told = Callable[[np.random.Generator, int], bool]


def read(model: AuditModel, world: AuditWorld) -> Found:
    return {m.metric: m for m in hidden(Readings(model, world)) if isinstance(m, Measurement)}


def lived(world: AuditWorld, told: bool) -> AuditWorld:
    """240 users of 8 to 12 items: the next is of the concept after a retained item whose second code is 8 or more, or by lot."""
    rng = np.random.default_rng(5)
    lengths, items = rng.integers(8, 13, USERS), []
    for length in lengths:
        last = int(rng.integers(GROUP, N))
        for _ in range(length):
            here = last % GROUP >= 8 if told else rng.random() < 1 / 3
            after_concept = bool(items) and items[-1] < GROUP and told
            item = int(rng.integers(GROUP)) if here and not after_concept else int(rng.integers(GROUP, N))
            last = item if item >= GROUP else last
            items.append(item)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"u{u:03d}" for u in range(USERS)], dtype=object)
    drawn = np.array(items, np.int32)
    made = Interactions(users, offsets, drawn, np.arange(len(drawn), dtype=np.int64), "lived")
    catalogue = Catalogue(world.catalogue.items, made)
    return replace(world, catalogue=catalogue, histories=made.split().test)


def test_what_the_state_tells_is_found_and_is_not_the_controls(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = read(audited(planted(1)), lived(world, told=True))
    for name in ("auc", "mlp"):
        assert found[f"hidden.next.{name}"].value > 0.8
    assert 0.4 < found["hidden.next.control"].value < 0.65
    for name in ("selectivity", "mlp_selectivity"):
        m = found[f"hidden.next.{name}"]
        assert m.interval is not None
        assert m.interval.low > 0.1


def test_where_nothing_tells_there_is_no_selectivity(
    world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = read(audited(planted(1)), lived(world, told=False))
    for name in ("auc", "mlp", "control"):
        m = found[f"hidden.next.{name}"]
        assert m.interval is not None
        assert m.interval.low < 0.5 < m.interval.high or abs(m.value - 0.5) < 0.06
    for name in ("selectivity", "mlp_selectivity"):
        m = found[f"hidden.next.{name}"]
        assert m.interval is not None
        assert m.interval.low < 0.02
        assert m.value < 0.1


def test_next_is_asked_on_histories_without_the_concept_and_history_on_all_of_it(
    world: AuditWorld, audited: Callable, untrained: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[bool]] = {}
    real = hidden_states

    def spy(readings, histories, task="hidden"):  # type: ignore[no-untyped-def]
        seen.setdefault(task, []).append(bool(histories.touches(world.members).any()))
        return real(readings, histories, task)

    monkeypatch.setattr("recerase.audit.hidden.hidden_states", spy)
    hidden(Readings(audited(untrained, role="reference", reads_concept=False), world))
    assert seen == {"hidden next": [False, False], "hidden history": [True, True]}


def test_nobody_is_asked_about_whom_the_classifier_was_fitted_on() -> None:
    """Every user has a direction of his own and an answer by lot: whoever knows the user knows the answer."""
    rng = np.random.default_rng(0)
    states, answers = np.repeat(np.eye(50) * 10, 4, axis=0), np.repeat(rng.random(50) < 0.5, 4)
    fold = np.repeat(rng.integers(FOLDS, size=50), 4)
    known = crossed("linear", states, answers, states, fold, (fold + 1) % FOLDS)  # the others' folds: all but one known
    right = ((known > 0) == answers).mean()
    fair = crossed("linear", states, answers, states, fold, fold)
    assert right > 0.95
    assert ((fair > 0) == answers).mean() < 0.7


def test_fitted_and_asked_rows_are_what_they_should_be(world: AuditWorld) -> None:
    world = lived(world, told=False)
    rows = _rows(world, [world.members, *control_sets(world, CONTROLS)], 20)
    split = world.catalogue.interactions.split()
    assert rows.fitted.lengths.max() < split.train.lengths.max()
    held = {(u, int(n)) for u, n in zip(rows.asked.users, rows.asked.lengths, strict=True)}
    trained = dict(zip(split.train.users.tolist(), split.train.lengths.tolist(), strict=True))
    assert held == {(u, trained[u] + more) for u in trained for more in (0, 1)}  # the last two of everyone, and no more
    assert (np.diff(rows.asked.users) >= 0).all()


def test_a_world_of_validation_histories_never_reads_the_test_ones(world: AuditWorld) -> None:
    split = world.catalogue.interactions.split()
    rows = _rows(replace(world, histories=split.valid), [world.members], 20)
    assert rows.asked.targets.tolist() == split.valid.targets.tolist()


def test_control_items_are_as_many_as_popular_and_retained(world: AuditWorld) -> None:
    rng = np.random.default_rng(0)
    counts = np.round(np.exp(rng.normal(3, 1.5, 2000))).astype(np.int64)
    members = np.zeros(2000, bool)
    members[rng.permutation(2000)[:150]] = True
    drawn = [matched_items(np.random.default_rng(seed), counts, members, ~members) for seed in range(3)]
    for chosen in drawn:
        assert chosen.sum() == 150
        assert not (chosen & members).any()
        gaps = np.sort(np.log1p(counts[chosen])) - np.sort(np.log1p(counts[members]))
        assert np.abs(gaps).mean() < 0.1
    assert (drawn[0] != drawn[1]).any()
    crowded = matched_items(np.random.default_rng(0), np.ones(10, np.int64), np.arange(10) < 5, np.arange(10) >= 5)
    assert crowded.tolist() == [False] * 5 + [True] * 5
    assert control_sets(replace(world, concept=replace(world.concept, members=np.arange(36) < 20)), 2) == []


def test_too_few_answers_are_skipped_with_a_reason(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    rare = replace(world, concept=replace(world.concept, members=np.arange(36) == 0))
    found = hidden(Readings(audited(untrained), rare))
    assert {x.metric for x in found if isinstance(x, Skipped)} >= {"hidden.next.auc", "hidden.next.selectivity"}
    why = {x.metric: x.reason for x in found if isinstance(x, Skipped)}
    assert "training pairs give one of the two answers" in why["hidden.next.auc"]


def test_order_batches_and_the_model_are_left_alone(
    world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    before = {k: v.clone() for k, v in untrained.module.state_dict().items()}
    drawn, torch_drawn = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    found = read(audited(untrained), world)
    turned = replace(
        world,
        histories=world.histories.take(np.random.default_rng(1).permutation(len(world.histories))),
        config=replace(world.config, batch=7),
    )
    again = read(audited(untrained), turned)
    assert found.keys() == again.keys()
    for name, m in found.items():
        assert m.value == pytest.approx(again[name].value, abs=0.02), name  # another batch rounds otherwise
    same = read(audited(untrained), world)
    assert all(same[name].value == m.value and same[name].interval == m.interval for name, m in found.items())
    assert all(torch.equal(v, before[k]) for k, v in untrained.module.state_dict().items())
    assert not untrained.module.training
    assert all(p.requires_grad for p in untrained.module.parameters())
    assert (np.random.get_state()[1] == drawn).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_drawn)


def test_models_of_the_same_weights_are_read_once(
    world: AuditWorld, audited: Callable, untrained: Recommender, moved: SidTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: dict = {}
    original = audited(untrained, role="original")
    first = hidden(Readings(original, world, cache))
    monkeypatch.setattr("recerase.audit.hidden.crossed", lambda *a: pytest.fail("read again"))
    filtered = replace(original, role="filter", listed=~world.members)
    second = hidden(Readings(filtered, world, cache))
    assert [m.value for m in first if isinstance(m, Measurement)] == [
        m.value for m in second if isinstance(m, Measurement)
    ]
    with pytest.raises(pytest.fail.Exception):
        hidden(Readings(replace(original, table=moved), world, cache))
