"""The exit code of an audit: the verdict's own, or what the user asked to fail on instead. Pure.

The one decision: the verdict never changes. What a build does about it is a second, smaller value beside it. Where an
accepted audit is the measure, each rule is held against its own old finding and no other, so that one old finding
never hides two new ones; what was decided then and is not now is inconclusive, never passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date

from recerase.errors import UsageError
from recerase.limits import beyond, forgiven
from recerase.types import (
    Baseline,
    BaselineRule,
    Decision,
    FailOn,
    Finding,
    Gate,
    Measurement,
    Report,
    Result,
    Rule,
    Verdict,
)

_INCONCLUSIVE = Verdict.INCONCLUSIVE.exit_code
_BADNESS = {0: 0, _INCONCLUSIVE: 1, 1: 2}


def gate(decision: Decision, fail_on: FailOn = "policy", baseline: Baseline | None = None) -> Gate:
    """The exit code of a decision, held against a baseline if there is one.

    policy: the verdict's. regression: 1 where a rule fails that did not fail in the baseline, or fails with a value
    beyond the baseline's interval; 5 where the audit is invalid, has not decided what the baseline had, or leaves open a value
    that is beyond its limit where the baseline's was not, or not as far. A limit that was loosened since is still the baseline's.
    any: the worse of the two. never: 0.
    Raises UsageError for a regression without a baseline, and for a baseline that has no digest.
    """
    if baseline is None:
        if fail_on == "regression":
            raise UsageError("--fail-on regression has nothing to compare with.", "Pass --baseline FILE.")
        return concluded(decision, fail_on)
    if not baseline.digest:
        raise UsageError(
            "A baseline without a digest is not written yet.", "Write and read it: `recerase report bless`."
        )
    return concluded(decision, fail_on, *_compared(decision, baseline), baseline.digest)


def concluded(
    decision: Decision,
    fail_on: FailOn,
    regressions: Sequence[str] = (),
    undecided: Sequence[str] = (),
    baseline: str = "",
) -> Gate:
    """The Gate, once it is known what became worse and what is open; `baseline` is its digest, empty without one."""
    by_policy = (decision.verdict.exit_code, f"the policy says {decision.verdict.value}")
    by_baseline = _by_baseline(decision, regressions, undecided) if baseline else (0, "")
    code, reason = by_policy
    if fail_on == "never":
        code, reason = 0, "the caller asked to fail on nothing"
    elif fail_on == "regression":
        code, reason = by_baseline
    elif fail_on == "any" and baseline:
        code = max(by_policy[0], by_baseline[0], key=_BADNESS.__getitem__)
        reason = f"{by_policy[1]}; {by_baseline[1]}"
    return Gate(fail_on, code, reason, tuple(regressions), tuple(undecided), baseline)


def accepted(report: Report, digest: str, reason: str, day: date) -> Baseline:
    """The baseline that a report makes, once somebody says why; `digest` is the report's. Its own is added on writing."""
    rules = tuple(_kept(finding) for finding in report.decision.findings)
    name, concept_digest = str(report.concept.get("name", "")), str(report.concept.get("digest", ""))
    policy, held = report.inputs.get("policy", ""), tuple(c.name for c in report.decision.controls if c.holds)
    verdict, date_ = report.decision.verdict, day.isoformat()
    return Baseline(name, concept_digest, policy, digest, verdict, rules, held, reason, date_)


def _kept(finding: Finding) -> BaselineRule:
    found = finding.measurement
    if found is None or math.isnan(found.value):
        return BaselineRule(finding.rule, finding.result, finding.limit)
    return BaselineRule(finding.rule, finding.result, finding.limit, found.value, found.interval)


def _by_baseline(decision: Decision, regressions: Sequence[str], undecided: Sequence[str]) -> tuple[int, str]:
    broken = [control.name for control in decision.controls if control.holds is False]
    if broken:
        return _INCONCLUSIVE, f"the audit is invalid: the {' and the '.join(broken)} control did not hold"
    if all(finding.measurement is None for finding in decision.findings):
        return _INCONCLUSIVE, "nothing the policy asks for was measured"
    if regressions:
        return 1, f"worse than in the baseline: {', '.join(regressions)}"
    if undecided:
        return _INCONCLUSIVE, f"decided in the baseline and not here, or open here and worse: {', '.join(undecided)}"
    return 0, "nothing is worse than in the baseline"


def _compared(decision: Decision, baseline: Baseline) -> tuple[list[str], list[str]]:
    """What is worse than in the baseline, and what is open now that the baseline had decided or knew better; each in its order."""
    old: dict[tuple[object, ...], list[BaselineRule]] = {}
    for known in baseline.rules:
        old.setdefault(_asks(known.rule), []).append(known)
    regressions, undecided = [], []
    for finding in decision.findings:
        same = old.get(_asks(finding.rule))
        before = same.pop() if same else None  # used up: an old finding excuses one new one
        if _regressed(finding, before):
            regressions.append(finding.rule.id)
        elif _was_decided(finding, before) if finding.result is Result.INCONCLUSIVE else _loosened(finding, before):
            undecided.append(finding.rule.id)
    left = [known for same in old.values() for known in same]  # asked then, not asked now
    undecided += [known.rule.id for known in left if known.result is not Result.INCONCLUSIVE]
    if decision.verdict is Verdict.INCONCLUSIVE and baseline.verdict is not Verdict.INCONCLUSIVE:
        undecided.append("verdict")
    else:
        held = {control.name for control in decision.controls if control.holds}
        undecided += [f"the {name} control" for name in baseline.controls if name not in held]
    return regressions, undecided


def _asks(rule: Rule) -> tuple[object, ...]:
    """What makes two rules the same one: its id and its number, whatever the limit."""
    return rule.id, rule.metric, rule.max_ratio_to or rule.min_ratio_to, rule.max_drop_vs


def _was_decided(finding: Finding, before: BaselineRule | None) -> bool:
    """Whether a rule may not be open: it was decided, or its value was not beyond the limit, or not so far. One that is new was
    decided by nobody, but only what a verdict forgives may stay open."""
    if before is None:
        return not forgiven(finding)
    return before.result is not Result.INCONCLUSIVE or _crossed(finding, before)


def _crossed(finding: Finding, before: BaselineRule) -> bool:
    """Whether the value itself is beyond the accepted limit, and the accepted one was not, or not so far."""
    found = finding.measurement
    return found is not None and _further(found.value, beyond(before.rule, found.value), before)


def _further(value: float, sides: frozenset[str], before: BaselineRule) -> bool:
    """Whether a value that is beyond the accepted limit on these sides is so on one where the accepted value was not, or is further
    out than the accepted interval."""
    if before.value is None:
        return bool(sides)
    ends = (before.value, before.value) if before.interval is None else (before.interval.low, before.interval.high)
    low, high = (end if math.isfinite(end) else before.value for end in ends)
    new = sides - beyond(before.rule, before.value)
    return bool(new) or ("high" in sides and value > high) or ("low" in sides and value < low)


def _surely(rule: Rule, found: Measurement) -> frozenset[str]:
    """The sides on which a value is beyond a rule's limits and its interval does not reach back; without an interval: all it is on."""
    sides, around = beyond(rule, found.value), found.interval
    if around is None or math.isnan(around.low) or math.isnan(around.high):
        return sides
    ends = ("high", min(found.value, around.low)), ("low", max(found.value, around.high))
    return sides & frozenset(side for side, end in ends if side in beyond(rule, end))


def _loosened(finding: Finding, before: BaselineRule | None) -> bool:
    """Whether a rule passes by its limit of today, and would be open by the one that was accepted."""
    found = finding.measurement
    if finding.result is not Result.PASS or before is None or found is None or found.interval is None:
        return False
    ends = beyond(before.rule, found.value, found.interval.low, found.interval.high)
    decided = before.result is not Result.INCONCLUSIVE or _crossed(finding, before)
    return decided and bool(ends) and not _surely(before.rule, found)


def _regressed(finding: Finding, before: BaselineRule | None) -> bool:
    """Whether a rule fails, by its limit of today or by the one that was accepted, and did not, or less."""
    failed, found = finding.result is Result.FAIL, finding.measurement
    if before is None or found is None or finding.result is Result.WAIVED:
        return failed
    value, sides = found.value, _surely(before.rule, found)
    sides |= beyond(finding.rule, value) if failed else frozenset()
    if before.result is not Result.FAIL or before.value is None:
        return failed or bool(sides)
    return _further(value, sides, before)
