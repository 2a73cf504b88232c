"""One verdict and one exit code, whatever the format; nothing passes that was not measured; a crash leaves neither.

What each combination must come to is worked out here by a few lines that know only how the combination was built, so
that the product is held against something other than itself. Every format is read back by a parser of its own.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from rich.console import Console

from recerase import api
from recerase.__main__ import run
from recerase.assembly import ConceptSpec
from recerase.audit.gate import accepted
from recerase.audit.policy import decide, limit_text
from recerase.audit.recheck import inconsistencies
from recerase.audit.run import AuditResult
from recerase.errors import ArtefactError, UsageError
from recerase.report.baseline import baseline_bytes, parse_baseline
from recerase.report.html import report_html
from recerase.report.junit import report_junit
from recerase.report.markdown import report_markdown
from recerase.report.sarif import report_sarif
from recerase.report.schema import parse_report, report_bytes, report_digest
from recerase.report.text import report_text
from recerase.reporting import gated
from recerase.types import (
    Baseline,
    Control,
    Decision,
    FailOn,
    Gate,
    Interval,
    Measurement,
    Policy,
    Report,
    Rule,
    Skipped,
    Waiver,
)

TODAY = date(2026, 6, 1)
FAIL_ON: tuple[FailOn, ...] = ("policy", "regression", "any", "never")
FORMATS = ("json", "md", "html", "xml", "sarif")
METRICS = ("natural.mass.old", "natural.mass.new", "saturated.mass.old", "replay.mass.old")
VALUES = {
    "pass": (0.1, 0.05),
    "fail": (0.8, 0.05),
    "worse": (0.95, 0.05),
    "inconclusive": (0.4, 0.2),
    "beyond": (0.6, 0.2),
}
"""What was measured -> how bad it is from 0 to 1, and how far its interval reaches; the limit is at 0.5."""
WAIVERS = {
    "valid": ("", "2999-01-01"),
    "expired": ("", "2020-01-01"),
    "other": ("x", "2999-01-01"),
    "bad": ("", "soon"),
}
CODES = {"pass": 0, "fail": 1, "inconclusive": 5}


@dataclass(frozen=True)
class Planned:
    """One rule as it was planned: its limit's kind, what is measured, whether it is waived."""

    kind: str
    measured: str
    waiver: str
    optional: bool

    @property
    def result(self) -> str:
        """What it must come to."""
        if self.measured == "skipped":
            return "inconclusive"
        plain = {"worse": "fail", "beyond": "inconclusive"}.get(self.measured, self.measured)
        return "waived" if self.waiver == "valid" and plain != "pass" else plain

    @property
    def waits(self) -> bool:
        """Whether it must keep a verdict from passing, for it is open."""
        return self.result == "inconclusive" and (not self.optional or self.measured == "beyond")


@dataclass(frozen=True)
class Plan:
    """A whole audit as it was planned."""

    rules: tuple[Planned, ...]
    controls: tuple[bool | None, ...]
    """original, filter; fewer: not run."""
    on_inconclusive: str

    @property
    def verdict(self) -> str:
        """What it must come to."""
        results = [(rule.result, rule.optional) for rule in self.rules]
        if False in self.controls or all(rule.measured == "skipped" for rule in self.rules):
            return "inconclusive"
        if ("fail", True) in results or ("fail", False) in results:
            return "fail"
        if any(rule.waits for rule in self.rules):
            return "fail" if self.on_inconclusive == "fail" else "inconclusive"
        passed = any(result == "pass" for result, _ in results)
        return "pass" if passed and self.controls == (True, True) else "inconclusive"


def against(now: Plan, old: Plan) -> int:
    """The exit code of a regression, from the plans of two audits of the same rules."""
    if False in now.controls or all(rule.measured == "skipped" for rule in now.rules):
        return 5
    for new, was in zip(now.rules, old.rules, strict=True):
        beyond = new.measured == "worse" and was.measured == "fail"
        if new.result == "fail" and (was.result != "fail" or beyond):
            return 1
    lost = any(
        n.result == "inconclusive" and (o.result != "inconclusive" or (n.measured == "beyond" != o.measured))
        for n, o in zip(now.rules, old.rules, strict=True)
    )
    held = [{place for place, holds in enumerate(plan.controls) if holds} for plan in (now, old)]
    return 5 if lost or (now.verdict == "inconclusive" != old.verdict) or held[1] - held[0] else 0


def exit_code(now: Plan, fail_on: str, old: Plan | None) -> int:
    policy = CODES[now.verdict]
    if fail_on in ("policy", "never"):
        return policy if fail_on == "policy" else 0
    regression = 0 if old is None else against(now, old)
    return regression if fail_on == "regression" else max(policy, regression, key=[0, 5, 1].index)


def planned(rng: random.Random) -> Plan:
    def rule() -> Planned:
        measured = rng.choices([*VALUES, "skipped"], [6, 2, 1, 2, 1, 1])[0]
        waiver = rng.choices(["", *WAIVERS], [5, 2, 1, 1, 1])[0]
        return Planned(rng.choice(["max", "min", "drop", "ratio"]), measured, waiver, rng.random() < 0.2)

    controls = rng.choices([(True, True), (True, False), (True, None), ()], [7, 1, 1, 1])[0]
    return Plan(tuple(rule() for _ in range(rng.randint(1, 4))), controls, rng.choice(["fail", "inconclusive"]))


def other(plan: Plan, rng: random.Random) -> Plan:
    """An earlier audit by the same rules."""
    old = planned(rng)
    again = [old.rules[i % len(old.rules)] for i in range(len(plan.rules))]
    rules = [replace(was, kind=new.kind, optional=new.optional) for was, new in zip(again, plan.rules, strict=True)]
    return replace(old, rules=tuple(rules))


def made_rule(name: str, metric: str, rule: Planned) -> Rule:
    limits: dict[str, dict[str, Any]] = {
        "max": {"max": 0.5},
        "min": {"min": 0.5},
        "drop": {"max_drop": 0.5, "max_drop_vs": "original"},
        "ratio": {"max": 0.5, "max_ratio_to": "reference"},
    }
    return Rule(name, metric, optional=rule.optional, **limits[rule.kind])


def made(plan: Plan, concept: str, today: date = TODAY) -> tuple[Policy, AuditResult]:
    """A plan as an audit: what the probes would have handed over, decided by the product."""
    rules = tuple(made_rule(f"r{i}", METRICS[i], rule) for i, rule in enumerate(plan.rules))
    waivers = tuple(
        Waiver(f"r{i}", WAIVERS[rule.waiver][0] or concept, "known", WAIVERS[rule.waiver][1])
        for i, rule in enumerate(plan.rules)
        if rule.waiver
    )
    measurements, skipped = [], []
    for rule, of in zip(rules, plan.rules, strict=True):
        if of.measured == "skipped":
            skipped.append(Skipped(rule.metric, "subject", "out of time"))
            continue
        bad, reach = VALUES[of.measured]
        value = 1 - bad if of.kind == "min" else bad
        versus: Any = {"drop": "original", "ratio": "reference"}.get(of.kind)
        kind: Any = of.kind if versus else "value"
        around = Interval(value - reach, value + reach, 0.95, "bootstrap")
        measurements.append(Measurement(rule.metric, "subject", value, 5000, "behaviour", around, versus, kind))
    names: Any = ("original", "filter")
    controls = tuple(Control(name, "", "", holds) for name, holds in zip(names, plan.controls, strict=False))
    policy = Policy(rules, waivers, on_inconclusive=plan.on_inconclusive)  # type: ignore[arg-type]
    decision = decide(policy, measurements, skipped, controls, concept, today)
    return policy, AuditResult(decision, tuple(measurements), tuple(skipped), controls, (), {}, ("not user data",))


def reported(plan: Plan, fail_on: FailOn, old: Plan | None, concept: str = "brand=Acme") -> Report:
    policy, found = made(plan, concept)
    about = {"name": concept, "digest": "c" * 64}
    whole = Report(
        found.decision, Gate("policy", 0, ""), found.measurements, found.skipped, about, {"policy": ""}, policy=policy
    )
    return gated(whole, fail_on, None if old is None else blessed(old, about))


def blessed(old: Plan, about: Mapping[str, Any]) -> Baseline:
    policy, found = made(old, str(about["name"]))
    report = Report(found.decision, Gate("policy", 0, ""), found.measurements, found.skipped, about, {}, policy=policy)
    return parse_baseline(baseline_bytes(accepted(report, report_digest(report), "ticket 412", TODAY)))


Told = tuple[str, str, int, tuple[str, ...]]
"""verdict, fail_on, exit code, the result of each rule: what a format says."""


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.gate: dict[str, str] = {}
        self.badges: list[str] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._in = found.get("class", "")
        if self._in == "gate":
            self.gate = found
        if self._in.startswith("badge"):
            self.badges.append(self._in.split()[1])

    def handle_data(self, data: str) -> None:
        if self._in in ("word", "gate"):
            self.words.append(data)
            self._in = ""


def from_json(data: bytes) -> Told:
    said = json.loads(data)
    results = tuple(rule["result"] for rule in said["rules"])
    return said["verdict"], said["gate"]["fail_on"], said["gate"]["exit_code"], results


def from_html(page: str) -> Told:
    found = _Page(page)
    gate, rules = found.gate, page[page.index('id="rules"') :]
    table = rules[: rules.index("</table>")] if "<table" in rules else ""
    assert found.words[0] == gate["data-verdict"]
    assert f"exit code {gate['data-exit-code']} (fail on {gate['data-fail-on']})" in found.words[1]
    return gate["data-verdict"], gate["data-fail-on"], int(gate["data-exit-code"]), tuple(_Page(table).badges)


def from_lines(text: str, first: str, row: str) -> Told:
    verdict = re.search(first, text, re.MULTILINE)
    gate = re.search(r"exit code (\d+) \(fail on (\w+)\)", text)
    assert verdict is not None
    assert gate is not None
    return verdict[1].lower(), gate[2], int(gate[1]), tuple(re.findall(row, text, re.MULTILINE))


def from_junit(data: bytes) -> Told:
    root = Xml.fromstring(data)
    said = {p.get("name"): p.get("value") or "" for p in root.iter("property")}
    *rules, verdict = root.iter("testcase")
    results = []
    for case in rules:
        (child,) = list(case) or [None]
        kind = "pass" if child is None else {"failure": "fail", "error": "inconclusive"}.get(child.tag)
        results.append(kind or str(child.text).split(":")[0])  # type: ignore[union-attr]
    outcome = {None: "pass", "failure": "fail", "error": "inconclusive"}[next((c.tag for c in verdict), None)]
    code = {str(code): word for word, code in CODES.items()}[said["exit_code"]]
    assert outcome == (code if said["verdict"] == "pass" else said["verdict"])  # no server shows green what ended red
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        places = root[:1] if tag == "skipped" else (root, root[0])
        assert all(int(s.get(name, "-1")) == len(list(root.iter(tag))) for s in places)
    assert set(root.attrib) <= {"name", "tests", "failures", "errors", "time"}  # what a strict reader's schema knows
    return said["verdict"], said["fail_on"], int(said["exit_code"]), tuple(results)


def errors_in(data: bytes) -> int:
    return len(list(Xml.fromstring(data).iter("error")))


def errors_of(plan: Plan, code: int) -> int:
    """How many test cases a server must call broken: what had to be measured and is open, and the verdict if it is."""
    whole = plan.verdict == "inconclusive" or (plan.verdict == "pass" and code == 5)
    return sum(rule.waits for rule in plan.rules) + whole


def from_sarif(data: bytes) -> Told:
    (found,) = json.loads(data)["runs"]
    *rules, _ = found["tool"]["driver"]["rules"]
    results = ["pass"] * len(rules)
    verdict = "pass"
    (invocation,) = found["invocations"]
    assert found["results"] or invocation["exitCode"] == 0
    for result in found["results"]:
        said = result["properties"]["result"]
        if result["ruleIndex"] < len(rules):
            results[result["ruleIndex"]] = said
            assert result["ruleId"] == rules[result["ruleIndex"]]["id"]
            assert (result["level"] == "error") == (said == "fail")
        else:
            verdict = said
            code = {"fail": 1, "inconclusive": 5}.get(said, invocation["exitCode"])
            assert result["level"] == ("error" if 1 in (code, invocation["exitCode"]) else "warning")
    assert found["properties"]["verdict"] == verdict
    assert invocation["executionSuccessful"] is True
    return verdict, found["properties"]["failOn"], invocation["exitCode"], tuple(results)


def from_markdown(text: str) -> Told:
    return from_lines(text, r"\A# (\w+): ", r"^\| (?:\*\*)?(pass|fail|inconclusive|waived)(?:\*\*)? \| r\d \|")


def console(report: Report) -> str:
    sink = io.StringIO()
    Console(file=sink, width=110).print(report_text(report))
    return sink.getvalue()


READERS: Mapping[str, Callable[[Report], Told]] = {
    "json": lambda report: from_json(report_bytes(report)),
    "md": lambda report: from_markdown(report_markdown(report)),
    "html": lambda report: from_html(report_html(report)),
    "xml": lambda report: from_junit(report_junit(report)),
    "sarif": lambda report: from_sarif(report_sarif(report)),
    "console": lambda report: from_lines(console(report), r"\A.*\n\W*(\w+)  ", r"^r\d +(\w+)  "),
}


def test_every_combination_has_one_verdict_and_one_exit_code(effort: Any, figure: Any) -> None:
    n = effort(520, 20_000)
    rng = random.Random(20260601)
    seen: set[tuple[str, str, int]] = set()
    for place in range(n):
        plan = planned(rng)
        fail_on = FAIL_ON[place % 4]
        old = other(plan, rng) if fail_on == "regression" or rng.random() < 0.5 else None
        report = reported(plan, fail_on, old)
        results = tuple(rule.result for rule in plan.rules)
        expected = (plan.verdict, fail_on, exit_code(plan, fail_on, old), results)
        for name, read in READERS.items():
            assert read(report) == expected, (name, plan, fail_on, old)
        assert parse_report(report_bytes(report)) == report
        assert errors_in(report_junit(report)) == errors_of(plan, expected[2])
        seen.add(expected[:3])
    assert {(verdict, how) for verdict, how, _ in seen} == {(verdict, how) for verdict in CODES for how in FAIL_ON}
    assert {code for _, how, code in seen if how in ("regression", "any")} == {0, 1, 5}
    figure("verdict: combinations on which JSON, MD, HTML, JUnit, SARIF, console agree", n, of=n)


def policy_toml(policy: Policy) -> str:
    def table(name: str, values: Mapping[str, Any]) -> str:
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None]
        return "\n".join([name, *lines])

    rules = [table("[[rule]]", vars(rule)) for rule in policy.rules]
    waivers = [table("[[waiver]]", vars(waiver)) for waiver in policy.waivers]
    head = table("[audit]", {"on_inconclusive": policy.on_inconclusive})
    return "\n".join(['schema = "recerase.policy/1"', head, *rules, *waivers, ""])


@pytest.fixture
def command(job: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`recerase audit` on the tiny job; its models are loaded once."""
    opened = functools.cache(lambda path, trust: real(path, *rest[0]))
    rest: list[tuple[Any, ...]] = []
    real = api.open_checkpoint_for

    def once(path: Any, catalogue: Any, run: Any) -> Any:
        rest[:] = [(catalogue, run)]
        return opened(str(path), run.trust_pickle)

    monkeypatch.setattr(api, "open_checkpoint_for", once)
    line = ["audit", str(job.erased), f"--original={job.model}", f"--data={job.data}", f"--concept={job.concept}"]
    return [*line, f"--policy={job.policy}", "--threads=1", "--max-users=20", "-q"]


def outputs(folder: Path) -> list[str]:
    return [word for name in FORMATS for word in ("-o", str(folder / f"report.{name}"))]


def test_the_process_ends_with_the_code_that_its_files_tell(
    job: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, effort: Any, figure: Any
) -> None:
    rng, n, codes = random.Random(5), effort(24, 400), set()
    sample = json.loads(job.report.read_bytes())["concept"]
    for place in range(n):
        plan, fail_on = planned(rng), FAIL_ON[place % 4]
        plan = replace(plan, rules=tuple(replace(r, waiver="" if r.waiver == "bad" else r.waiver) for r in plan.rules))
        old = other(plan, rng) if fail_on == "regression" else None
        policy, found = made(plan, job.concept, date.today())
        monkeypatch.setattr("recerase.audit.run.run_audit", lambda *_, found=found, **__: found)
        (tmp_path / "policy.toml").write_text(policy_toml(policy))
        line = [*command, f"--policy={tmp_path}/policy.toml", f"--fail-on={fail_on}", *outputs(tmp_path)]
        if old is not None:
            kept = blessed(old, {"name": job.concept, "digest": sample["digest"]})
            (tmp_path / "base.json").write_bytes(baseline_bytes(kept))
            line.append(f"--baseline={tmp_path}/base.json")
        expected = (plan.verdict, fail_on, exit_code(plan, fail_on, old), tuple(rule.result for rule in plan.rules))
        capsys.readouterr()
        assert run([*line, "--json"]) == expected[2], plan
        assert from_json(capsys.readouterr().out.encode()) == expected
        files = {name: (tmp_path / f"report.{name}").read_bytes() for name in FORMATS}
        told = [from_json(files["json"]), from_junit(files["xml"]), from_sarif(files["sarif"])]
        told += [from_html(files["html"].decode()), from_markdown(files["md"].decode())]
        assert told == [expected] * 5
        codes.add(expected[2])
    assert codes == {0, 1, 5}
    figure("verdict: audits whose exit code is that of their five files", n, of=n)


def test_a_real_audit_can_be_decided_again_and_a_changed_one_cannot(job: Any, figure: Any) -> None:
    report = parse_report(job.report.read_bytes())
    assert inconsistencies(report) == ()
    rng, n = random.Random(3), 60
    for place in range(n):
        spoiled = tampered(report, rng, place)
        assert parse_report(report_bytes(spoiled)) == spoiled  # sealed again: only the numbers can tell
        assert inconsistencies(spoiled), place
    figure("report verify: resealed reports whose verdict does not follow, caught", n, of=n)


def tampered(report: Report, rng: random.Random, place: int) -> Report:
    """The report with one thing in it changed that its verdict, rules, controls or exit code rest on."""
    decision, gate = report.decision, report.gate
    finding = rng.choice(decision.findings)
    flip = {"pass": "fail", "fail": "pass", "inconclusive": "pass"}
    changes: list[Callable[[], Report]] = [
        lambda: replace(
            report, decision=replace(decision, verdict=type(decision.verdict)(flip[decision.verdict.value]))
        ),
        lambda: replace(report, decision=replace(decision, reason=decision.reason + ".")),
        lambda: replace(report, gate=replace(gate, exit_code=(gate.exit_code + 1) % 6)),
        lambda: replace(report, gate=replace(gate, fail_on=rng.choice(["regression", "never"]))),
        lambda: replace(report, decision=replace(decision, findings=decision.findings[1:])),
        lambda: with_finding(report, finding, result=type(finding.result)(flip[finding.result.value])),
        lambda: with_finding(report, finding, limit="<= 1"),
        lambda: with_control(report, not decision.controls[0].holds),
        lambda: replace(report, decision=replace(decision, as_of="2999-01-01")),
        lambda: with_measurement(report, finding.measurement, rng.uniform(2, 3)),
        lambda: replace(report, policy=replace(report.policy, min_users=10**9) if report.policy else None),
        lambda: replace(report, concept={**report.concept, "digest": "0" * 64}),
    ]
    return changes[place % len(changes)]()


def with_finding(report: Report, finding: Any, **changes: Any) -> Report:
    found = tuple(replace(f, **changes) if f is finding else f for f in report.decision.findings)
    return replace(report, decision=replace(report.decision, findings=found))


def with_control(report: Report, holds: bool) -> Report:
    first, *rest = report.decision.controls
    return replace(report, decision=replace(report.decision, controls=(replace(first, holds=holds), *rest)))


def with_measurement(report: Report, old: Measurement | None, value: float) -> Report:
    changed = tuple(replace(m, value=value) if m == old else m for m in report.measurements)
    return replace(report, measurements=changed)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a model was loaded")


def ended(line: list[str], folder: Path, capsys: Any) -> int:
    """The exit code of a run that must have left no verdict: nothing on stdout, no report file."""
    capsys.readouterr()
    code = run([*line, *outputs(folder)])
    out, err = capsys.readouterr()
    assert out == ""
    assert "exit code 0" not in err
    assert [path.name for path in folder.glob("report*")] == []
    return code


def spoil(name: str, data: bytes) -> bytes | None:
    """A baseline that cannot be read, or None for none at all."""
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return {"missing": None, "empty": b"", "half": data[:middle], "flipped": changed, "text": b"# PASS\n"}[name]


@pytest.mark.parametrize("how", ["missing", "empty", "half", "flipped", "text"])
@pytest.mark.parametrize("fail_on", FAIL_ON)
def test_an_unreadable_baseline_is_refused_before_a_model_is_loaded(
    how: str, fail_on: str, job: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run(["report", "bless", str(job.report), f"--out={tmp_path}/base.json", "--reason=known"]) == 0
    data = spoil(how, (tmp_path / "base.json").read_bytes())
    (tmp_path / "base.json").unlink()
    if data is not None:
        (tmp_path / "base.json").write_bytes(data)
    monkeypatch.setattr(api, "open_checkpoint_for", refuse)
    assert ended([*command, f"--baseline={tmp_path}/base.json", f"--fail-on={fail_on}"], tmp_path, capsys) == 4


def test_a_baseline_of_something_else_is_refused(
    job: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path, report = tmp_path / "base.json", parse_report(job.report.read_bytes())
    kept = accepted(report, report_digest(report), "known", TODAY)
    path.write_bytes(baseline_bytes(replace(kept, concept_digest="0" * 64)))
    assert ended([*command, f"--baseline={path}"], tmp_path, capsys) == 2  # other items under the same name
    monkeypatch.setattr(api, "open_checkpoint_for", refuse)
    assert ended([*command, "--fail-on=regression"], tmp_path, capsys) == 2  # no baseline at all
    path.write_bytes(baseline_bytes(replace(kept, concept="brand=Other")))
    assert ended([*command, f"--baseline={path}"], tmp_path, capsys) == 2
    path.write_bytes(job.report.read_bytes())  # a report nobody accepted
    assert ended([*command, f"--baseline={path}"], tmp_path, capsys) == 4
    assert run(["report", "bless", str(job.report), f"--out={tmp_path}/b.json", "--reason", " "]) == 2
    assert run(["report", "bless", str(job.report), f"--out={job.report}", "--reason", "x", "--force"]) == 2
    assert not (tmp_path / "b.json").exists()


def test_a_baseline_loses_no_bit_unseen(job: Any, effort: Any, figure: Any) -> None:
    report = parse_report(job.report.read_bytes())
    data = baseline_bytes(accepted(report, report_digest(report), "known leak \U0001f32c", TODAY))
    rng, n = random.Random(8), effort(300, 20_000)
    sealed = job.report.read_bytes()
    for whole, read in ((data, parse_baseline), (sealed, parse_report)):
        for _ in range(n if whole is data else n // 10):
            at, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
            with pytest.raises(ArtefactError):
                read(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        for _ in range(n // 10):
            with pytest.raises(ArtefactError):
                read(whole[: rng.randrange(len(whole))])
    figure("baselines and reports: flipped bits and cuts seen", n + n // 10 * 3, of=n + n // 10 * 3)


def test_nothing_to_measure_never_passes(
    job: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import pyarrow.parquet as pq

    empty = tmp_path / "empty"
    empty.mkdir()
    pq.write_table(pq.read_table(job.data / "items.parquet"), empty / "items.parquet")
    pq.write_table(pq.read_table(job.data / "interactions.parquet").slice(0, 0), empty / "interactions.parquet")
    assert ended([*command, f"--data={empty}"], tmp_path, capsys) in (2, 4)  # no users
    pq.write_table(pq.read_table(job.data / "items.parquet").slice(0, 0), empty / "items.parquet")
    assert ended([*command, f"--data={empty}"], tmp_path, capsys) in (2, 4)  # no items
    nothing = [word for word in command if not word.startswith("--concept")]
    assert ended([*nothing, "--concept=brand=Nobody"], tmp_path, capsys) == 2
    text = job.policy.read_text().replace("natural.exposure@10", "natural.exposur@10")
    (tmp_path / "policy.toml").write_text(text)
    monkeypatch.setattr(api, "open_checkpoint_for", refuse)
    assert ended([*command, f"--policy={tmp_path}/policy.toml"], tmp_path, capsys) == 2  # a misspelt metric


@pytest.mark.parametrize("fail_on", ["policy", "regression", "any"])
def test_all_probes_skipped_is_inconclusive(
    fail_on: str, job: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(name: str) -> Any:
        return lambda readings: [Skipped(f"{name}.*", readings.model.role, "out of time")]

    monkeypatch.setattr("recerase.audit.run.load_probe", skip)
    monkeypatch.setattr("recerase.audit.run.curves", lambda *_: {})
    monkeypatch.setattr("recerase.audit.run.worst_examples", lambda *_: ())
    line = command
    if fail_on == "regression":  # the accepted audit had measured nothing either
        assert run([*command, "-o", f"{tmp_path}/old.json"]) == 5
        assert run(["report", "bless", f"{tmp_path}/old.json", f"--out={tmp_path}/base.json", "--reason=x"]) == 0
        line = [*command, f"--baseline={tmp_path}/base.json"]
    assert run([*line, f"--fail-on={fail_on}", *outputs(tmp_path)]) == 5
    assert from_json((tmp_path / "report.json").read_bytes())[0] == "inconclusive"


PHASES = (
    "recerase.api.load_catalogue",
    "recerase.api.open_checkpoint_for",
    "recerase.api.choose_concept",
    "recerase.auditing.concept_facts",
    "recerase.audit.probes.build_world",
    "recerase.audit.run.judge_controls",
    "recerase.audit.run.decide",
    "recerase.audit.run.curves",
    "recerase.audit.run.worst_examples",
    "recerase.audit.gate.gate",
    "recerase.reporting.gate",
    "recerase.report.schema.report_bytes",
    "recerase.report.markdown.report_markdown",
    "recerase.report.html.report_html",
    "recerase.report.junit.report_junit",
    "recerase.report.sarif.report_sarif",
)
PROBE_NAMES = ("natural", "saturated", "neighbours", "replay", "nearest", "free", "aliasing", "utility")


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), MemoryError(), ArtefactError("Gone.", "Restore it.")])
def test_a_crash_in_any_phase_leaves_no_verdict(
    error: BaseException, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, figure: Any
) -> None:
    def crash(*_: Any, **__: Any) -> Any:
        raise error

    code = 4 if isinstance(error, ArtefactError) else 3
    for phase in (*PHASES, *PROBE_NAMES):
        with monkeypatch.context() as patch:
            if phase in PROBE_NAMES:
                patch.setattr(
                    "recerase.audit.run.load_probe", lambda name, at=phase: crash if name == at else lambda _: []
                )
            else:
                patch.setattr("recerase.audit.run.load_probe", lambda name: lambda _: [])
                for part in ("curves", "worst_examples"):
                    patch.setattr(f"recerase.audit.run.{part}", lambda *_: {} if len(_) == 1 else ())
                patch.setattr(phase, crash)
            assert ended(command, tmp_path, capsys) == code, phase
    n = len(PHASES) + len(PROBE_NAMES)
    figure("crashes in a phase of an audit: verdicts or reports left", 0, of=n)


def test_a_disk_that_fills_while_reports_are_written_leaves_none(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from recerase import reporting
    from recerase.errors import WriteError

    monkeypatch.setattr("recerase.audit.run.run_audit", lambda *_, **__: made(planned(random.Random(1)), "c")[1])
    real, written = reporting.write_bytes, []

    def full(path: Any, data: bytes) -> str:
        if len(written) == 3:
            raise WriteError(f"Cannot write {path}: No space left on device.", "Free some space.")
        written.append(path)
        return real(path, data)

    monkeypatch.setattr(reporting, "write_bytes", full)
    assert ended(command, tmp_path, capsys) == 3
    assert len(written) == 3


def test_the_api_says_what_the_command_says(job: Any, tmp_path: Path) -> None:
    given = (job.erased, ConceptSpec((job.concept,)), job.data)
    report = api.audit(*given, policy=job.policy, original=job.model, max_users=20, outputs=[tmp_path / "a.json"])
    assert from_json((tmp_path / "a.json").read_bytes())[:3] == (
        report.decision.verdict.value,
        "policy",
        report.gate.exit_code,
    )
    with pytest.raises(UsageError):
        api.audit(*given, fail_on="regression")
    (finding, *_), limits = report.decision.findings, [limit_text(f.rule) for f in report.decision.findings]
    assert finding.limit == limits[0]
    assert isinstance(report.decision, Decision)
