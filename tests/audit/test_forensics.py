"""What a checkpoint gives away: planted differences are found, and nothing is where nothing differs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recerase.audit.forensics import BESIDE, forensics, ranked, typical, typical_log_probs
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.model.mass import catalogue_log_probs
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.table import SidTable
from recerase.types import Measurement, Skipped

Audited = Callable[..., AuditModel]


def pair(original: AuditModel, subject: AuditModel, world: AuditWorld) -> dict[str, Measurement | Skipped]:
    """What is found of the subject, beside the original."""
    first, second = Readings(replace(original, role="original"), world), Readings(subject, world)
    second = replace(second, beside={"original": first, subject.role: second})
    return {m.metric: m for m in forensics(second)}


def value(found: Measurement | Skipped) -> float:
    assert isinstance(found, Measurement)
    return found.value


def test_ranking_is_the_share_of_pairs(world: AuditWorld, audited: Audited, untrained: Recommender) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=len(world.members)).astype(float)
    scores[[0, 20]] = np.nan
    concept, others = scores[:12][1:], np.delete(scores[12:], 8)
    pairs = np.sign(concept[:, None] - others) / 2 + 0.5
    readings = Readings(audited(untrained), world)
    for sign in (1, -1):
        found = ranked(readings, "forensics.norm.auc", sign * scores)
        assert isinstance(found, Measurement)
        assert found.value == pytest.approx(max(pairs.mean(), 1 - pairs.mean()))
        assert found.n == 11
    assert isinstance(ranked(readings, "forensics.norm.auc", np.where(world.members, np.nan, scores)), Skipped)


@pytest.mark.parametrize("role", ["original", "filter"])
def test_the_original_differs_from_itself_in_nothing(
    role: str, world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    found = {m.metric: m for m in forensics(Readings(audited(untrained, role=role), world))}
    for name in ("rows", "logprob", "table"):
        assert value(found[f"forensics.{name}.auc"]) == 0.5
    assert value(found["forensics.moved"]) == 0
    assert value(found["forensics.identical"]) == 1


def test_a_moved_row_is_found_and_counted(world: AuditWorld, audited: Audited, untrained: Recommender) -> None:
    """The first code of all concept items, and of no other, has another embedding."""
    module = copy.deepcopy(untrained.module)
    row = int(untrained.schema.rows[0][0])
    with torch.no_grad():
        module.get_input_embeddings().weight[row] += 1.0
    found = pair(audited(untrained), audited(untrained.around(module)), world)
    tensors = len(module.state_dict())
    assert value(found["forensics.rows.auc"]) == 1
    assert value(found["forensics.identical"]) == pytest.approx(1 - 1 / tensors)
    assert value(found["forensics.moved"]) == pytest.approx(1 / (3 + 12))  # of the codes in use
    assert value(found["forensics.table.auc"]) == 0.5


def test_what_became_unlikely_is_found(
    world: AuditWorld, audited: Audited, planted: Callable[[int], Recommender]
) -> None:
    found = pair(audited(planted(0)), audited(planted(1)), world)
    assert value(found["forensics.logprob.auc"]) == 1
    alone = {m.metric: m for m in forensics(Readings(audited(planted(0)), world))}
    assert value(alone["forensics.alone.auc"]) == 1  # from the other end: nothing is as likely as the concept


def test_log_probabilities_are_means_over_typical_histories(
    world: AuditWorld, audited: Audited, untrained: Recommender, table: SidTable, moved: SidTable
) -> None:
    case = typical(world)
    assert not case.histories.touches(world.members).any()
    for scored in (table, moved):
        model = audited(untrained, table=scored)
        twin = catalogue_log_probs(untrained, scored, case.histories).mean(axis=0, dtype=float)
        found = typical_log_probs(Readings(model, world), scored)
        np.testing.assert_allclose(found, twin, rtol=1e-5)


def test_a_moved_table_gives_its_items_away(
    world: AuditWorld, audited: Audited, untrained: Recommender, moved: SidTable
) -> None:
    found = pair(audited(untrained), audited(untrained, table=moved), world)
    assert value(found["forensics.table.auc"]) == 1
    gone = audited(untrained, listed=~world.members)
    assert value(pair(audited(untrained), gone, world)["forensics.table.auc"]) == 1


def test_without_an_original_only_the_model_itself_is_looked_at(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    found = {m.metric: m for m in forensics(Readings(audited(untrained), world))}
    assert {name for name, m in found.items() if isinstance(m, Skipped)} == set(BESIDE)
    assert all("original" in m.reason for m in found.values() if isinstance(m, Skipped))


def test_checkpoints_of_another_shape_have_no_rows_to_compare(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    config = ModelConfig("causal", width=8, layers=1, heads=2, feed_forward=16, window=20, dropout=0.0)
    other = new_recommender(config, untrained.schema, 3)
    found = pair(audited(untrained), audited(other), world)
    for name in ("forensics.rows.auc", "forensics.moved"):
        skipped = found[name]
        assert isinstance(skipped, Skipped)
        assert "no tensor" in skipped.reason
    assert 0.5 <= value(found["forensics.logprob.auc"]) <= 1


def test_nobody_with_other_items_is_said(world: AuditWorld, audited: Audited, untrained: Recommender) -> None:
    clean = world.histories.touches(~world.members)
    assert clean.any()
    only = replace(world, histories=world.histories.without(~world.members))
    found = {m.metric: m for m in forensics(Readings(audited(untrained), only))}
    alone = found["forensics.alone.auc"]
    assert isinstance(alone, Skipped)
    assert "typical history" in alone.reason
    assert isinstance(found["forensics.norm.auc"], Measurement)


def test_neither_batches_nor_another_run_change_a_figure(
    world: AuditWorld, audited: Audited, untrained: Recommender
) -> None:
    state, module = torch.get_rng_state(), copy.deepcopy(untrained.module)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(torch.linspace(0.5, 1.5, len(weight)).reshape(-1, *[1] * (weight.dim() - 1)))
    subject = audited(untrained.around(module))
    small = replace(world, config=replace(world.config, batch=3, mass_batch=3))
    first, again = (pair(audited(untrained), subject, x) for x in (world, small))
    for name, m in first.items():
        assert value(m) == pytest.approx(value(again[name]), abs=1e-6), name
    assert torch.equal(state, torch.get_rng_state())
