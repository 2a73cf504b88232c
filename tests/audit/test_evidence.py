"""Examples and curves are cut from the readings, truthfully."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit.cases import natural_case
from recerase.audit.evidence import curves, worst_examples, worst_users
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.model.recommender import Recommender


def test_examples_show_the_oracle_before_and_a_filter_after(
    world: AuditWorld, audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]
) -> None:
    original = audited(planted(0), role="original")
    subject = replace(original, role="subject", listed=~world.members)
    examples = worst_examples(Readings(subject, world), Readings(original, world))
    assert len(examples) == 20
    assert all(all(e.before_concept) and not any(e.after_concept) for e in examples)
    assert all(len(e.before) == len(e.before_concept) == 10 and e.history for e in examples)
    assert len({e.user_id for e in examples}) == 20
    assert set(examples[0].before) <= set(world.catalogue.items.titles[:12])


def test_no_original_or_no_exposure_means_no_example(
    world: AuditWorld, audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]
) -> None:
    clean = Readings(audited(planted(1)), world)
    assert worst_examples(clean, None) == ()
    assert worst_examples(clean, clean) == ()


def test_the_worst_users_see_most_of_the_concept_and_see_it_highest(world: AuditWorld) -> None:
    lists = np.array([[0, 20, 21, 22], [20, 21, 0, 1], [0, 1, 20, 21], [20, 21, 22, -1], [20, 0, 21, 22]])
    assert worst_users(lists, world).tolist() == [2, 1, 0, 4]


def test_curves_agree_with_the_readings_and_are_plain_json(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    subject = Readings(audited(untrained), world)
    reference = Readings(audited(untrained, role="reference", reads_concept=False), world)
    drawn = curves([subject, reference])
    assert json.loads(json.dumps(drawn)) == drawn
    for curve in drawn.values():
        assert all(len(points) == len(curve["x"]) for points in curve.values())
    lists = subject.lists(natural_case(world))
    assert drawn["exposure_by_k"]["subject"][9] == pytest.approx(world.members[lists[:, :10]].mean())
    mass = drawn["mass_by_rank"]["subject"]
    assert mass == sorted(mass, reverse=True)
    assert set(drawn["saturated_by_m"]) == {"x", "subject"}
