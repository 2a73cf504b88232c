"""A whole audit: oracles fail, clean models pass, and nothing is passed that was not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from recerase.audit.cards import probes_of
from recerase.audit.cases import mass_users
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.run import AuditResult, compare, run_audit
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.table import SidSchema
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
        return run_audit(subject, original, reference, world, POLICY, today=TODAY)

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


def test_every_role_is_measured_by_every_probe_and_an_audit_repeats_itself(
    audit: Callable[..., AuditResult], audited: Callable, untrained: Recommender, planted: Callable[[int], Recommender]
) -> None:
    first = audit(audited(untrained), audited(planted(0)), audited(planted(1)))
    for role in ("subject", "original", "filter", "reference"):
        seen = {m.metric.split(".")[0].split("_")[0] for m in first.measurements if m.role == role}
        assert seen == set(probes_of("quick")) - {"earlier"}
    again = audit(audited(untrained), audited(planted(0)), audited(planted(1)))
    assert first.measurements == again.measurements
    assert first.decision == again.decision
    assert first.curves == again.curves


def test_a_seq2seq_recommender_is_audited_alike(
    audit: Callable[..., AuditResult], audited: Callable, schema: SidSchema
) -> None:
    config = ModelConfig("seq2seq", width=16, layers=1, heads=2, feed_forward=32, window=20, dropout=0.0)
    model = new_recommender(config, schema, 0)
    model.module.eval()
    found = audit(audited(model), audited(model), audited(model))
    assert {m.metric.split(".")[0].split("_")[0] for m in found.measurements} == set(probes_of("quick")) - {"earlier"}


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
    assert "relearn.*" in skipped
    assert "weights.*" in skipped
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
