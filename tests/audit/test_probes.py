"""The registry holds together, and the world is drawn once for everyone."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recerase.audit import relearn
from recerase.audit.card import PROFILES
from recerase.audit.cards import PROBES, known_metrics, load_probe, metrics, probes_of
from recerase.audit.probes import AuditConfig, AuditModel, AuditWorld, Earlier, build_world, measured
from recerase.audit.readings import Readings
from recerase.audit.relearning import RelearnConfig
from recerase.audit.run import not_run
from recerase.catalog.interactions import Catalogue
from recerase.errors import DataError, UsageError
from recerase.types import Measurement, Skipped


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks of five steps."""
    monkeypatch.setattr(relearn, "RelearnConfig", functools.partial(RelearnConfig, steps=(1, 5)))


def test_every_card_loads_and_metric_names_belong_to_one_probe() -> None:
    names = [spec.name for card in PROBES.values() for spec in card.metrics]
    assert len(names) == len(set(names))
    assert all(callable(load_probe(name)) for name in PROBES)
    assert all(card.goal.endswith("?") and card.source for card in PROBES.values())


def test_the_registry_cannot_be_changed_and_says_what_was_meant() -> None:
    with pytest.raises(TypeError):
        PROBES["mine"] = PROBES["natural"]  # type: ignore[index]
    with pytest.raises(UsageError, match="'saturated'"):
        load_probe("saturatd")


def test_checking_a_policy_needs_no_torch() -> None:
    code = "import sys; from recerase.audit.cards import known_metrics; known_metrics(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_names_policies_rely_on_exist() -> None:
    fixed = {
        *("natural.exposure@10", "natural.hit@10", "natural_concept_users.exposure@10", "natural.mass.old"),
        *("natural.mass.new", "natural_concept_users.mass.old", "natural_concept_users.mass.new"),
        *("saturated.exposure@10", "saturated.mass.old", "saturated.mass.new", "neighbours.exposure@10"),
        *("neighbours.mass.old", "neighbours.mass.new", "replay.exposure@10", "replay.mass.old"),
        *("nearest.leak@r10", "nearest.leak@r25", "nearest.leak@r50", "nearest.random", "free.invalid"),
        *("free.old_concept", "aliasing.shared_sid", "aliasing.shared_prefix", "utility.recall@5", "utility.ndcg@20"),
        *("utility_concept_users.ndcg@10", "utility_neighbours.ndcg@10", "utility.coverage@10"),
    }
    assert fixed <= known_metrics()


@pytest.mark.parametrize("role", ["subject", "original", "filter", "reference"])
@pytest.mark.parametrize("name", PROBES)
def test_conformance(
    name: str, role: str, world: AuditWorld, audited: Callable[..., AuditModel], untrained: object
) -> None:
    """Every probe, on every role: it accounts for each of its metrics, with finite numbers in their order."""
    gone = Earlier(
        ~world.members & (np.arange(len(world.members)) % 7 == 0), np.full((len(world.members), 2), -1, np.int32)
    )
    readings = Readings(audited(untrained, role=role, reads_concept=role != "reference"), replace(world, earlier=gone))
    found = load_probe(name)(readings)
    numbers = {m.metric: m for m in found if isinstance(m, Measurement)}
    passed_over = {s.metric for s in found if isinstance(s, Skipped)}
    owned = {n for n, spec in metrics().items() if spec in PROBES[name].metrics}
    assert set(numbers) | passed_over == owned
    for m in numbers.values():
        assert m.role == role
        assert m.layer == metrics()[m.metric].layer
        assert np.isfinite(m.value)
        assert 0 <= m.value <= metrics()[m.metric].most + 1e-6
        assert m.n > 0
        if m.values is not None:
            assert m.values.shape == (m.n,)
            assert m.value == pytest.approx(m.values.mean())
            assert m.interval is not None
            assert m.interval.low <= m.value <= m.interval.high


@pytest.mark.parametrize("name", PROBES)
def test_probes_that_need_embeddings_or_codebooks_say_so(
    name: str, world: AuditWorld, audited: Callable[..., AuditModel], untrained: object
) -> None:
    bare = replace(world, embeddings=None, codebooks=None)
    found = load_probe(name)(Readings(audited(untrained), bare))
    skipped = [s for s in found if isinstance(s, Skipped) and s.metric == f"{name}.*"]
    assert bool(skipped) == bool(PROBES[name].needs)


def test_zero_hits_bound_the_rate_by_the_rule_of_three(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: object
) -> None:
    m = measured(Readings(audited(untrained), world), "natural.exposure@10", np.zeros(500))
    assert isinstance(m, Measurement)
    assert m.interval is not None
    assert m.value == 0
    assert m.interval.high == pytest.approx(-np.log(0.05) / 500, rel=1e-6)


def test_nothing_to_measure_is_skipped_not_zero(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: object
) -> None:
    assert isinstance(measured(Readings(audited(untrained), world), "natural.exposure@10", np.zeros(0)), Skipped)


def test_fewer_users_are_a_seeded_subset_in_the_same_order(world: AuditWorld) -> None:
    def users(**changes: int) -> list[int]:
        config = replace(world.config, **changes)
        return build_world(world.catalogue, world.concept, config=config).histories.users.tolist()

    assert users(max_users=20) == users(max_users=20)
    assert users(max_users=20) != users(max_users=20, seed=1)
    assert users(max_users=20) == sorted(users(max_users=20))
    assert len(set(users(max_users=20)) & set(users())) == 20


def test_random_numbers_depend_on_the_purpose_and_not_on_what_ran_before(world: AuditWorld) -> None:
    first = world.random("mass").integers(0, 1 << 30, 5)
    world.random("other").integers(0, 1 << 30, 5)
    assert (first == world.random("mass").integers(0, 1 << 30, 5)).all()
    assert (first != world.random("other").integers(0, 1 << 30, 5)).any()


def test_a_world_refuses_what_does_not_belong_together(world: AuditWorld) -> None:
    with pytest.raises(DataError, match="embeddings"):
        build_world(world.catalogue, world.concept, embeddings=np.zeros((3, 2)))
    with pytest.raises(UsageError, match="mass_users"):
        build_world(world.catalogue, world.concept, config=AuditConfig(mass_users=0))
    empty = world.catalogue.interactions
    empty = replace(empty, offsets=np.zeros_like(empty.offsets), items=empty.items[:0])
    with pytest.raises(DataError, match="test interaction"):
        build_world(Catalogue(world.catalogue.items, empty), world.concept)


def test_a_profile_runs_what_narrower_ones_run_and_says_what_it_leaves_out() -> None:
    run = [set(probes_of(profile)) for profile in PROFILES]
    assert run[0] <= run[1] <= run[2] == set(PROBES)
    for profile, names in zip(PROFILES, run, strict=True):
        left = not_run(profile)
        assert {s.metric.removesuffix(".*") for s in left} == set(PROBES) - names
        assert all(profile in s.reason and s.reason.endswith("?") for s in left)


def test_a_card_says_what_a_person_must_know() -> None:
    for card in PROBES.values():
        assert {"asks", "how", "costs", "source", "a pass does not mean", "profile"} <= {*card.facts}
        assert all(card.facts.values())
