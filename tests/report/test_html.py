"""The page stands alone, runs nothing, fetches nothing, and shows hostile text as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from recerase.report.html import EXAMPLES_SHOWN, MOVES_SHOWN, gauge, report_html
from recerase.types import Decision, Finding, Gate, Interval, Measurement, Move, Report, Result, Rule, Verdict

VOID = {"meta", "link", "br", "img"}
HOSTILE_TITLES = (
    "<script>alert('titles are data')</script>",
    "</td></table><img src=x onerror=alert(1)>",
    "]]> CDATA & <!-- comment --> {{ 7 * 7 }}",
    "family \U0001f469\u200d\U0001f469\u200d\U0001f467 kit",
    "سيجارة إلكترونية",
    "override \u202e and nul \x00 and surrogate \ud800",
    "x" * 10_000,
    "",
)

GATE = Gate("policy", 5, "the policy says inconclusive")


class Page(HTMLParser):
    """What a browser would see: elements with attributes, the words, and whether every element is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pages(make_report: Any) -> dict[str, str]:
    """Pages drawn once: plots take most of the time."""
    reports = {
        **{verdict.value: make_report(verdict) for verdict in Verdict},
        "hostile": make_report(titles=HOSTILE_TITLES, concept="<script>alert(1)</script>]]>"),
        "alone": make_report(original=False, reference=False),
        "empty": Report(Decision(Verdict.INCONCLUSIVE, "No rule could be decided.", ()), GATE, (), (), {}, {}),
    }
    return {name: report_html(report) for name, report in reports.items()}


NAMES = ("pass", "fail", "inconclusive", "hostile", "alone", "empty")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_well_formed_and_stands_alone(pages: dict[str, str], name: str) -> None:
    html = pages[name]
    page = Page(html)
    assert page.open == []
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    html.encode()
    assert "http:" not in html
    assert "https:" not in html
    for tag, attribute, value in page.attributes:
        assert not attribute.startswith("on"), (tag, attribute)
        if attribute in ("href", "src", "xlink:href"):
            assert value.startswith("#") or value == "data:,", (tag, value)
    assert not re.search(r"@import|url\((?!#)", html)


@pytest.mark.parametrize("name", NAMES)
def test_every_id_is_there_once_and_every_reference_leads_somewhere(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    ids = Counter(value for _, attribute, value in page.attributes if attribute == "id")
    assert [name for name, count in ids.items() if count > 1] == []
    wanted = {v[1:] for _, a, v in page.attributes if a in ("href", "xlink:href") and v.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", pages[name]))
    assert wanted <= set(ids)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_the_verdict_comes_before_every_figure(pages: dict[str, str], make_report: Any, verdict: Verdict) -> None:
    report: Report = make_report(verdict)
    text = Page(pages[verdict.value]).text
    body = text[text.index("Provenance") :]
    assert body.index(verdict.value) < body.index(report.decision.reason) < body.index("Rules")
    for finding in report.decision.findings:
        assert finding.rule.id in text
        assert finding.result is Result.PASS or finding.reason in text
    assert all(limit in text for limit in report.limits)
    assert all(skip.reason in text for skip in report.skipped)
    assert all(digest in text for digest in report.inputs.values())


def test_hostile_titles_are_text_and_nothing_else(pages: dict[str, str]) -> None:
    page = Page(pages["hostile"])
    assert "<script>alert('titles are data')</script>" in page.text
    assert "<script>alert(1)</script>]]>" in page.text
    assert "</td></table><img src=x onerror=alert(1)>" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\U0001f469\u200d\U0001f469\u200d\U0001f467" in page.text
    assert "سيجارة إلكترونية" in page.text
    assert "x" * 200 not in page.text
    assert not re.search("[\x00-\x08\u202e\ud800-\udfff]", pages["hostile"])
    assert page.tags["table"] == Page(pages["pass"]).tags["table"]


def test_text_from_users_is_set_in_its_own_direction(pages: dict[str, str]) -> None:
    assert re.search(r"<bdi>سيجارة إلكترونية</bdi>", pages["hostile"])


def test_plots_take_their_colours_from_the_page(pages: dict[str, str]) -> None:
    for plot in re.findall(r'<svg class="plot".*?</svg>', pages["pass"], re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{6}\b|\brgb|<style|<metadata", plot)
        assert "var(--subject)" in plot
        assert "currentColor" in plot
    for variable in set(re.findall(r"var\((--[a-z-]+)\)", pages["pass"])):
        light, dark = pages["pass"].split("prefers-color-scheme: dark", 1)
        assert f"{variable}:" in light
        assert f"{variable}:" in dark.split("}")[0]


def test_equal_reports_give_equal_pages(pages: dict[str, str], make_report: Any) -> None:
    assert report_html(make_report()) == pages["pass"]


def test_long_tables_are_cut_and_say_so(make_report: Any) -> None:
    report = make_report()
    moves = tuple(Move(f"item{i}", "title", (i,), (i + 1,)) for i in range(MOVES_SHOWN + 5))
    html = report_html(replace(report, moves=moves, examples=report.examples * 2, curves={}))
    assert f"item{MOVES_SHOWN - 1}<" in html
    assert f"item{MOVES_SHOWN}<" not in html
    assert f"The first {MOVES_SHOWN} are shown" in html
    assert html.count('class="example"') == EXAMPLES_SHOWN


def finding(value: float, limit: float, low: float, high: float) -> Finding:
    found = Measurement("m", "subject", value, 10, "catalogue", Interval(low, high, 0.95, "wilson"))
    return Finding(Rule("r", "m", max=limit), Result.FAIL, "", found, "")


@pytest.mark.parametrize(
    ("value", "limit", "low", "high"), [(0.0, 0.1, 0.0, 0.05), (0.9, 0.1, 0.8, 1.0), (-5.0, 0.1, -9.0, math.inf)]
)
def test_a_gauge_stays_on_its_line_and_keeps_the_order(value: float, limit: float, low: float, high: float) -> None:
    drawn = gauge(finding(value, limit, low, high))
    assert drawn is not None
    assert 0 <= drawn.low <= drawn.point <= 100
    assert drawn.low <= drawn.high <= 100
    assert (drawn.point > drawn.limit) == (value > limit)


def test_no_gauge_without_a_number_or_with_a_limit_of_zero() -> None:
    assert gauge(finding(math.nan, 0.1, 0, 1)) is None
    assert gauge(finding(0.0, 0.0, 0, 1)) is None
    assert gauge(Finding(Rule("r", "m", max=0.1), Result.INCONCLUSIVE, "", None)) is None
