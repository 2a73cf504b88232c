"""A verdict as an in-toto Statement v1 with the test-result predicate, for policy engines that admit models by attestation.

The decision that shaped this file: a verifier that reads `result` alone must never take for passed what was not measured,
so an inconclusive audit is FAILED, and only a pass without waiver, warning, skipped optional rule, or rule of the policy that the
audit's profile or scope did not ask is PASSED. Spec: github.com/in-toto/attestation, spec/v1/statement.md and
spec/predicates/test-result.md (v0.1). The statement is not signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recerase.limits import forgiven
from recerase.report.codec import document_bytes, plain
from recerase.report.schema import SCHEMA, report_digest
from recerase.types import Report, Result, Verdict

STATEMENT = "https://in-toto.io/Statement/v1"
TEST_RESULT = "https://in-toto.io/attestation/test-result/v0.1"
_TESTED = ("subject",)
"""Inputs that are the statement's subject, and no configuration of the test."""


def report_statement(report: Report, files: Mapping[str, str], report_sha256: str, url: str | None = None) -> bytes:
    """The statement as canonical JSON. Equal arguments give equal bytes.

    `files`: name below the checkpoint -> sha256 of its content; they are the subjects, sorted by name. `report_sha256` is
    that of the report file, which stands among the configuration with verdict and exit code. Raises ValueError without files.
    """
    if not files:
        raise ValueError("a statement is about something: it needs a file")
    outcomes = _outcomes(report)
    predicate: dict[str, Any] = {
        "result": _result(report, outcomes),
        "configuration": _configuration(report, report_sha256),
        **({"url": url} if url else {}),
        **{key: [name for name, outcome in outcomes if outcome == key] for key in _KEYS},
    }
    subject = [{"name": plain(name, "name"), "digest": {"sha256": files[name]}} for name in sorted(files)]
    return document_bytes(
        {"_type": STATEMENT, "subject": subject, "predicateType": TEST_RESULT, "predicate": predicate}
    )


_KEYS = ("passedTests", "warnedTests", "failedTests")


def _outcomes(report: Report) -> list[tuple[str, str]]:
    """Name of a test -> the list it stands in: `rule/ID` for a rule, `control/NAME` for a control, `gate` for the exit code."""
    passed, warned, failed = _KEYS
    found = []
    for finding in report.decision.findings:
        soft = finding.result is Result.WAIVED or forgiven(finding)
        key = passed if finding.result is Result.PASS else warned if soft else failed
        found.append((f"rule/{plain(finding.rule.id, 'rule')}", key))
    asked = {finding.rule.id for finding in report.decision.findings}
    rules = report.policy.rules if report.policy is not None else ()
    found += [(f"rule/{plain(rule.id, 'rule')}", warned) for rule in rules if rule.id not in asked]
    held = {True: passed, False: failed, None: warned}
    found += [(f"control/{control.name}", held[control.holds]) for control in report.decision.controls]
    return [*found, ("gate", failed if report.gate.exit_code else passed)]


def _result(report: Report, outcomes: list[tuple[str, str]]) -> str:
    if report.decision.verdict is not Verdict.PASS or report.gate.exit_code:
        return "FAILED"
    return "WARNED" if report.decision.warnings or any(key != _KEYS[0] for _, key in outcomes) else "PASSED"


def _configuration(report: Report, report_sha256: str) -> list[dict[str, Any]]:
    """What the test was run with, as resource descriptors: every input but the subject, and the report itself."""
    inputs = {name: digest for name, digest in sorted(report.inputs.items()) if digest and name not in _TESTED}
    decision, gate = report.decision, report.gate
    told = {
        "schema": SCHEMA,
        "audit": report_digest(report),
        "verdict": decision.verdict.value,
        "reason": plain(decision.reason, "reason"),
        "profile": decision.profile,
        "exitCode": gate.exit_code,
        "failOn": gate.fail_on,
        "concept": plain(str(report.concept.get("name", "concept")), "concept"),
    }
    whole = {
        "name": "report",
        "digest": {"sha256": report_sha256},
        "mediaType": "application/json",
        "annotations": told,
    }
    return [whole, *({"name": plain(name, "name"), "digest": {"sha256": digest}} for name, digest in inputs.items())]
