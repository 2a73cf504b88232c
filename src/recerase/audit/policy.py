"""The one pure function that makes a verdict of measurements.

The decision that shaped this file: evidence is missing until it is there. A rule passes only where the pessimistic end
of an interval, made with the policy's confidence on enough units, respects the limit, and fails only where the favourable
end is beyond it too; what was not measured, is not a number, or lies on both sides is inconclusive. A value beyond the limit
with no interval to speak for it fails: nothing comes out better for lack of evidence. An audit that does not tell its controls
apart passes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal

from recerase.audit.card import PROFILES
from recerase.audit.policy_file import check_policy, default_policy, is_day, load_policy, parse_policy, policy_digest
from recerase.limits import forgiven
from recerase.stats import enough_n
from recerase.types import (
    Control,
    Decision,
    Finding,
    Interval,
    Measurement,
    Policy,
    Profile,
    Result,
    Role,
    Rule,
    Scope,
    Skipped,
    Verdict,
    Waiver,
)

__all__ = [
    "check_policy",
    "covers",
    "decide",
    "default_policy",
    "in_force",
    "limit_text",
    "load_policy",
    "not_asked",
    "parse_policy",
    "policy_digest",
    "required",
]

Kind = Literal["value", "drop", "ratio"]
Asked = tuple[str, Role, Role | None, Kind]
"""metric, role, versus, kind: a measurement that a policy needs."""

NEEDED_CONTROLS = ("original", "filter")
_CONTROL_ORDER = ("original", "filter", "reference")
SPREAD = "references"
"""Method of an interval that was stretched to hold every single reference: more users do not make it narrower."""
ITEMS = "items"
"""Method of one that is as wide as it is because few items lie behind it: nor do they here."""
_SEVERITY = {Result.PASS: 0, Result.WAIVED: 1, Result.INCONCLUSIVE: 2, Result.FAIL: 3}


def required(policy: Policy) -> tuple[Asked, ...]:
    """The measurements the rules need, each once, in the order of the rules: (metric, "subject", versus, kind)."""
    return tuple(dict.fromkeys((rule.metric, "subject", *_compared(rule)) for rule in policy.rules))


def not_asked(rule: Rule, profile: Profile, scope: Scope) -> str:
    """Why an audit of that profile and scope does not ask the rule, as words after its id; empty: it does."""
    if rule.profile is not None and PROFILES.index(rule.profile) > PROFILES.index(profile):
        return f"asked from the {rule.profile} profile on"
    return f"asked in scope {rule.scope}" if rule.scope not in (None, scope) else ""


def in_force(policy: Policy, profile: Profile, scope: Scope) -> Policy:
    """The policy with no rule but those that an audit of that profile and scope asks."""
    return replace(policy, rules=tuple(rule for rule in policy.rules if not not_asked(rule, profile, scope)))


def limit_text(rule: Rule) -> str:
    """A rule's limit as it is shown: `<= 0.001`, `drop vs original <= 5 %`, `ratio to reference >= 0.1 and <= 3`."""
    versus, kind = _compared(rule)
    if kind == "drop":
        return f"drop vs {versus} <= {100 * _number(rule.max_drop):g} %"
    ends = [f"{sign} {bound:g}" for sign, bound in ((">=", rule.min), ("<=", rule.max)) if bound is not None]
    text = " and ".join(ends) or "no limit"
    return f"ratio to {versus} {text}" if kind == "ratio" else text


def decide(
    policy: Policy,
    measurements: Iterable[Measurement],
    skipped: Iterable[Skipped],
    controls: Iterable[Control],
    concept_name: str,
    today: date,
    profile: Profile | None = None,
    scope: Scope = "output",
) -> Decision:
    """The verdict on the subject: pure, and the same whatever the order of what it is given.

    Rule: PASS where the pessimistic end of its interval respects the limit, FAIL where the favourable end is beyond it too or a
    value beyond it has no interval that could be judged, INCONCLUSIVE otherwise (and the n that would suffice). Where a number was
    handed in twice, the worse one counts. A rule that belongs to a wider profile or another scope than those of the audit is not
    asked, and has no finding.
    Verdict: INCONCLUSIVE while a control is broken; FAIL where a rule fails; PASS only where a rule passed, every other
    passed, was waived or is forgiven (optional and undecided, with no value beyond its limit), and the original and the filter
    control hold.
    A waiver forgives what was measured for its rule and concept until its date, inclusive; `today` is the day. `profile` (None:
    the policy's) is what was run.
    """
    profile = profile or policy.profile
    asked = in_force(policy, profile, scope)
    unasked = {rule.id: why for rule in policy.rules if (why := not_asked(rule, profile, scope))}
    by_key: dict[tuple[str, Role | None, Kind], list[Measurement]] = {}
    for m in measurements:
        if m.role == "subject":
            by_key.setdefault((m.metric, m.versus, m.kind), []).append(m)
    missing = sorted({(s.metric, s.reason) for s in skipped if s.role == "subject"})
    found = [_finding(rule, by_key.get((rule.metric, *_compared(rule)), []), missing, policy) for rule in asked.rules]
    findings, warnings = _waive(found, policy.waivers, concept_name, today, unasked)
    told = tuple(sorted(controls, key=lambda c: (_CONTROL_ORDER.index(c.name), str(c.holds), c.observed)))
    verdict, reason = _conclude(policy, findings, told, unasked)
    return Decision(verdict, reason, findings, told, warnings, _as_of(policy.waivers, concept_name, today), profile)


def _compared(rule: Rule) -> tuple[Role | None, Kind]:
    if rule.max_drop_vs is not None:
        return rule.max_drop_vs, "drop"
    ratio_to = rule.max_ratio_to or rule.min_ratio_to
    return (ratio_to, "ratio") if ratio_to is not None else (None, "value")


def _number(bound: float | None) -> float:
    """A limit that was not given is not a number: nothing respects it and nothing is beyond it."""
    return math.nan if bound is None else bound


@dataclass(frozen=True)
class _Limit:
    """One side of a rule, turned so that smaller is better: a minimum is a maximum of the negated number."""

    sign: int
    bound: float

    def judge(self, m: Measurement, policy: Policy) -> tuple[Result, str, int | None]:
        """What it comes to, why, and of what is undecided for want of units, how many would be enough."""
        if math.isnan(m.value):
            return Result.INCONCLUSIVE, "the measured value is not a number", None
        over = self.sign * m.value > self.sign * self.bound
        return self._over(m, policy) if over else self._within(m, policy)

    def respected(self, m: Measurement) -> bool:
        """Whether the value itself is within this limit; what is no number is not."""
        return self.sign * m.value <= self.sign * self.bound

    def _within(self, m: Measurement, policy: Policy) -> tuple[Result, str, int | None]:
        """As `judge`, of a value that respects the limit: its pessimistic end decides whether it passes."""
        if math.isinf(m.value):
            return Result.INCONCLUSIVE, "the measured value is infinite", None
        if m.interval is None:
            return Result.INCONCLUSIVE, f"{m.value:.4g} has no interval, so how sure it is is not known", None
        if doubt := _doubt(m.interval, policy):
            return Result.INCONCLUSIVE, doubt, None
        value, limit = self.sign * m.value, self.sign * self.bound
        end = max(value, self.sign * m.interval.low, self.sign * m.interval.high)
        few = m.n < 1 or (m.n < policy.min_users and m.interval.method != "exact")
        if end <= limit and not few:
            return Result.PASS, f"its pessimistic end {self.sign * end:.4g} respects the limit", None
        enough = _enough(value, end, limit, m.n, m.interval) if end > limit else 1
        told = f"its pessimistic end {self.sign * end:.4g} is beyond the limit"
        if enough is None:
            return Result.INCONCLUSIVE, f"{told}: {_no_more(m.interval)}", None
        if few:
            enough = max(policy.min_users, enough)
            return Result.INCONCLUSIVE, f"n = {m.n} is too few: n = {enough} or more would suffice", enough
        return Result.INCONCLUSIVE, f"{told}: n = {enough} or so would suffice", enough

    def _over(self, m: Measurement, policy: Policy) -> tuple[Result, str, int | None]:
        """As `judge`, of a value beyond the limit: it fails unless the favourable end of an interval speaks for it."""
        told = f"{m.value:.4g} is beyond the limit"
        if m.interval is None or m.interval.low == m.value == m.interval.high:
            return Result.FAIL, told, None
        value, limit = self.sign * m.value, self.sign * self.bound
        ends = (self.sign * m.interval.low, self.sign * m.interval.high)
        doubt = _doubt(m.interval, policy) or ("" if m.n >= 1 else f"its n is {m.n}")
        if doubt := doubt or ("its interval does not hold it" if value > max(ends) else ""):
            return Result.FAIL, f"{told}, and {doubt}", None
        end = min(value, *ends)
        if end > limit:
            return Result.FAIL, f"{told}, and so is the favourable end {self.sign * end:.4g} of its interval", None
        told += f", but the favourable end {self.sign * end:.4g} of its interval is not"
        enough = _enough(-value, -end, -limit, m.n, m.interval)
        if enough is None:
            return Result.INCONCLUSIVE, f"{told}: {_no_more(m.interval)}", None
        enough = max(enough, policy.min_users) if m.n < policy.min_users else enough
        return Result.INCONCLUSIVE, f"{told}: n = {enough} or so would settle it", enough


def _doubt(interval: Interval, policy: Policy) -> str:
    """Why nothing can be decided by an interval; empty: it can."""
    exact = interval.method == "exact"
    if not exact and not policy.confidence <= interval.confidence <= 1:  # what is not a number is no confidence
        held, asked = 100 * interval.confidence, 100 * policy.confidence
        return f"its interval is at {held:g} % confidence, the policy asks for {asked:g} %"
    return "an end of its interval is not a number" if any(map(math.isnan, (interval.low, interval.high))) else ""


def _enough(value: float, end: float, limit: float, n: int, interval: Interval) -> int | None:
    """As `enough_n`; None also where it is not users that are lacking: references or items differ by as much, or ends are exact."""
    return (
        None
        if interval.method in (SPREAD, ITEMS, "exact") or interval.confidence == 1
        else enough_n(value, end, limit, n, interval.method, interval.confidence)
    )


def _no_more(interval: Interval) -> str:
    """Why no n is named."""
    spread = "references differ by as much"  # exact numbers have a width where several references are compared with
    lacking = {SPREAD: spread, "exact": spread, ITEMS: "few items lie behind it"}.get(interval.method)
    return f"no n would suffice{'' if lacking is None else f', for {lacking}'}"


def _limits(rule: Rule) -> list[_Limit]:
    if rule.max_drop_vs is not None:
        return [_Limit(1, _number(rule.max_drop))]
    return [_Limit(s, bound) for s, bound in ((1, rule.max), (-1, rule.min)) if bound is not None]


def _finding(rule: Rule, own: Sequence[Measurement], missing: Sequence[tuple[str, str]], policy: Policy) -> Finding:
    limit = limit_text(rule)
    if not own:
        return Finding(rule, Result.INCONCLUSIVE, _why_missing(rule, missing), None, limit)
    sides = _limits(rule)
    judged = [(side.judge(m, policy), not side.respected(m), m) for side in sides for m in own]
    if not judged:
        return Finding(rule, Result.INCONCLUSIVE, "the rule sets no limit", own[0], limit)
    (result, reason, enough), _, m = max(
        judged, key=lambda j: (_SEVERITY[j[0][0]], j[1], j[0][2] or 0, j[0][1], repr(j[2]))
    )
    return Finding(rule, result, reason, m, limit, enough)


def _why_missing(rule: Rule, missing: Sequence[tuple[str, str]]) -> str:
    """Why a rule's number is not there: reasons that speak of the model it is compared with go before others."""
    versus, kind = _compared(rule)
    reasons = [reason for metric, reason in missing if covers(metric, rule.metric)]
    reasons = [reason for reason in reasons if versus is not None and versus in reason and kind in reason] or reasons
    return f"not measured: {'; '.join(dict.fromkeys(reasons))}" if reasons else "not measured"


def covers(skipped: str, metric: str) -> bool:
    """Whether a `Skipped` of that name says why a metric is not there."""
    return skipped == metric or (skipped.endswith(".*") and metric.startswith(skipped[:-1]))


def _waive(
    findings: Sequence[Finding], waivers: Sequence[Waiver], concept: str, today: date, unasked: Mapping[str, str]
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Findings with this concept's waivers applied, and a warning for each waiver that forgives nothing."""
    told, warnings = list(findings), []
    for waiver in waivers:
        if waiver.concept != concept:
            continue
        name = f"The waiver of {waiver.rule!r} for {concept!r}"
        if not is_day(waiver.expires) or today > date.fromisoformat(waiver.expires):
            warnings.append(f"{name} is no waiver: it expired on {waiver.expires!r}.")
            continue
        used = [i for i, f in enumerate(findings) if f.rule.id == waiver.rule and _forgivable(f)]
        for i in used:
            reason = f"{findings[i].reason}; waived until {waiver.expires}: {waiver.reason}"
            told[i] = replace(findings[i], result=Result.WAIVED, reason=reason)
        if not used:
            why = unasked.get(waiver.rule)
            told_why = f"is {why}" if why is not None else "was met, or was not measured"
            warnings.append(f"{name} is not used: that rule {told_why}.")
    return tuple(told), tuple(dict.fromkeys(warnings))


def _as_of(waivers: Sequence[Waiver], concept: str, today: date) -> str:
    """The earliest day on which these waivers say what they say today, so that the day itself changes no report."""
    ends = [date.fromisoformat(w.expires) for w in waivers if w.concept == concept and is_day(w.expires)]
    over = [end for end in ends if end < today]
    return (max(over) + timedelta(days=1)).isoformat() if over else ""


def _forgivable(finding: Finding) -> bool:
    """What was measured and found wanting; what was not measured cannot be forgiven, for nobody knows what it is."""
    wanting = finding.result in (Result.FAIL, Result.INCONCLUSIVE)
    return wanting and finding.measurement is not None and not math.isnan(finding.measurement.value)


def _conclude(
    policy: Policy, findings: Sequence[Finding], controls: Sequence[Control], unasked: Mapping[str, str]
) -> tuple[Verdict, str]:
    broken = [c for c in controls if c.holds is False]
    if broken:
        told = "; ".join(f"the {c.name} control (expected: {c.expected}) {c.observed}" for c in broken)
        return Verdict.INCONCLUSIVE, f"audit invalid: {told}"
    if not any(f.measurement is not None for f in findings):
        none = "no rule of the policy is asked in this audit" if unasked else "the policy has no rule"
        why = "nothing the policy asks for was measured" if findings else none
        return Verdict.INCONCLUSIVE, why
    failed = [f for f in findings if f.result is Result.FAIL]
    if failed:
        return Verdict.FAIL, f"{_counted(failed, findings)} failed: {_names(failed)}"
    undecided = [f for f in findings if f.result is Result.INCONCLUSIVE and not forgiven(f)]
    if undecided:
        told = f"{_counted(undecided, findings)} could not be decided: {_names(undecided)}"
        if policy.on_inconclusive == "fail":
            return Verdict.FAIL, f"{told}; the policy counts that as a failure"
        return Verdict.INCONCLUSIVE, told
    passed = [f for f in findings if f.result is Result.PASS]
    if not passed:
        return Verdict.INCONCLUSIVE, "no rule passed: those that were measured are waived"
    held = {c.name for c in controls if c.holds is True}
    open_ = {c.name for c in controls if c.holds is None}
    lacking = [name for name in NEEDED_CONTROLS if name not in held or name in open_]
    if lacking:
        which = f"the {' and the '.join(lacking)} control{'s' if len(lacking) > 1 else ''}"
        return Verdict.INCONCLUSIVE, f"no rule failed, but {which} did not show that this audit can fail a model"
    others = {"waived": Result.WAIVED, "optional and undecided": Result.INCONCLUSIVE}
    left = [(how, [f for f in findings if f.result is result]) for how, result in others.items()]
    told = "".join(f"; {how}: {_names(some)}" for how, some in left if some)
    told += f"; not asked: {', '.join(unasked)}" if unasked else ""
    return Verdict.PASS, f"{_counted(passed, findings)} passed{told}"


def _counted(some: Sequence[Finding], findings: Sequence[Finding]) -> str:
    return f"{len(some)} of {len(findings)} rule{'' if len(findings) == 1 else 's'}"


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(f.rule.id for f in findings)
