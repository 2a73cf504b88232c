"""Markdown that a pull request shows as it was meant, whatever titles and names hold."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.report.markdown import escaped, report_markdown
from recerase.types import Decision, Gate, Report, Verdict

GATE = Gate("policy", 5, "the policy says inconclusive")


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_is_the_first_line_and_tables_are_whole(make_report: Any, verdict: Verdict) -> None:
    text = report_markdown(make_report(verdict))
    assert text.startswith(f"# {verdict.value.upper()}: Vaping\n")
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(bars) == 1


def test_every_rule_and_every_limit_is_there(make_report: Any) -> None:
    report = make_report(Verdict.FAIL)
    text = report_markdown(report)
    assert text.count("| **fail** |") == sum(f.result.value == "fail" for f in report.decision.findings)
    assert all(limit in text for limit in report.limits)
    assert all(digest in text for digest in report.inputs.values())


@given(st.text(max_size=200))
def test_no_text_marks_up_or_breaks_a_line(text: str) -> None:
    shown = escaped(text)
    assert "\n" not in shown
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*(?<!\\)[|`*_\[\]~]", shown)
    assert "://" not in shown
    assert not re.search(r"@(?!\d)", shown)


@pytest.mark.parametrize("text", ["plain words", "natural.exposure@10", "a-b (c), 5 %", "سيجارة", "\U0001f32c"])
def test_ordinary_text_stays_readable(text: str) -> None:
    assert escaped(text) == text


def test_a_hostile_concept_is_only_shown(make_report: Any) -> None:
    text = report_markdown(make_report(concept="</details> | @octocat ![x](http://evil.example/p.png)\n# PASS"))
    assert "\n# PASS" not in text
    assert "</details>" not in text
    assert "@octocat" not in text
    assert "![x]" not in text


def test_an_empty_report_is_shown() -> None:
    empty = Report(Decision(Verdict.INCONCLUSIVE, "No rule could be decided.", ()), GATE, (), (), {}, {})
    assert report_markdown(empty).startswith("# INCONCLUSIVE")


def test_equal_reports_give_equal_text(make_report: Any) -> None:
    assert report_markdown(make_report()) == report_markdown(make_report())
