"""The console shows the verdict, every rule and what was not tested at any width, without colour and without markup."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from recerase.report.text import before_after_table, report_text, rules_table, verdict_panel
from recerase.report.wording import interval_text, value_text
from recerase.types import Decision, Gate, Report, Verdict

WIDTHS = (40, 80, 200)

GATE = Gate("policy", 5, "the policy says inconclusive")


def rendered(what: Any, width: int = 80, **options: Any) -> str:
    sink = io.StringIO()
    Console(file=sink, width=width, **options).print(what)
    return sink.getvalue()


def squeezed(text: str) -> str:
    """Without white space and frames, so that folding does not count."""
    return re.sub(r"[\s┃│|]+", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_line_fits_and_nothing_is_cut_off(make_report: Any, width: int, verdict: Verdict) -> None:
    report: Report = make_report(verdict)
    text = rendered(report_text(report), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    whole = squeezed(text)
    assert verdict.value.upper() in text.split("\n")[1]
    assert squeezed(report.decision.reason) in whole
    assert all(squeezed(limit) in whole for limit in report.limits)
    assert all(squeezed(skip.reason) in whole for skip in report.skipped)
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_every_rule_shows_value_interval_n_limit_and_result(make_report: Any, width: int) -> None:
    decision = make_report(Verdict.FAIL).decision
    text = rendered(rules_table(decision), width)
    for finding in decision.findings:
        assert finding.rule.id in text
        if finding.measurement is not None:
            assert value_text(finding.measurement) in text
            assert interval_text(finding.measurement) in text
    words = set(re.findall(r"[a-z]+|<=|\d+", text))
    assert set(re.findall(r"[a-z]+|<=|\d+", " ".join(f.limit for f in decision.findings))) <= words
    assert text.count("fail ") + text.count("fail\n") >= sum(f.result.value == "fail" for f in decision.findings)


def test_a_terminal_of_80_columns_gets_tables(make_report: Any) -> None:
    text = rendered(report_text(make_report()), 80)
    assert re.search(r"^rule +result +value +interval +n +limit", text, re.MULTILINE)
    assert re.search(r"^measured +before +after +reference +filter only +change", text, re.MULTILINE)


def test_no_colour_leaves_the_same_words(make_report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report(Verdict.FAIL)
    plain = rendered(report_text(report), force_terminal=True)
    assert not re.search("\x1b\\[[0-9;]*3[0-9]", plain)  # NO_COLOR is set for every test
    monkeypatch.delenv("NO_COLOR")
    colour = rendered(report_text(report), force_terminal=True, color_system="standard")
    assert re.search("\x1b\\[[0-9;]*3[0-9]", colour)
    assert re.sub("\x1b\\[[0-9;]*m", "", colour) == re.sub("\x1b\\[[0-9;]*m", "", plain)


def test_an_ascii_console_gets_ascii(make_report: Any) -> None:
    sink = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=sink, width=80).print(report_text(make_report(Verdict.FAIL)))
    sink.flush()


@pytest.mark.parametrize("width", WIDTHS)
def test_text_from_users_is_neither_markup_nor_escape(make_report: Any, width: int) -> None:
    name = "[bold red]x[/] \x1b[31m :smile: \u202e end"
    report = make_report(concept=name)
    text = rendered(verdict_panel(report), width, force_terminal=True)
    assert "[bold red]x[/]" in text
    assert ":smile:" in text
    assert "\x1b[31m" not in text
    assert "\u202e" not in text


def test_reports_with_little_in_them_are_shown() -> None:
    empty = Report(Decision(Verdict.INCONCLUSIVE, "No rule could be decided.", ()), GATE, (), (), {}, {})
    for width in WIDTHS:
        assert "INCONCLUSIVE" in rendered(report_text(empty), width)


def test_the_before_and_after_table_has_a_column_a_role(make_report: Any) -> None:
    one = rendered(before_after_table(make_report(original=False, reference=False)), 120)
    assert "audited" in one
    assert "before" not in one
    assert "reference" not in one
