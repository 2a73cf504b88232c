"""A report as SARIF 2.1.0, for code scanning: a result for each rule that did not pass, and for a verdict nobody passes.

The decision that shaped this file: many readers ignore a result's `kind` and show every result as a problem, so a rule
that passed is listed among the tool's rules and has no result; what is undecided is a warning, never nothing. The exit
code is the invocation's; one that only a baseline asks for is a result too. A result has the same fingerprint as long as
rule, metric, limit and concept are the same.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from recerase.limits import forgiven
from recerase.report.codec import document_bytes, plain
from recerase.report.labels import metric_label
from recerase.report.schema import report_digest
from recerase.report.wording import gate_text, interval_text, title_text, value_text
from recerase.store import canonical_json, sha256_bytes
from recerase.types import Finding, Report, Result, Verdict

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_PLACE = "recerase.toml"
"""A result must lie somewhere in the repository; the settings name what was audited, by which rules."""
_VERDICT = "recerase/verdict"
_LENGTH = 1000


def report_sarif(report: Report) -> bytes:
    """The whole document. Equal reports give equal bytes."""
    findings, decision, gate = report.decision.findings, report.decision, report.gate
    results = [
        _result(report, finding, index) for index, finding in enumerate(findings) if finding.result is not Result.PASS
    ]
    if decision.verdict is not Verdict.PASS or gate.exit_code:
        level = "error" if decision.verdict is Verdict.FAIL or gate.exit_code == 1 else "warning"
        text = f"{decision.verdict.value}: {decision.reason}; {gate_text(gate)}"
        results.append(_placed(report, _VERDICT, len(findings), level, text, {"result": decision.verdict.value}))
    run = {
        "tool": {
            "driver": {
                "name": "recerase",
                "version": metadata.version("recerase"),
                "semanticVersion": metadata.version("recerase"),
                "rules": [*(_rule(finding) for finding in findings), _verdict_rule()],
            }
        },
        "automationDetails": {"id": f"recerase/{_slug(str(report.concept.get('name', 'concept')))}/"},
        "invocations": [
            {
                "executionSuccessful": True,
                "exitCode": gate.exit_code,
                "exitCodeDescription": _safe(gate_text(gate)),
                "toolExecutionNotifications": [
                    {"level": "warning", "message": {"text": _safe(warning)}} for warning in decision.warnings
                ],
            }
        ],
        "results": results,
        "properties": _facts(report),
    }
    return document_bytes({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(finding: Finding) -> dict[str, Any]:
    rule = finding.rule
    return {
        "id": _safe(rule.id, 255),
        "shortDescription": {"text": _safe(f"{metric_label(rule.metric)}: {finding.limit}")},
        "help": {"text": _safe(f"{rule.metric} must be {finding.limit}, with the whole of its interval.")},
        "defaultConfiguration": {"level": "note" if rule.optional else "error"},
        "properties": {"metric": _safe(rule.metric), "limit": _safe(finding.limit), "result": finding.result.value},
    }


def _verdict_rule() -> dict[str, Any]:
    return {
        "id": _VERDICT,
        "shortDescription": {"text": "The verdict of the whole audit"},
        "help": {"text": "An audit passes where every rule passes and its controls could have failed a model."},
        "defaultConfiguration": {"level": "error"},
    }


def _result(report: Report, finding: Finding, index: int) -> dict[str, Any]:
    found, rule = finding.measurement, finding.rule
    soft = finding.result is Result.WAIVED or forgiven(finding)
    level = "error" if finding.result is Result.FAIL else "note" if soft else "warning"
    value = "not measured" if found is None else f"{value_text(found)} {interval_text(found)}".strip()
    text = f"{finding.result.value}: {metric_label(rule.metric)} is {value}, limit {finding.limit}. {finding.reason}"
    facts: dict[str, Any] = {
        "result": finding.result.value,
        "metric": _safe(rule.metric),
        "limit": _safe(finding.limit),
    }
    if found is not None:
        facts |= {"value": plain(found.value, "value"), "n": found.n}
    made = _placed(report, _safe(rule.id, 255), index, level, text, facts, rule.id, rule.metric, finding.limit)
    if finding.result is Result.WAIVED:
        made["suppressions"] = [{"kind": "external", "status": "accepted", "justification": _safe(finding.reason)}]
    return made


def _placed(
    report: Report, rule: str, index: int, level: str, text: str, facts: dict[str, Any], *identity: str
) -> dict[str, Any]:
    concept = [str(report.concept.get("name", "")), str(report.concept.get("digest", ""))]
    whole = plain([*concept, *(identity or (rule,))], "fingerprint")
    return {
        "ruleId": rule,
        "ruleIndex": index,
        "level": level,
        "message": {"text": _safe(text)},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _PLACE}, "region": {"startLine": 1}}}],
        "partialFingerprints": {"recerase/rule/v1": sha256_bytes(canonical_json(whole))},
        "properties": facts,
    }


def _facts(report: Report) -> dict[str, Any]:
    gate = report.gate
    return {
        "verdict": report.decision.verdict.value,
        "reason": _safe(report.decision.reason),
        "failOn": gate.fail_on,
        "exitReason": _safe(gate.reason),
        "regressions": [_safe(name) for name in gate.regressions],
        "concept": _safe(str(report.concept.get("name", "concept"))),
        "digest": report_digest(report),
        "inputs": plain(dict(report.inputs), "inputs"),
    }


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text)[:80].strip("-") or "concept"


def _safe(text: str, length: int = _LENGTH) -> str:
    """Text as readers show it: without control and bidirectional marks, on one line, not too long."""
    return title_text(text, length)
