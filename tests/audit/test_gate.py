"""The exit code follows from verdict, baseline and what was asked; one accepted finding excuses one finding."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.audit.gate import accepted, concluded, gate
from recerase.errors import UsageError
from recerase.limits import beyond, forgiven
from recerase.types import (
    Baseline,
    Control,
    Decision,
    Finding,
    Gate,
    Interval,
    Measurement,
    Report,
    Result,
    Rule,
    Verdict,
)

DAY = date(2026, 6, 1)
RULES = tuple(Rule(name, "natural.mass.old", max=0.5) for name in "abcd")
HELD = (Control("original", "", "", True), Control("filter", "", "", True))
BADNESS = {0: 0, 5: 1, 1: 2}
FAIL, PASS, OPEN, WAIVED = Result.FAIL, Result.PASS, Result.INCONCLUSIVE, Result.WAIVED


def finding(result: Result, value: float | None = 0.8, rule: Rule = RULES[0], reach: float = 0.05) -> Finding:
    found = None
    if value is not None:
        around = Interval(value - reach, value + reach, 0.95, "bootstrap")
        found = Measurement(rule.metric, "subject", value, 5000, "behaviour", around)
    return Finding(rule, result, "", found, "<= 0.5")


def decision(*findings: Finding, verdict: Verdict | None = None, controls: tuple[Control, ...] = HELD) -> Decision:
    results = [f.result for f in findings]
    made = Verdict.FAIL if FAIL in results else Verdict.INCONCLUSIVE if OPEN in results else Verdict.PASS
    return Decision(verdict or made, "", findings, controls)


def baseline(*findings: Finding, **more: Any) -> Baseline:
    gate_ = Gate("policy", 0, "")
    report = Report(decision(*findings, **more), gate_, (), (), {"name": "c", "digest": "d"}, {"policy": "p"})
    return replace(accepted(report, "r", "ticket 412", DAY), digest="own")


def code(now: Decision, old: Baseline | None, fail_on: Any = "regression") -> int:
    return gate(now, fail_on, old).exit_code


@pytest.mark.parametrize("verdict", list(Verdict))
def test_policy_is_the_verdict_and_never_is_nothing(verdict: Verdict) -> None:
    now = Decision(verdict, "", ())
    assert gate(now) == gate(now, "policy") == Gate("policy", verdict.exit_code, f"the policy says {verdict.value}")
    assert code(now, None, "never") == 0
    assert code(now, None, "any") == verdict.exit_code
    with pytest.raises(UsageError):
        gate(now, "regression")


def test_what_is_accepted_is_kept_with_its_numbers() -> None:
    kept = baseline(finding(FAIL), finding(OPEN, None, RULES[1]), finding(OPEN, math.nan, RULES[2]))
    assert (kept.concept, kept.concept_digest, kept.policy, kept.report) == ("c", "d", "p", "r")
    assert (kept.reason, kept.date, kept.verdict) == ("ticket 412", "2026-06-01", Verdict.FAIL)
    assert [(r.rule.id, r.result, r.value) for r in kept.rules] == [
        ("a", FAIL, 0.8),
        ("b", OPEN, None),
        ("c", OPEN, None),
    ]
    assert kept.rules[0].interval == Interval(0.75, 0.8500000000000001, 0.95, "bootstrap")
    assert kept.rules[0].limit == "<= 0.5"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (finding(FAIL), finding(FAIL), 0),  # known
        (finding(FAIL), finding(FAIL, 0.85), 0),  # within what was known
        (finding(FAIL), finding(FAIL, 0.86), 1),  # worse
        (finding(FAIL), finding(FAIL, 0.6), 0),  # better, and still failing
        (finding(PASS, 0.1), finding(FAIL), 1),
        (finding(WAIVED), finding(FAIL), 1),  # the waiver has ended
        (finding(OPEN, 0.4), finding(FAIL), 1),
        (finding(OPEN, None), finding(FAIL), 1),
        (finding(FAIL, None), finding(FAIL), 1),  # accepted without a number excuses none
        (finding(FAIL), finding(PASS, 0.1), 0),
        (finding(FAIL), finding(WAIVED), 0),
        (finding(PASS, 0.1), finding(PASS, 0.1), 0),
        (finding(PASS, 0.1), finding(OPEN, 0.4), 5),
        (finding(FAIL), finding(OPEN, 0.4), 5),
        (finding(WAIVED), finding(OPEN, 0.4), 5),
        (finding(OPEN, 0.4), finding(OPEN, 0.4), 0),
        (finding(OPEN, None), finding(OPEN, None), 5),  # nothing at all was measured
        (finding(PASS, 0.1), finding(OPEN, 0.6, reach=0.2), 5),  # beyond the limit, and not beyond doubt
        (finding(FAIL), finding(OPEN, 0.6, reach=0.2), 5),
        (finding(OPEN, 0.4), finding(OPEN, 0.6, reach=0.2), 5),  # it was on the right side
        (finding(OPEN, None), finding(OPEN, 0.6, reach=0.2), 5),
        (finding(OPEN, 0.6, reach=0.2), finding(OPEN, 0.6, reach=0.2), 0),  # known
        (finding(OPEN, 0.6, reach=0.2), finding(OPEN, 0.75, reach=0.3), 0),  # within what was known
        (finding(OPEN, 0.6, reach=0.2), finding(OPEN, 0.9, reach=0.45), 5),  # worse than that, if not beyond doubt
        (finding(OPEN, 0.6, reach=0.2), finding(FAIL), 1),
        (finding(OPEN, 0.6, reach=0.2), finding(PASS, 0.1), 0),
    ],
)
def test_each_rule_against_its_own_old_finding(old: Finding, new: Finding, expected: int) -> None:
    assert code(decision(new), baseline(old)) == expected


def test_a_failure_without_a_number_is_excused_by_none() -> None:
    other = finding(PASS, 0.1, RULES[1])
    assert code(decision(finding(FAIL, None), other), baseline(finding(FAIL), other)) == 1


def test_the_end_of_an_interval_that_is_no_number_excuses_nothing_above_the_value() -> None:
    for end in (math.inf, math.nan):
        old = finding(FAIL)
        assert old.measurement is not None
        around = Interval(0.7, end, 0.95, "bootstrap")
        for interval in (around, None):
            known = replace(old, measurement=replace(old.measurement, interval=interval))
            assert code(decision(finding(FAIL, 0.81)), baseline(known)) == 1
            assert code(decision(finding(FAIL, 0.80)), baseline(known)) == 0


def test_the_bad_side_is_the_side_that_failed() -> None:
    low = Rule("a", "utility.ndcg@10", min=0.5)
    assert code(decision(finding(FAIL, 0.1, low)), baseline(finding(FAIL, 0.3, low))) == 1
    assert code(decision(finding(FAIL, 0.45, low)), baseline(finding(FAIL, 0.3, low))) == 0
    drop = Rule("a", "utility.ndcg@10", max_drop=0.1, max_drop_vs="original")
    assert code(decision(finding(FAIL, 0.9, drop)), baseline(finding(FAIL, 0.3, drop))) == 1
    assert code(decision(finding(FAIL, 0.2, drop)), baseline(finding(FAIL, 0.3, drop))) == 0
    band = Rule("a", "natural.mass.old", min=0.3, max=3.0, min_ratio_to="reference", max_ratio_to="reference")
    was_low = baseline(finding(FAIL, 0.1, band))
    assert code(decision(finding(FAIL, 0.2, band)), was_low) == 0  # nearer to the band
    assert code(decision(finding(FAIL, 4.0, band)), was_low) == 1  # out on the other side
    assert code(decision(finding(FAIL, 0.01, band)), was_low) == 1


def test_a_rule_that_asks_for_another_number_is_another_rule() -> None:
    other = replace(RULES[0], metric="saturated.mass.old")
    ratio = replace(RULES[0], max_ratio_to="reference")
    for rule in (other, ratio):
        found = gate(decision(finding(FAIL, 0.8, rule)), "regression", baseline(finding(FAIL)))
        assert (found.exit_code, found.regressions, found.undecided) == (1, ("a",), ("a",))
    stricter = replace(RULES[0], max=0.1)
    assert code(decision(finding(FAIL, 0.8, stricter)), baseline(finding(FAIL))) == 0


def test_a_limit_that_was_loosened_is_still_the_baseline_s() -> None:
    """Whatever the policy says by now: what was accepted is changed by a new acceptance only."""
    loose = replace(RULES[0], max=1.0)
    for old, value, expected in (
        (finding(PASS, 0.1), 0.8, 1),  # would have failed
        (finding(PASS, 0.1), 0.48, 5),  # would have been open: its end is 0.53
        (finding(PASS, 0.1), 0.2, 0),
        (finding(FAIL), 0.85, 0),  # known
        (finding(FAIL), 0.95, 1),  # worse than what was known
        (finding(OPEN, 0.4), 0.48, 0),
        (finding(PASS, 0.1), 0.52, 5),  # its favourable end is 0.47
        (finding(FAIL), 0.52, 5),
        (finding(OPEN, 0.4), 0.52, 5),
        (finding(OPEN, 0.6, reach=0.2), 0.52, 0),
        (finding(OPEN, 0.52, reach=0.02), 0.53, 0),
        (finding(OPEN, 0.51, reach=0.01), 0.53, 5),  # further out than what was known, and not beyond doubt
    ):
        assert code(decision(finding(PASS, value, loose)), baseline(old)) == expected, (old, value)
    blind = finding(PASS, 0.52, loose)
    assert blind.measurement is not None
    blind = replace(blind, measurement=replace(blind.measurement, interval=None))
    assert code(decision(blind), baseline(finding(PASS, 0.1))) == 1
    assert code(decision(finding(WAIVED, 0.8, loose)), baseline(finding(PASS, 0.1))) == 0
    dropped = [Rule("a", "utility.ndcg@10", max_drop=most, max_drop_vs="original") for most in (0.1, 0.9)]
    assert code(decision(finding(PASS, 0.5, dropped[1])), baseline(finding(PASS, 0.0, dropped[0], 0.01))) == 1


def test_a_value_on_its_limit_is_not_beyond_it() -> None:
    band = Rule("a", "natural.mass.old", min=0.25, max=0.5)
    assert beyond(band, 0.25, 0.5, math.nan) == set()
    assert beyond(band, math.nextafter(0.25, 0)) == {"low"}
    assert beyond(band, math.nextafter(0.5, 1), 0.25) == {"high"}
    for value, rest in ((0.5, True), (math.nextafter(0.5, 1), False), (math.nan, False)):
        assert forgiven(finding(OPEN, value, replace(RULES[0], optional=True))) is rest


def test_a_limit_on_the_other_side_is_no_known_failure() -> None:
    least = replace(RULES[0], max=None, min=0.9)
    assert code(decision(finding(FAIL, 0.8, least)), baseline(finding(FAIL))) == 1


def test_a_baseline_that_was_never_written_is_refused() -> None:
    unwritten = replace(baseline(finding(PASS, 0.1)), digest="")
    for how in ("regression", "any", "policy"):
        with pytest.raises(UsageError):
            gate(decision(finding(FAIL)), how, unwritten)


def test_a_control_that_held_and_is_not_run_any_more_is_undecided() -> None:
    old = baseline(finding(FAIL))
    assert old.controls == ("original", "filter")
    for left in ((), HELD[:1], (HELD[0], replace(HELD[1], holds=None))):
        found = gate(decision(finding(FAIL), controls=left), "regression", old)
        assert (found.exit_code, found.undecided[-1]) == (5, "the filter control"), left
    assert code(decision(finding(FAIL), controls=()), baseline(finding(FAIL), controls=())) == 0


def test_what_is_not_asked_any_more_is_undecided_and_what_is_new_must_be_decided() -> None:
    two = baseline(finding(PASS, 0.1), finding(PASS, 0.1, RULES[1]))
    found = gate(decision(finding(PASS, 0.1)), "regression", two)
    assert (found.exit_code, found.undecided) == (5, ("b",))
    was_open = baseline(finding(PASS, 0.1), finding(OPEN, None, RULES[1]))
    assert code(decision(finding(PASS, 0.1)), was_open) == 0
    one = baseline(finding(PASS, 0.1))
    assert code(decision(finding(PASS, 0.1), finding(OPEN, 0.4, RULES[1])), one) == 5
    optional = replace(RULES[1], optional=True)
    new = decision(finding(PASS, 0.1), finding(OPEN, None, optional), verdict=Verdict.PASS)
    assert code(new, one) == 0
    for value, expected in ((0.4, 0), (0.6, 5)):  # a verdict forgives no value beyond its limit
        still = decision(finding(PASS, 0.1), finding(OPEN, value, optional, 0.2), verdict=Verdict.PASS)
        assert code(still, one) == expected
    assert code(decision(finding(PASS, 0.1), finding(FAIL, 0.8, optional)), one) == 1


def test_an_invalid_audit_is_inconclusive_whatever_else_it_found() -> None:
    broken = (HELD[0], replace(HELD[1], holds=False))
    for old in (baseline(finding(FAIL)), baseline(finding(FAIL), controls=broken, verdict=Verdict.INCONCLUSIVE)):
        for new in (finding(FAIL), finding(FAIL, 0.99), finding(PASS, 0.1)):
            now = decision(new, controls=broken, verdict=Verdict.INCONCLUSIVE)
            assert code(now, old) == code(now, old, "any") == 5
    unheld = decision(finding(PASS, 0.1), controls=(), verdict=Verdict.INCONCLUSIVE)
    found = gate(unheld, "regression", baseline(finding(PASS, 0.1)))
    assert (found.exit_code, found.undecided) == (5, ("verdict",))
    assert code(unheld, baseline(finding(PASS, 0.1), controls=(), verdict=Verdict.INCONCLUSIVE)) == 0


results = st.sampled_from([PASS, FAIL, OPEN, WAIVED])
VALUES = {PASS: 0.1, FAIL: 0.8, OPEN: 0.4, WAIVED: 0.8}


def several(drawn: list[Result]) -> list[Finding]:
    return [finding(result, VALUES[result], rule) for result, rule in zip(drawn, RULES, strict=False)]


@given(st.lists(results, min_size=4, max_size=4), st.lists(results, max_size=4))
def test_one_old_finding_never_hides_two_new_ones(now: list[Result], old: list[Result]) -> None:
    found = gate(decision(*several(now)), "regression", baseline(*several(old)))
    was = dict(zip("abcd", old, strict=False))
    expected = {name for name, result in zip("abcd", now, strict=True) if result is FAIL and was.get(name) is not FAIL}
    assert set(found.regressions) == expected
    assert (found.exit_code == 1) == bool(expected)
    # and not by having the same name
    twins = [replace(f, rule=RULES[0]) for f in several(now)]
    fails = sum(f.result is FAIL for f in twins)
    same = gate(decision(*twins), "regression", baseline(finding(FAIL)))
    assert len(same.regressions) >= fails - 1


@given(st.lists(results, min_size=1, max_size=4), st.lists(results, max_size=4), st.booleans())
def test_any_is_the_worse_of_the_two(now: list[Result], old: list[Result], holds: bool) -> None:
    controls = (HELD[0], replace(HELD[1], holds=holds))
    taken, kept = decision(*several(now), controls=controls), baseline(*several(old))
    taken = taken if holds else replace(taken, verdict=Verdict.INCONCLUSIVE)
    codes = {how: code(taken, kept, how) for how in ("policy", "regression", "any", "never")}
    assert BADNESS[codes["any"]] == max(BADNESS[codes["policy"]], BADNESS[codes["regression"]])
    assert codes["never"] == 0
    assert codes["policy"] == taken.verdict.exit_code
    if not any(result is FAIL for result in now):
        assert codes["regression"] != 1


@given(st.lists(results, min_size=1, max_size=4), st.lists(results, max_size=4), st.integers(0, 3))
def test_a_rule_that_turns_to_fail_never_improves_an_exit_code(now: list[Result], old: list[Result], at: int) -> None:
    worse = [FAIL if i == at else result for i, result in enumerate(now)]
    kept = baseline(*several(old))
    for how in ("policy", "regression", "any"):
        before, after = code(decision(*several(now)), kept, how), code(decision(*several(worse)), kept, how)
        assert BADNESS[after] >= BADNESS[before] or (how == "regression" and FAIL in old)


@given(st.lists(results, min_size=1, max_size=4), st.lists(results, max_size=4), st.sampled_from(["regression", "any"]))
def test_a_gate_can_be_made_again_from_what_it_says(now: list[Result], old: list[Result], how: Any) -> None:
    taken = decision(*several(now))
    found = gate(taken, how, baseline(*several(old)))
    assert concluded(taken, how, found.regressions, found.undecided, found.baseline) == found
    assert found.baseline == "own"
    assert found.reason
