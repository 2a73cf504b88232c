"""What leaves a report for other programs: its schema, GitHub's annotations, a capped summary, a card, a statement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator

from recerase.report.annotations import command, report_annotations
from recerase.report.card import report_card
from recerase.report.diff import diff_document, diff_rows
from recerase.report.intoto import report_statement
from recerase.report.json_schema import audit_schema, schema_text
from recerase.report.junit import report_junit
from recerase.report.markdown import capped_markdown, report_markdown
from recerase.report.sarif import report_sarif
from recerase.report.schema import report_bytes
from recerase.types import Control, Decision, Finding, Gate, Interval, Measurement, Report, Result, Rule, Verdict

FILES = {"model.safetensors": "a" * 64}


def test_the_shipped_schema_is_that_of_the_types() -> None:
    """After a change of recerase.types: write `audit_schema()` to report/audit.schema.json, with an indent of 2."""
    assert schema_text() == json.dumps(audit_schema(), indent=2, ensure_ascii=False) + "\n"
    Draft202012Validator.check_schema(json.loads(schema_text()))


def changed(report: Report, *path: str | int, to: Any) -> dict[str, Any]:
    """The report's document with one value replaced, or added."""
    document: dict[str, Any] = json.loads(report_bytes(report))
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return document


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("more",), 1),
        (("rules", 0, "more"), 1),
        (("rules", 0, "rule", "max"), "0.1"),
        (("rules", 0, "result"), "passed"),
        (("measurements", 0, "n"), -1),
        (("measurements", 0, "value"), "nan"),
        (("measurements", 0, "role"), "nobody"),
        (("measurements", 0, "interval"), {"low": 0}),
        (("gate", "exit_code"), 3),
        (("verdict",), None),
        (("digest",), "A" * 64),
        (("inputs", "subject"), "a"),
        (("moves", 0, "old"), [1.5]),
        (("curves",), {"a": {"x": ["one"]}}),
        (("examples", 0, "before_concept"), [0]),
        (("concept", "items"), "many"),
        (("schema",), "recerase.audit/2"),
    ],
)
def test_the_schema_is_strict(make_report: Any, path: tuple[str | int, ...], value: Any) -> None:
    validator, report = Draft202012Validator(json.loads(schema_text())), make_report()
    validator.validate(json.loads(report_bytes(report)))
    assert not validator.is_valid(changed(report, *path, to=value))


def test_the_schema_wants_every_key(make_report: Any) -> None:
    validator, whole = Draft202012Validator(json.loads(schema_text())), json.loads(report_bytes(make_report()))
    for key in whole:
        assert not validator.is_valid({name: value for name, value in whole.items() if name != key}), key


def test_one_annotation_a_violated_rule_and_one_for_the_verdict(make_report: Any) -> None:
    report = make_report(Verdict.FAIL, concept="a,b: 100%")
    lines = report_annotations(report).splitlines()
    failed = [finding for finding in report.decision.findings if finding.result is Result.FAIL]
    assert lines[0].startswith("::error title=fail%3A a%2Cb%3A 100%25::5 of 8 rules are violated")
    assert len(lines) == 1 + len(failed)
    for line, finding in zip(lines[1:], failed, strict=True):
        assert line.startswith(f"::error title=fail%3A {finding.rule.id}::{finding.rule.metric}: ")
        assert finding.limit in line
        assert "n = 4,210" in line


def test_a_pass_has_no_annotation_but_for_a_regression(make_report: Any) -> None:
    report = make_report(Verdict.PASS)
    assert report_annotations(report) == ""
    worse = replace(report, gate=Gate("regression", 1, "1 rule is worse than in the baseline: utility"))
    assert report_annotations(worse).startswith("::error title=pass%3A Vaping::")
    assert report_annotations(make_report(Verdict.INCONCLUSIVE)).startswith("::warning title=inconclusive%3A Vaping::")


def test_a_command_cannot_be_ended_or_begun_by_what_it_says() -> None:
    assert command("error", "a\n::error::b", "c\r\n::add-mask::d, 5%") == (
        "::error title=a %3A%3Aerror%3A%3Ab::c ::add-mask::d, 5%25"
    )


@pytest.mark.parametrize("most", [0, 10, 400, 3000])
def test_a_long_summary_is_cut_after_a_line_and_says_so(make_report: Any, most: int) -> None:
    report = make_report(titles=("سيجارة",))
    whole, cut = report_markdown(report), capped_markdown(report, most)
    assert len(cut.encode()) <= most < len(whole.encode())
    kept, _, note = cut.partition("\n> **Cut here:**")
    assert most < 400 or (whole.startswith(kept) and f"{len(whole.encode()):,} bytes" in note)
    assert kept.endswith("\n") or most < 400
    assert capped_markdown(report) == whole
    with pytest.raises(ValueError, match="-1 bytes"):
        capped_markdown(report, -1)


def test_the_cap_is_900_kib(make_report: Any) -> None:
    report = replace(make_report(), limits=tuple(f"limit {i} " + "x" * 380 for i in range(4000)))
    assert len(report_markdown(report).encode()) > 1024**2
    assert 899 * 1024 < len(capped_markdown(report).encode()) <= 900 * 1024


def test_a_fingerprint_is_the_same_whatever_was_measured_and_in_which_order(make_report: Any) -> None:
    def prints(report: Report) -> dict[str, str]:
        found = json.loads(report_sarif(report))["runs"][0]["results"]
        return {result["ruleId"]: result["partialFingerprints"]["recerase/rule/v1"] for result in found}

    report = make_report(Verdict.FAIL)
    later = [
        replace(f, reason="other", measurement=f.measurement and replace(f.measurement, value=0.5, n=7, interval=None))
        for f in reversed(report.decision.findings)
    ]
    other = replace(report, decision=replace(report.decision, findings=tuple(later), reason="other"), run={}, moves=())
    assert prints(other) == prints(report)
    assert len(prints(report)) == 7  # five failed, one waived, the verdict


@pytest.mark.parametrize("over", [False, True])
def test_an_optional_rule_with_a_value_beyond_its_limit_is_told_as_what_must_be_decided(
    make_report: Any, over: bool
) -> None:
    report, rule = make_report(Verdict.INCONCLUSIVE), Rule("like", "natural.mass.old", max=3.0, optional=True)
    value = 5.0 if over else 2.0
    found = Measurement(rule.metric, "subject", value, 900, "behaviour", Interval(1.0, 8.0, 0.95, "bootstrap"))
    open_ = replace(report.decision, findings=(Finding(rule, Result.INCONCLUSIVE, "open", found, "<= 3"),))
    report = replace(report, decision=open_)
    case, _ = ElementTree.fromstring(report_junit(report)).iter("testcase")
    assert [child.tag for child in case] == ["error" if over else "skipped"]
    sarif = json.loads(report_sarif(report))["runs"][0]["results"][0]
    assert sarif["level"] == ("warning" if over else "note")
    assert ("inconclusive%3A like" in report_annotations(report)) == over
    assert ("rule/like" in statement(report)["predicate"]["failedTests"]) == over


def statement(report: Report) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(report_statement(report, FILES, "c" * 64))
    return made


def test_a_statement_passes_only_what_passed_whole(make_report: Any) -> None:
    report = make_report(Verdict.PASS)
    assert statement(report)["predicate"]["result"] == "WARNED"  # an optional rule was not measured
    firm = tuple(f for f in report.decision.findings if f.result is Result.PASS)
    whole = replace(report, decision=replace(report.decision, findings=firm, warnings=()))
    assert statement(whole)["predicate"]["result"] == "PASSED"
    assert statement(replace(whole, gate=Gate("any", 1, "worse")))["predicate"]["result"] == "FAILED"
    assert report.policy is not None
    wider = Rule("relearning", "relearn.forget.steps", min=0.8, min_ratio_to="reference", profile="standard")
    narrow = replace(whole, policy=replace(report.policy, rules=(*report.policy.rules, wider)))
    assert statement(narrow)["predicate"]["result"] == "WARNED"  # the policy has a rule that a quick audit does not ask
    assert statement(narrow)["predicate"]["warnedTests"] == ["rule/relearning"]
    unheld = (Control("original", "fails every layer", "not run", None),)
    unsure = replace(whole, decision=replace(whole.decision, controls=unheld))
    assert statement(unsure)["predicate"]["warnedTests"] == ["control/original"]
    for verdict in (Verdict.FAIL, Verdict.INCONCLUSIVE):
        assert statement(make_report(verdict))["predicate"]["result"] == "FAILED"
    failed = statement(make_report(Verdict.FAIL))["predicate"]["failedTests"]
    assert failed == [*(f"rule/{name}" for name in ("natural.exposure", "saturated.exposure", "natural.mass.old")),
                      "rule/saturated.mass.old", "rule/nearest.leak", "gate"]  # fmt: skip


def test_a_statement_names_what_was_tested_and_by_what(make_report: Any) -> None:
    found = statement(make_report())
    assert found["subject"] == [{"name": "model.safetensors", "digest": {"sha256": "a" * 64}}]
    named = {entry["name"]: entry["digest"]["sha256"] for entry in found["predicate"]["configuration"]}
    assert named["report"] == "c" * 64
    assert named["policy"] == "e" * 64
    assert "subject" not in named
    with pytest.raises(ValueError, match="needs a file"):
        report_statement(make_report(), {}, "c" * 64)


def test_a_card_says_the_verdict_the_limits_and_the_command(make_report: Any) -> None:
    report = make_report(Verdict.FAIL)
    card = report_card(report)
    assert card.startswith("---\ntags:\n- recerase\n")
    assert "# Checkpoint audited for Vaping: FAIL" in card
    assert "Do not serve" in card
    assert all(limit in card for limit in report.limits)
    assert "\n    recerase audit erased --original trained" in card
    assert report_card(make_report(Verdict.FAIL)) == card


def test_an_empty_report_has_a_card_and_a_statement() -> None:
    empty = Report(Decision(Verdict.INCONCLUSIVE, "nothing", ()), Gate("policy", 5, "x"), (), (), {}, {})
    assert "model-index" not in report_card(empty)
    assert statement(empty)["predicate"]["failedTests"] == ["gate"]


def test_the_schema_is_shipped() -> None:
    import recerase.report

    assert (Path(recerase.report.__file__).parent / "audit.schema.json").is_file()


def test_a_rule_that_another_profile_does_not_ask_is_told_from_one_that_is_gone(make_report: Any) -> None:
    quick = make_report(Verdict.PASS)
    assert quick.policy is not None
    wider = Rule("relearning", "relearn.forget.steps", min=10, profile="standard")
    policy = replace(quick.policy, rules=(*quick.policy.rules, wider))
    asked = Finding(wider, Result.PASS, "enough", None, ">= 10")
    findings = (*quick.decision.findings, asked)
    standard = replace(quick, policy=policy, decision=replace(quick.decision, findings=findings, profile="standard"))
    narrow = {name: (one, other, how) for name, one, other, how in diff_rows(standard, replace(quick, policy=policy))}
    assert narrow["relearning"] == ("pass: not measured (>= 10)", "not asked (quick profile)", "changed")
    assert narrow["profile"] == ("standard", "quick", "changed")
    gone = {name: (one, other) for name, one, other, _ in diff_rows(standard, quick)}
    assert gone["relearning"][1] == "no such rule"
    assert "profile" not in {name for name, *_ in diff_rows(quick, quick)}
    assert diff_document(standard, quick)["before"]["profile"] == "standard"
