"""A whole audit: oracles fail, clean models pass, and nothing is passed that was not measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest

from recerase.audit import hidden, relearn
from recerase.audit.cards import PROBES, cards_beyond, load_probe, metrics, probes_of
from recerase.audit.cases import mass_users
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.relearning import RelearnConfig
from recerase.audit.run import AuditResult, _limits, compare, run_audit
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.table import SidSchema, SidTable
from recerase.types import Measurement, Policy, Result, Rule, Skipped, Verdict

POLICY = Policy(
    rules=(
        Rule("exposure", "natural.exposure@10", max=0.06),
        Rule("saturated", "saturated.exposure@10", max=0.08),
        Rule("mass", "natural.mass.old", max=0.01),
        Rule("replay", "replay.exposure@10", max=0.06),
        Rule("like a reference", "natural.mass.old", max=3.0, max_ratio_to="reference", optional=True),
        Rule("utility", "utility.recall@20", max_drop=0.9, max_drop_vs="original", optional=True),
    ),
    min_users=10,
)
TODAY = date(2026, 1, 1)


@pytest.fixture
def audit(world: AuditWorld) -> Callable[..., AuditResult]:
    def run(
        subject: AuditModel, original: AuditModel | None = None, reference: AuditModel | None = None
    ) -> AuditResult:
        return run_audit(subject, original, [reference] if reference else [], world, POLICY, today=TODAY)

    return run


def test_an_untouched_oracle_fails_and_its_controls_hold(
    audit: Callable[..., AuditResult], audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    model = planted(0)
    found = audit(audited(model, digest="o"), audited(model, digest="o"), audited(planted(1), digest="r"))
    assert found.decision.verdict is Verdict.FAIL
    assert {c.name: c.holds for c in found.controls} == {"original": True, "filter": True, "reference": True}
    assert found.examples


def test_a_model_without_the_concept_passes_against_an_oracle(
    audit: Callable[..., AuditResult], audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = audit(audited(planted(1), digest="s"), audited(planted(0), digest="o"))
    assert [f.reason for f in found.decision.findings if f.result is Result.FAIL] == []
    assert found.decision.verdict is Verdict.PASS


def test_a_filter_is_not_an_erasure(
    audit: Callable[..., AuditResult], world: AuditWorld, audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    original = audited(planted(0), digest="o")
    found = audit(replace(original, listed=~world.members), original)
    assert found.decision.verdict is Verdict.FAIL
    failed = {f.rule.id for f in found.decision.findings if f.result is Result.FAIL}
    assert failed == {"mass", "replay"}


def test_without_an_original_nothing_is_a_pass(
    audit: Callable[..., AuditResult], audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    found = audit(audited(planted(1)))
    assert found.decision.verdict is Verdict.INCONCLUSIVE
    assert found.examples == ()


def test_an_original_without_the_concept_makes_the_audit_invalid(
    audit: Callable[..., AuditResult], audited: Callable, planted: Callable[[int], Recommender]
) -> None:
    model = audited(planted(1), digest="o")
    found = audit(model, model)
    assert found.decision.verdict is Verdict.INCONCLUSIVE
    assert {c.name: c.holds for c in found.controls}["original"] is False


def probes_among(found: Iterable[Measurement]) -> set[str]:
    """The probes whose metrics these are."""
    specs = {metrics()[m.metric] for m in found}
    return {name for name, card in PROBES.items() if specs & {*card.metrics}}


def test_every_role_is_measured_by_every_probe_and_an_audit_repeats_itself(
    audit: Callable[..., AuditResult], audited: Callable, untrained: Recommender, planted: Callable[[int], Recommender]
) -> None:
    first = audit(audited(untrained), audited(planted(0)), audited(planted(1)))
    for role in ("subject", "original", "filter", "reference"):
        seen = probes_among(m for m in first.measurements if m.role == role)
        assert seen == {*probes_of("quick")} - {"earlier"}
    again = audit(audited(untrained), audited(planted(0)), audited(planted(1)))
    assert first.measurements == again.measurements
    assert first.decision == again.decision
    assert first.curves == again.curves


def test_the_standard_profile_runs_every_probe_of_it_on_every_role(
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    untrained: Recommender,
    planted: Callable[[int], Recommender],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole, with attacks of five steps, short searches, and classifiers for one control set in three folds."""
    monkeypatch.setattr(relearn, "RelearnConfig", functools.partial(RelearnConfig, steps=(1, 5)))
    monkeypatch.setattr(relearn, "MARKS", (0, 1, 5))
    monkeypatch.setattr(hidden, "CONTROLS", 1)
    monkeypatch.setattr(hidden, "FOLDS", 3)
    wide = replace(world, config=replace(world.config, profile="standard", worst_rounds=2))
    subject, original, reference = audited(untrained), audited(planted(0), digest="o"), audited(planted(1))
    found = run_audit(subject, original, [reference], wide, POLICY, today=TODAY)
    run = {*probes_of("standard")} - {"earlier"}
    for role in ("subject", "original", "filter", "reference"):
        assert probes_among(m for m in found.measurements if m.role == role) == run, role
    assert {c.name: c.holds for c in found.controls} == {"original": True, "filter": True, "reference": True}
    assert {"relearn_forget", "relearn_benign"} <= {*found.curves}
    assert {*found.seconds} == {*probes_of("standard")}
    beyond = {s.metric for s in found.skipped if "--profile" in s.reason}
    assert beyond == {f"{spec.name.partition('.')[0]}.*" for card in cards_beyond("standard") for spec in card.metrics}


def test_a_seq2seq_recommender_is_audited_alike(
    audit: Callable[..., AuditResult], audited: Callable, schema: SidSchema
) -> None:
    config = ModelConfig("seq2seq", width=16, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
    model = new_recommender(config, schema, 0)
    model.module.eval()
    found = audit(audited(model), audited(model), audited(model))
    assert probes_among(found.measurements) == {*probes_of("quick")} - {"earlier"}


def test_a_reference_is_never_shown_the_concept(
    audit: Callable[..., AuditResult], world: AuditWorld, audited: Callable, untrained: Recommender
) -> None:
    found = audit(audited(untrained), audited(untrained), audited(untrained))
    told = {m.role: m for m in found.measurements if m.metric == "natural.mass.old" and m.kind == "value"}
    clean = Readings(audited(untrained, role="reference", reads_concept=False), world)
    sample = mass_users(world)
    np.testing.assert_array_equal(told["reference"].values, clean.mass(sample.case)[sample.everyone])
    assert (told["reference"].values != told["original"].values).any()


def test_only_what_the_policy_asks_for_is_reported_as_missing(
    audit: Callable[..., AuditResult], audited: Callable, untrained: Recommender
) -> None:
    found = audit(audited(untrained), audited(untrained))
    assert not any(isinstance(m, Measurement) and m.versus == "reference" for m in found.measurements)
    assert "natural.mass.old" in {s.metric for s in found.skipped}
    assert "nearest.leak@r25" not in {s.metric for s in found.skipped}


def test_the_original_as_subject_is_read_once(
    monkeypatch: pytest.MonkeyPatch, audit: Callable[..., AuditResult], audited: Callable, untrained: Recommender
) -> None:
    decoded: list[str] = []
    plain = Readings._decode
    monkeypatch.setattr(
        Readings, "_decode", lambda self, case, *rest: decoded.append(self.model.role) or plain(self, case, *rest)
    )
    audit(audited(untrained, digest="o"), audited(untrained, digest="o"))
    assert "original" not in decoded
    assert set(decoded) == {"subject", "filter"}


def test_what_did_not_run_is_said(audit: Callable[..., AuditResult], audited: Callable, untrained: Recommender) -> None:
    found = audit(audited(untrained), audited(untrained))
    skipped = {s.metric: s.reason for s in found.skipped if s.role == "subject"}
    for card in cards_beyond("quick"):
        for spec in card.metrics:
            assert f"--profile {card.profile}" in skipped[f"{spec.name.partition('.')[0]}.*"]
    assert "no" in skipped["natural.mass.old"]  # the ratio to a reference that was not given
    assert any("user-data" in text for text in found.limits)


def number(role: str, values: np.ndarray | None, value: float | None = None) -> Measurement:
    mean = float(np.mean(values)) if value is None else value
    return Measurement("utility.ndcg@10", role, mean, 50, "utility", better="higher", values=values)  # type: ignore[arg-type]


def test_drops_and_ratios_are_those_of_the_means_and_are_paired(world: AuditWorld) -> None:
    base = np.random.default_rng(0).random(200)
    drop = compare(number("subject", 0.8 * base), number("original", base), "drop", world)
    ratio = compare(number("subject", 0.8 * base), number("original", base), "ratio", world)
    assert isinstance(drop, Measurement)
    assert isinstance(ratio, Measurement)
    assert (drop.value, ratio.value) == (pytest.approx(0.2), pytest.approx(0.8))
    assert drop.interval is not None
    assert drop.interval.high - drop.interval.low < 1e-6  # unpaired, noise between users would widen it
    assert (drop.versus, drop.kind, drop.better) == ("original", "drop", "lower")
    assert ratio.better == "higher"


def test_a_comparison_with_nothing_is_skipped(world: AuditWorld) -> None:
    found = compare(number("subject", None, 0.3), number("original", None, 0.0), "ratio", world)
    assert isinstance(found, Skipped)
    plain = compare(number("subject", None, 0.3), number("original", None, 0.6), "drop", world)
    assert isinstance(plain, Measurement)
    assert plain.value == pytest.approx(0.5)
    assert plain.interval is None


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_probes_of_weights_read_a_causal_model_and_a_t5_with_a_moved_table_alike(
    kind: Any,
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    schema: SidSchema,
    moved: SidTable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relearn, "RelearnConfig", functools.partial(RelearnConfig, steps=(1, 5)))
    monkeypatch.setattr(relearn, "MARKS", (0, 1, 5))
    config = ModelConfig(kind, width=16, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
    knows, other = (new_recommender(config, schema, seed) for seed in (0, 1))
    cache: dict[Any, Any] = {}
    beside: dict[Any, Readings] = {}
    models = [audited(other, table=moved), audited(knows, role="original")]
    beside |= {model.role: Readings(model, world, cache, beside=beside) for model in models}
    for name in ("relearn", "precision", "forensics", "influence"):
        for readings in beside.values():
            found = load_probe(name)(readings)
            told = [m for m in found if isinstance(m, Skipped)]
            assert all("shows nothing of the concept" in m.reason for m in told), told
            assert len(told) < len(found)


@pytest.mark.parametrize("scope", ["output", "influence"])
def test_limits_say_which_probes_looked_at_the_weights(scope: Any, world: AuditWorld) -> None:
    def limits(*names: str) -> str:
        found = [Measurement(name, "subject", 0.0, 9, metrics()[name].layer) for name in names]
        return " ".join(_limits(replace(world, scope=scope), 0, found))

    quick, wide = (
        limits("natural.exposure@10"),
        limits("relearn.forget.steps", "precision.mass.old", "influence.history"),
    )
    assert "weights layer (relearning, probes, membership, precision) was not measured" in quick
    assert "what relearn, precision ask was measured" in wide
    assert ("is told for the histories" in wide) == (scope == "influence")
    assert "is told for the histories" not in quick
