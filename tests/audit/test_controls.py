"""An audit that cannot tell its controls apart must say so."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from recerase.audit.cards import metrics
from recerase.audit.controls import judge_controls, layer_outcome, layer_rules
from recerase.audit.policy import decide, default_policy
from recerase.types import Control, Finding, Interval, Measurement, Policy, Result, Role, Rule, Verdict

POLICY = Policy(
    rules=(
        Rule("exposure", "natural.exposure@10", max=0.01),
        Rule("mass", "natural.mass.old", max=0.01),
        Rule("twins", "aliasing.shared_sid", max=0.0),
    ),
    min_users=100,
)
TODAY = date(2026, 1, 1)


def number(metric: str, role: Role, value: float, n: int = 5000) -> Measurement:
    layer = metrics()[metric].layer
    return Measurement(metric, role, value, n, layer, Interval(value * 0.9, value * 1.1, 0.95, "bootstrap"))


def audit(**values: tuple[float, float]) -> dict[str, Control]:
    """Controls of roles given as (exposure, mass)."""
    numbers = [
        number(metric, role, value)  # type: ignore[arg-type]
        for role, pair in values.items()
        for metric, value in zip(("natural.exposure@10", "natural.mass.old"), pair, strict=True)
    ]
    return {c.name: c for c in judge_controls(POLICY, numbers, (), "brand=Acme", TODAY)}


def test_controls_hold_where_the_audit_can_tell() -> None:
    controls = audit(subject=(0.0, 0.0), original=(0.2, 0.1), filter=(0.0, 0.1), reference=(0.0, 0.0001))
    assert [controls[name].holds for name in ("original", "filter", "reference")] == [True, True, True]
    assert "fails catalogue (natural.exposure@10 = 0.2" in controls["original"].observed
    assert "weights layer not measured" in controls["original"].observed


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ({"original": (0.0, 0.1), "filter": (0.0, 0.1)}, "original"),  # the shop window of the original is clean
        ({"original": (0.2, 0.0), "filter": (0.0, 0.0)}, "original"),  # its weights are
        ({"original": (0.2, 0.1), "filter": (0.2, 0.1)}, "filter"),  # the filter hides nothing
        ({"original": (0.2, 0.1), "filter": (0.0, 0.0)}, "filter"),  # a filter looks like an erasure
        ({"original": (0.2, 0.1), "filter": (0.0, 0.1), "reference": (0.0, 0.1)}, "reference"),
    ],
)
def test_controls_that_do_not_separate_are_broken(values: dict[str, tuple[float, float]], broken: str) -> None:
    assert audit(**values)[broken].holds is False


def test_a_control_that_was_not_run_neither_holds_nor_breaks() -> None:
    controls = audit(subject=(0.0, 0.0))
    assert controls["original"].holds is None
    assert controls["filter"].holds is None
    assert "no original" in controls["filter"].observed
    assert "reference" not in controls


def test_too_few_users_leave_a_control_undecided() -> None:
    numbers = [number(m, r, 0.0, n=10) for m in ("natural.exposure@10", "natural.mass.old") for r in ("filter",)]
    found = {c.name: c for c in judge_controls(POLICY, numbers, (), "brand=Acme", TODAY)}
    assert found["filter"].holds is not True
    assert "undecided" in found["filter"].observed


def test_the_subjects_own_numbers_say_nothing_about_a_control() -> None:
    clean = audit(subject=(0.0, 0.0), original=(0.2, 0.1), filter=(0.0, 0.1))
    leaky = audit(subject=(0.9, 0.9), original=(0.2, 0.1), filter=(0.0, 0.1))
    assert clean == leaky


def test_aliasing_and_comparisons_with_itself_do_not_judge_a_control() -> None:
    assert {r.id for r in layer_rules(POLICY, "catalogue", "filter")} == {"exposure"}
    ratio = Rule("ratio", "natural.mass.old", max=3.0, max_ratio_to="reference")
    assert ratio in layer_rules(Policy((ratio,)), "behaviour", "original")
    assert ratio not in layer_rules(Policy((ratio,)), "behaviour", "reference")


def test_a_policy_without_rules_for_a_layer_borrows_the_default_ones() -> None:
    rules = layer_rules(Policy(POLICY.rules[:1]), "behaviour", "filter")
    assert rules
    assert set(rules) <= set(default_policy().rules)


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        (None, Verdict.INCONCLUSIVE),
        (Rule("twins", "aliasing.shared_sid", max=0.0), Verdict.INCONCLUSIVE),
        (Rule("mass", "natural.mass.old", max=3.0, max_ratio_to="reference", optional=True), Verdict.INCONCLUSIVE),
        (Rule("exposure", "natural.exposure@10", max=0.01), Verdict.FAIL),
        (Rule("mass", "natural.mass.old", max=0.01), Verdict.FAIL),
    ],
)
def test_a_model_that_was_never_erased_passes_no_policy(rule: Rule | None, verdict: Verdict) -> None:
    """Also not one that asks about utility and tables only, though the default policy's rules stand in for its controls."""
    utility = Rule("utility", "utility.ndcg@10", max_drop=0.05, max_drop_vs="original")
    policy = Policy((utility, *([] if rule is None else [rule])))
    names = {r.metric for r in default_policy().rules if r.max_drop is None and r.max_ratio_to is None}
    numbers = [replace(number("utility.ndcg@10", "subject", 0.0), versus="original", kind="drop")]
    for name in sorted(names):
        hidden = 0.0 if metrics()[name].layer == "catalogue" or name.startswith("aliasing.") else 0.5
        leaks: dict[Role, float] = {"subject": 0.5, "original": 0.5, "filter": hidden}
        numbers += [number(name, role, 0.0 if name.startswith("aliasing.") else value) for role, value in leaks.items()]
    controls = judge_controls(policy, numbers, (), "brand=Acme", TODAY)
    assert decide(policy, numbers, (), controls, "brand=Acme", TODAY).verdict is verdict
    assert all(control.holds is not False for control in controls)
    if verdict is Verdict.INCONCLUSIVE:
        assert [control.holds for control in controls] == [None, None]


def test_a_layer_without_a_passed_rule_is_undecided() -> None:
    rule = Rule("r", "natural.mass.old", max=0.1, optional=True)
    assert layer_outcome([])[0] == "undecided"
    assert layer_outcome([Finding(rule, Result.INCONCLUSIVE, "no reference")])[0] == "undecided"
    passed = Finding(rule, Result.PASS, "fine")
    assert layer_outcome([passed, Finding(rule, Result.INCONCLUSIVE, "no reference")])[0] == "passes"
    assert layer_outcome([passed, Finding(rule, Result.FAIL, "too much")])[0] == "fails"
