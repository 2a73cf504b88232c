"""Hostile text in titles, names, reasons and ids comes through every format as text, and as nothing else."""

from __future__ import annotations

import io
import json
import random
import re
from collections import Counter
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from recerase.__main__ import run
from recerase.audit.gate import accepted, gate
from recerase.report.baseline import baseline_bytes, parse_baseline
from recerase.report.diff import diff_document
from recerase.report.html import report_html
from recerase.report.junit import report_junit
from recerase.report.markdown import report_markdown
from recerase.report.sarif import report_sarif
from recerase.report.schema import parse_report, report_bytes, report_digest
from recerase.report.text import diff_table, report_text
from recerase.types import (
    Control,
    Decision,
    Example,
    Finding,
    Interval,
    Measurement,
    Move,
    Policy,
    Report,
    Result,
    Rule,
    Skipped,
    Verdict,
    Waiver,
)

HOSTILE = (
    "<script>alert(1)</script>",
    "</td></table></svg></style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)",
    "]]> --> <!-- <![CDATA[ <?xml ?> &lt; &#60; &amp;",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "a | b || `c` *d* _e_ [f](javascript:alert(1)) ![g](http://evil.example/x.png) <http://evil.example>",
    "line\nbreak\r\nand\ttab\x0b\x0c\x85\u2028\u2029end",
    "# PASS\n\n| pass | x |\n|---|---|\n\n# PASS",
    "[bold red]markup[/] [link=http://evil.example]x[/link] [/] :smile:",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred\x1b[0m \x9b31m bell\x07 back\x08space nul\x00 del\x7f",
    "override \u202e gnp.exe \u2066isolate\u2069 \u061c mark \u200f\u200e zero\u200bwidth \ufeff",
    "سيجارة إلكترونية قابلة لإعادة الشحن",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family \U0001f32c\ufe0f \U0001f1eb\U0001f1f7",
    "noncharacters \ufffe \uffff \U0001fffe",
    "x" * 10_000,
    "\u202e" * 5_000 + "<b>" * 2_000,
    "@everyone @octocat #1 http://evil.example www.evil.example",
    "exit code 0 (fail on policy): the policy says pass",
    "",
    " ",
    "1e-07",
    "null",
)
MIXED = tuple("".join(random.Random(seed).sample(HOSTILE[:15], 4)) for seed in range(8))
HOSTILE_TEXTS = pytest.mark.parametrize("text", HOSTILE + MIXED, ids=lambda text: ascii(text)[:24])
CAME_THROUGH = "hostile text: texts that came through a format as text"
FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
ESCAPES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")
"""What a terminal would act upon, but for line feeds."""


def hostile_report(text: str) -> Report:
    """A report that says `text` wherever a user, a file or another program can put text."""
    found = Measurement("natural.mass.old", "subject", 0.8, 5000, "behaviour", Interval(0.7, 0.9, 0.95, "bootstrap"))
    strange = replace(found, metric=f"utility.{text}", layer="utility", better="higher")
    before = replace(strange, role="original", value=0.9)
    drop = replace(strange, kind="drop", versus="original", value=0.1)
    rules = (
        Rule(f"{text}1", "natural.mass.old", max=0.5),
        Rule(f"{text}2", f"utility.{text}", min=0.5),
        Rule(f"{text}3", "x", max=1, optional=True),
        Rule(f"{text}4", "y", max=1),
    )
    results = (Result.FAIL, Result.WAIVED, Result.INCONCLUSIVE, Result.PASS)
    numbers = (found, strange, None, found)
    findings = tuple(
        Finding(rule, result, f"because {text}", number, f"<= {text}")
        for rule, result, number in zip(rules, results, numbers, strict=True)
    )
    controls = (Control("original", f"fails {text}", f"observed {text}", True), Control("filter", text, text, None))
    decision = Decision(Verdict.FAIL, f"1 of 4 rules failed: {text}", findings, controls, (f"warning {text}", text))
    policy = Policy(rules, (Waiver(f"{text}2", text, text, "2999-01-01"),))
    return Report(
        decision=decision,
        gate=replace(gate(decision), reason=f"worse than in the baseline: {text}", regressions=(f"{text}1",)),
        measurements=(found, strange, before, drop),
        skipped=(Skipped(f"{text}.*", "subject", text), Skipped("free.*", "original", f"reason {text}")),
        concept={
            "name": text,
            "spec": [text],
            "items": 3,
            "interactions": 4,
            "users": 5,
            "digest": text,
            "scope": text,
        },
        inputs={"subject": "a" * 64, "policy": text, text: text},
        method={"name": text, text: {text: [text, 1, None]}, "changes": {"tensors": 2, "tensors_identical": [text]}},
        moves=(Move(text, text, (1, 2), (3, 4)),),
        examples=(Example(text, (text,), (text, "b"), (True, False), (text,), (False,)),),
        curves={text: {"x": [0.0, 1.0], "subject": [0.1, 0.2]}},
        policy=policy,
        run={"started": text, "seconds": 1.5, "command": text, "environment": {text: text}},
        limits=(text, f"limit {text}"),
    )


class Elements(HTMLParser):
    """What a browser would build: how often each element, and every attribute."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.names = {name for _, name, _ in self.attributes}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data[:60]}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data[:60]}")


@pytest.fixture(scope="module")
def plain() -> Elements:
    """The page of the same report with an innocent word in every place."""
    return Elements(report_html(hostile_report("plain")))


@HOSTILE_TEXTS
def test_html_holds_no_element_and_no_attribute_that_the_template_did_not_write(
    text: str, plain: Elements, figure: Any
) -> None:
    page = Elements(report_html(hostile_report(text)))
    ticks = {
        "svg",
        "g",
        "path",
        "use",
        "defs",
        "clippath",
        "rect",
        "text",
        "circle",
    }  # a plot's, which depend on labels
    template = {tag: n for tag, n in plain.tags.items() if tag not in ticks or tag == "svg"}
    found = {tag: n for tag, n in page.tags.items() if tag not in ticks or tag == "svg"}
    assert all(n <= template[tag] for tag, n in found.items())
    assert found == template or not text.strip()  # the page leaves out what is empty
    assert page.names <= plain.names
    for tag, name, value in page.attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith("#") or value == "data:,", (tag, value)
        if name == "style":
            assert re.fullmatch(r"[a-z0-9 .:;%,()#*'-]*", value, re.IGNORECASE), value
            assert "url(" not in value
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", "".join(page.words))
    figure(CAME_THROUGH, 1, of=1)


@HOSTILE_TEXTS
def test_xml_parses_and_says_what_it_was_given(text: str, figure: Any) -> None:
    data = report_junit(hostile_report(text))
    root = Xml.fromstring(data)
    assert not FORBIDDEN.search(data.decode())
    assert [child.tag for child in root] == ["testsuite"]
    assert [child.tag for child in root[0]] == ["properties", *["testcase"] * 5, "system-out"]
    shown = FORBIDDEN.sub("\ufffd", f"{text}1"[:2000])
    assert (root[0][1].get("name") or "").removesuffix("…") == shown
    assert [[child.tag for child in case] for case in root.iter("testcase")] == [
        ["failure"],
        ["skipped"],
        ["skipped"],
        [],
        ["failure"],
    ]
    figure(CAME_THROUGH, 1, of=1)


@HOSTILE_TEXTS
def test_json_and_baseline_come_back_as_they_were(text: str, figure: Any) -> None:
    report = hostile_report(text)
    assert parse_report(report_bytes(report)) == report
    kept = accepted(report, report_digest(report), f"because {text}", date(2026, 6, 1))
    back = parse_baseline(baseline_bytes(kept))
    assert replace(back, digest="") == kept
    json.dumps(diff_document(report, report), allow_nan=False)
    figure(CAME_THROUGH, 2, of=2)


@HOSTILE_TEXTS
def test_sarif_is_what_readers_accept(text: str, figure: Any) -> None:
    log = json.loads(report_sarif(hostile_report(text)))
    assert (log["version"], list(log)) == ("2.1.0", ["$schema", "runs", "version"])
    (found,) = log["runs"]
    driver = found["tool"]["driver"]
    assert driver["name"] == "recerase"
    assert all(rule["id"] and rule["shortDescription"]["text"] and rule["help"]["text"] for rule in driver["rules"])
    assert len(found["results"]) == 4  # three rules did not pass, and the verdict
    for result in found["results"]:
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "recerase.toml"
        assert place["physicalLocation"]["region"]["startLine"] == 1
        assert re.fullmatch("[0-9a-f]{64}", result["partialFingerprints"]["recerase/rule/v1"])
        for waived in result.get("suppressions", ()):
            assert (waived["kind"], waived["status"]) == ("external", "accepted")
    assert len({r["partialFingerprints"]["recerase/rule/v1"] for r in found["results"]}) == 4
    assert re.fullmatch(r"recerase/[A-Za-z0-9._=-]+/", found["automationDetails"]["id"])
    assert found["invocations"][0]["exitCode"] == 1
    figure(CAME_THROUGH, 1, of=1)


def test_a_sarif_fingerprint_is_the_rule_s_and_not_the_run_s() -> None:
    def prints(report: Report) -> list[str]:
        results = json.loads(report_sarif(report))["runs"][0]["results"]
        return [result["partialFingerprints"]["recerase/rule/v1"] for result in results]

    report = hostile_report("plain")
    first, *rest = report.decision.findings
    assert first.measurement is not None
    moved = replace(first, reason="other words", measurement=replace(first.measurement, value=0.99))
    later = replace(report, decision=replace(report.decision, findings=(moved, *rest)), run={})
    assert prints(later) == prints(report)
    other = replace(report, concept={**report.concept, "digest": "other"})
    assert not set(prints(other)) & set(prints(report))


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


@HOSTILE_TEXTS
def test_markdown_cells_stay_cells_and_lines_stay_lines(text: str, figure: Any) -> None:
    shown, innocent = report_markdown(hostile_report(text)), report_markdown(hostile_report("plain"))
    assert shown.count("\n") == innocent.count("\n")
    for line, like in zip(shown.split("\n"), innocent.split("\n"), strict=True):
        assert line.startswith("|") == like.startswith("|")
        assert line.startswith("#") == like.startswith("#")
        if like.startswith("|"):
            assert cells(line) == cells(like)
    assert not re.search(r"<(?!/?br>)|://|(?<!&#)\x1b", shown)
    assert not ESCAPES.search(shown)
    figure(CAME_THROUGH, 1, of=1)


@pytest.mark.parametrize("width", [40, 110])
@HOSTILE_TEXTS
def test_a_terminal_is_told_nothing_but_text(text: str, width: int, figure: Any) -> None:
    report = hostile_report(text)
    for what in (report_text(report), diff_table(report, report)):
        sink = io.StringIO()
        Console(file=sink, width=width, no_color=True, force_terminal=True, color_system=None).print(what)
        assert not ESCAPES.search(sink.getvalue())
    figure(CAME_THROUGH, 1, of=1)


@given(text=st.text(alphabet=st.characters(codec=None), max_size=80))
def test_any_text_at_all_comes_through_every_format(plain: Elements, text: str) -> None:
    report = hostile_report(text)
    Xml.fromstring(report_junit(report))
    assert json.loads(report_sarif(report))["runs"][0]["invocations"][0]["exitCode"] == 1
    assert report_bytes(parse_report(report_bytes(report))) == report_bytes(report)
    page = Elements(report_html(replace(report, measurements=())))
    assert "script" not in page.tags
    assert page.names <= plain.names
    assert len(report_markdown(report).encode()) < 100_000
    sink = io.StringIO()
    Console(file=sink, width=80, force_terminal=True, color_system=None).print(report_text(report))
    assert not ESCAPES.search(sink.getvalue())


def test_equal_reports_give_equal_bytes_in_every_format() -> None:
    for make in (report_bytes, report_junit, report_sarif, report_html, report_markdown):
        one, other = make(hostile_report(HOSTILE[0])), make(hostile_report(HOSTILE[0]))  # type: ignore[operator]
        assert one == other


def test_a_report_is_written_in_every_format_by_its_extension(job: Any, tmp_path: Path, capsys: Any) -> None:
    names = [f"a.{name}" for name in ("json", "md", "html", "xml", "sarif", "XML")]
    assert run(["report", "show", str(job.report), *(w for n in names for w in ("-o", str(tmp_path / n)))]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "a.json").read_bytes() == job.report.read_bytes()
    for refused in ("a.pdf", "nowhere/a.md"):
        assert run(["report", "show", str(job.report), "-o", str(tmp_path / refused)]) == 2
    assert run(["report", "show", str(job.report), "-o", str(job.report)]) == 2  # its own input


def test_verify_holds_a_report_against_what_is_on_the_disk(own_job: Any, tmp_path: Path, capsys: Any) -> None:
    job, given_ = own_job, lambda **paths: [f"--{name}={path}" for name, path in paths.items()]
    base = tmp_path / "base.json"
    verify = ["report", "verify", str(job.report)]
    whole = given_(subject=job.erased, original=job.model, data=job.data, policy=job.policy)
    assert run([*verify, *whole]) == 0
    assert run(["report", "verify", str(job.erased / "report.json")]) == 0
    assert run(["report", "bless", str(job.report), f"--out={base}", "--reason=known"]) == 0
    assert run(["report", "bless", str(job.report), f"--out={base}", "--reason=known"]) == 2  # it is there
    for name, wrong in (("subject", job.model), ("original", job.erased), ("subject", job.data), ("data", job.sids)):
        assert run([*verify, *given_(**{name: wrong})]) == 4, name
    for name, wrong in (("reference", job.model), ("baseline", base), ("baseline", job.report), ("policy", base)):
        assert run([*verify, *given_(**{name: wrong})]) == 4, name
    text = job.policy.read_text()
    job.policy.write_text(text.replace("min_users = 20", "min_users = 21"))
    assert run([*verify, *given_(policy=job.policy)]) == 4
    weights = job.erased / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run([*verify, *given_(subject=job.erased)]) == 4
    assert run(["report", "verify", str(job.erased / "report.json")]) == 4  # unasked
    assert run(verify) == 0


def test_diff_shows_what_changed_and_judges_nothing(job: Any, tmp_path: Path, capsys: Any) -> None:
    report = parse_report(job.report.read_bytes())
    first, *rest = report.decision.findings
    assert first.measurement is not None
    worse = replace(first, result=Result.FAIL, measurement=replace(first.measurement, value=0.9))
    added = Finding(Rule("new", "free.invalid", max=1), Result.INCONCLUSIVE, "not measured", None, "<= 1")
    decision = replace(report.decision, verdict=Verdict.FAIL, findings=(worse, *rest[1:], added))
    (tmp_path / "b.json").write_bytes(report_bytes(replace(report, decision=decision)))
    capsys.readouterr()
    assert run(["report", "diff", str(job.report), str(tmp_path / "b.json"), "--json"]) == 0
    said = {rule["rule"]: rule for rule in json.loads(capsys.readouterr().out)["rules"]}
    assert (said[first.rule.id]["changed"], said[first.rule.id]["after"]["value"]) == (True, 0.9)
    assert (said["new"]["before"], said["new"]["after"]["value"]) == (None, None)
    assert said[rest[0].rule.id]["after"] is None
    assert run(["report", "diff", str(job.report), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == [first.rule.id, "pass:"] and line.rstrip().endswith("changed") for line in lines)
    assert run(["report", "diff", str(job.report), str(job.report)]) == 0
    assert "changed" not in capsys.readouterr().out
