"""A report is believed only where its own numbers give its verdict, its controls and its exit code."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from recerase.audit.controls import judge_controls
from recerase.audit.gate import accepted, gate
from recerase.audit.policy import decide, policy_digest
from recerase.audit.recheck import inconsistencies
from recerase.types import Baseline, Interval, Measurement, Policy, Report, Rule, Verdict, Waiver

TODAY = date(2026, 6, 1)
RULE = Rule("mass", "natural.mass.old", max=0.5)
UNSIGNED = Policy(
    (RULE,), (Waiver("mass", "Vaping", "known", "2026-05-31"), Waiver("mass", "Vaping", "x", "2027-01-01"))
)
POLICY = replace(UNSIGNED, digest=policy_digest(UNSIGNED))


def report(value: float = 0.8, policy: Policy = POLICY) -> Report:
    around = Interval(value - 0.05, value + 0.05, 0.95, "bootstrap")
    found = (Measurement("natural.mass.old", "subject", value, 5000, "behaviour", around),)
    controls = judge_controls(policy, found, (), "Vaping", TODAY)
    decision = decide(policy, found, (), controls, "Vaping", TODAY)
    about = {"name": "Vaping", "digest": "c"}
    inputs = {"policy": policy.digest, "concept": "c"}
    return Report(decision, gate(decision), found, (), about, inputs, policy=policy)


def held(now: Report, fail_on: Any, old: Baseline) -> Report:
    return replace(now, gate=gate(now.decision, fail_on, old), inputs={**now.inputs, "baseline": old.digest})


BASELINE = replace(accepted(report(0.1), "r", "ok", TODAY), digest="b" * 64)


@pytest.mark.parametrize("fail_on", ["policy", "any", "never", "regression"])
def test_what_follows_is_believed(fail_on: Any) -> None:
    for value in (0.1, 0.48, 0.8):
        now = report(value)
        if fail_on != "regression":
            assert inconsistencies(replace(now, gate=gate(now.decision, fail_on))) == ()
        for given in (None, BASELINE):
            assert inconsistencies(held(now, fail_on, BASELINE), given) == ()
    made_in_code = report(policy=UNSIGNED)  # a policy that was no file has no digest
    assert inconsistencies(made_in_code) == ()


def test_an_expired_waiver_stays_expired_whenever_it_is_looked_at() -> None:
    now = report()
    assert now.decision.as_of == "2026-06-01"
    assert inconsistencies(now) == ()
    earlier = inconsistencies(replace(now, decision=replace(now.decision, as_of="")))
    assert any(problem.startswith("warnings is") for problem in earlier)


NOW = report()
FINDING = NOW.decision.findings[0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (replace(NOW, policy=None), "no policy"),
        (replace(NOW, decision=replace(NOW.decision, as_of="soon")), "as_of"),
        (replace(NOW, policy=replace(POLICY, min_users=1)), "policy.digest"),
        (replace(NOW, inputs={**NOW.inputs, "policy": "x"}), "inputs.policy"),
        (replace(NOW, inputs={**NOW.inputs, "concept": "x"}), "inputs.concept"),
        (replace(NOW, inputs={**NOW.inputs, "baseline": "x"}), "inputs.baseline"),
        (replace(NOW, decision=replace(NOW.decision, verdict=Verdict.PASS)), "verdict is 'pass'"),
        (replace(NOW, decision=replace(NOW.decision, controls=())), "controls."),
        (replace(NOW, decision=replace(NOW.decision, findings=(replace(FINDING, limit="x"),))), "(mass).limit is 'x'"),
        (replace(NOW, gate=replace(NOW.gate, exit_code=0)), "gate.exit_code is 0"),
        (replace(NOW, gate=replace(NOW.gate, fail_on="regression", exit_code=0)), "gate.baseline is empty"),
        (replace(NOW, gate=replace(NOW.gate, regressions=("x",))), "gate.regressions"),
    ],
)
def test_what_does_not_follow_is_named(changed: Report, said: str) -> None:
    assert any(said in problem for problem in inconsistencies(changed)), inconsistencies(changed)


def test_with_its_baseline_a_regression_cannot_be_left_out() -> None:
    now = replace(report(0.8, policy := replace(UNSIGNED, waivers=())), policy=policy)
    whole = held(now, "regression", BASELINE)
    assert (whole.gate.exit_code, whole.gate.regressions) == (1, ("mass",))
    silent = replace(
        whole, gate=replace(whole.gate, regressions=(), exit_code=0, reason="nothing is worse than in the baseline")
    )
    assert any("gate.regressions" in problem for problem in inconsistencies(silent, BASELINE))


def test_a_report_cannot_be_called_one_of_a_narrower_profile() -> None:
    """Then the rules that failed in it would not have been asked."""
    rules = (RULE, Rule("rounded", "precision.mass.old", max=0.1, profile="standard"))
    policy = replace(POLICY, rules=rules, waivers=(), digest="")
    around = Interval(0.35, 0.45, 0.95, "bootstrap")
    found = tuple(
        Measurement(name, "subject", 0.4, 5000, layer, around)
        for name, layer in (("natural.mass.old", "behaviour"), ("precision.mass.old", "weights"))
    )  # type: ignore[arg-type]
    reports = []
    for profile in ("standard", "quick"):
        controls = judge_controls(policy, found, (), "Vaping", TODAY, profile)  # type: ignore[arg-type]
        decision = decide(policy, found, (), controls, "Vaping", TODAY, profile)  # type: ignore[arg-type]
        about = {"name": "Vaping", "digest": "c"}
        inputs = {"policy": "", "concept": "c"}
        reports.append(Report(decision, gate(decision), found, (), about, inputs, policy=policy))
    honest, forged = reports
    assert honest.decision.verdict is Verdict.FAIL
    assert forged.decision.verdict is not Verdict.FAIL
    assert inconsistencies(honest) == ()
    assert inconsistencies(forged) == ("profile is 'quick', but precision measured, which it does not run.",)
