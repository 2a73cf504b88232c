"""A report as workflow commands of GitHub Actions: an error for each violated rule, a warning for what is undecided.

The decision that shaped this file: GitHub shows ten annotations of a kind a step and drops the rest without a word, so
the one on the whole verdict comes first and names how many rules did not hold. Escaping is that of
docs.github.com/actions/reference/workflow-commands and of the runner's own tool kit.
"""

from __future__ import annotations

from recerase.limits import forgiven
from recerase.report.wording import gate_text, interval_text, title_text, value_text
from recerase.types import Finding, Report, Result, Verdict

_LENGTH = 1000
_LEVELS = {Result.FAIL: "error", Result.INCONCLUSIVE: "warning"}


def report_annotations(report: Report) -> str:
    """The commands, a line each; empty where every rule passed, or was waived, and the exit code is 0.

    `::error title=TITLE::MESSAGE` for a rule that is violated, `::warning` for one that could not be decided and is not
    forgiven (optional, with no value beyond its limit), and before them one for the verdict unless it is a pass with exit code 0.
    Equal reports give equal text.
    """
    lines = []
    decision, gate = report.decision, report.gate
    concept = str(report.concept.get("name", "concept"))
    if decision.verdict is not Verdict.PASS or gate.exit_code:
        level = "error" if decision.verdict is Verdict.FAIL or gate.exit_code == 1 else "warning"
        lines.append(command(level, f"{decision.verdict.value}: {concept}", f"{decision.reason} {gate_text(gate)}"))
    for finding in decision.findings:
        if finding.result in _LEVELS and not forgiven(finding):
            lines.append(command(_LEVELS[finding.result], f"{finding.result.value}: {finding.rule.id}", _told(finding)))
    return "".join(f"{line}\n" for line in lines)


def command(level: str, title: str, message: str) -> str:
    """One workflow command, whatever title and message hold."""
    return f"::{level} title={_property(title_text(title, 200))}::{_data(title_text(message, _LENGTH))}"


def _told(finding: Finding) -> str:
    found = finding.measurement
    value = "not measured" if found is None else f"{value_text(found)} {interval_text(found)}, n = {found.n:,}"
    return f"{finding.rule.metric}: {value}; limit {finding.limit}. {finding.reason}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
