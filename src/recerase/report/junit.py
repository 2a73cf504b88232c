"""A report as JUnit XML: one test case a rule, and one for the verdict, for servers that show builds as tests.

The decision that shaped this file: a server counts failures and errors and believes nothing else, so a verdict that no
rule explains (controls that do not hold, a worse baseline) is a test case too, and what was not measured is an
error, never a pass.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from recerase.limits import forgiven
from recerase.report.schema import report_digest
from recerase.report.wording import gate_text, interval_text, rules_tally, title_text, value_text
from recerase.types import Finding, Report, Result, Verdict

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot say, escaped or not."""
_LENGTH = 2000


def report_junit(report: Report) -> bytes:
    """The whole document, UTF-8. Equal reports give equal bytes."""
    concept, decision = str(report.concept.get("name", "concept")), report.decision
    cases = [_case(finding, concept) for finding in decision.findings]
    cases.append(_verdict_case(report, concept))
    counts = {"tests": str(len(cases))}
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        counts[name] = str(sum(case.find(tag) is not None for case in cases))
    counts["time"] = f"{_seconds(report):.3f}"
    whole = {name: value for name, value in counts.items() if name != "skipped"}  # strict servers know no more there
    root = Xml.Element("testsuites", {"name": "recerase audit", **whole})
    suite = Xml.SubElement(root, "testsuite", {"name": f"recerase audit: {_safe(concept)}", **counts})
    if started := str(report.run.get("started", "")):
        suite.set("timestamp", _safe(started).removesuffix("Z"))
    properties = Xml.SubElement(suite, "properties")
    for name, value in _facts(report).items():
        Xml.SubElement(properties, "property", {"name": _safe(name), "value": _safe(value)})
    suite.extend(cases)
    Xml.SubElement(suite, "system-out").text = _safe(_summary(report), 20 * _LENGTH)
    Xml.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode").encode() + b"\n"


def _case(finding: Finding, concept: str) -> Xml.Element:
    case = Xml.Element(
        "testcase", {"classname": f"recerase.{_safe(concept)}", "name": _safe(finding.rule.id), "time": "0"}
    )
    text = f"{finding.result.value}: {finding.reason} ({finding.rule.metric}, limit {finding.limit})"
    tag = {Result.FAIL: "failure", Result.INCONCLUSIVE: "error", Result.WAIVED: "skipped"}.get(finding.result)
    if tag is not None:
        _told(case, "skipped" if forgiven(finding) else tag, finding.result.value, finding.reason, text)
    return case


def _verdict_case(report: Report, concept: str) -> Xml.Element:
    decision = report.decision
    case = Xml.Element("testcase", {"classname": f"recerase.{_safe(concept)}", "name": "recerase verdict", "time": "0"})
    text = f"{decision.verdict.value}: {decision.reason}\n{gate_text(report.gate)}"
    if decision.verdict is not Verdict.PASS:
        tag = "failure" if decision.verdict is Verdict.FAIL else "error"
        _told(case, tag, decision.verdict.value, decision.reason, text)
    elif report.gate.exit_code:  # the policy is content, the baseline is not
        _told(case, "failure" if report.gate.exit_code == 1 else "error", "baseline", report.gate.reason, text)
    return case


def _told(case: Xml.Element, tag: str, kind: str, message: str, text: str) -> None:
    told = Xml.SubElement(case, tag, {"message": _safe(message)})
    if tag != "skipped":
        told.set("type", kind)
    told.text = _safe(text, 2 * _LENGTH)


def _facts(report: Report) -> dict[str, str]:
    gate = report.gate
    return {
        "verdict": report.decision.verdict.value,
        "reason": report.decision.reason,
        "fail_on": gate.fail_on,
        "exit_code": str(gate.exit_code),
        "exit_reason": gate.reason,
        "regressions": ", ".join(gate.regressions),
        "rules": rules_tally(report),
        "digest": report_digest(report),
        **{f"input.{name}": digest for name, digest in sorted(report.inputs.items())},
    }


def _summary(report: Report) -> str:
    lines = [
        f"{report.decision.verdict.value.upper()}: {title_text(report.decision.reason, _LENGTH)}",
        gate_text(report.gate),
    ]
    for finding in report.decision.findings:
        found = finding.measurement
        value = "not measured" if found is None else f"{value_text(found)} {interval_text(found)} n={found.n}"
        lines.append(f"{finding.result.value:<12} {title_text(finding.rule.id, 200)}: {value}, limit {finding.limit}")
    lines += [f"warning: {title_text(warning, _LENGTH)}" for warning in report.decision.warnings]
    return "\n".join([*lines, *(f"not tested: {title_text(limit, _LENGTH)}" for limit in report.limits)])


def _seconds(report: Report) -> float:
    seconds = report.run.get("seconds", 0)
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e12 else 0.0


def _safe(text: str, length: int = _LENGTH) -> str:
    """Text that XML 1.0 can hold: what it cannot is shown as a replacement character, what is too long is cut."""
    clean = _FORBIDDEN.sub("\ufffd", text[:length])
    return f"{clean}…" if len(text) > length else clean
