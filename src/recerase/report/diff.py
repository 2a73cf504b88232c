"""Two reports side by side, rule by rule: what each concluded, from which value.

The one decision: a comparison shows and does not judge. Whether a change is a regression is the gate's to say, which
needs a baseline that somebody accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recerase.report.codec import plain
from recerase.report.schema import report_digest
from recerase.report.wording import value_text
from recerase.types import Finding, Report


@dataclass(frozen=True)
class RuleChange:
    """One rule in two reports; None where a report does not have it."""

    rule: str
    before: Finding | None
    after: Finding | None

    @property
    def same(self) -> bool:
        """Whether both came to the same result from the same value."""
        return _shown(self.before) == _shown(self.after)


def rule_changes(before: Report, after: Report) -> tuple[RuleChange, ...]:
    """Every rule of either report, in the order of the first, then of the second."""
    old, new = ({f.rule.id: f for f in report.decision.findings} for report in (before, after))
    return tuple(RuleChange(name, old.get(name), new.get(name)) for name in dict.fromkeys([*old, *new]))


def diff_rows(before: Report, after: Report) -> list[tuple[str, str, str, str]]:
    """rule, first, second, and whether it changed; the verdict and the exit code come first."""
    heads = [
        ("verdict", before.decision.verdict.value, after.decision.verdict.value),
        (
            "exit code",
            f"{before.gate.exit_code} ({before.gate.fail_on})",
            f"{after.gate.exit_code} ({after.gate.fail_on})",
        ),
    ]
    profiles = before.decision.profile, after.decision.profile
    heads += [("profile", *profiles)] if profiles[0] != profiles[1] else []
    rows = [(name, one, other, "" if one == other else "changed") for name, one, other in heads]
    for change in rule_changes(before, after):
        one, other = _text(change.before, change.rule, before), _text(change.after, change.rule, after)
        rows.append((change.rule, one, other, "" if change.same else "changed"))
    return rows


def diff_document(before: Report, after: Report) -> dict[str, Any]:
    """The same as JSON values."""
    sides = {"before": before, "after": after}
    return {
        "schema": "recerase.diff/1",
        **{
            name: {
                "digest": report_digest(report),
                "concept": report.concept.get("name"),
                "verdict": report.decision.verdict.value,
                "profile": report.decision.profile,
                "exit_code": report.gate.exit_code,
                "fail_on": report.gate.fail_on,
            }
            for name, report in sides.items()
        },
        "rules": [
            {"rule": c.rule, "before": _values(c.before), "after": _values(c.after), "changed": not c.same}
            for c in rule_changes(before, after)
        ],
    }


def _shown(finding: Finding | None) -> tuple[object, ...]:
    if finding is None:
        return ()
    found = finding.measurement
    return finding.result, finding.limit, None if found is None else repr(found.value)


def _text(finding: Finding | None, rule: str, report: Report) -> str:
    if finding is None:
        known = report.policy is not None and any(one.id == rule for one in report.policy.rules)
        return f"not asked ({report.decision.profile} profile)" if known else "no such rule"
    value = "not measured" if finding.measurement is None else value_text(finding.measurement)
    return f"{finding.result.value}: {value} ({finding.limit})"


def _values(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    value = None if finding.measurement is None else plain(finding.measurement.value, "value")
    return {"result": finding.result.value, "value": value, "limit": finding.limit}
