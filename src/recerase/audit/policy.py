"""A policy's rules, and the one pure function that makes a verdict of measurements.

The decision that shaped this file: evidence is missing until it is there. A rule passes only where the pessimistic end
of an interval, made with the policy's confidence on enough units, respects the limit; what was not measured, not sure
enough or not a number is inconclusive; an audit that does not tell its controls apart passes nothing. The file a policy
is read from is held to the same: an unknown key or metric is a problem, and all problems are listed at once.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from recerase.errors import PolicyError
from recerase.stats import required_n
from recerase.store import canonical_json, sha256_bytes
from recerase.types import Control, Decision, Finding, Measurement, Policy, Result, Role, Rule, Skipped, Verdict, Waiver

SCHEMA = "recerase.policy/1"
Kind = Literal["value", "drop", "ratio"]
Asked = tuple[str, Role, Role | None, Kind]
"""metric, role, versus, kind: a measurement that a policy needs."""

NEEDED_CONTROLS = ("original", "filter")
_CONTROL_ORDER = ("original", "filter", "reference")
_SEVERITY = {Result.PASS: 0, Result.WAIVED: 1, Result.INCONCLUSIVE: 2, Result.FAIL: 3}


def load_policy(path: str | os.PathLike[str], known: Set[str] | None = None) -> Policy:
    """The policy in a TOML file; `known` (default: the registry's) are the metrics it may name.

    Raises PolicyError when it cannot be read, is no TOML, or holds anything unusable: all problems at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"Cannot read the policy {path}: {error}.", "Check the path; it is UTF-8 text.") from error
    return _from_text(text, str(path), known)


@functools.cache
def default_policy() -> Policy:
    """The policy recerase ships: strict enough that a model that was never erased fails it."""
    text = files("recerase.audit").joinpath("default_policy.toml").read_text(encoding="utf-8")
    return _from_text(text, "default_policy.toml", None)


def parse_policy(data: Mapping[str, Any], known: Set[str], where: str = "the policy") -> Policy:
    """A Policy from a parsed file. Raises PolicyError listing every problem `check_policy` finds."""
    problems = check_policy(data, known)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        remedy = "`recerase policy init` writes one that can."
        raise PolicyError(f"{where} cannot be used, for {len(problems)} reasons:\n{listed}\n", remedy)
    rules = tuple(_made(Rule, rule) for rule in data["rule"])
    waivers = tuple(_made(Waiver, waiver) for waiver in data.get("waiver", ()))
    policy = _made(Policy, {**data.get("audit", {}), "rules": rules, "waivers": waivers})
    said = {name: value for name, value in asdict(policy).items() if name != "digest"}
    return replace(policy, digest=sha256_bytes(canonical_json(said)))


def _made(kind: Callable[..., Any], table: Mapping[str, Any]) -> Any:
    """A `kind` of a checked table, with 0 and 0.0, and a date and its text, made the same."""
    floats = ("max", "min", "max_drop", "confidence")
    values = {key: float(value) if key in floats else value for key, value in table.items()}
    return kind(**{key: str(value) if key == "expires" else value for key, value in values.items()})


def _from_text(text: str, where: str, known: Set[str] | None) -> Policy:
    from recerase.audit.probes import known_metrics

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"{where} is not TOML: {error}.", "Mend it at that place.") from error
    return parse_policy(data, known_metrics() if known is None else known, where)


def required(policy: Policy) -> tuple[Asked, ...]:
    """The measurements the rules need, each once, in the order of the rules: (metric, "subject", versus, kind)."""
    return tuple(dict.fromkeys((rule.metric, "subject", *_compared(rule)) for rule in policy.rules))


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
) -> Decision:
    """The verdict on the subject: pure, and the same whatever the order of what it is given.

    Rule: FAIL where the value itself is beyond the limit, PASS where the pessimistic end of its interval respects it,
    INCONCLUSIVE otherwise (and the n that would suffice). Where a number was handed in twice, the worse one counts.
    Verdict: INCONCLUSIVE while a control is broken; FAIL where a rule fails; PASS only where a rule passed, every other
    passed, was waived or was optional and undecided, and the original and the filter control hold.
    A waiver forgives what was measured for its rule and concept until its date, inclusive; `today` is the day.
    """
    by_key: dict[tuple[str, Role | None, Kind], list[Measurement]] = {}
    for m in measurements:
        if m.role == "subject":
            by_key.setdefault((m.metric, m.versus, m.kind), []).append(m)
    missing = sorted({(s.metric, s.reason) for s in skipped if s.role == "subject"})
    found = [_finding(rule, by_key.get((rule.metric, *_compared(rule)), []), missing, policy) for rule in policy.rules]
    findings, warnings = _waive(found, policy.waivers, concept_name, today)
    told = tuple(sorted(controls, key=lambda c: (_CONTROL_ORDER.index(c.name), str(c.holds), c.observed)))
    verdict, reason = _conclude(policy, findings, told)
    return Decision(verdict, reason, findings, told, warnings)


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

    def judge(self, m: Measurement, policy: Policy) -> tuple[Result, str]:
        value, limit = self.sign * m.value, self.sign * self.bound
        if math.isnan(m.value):
            return Result.INCONCLUSIVE, "the measured value is not a number"
        if value > limit:
            return Result.FAIL, f"{m.value:.4g} is beyond the limit"
        if m.interval is None:
            return Result.INCONCLUSIVE, f"{m.value:.4g} has no interval, so how sure it is is not known"
        exact = m.interval.method == "exact"
        if not exact and m.interval.confidence < policy.confidence:
            held, asked = 100 * m.interval.confidence, 100 * policy.confidence
            return Result.INCONCLUSIVE, f"its interval is at {held:g} % confidence, the policy asks for {asked:g} %"
        ends = (value, self.sign * m.interval.low, self.sign * m.interval.high)
        if any(map(math.isnan, ends)):
            return Result.INCONCLUSIVE, "an end of its interval is not a number"
        end = max(ends)
        if m.n < 1 or (m.n < policy.min_users and not exact):
            needed = required_n(value, end, limit, m.n, m.interval.method) if end > limit else None
            asked_n = max(policy.min_users, needed or 0)
            return Result.INCONCLUSIVE, f"n = {m.n} is too few: n = {asked_n} or more would suffice"
        if end <= limit:
            return Result.PASS, f"its pessimistic end {self.sign * end:.4g} respects the limit"
        needed = required_n(value, end, limit, m.n, m.interval.method)
        enough = "no n would suffice" if needed is None else f"n = {needed} or so would suffice"
        return Result.INCONCLUSIVE, f"its pessimistic end {self.sign * end:.4g} is beyond the limit: {enough}"


def _limits(rule: Rule) -> list[_Limit]:
    if rule.max_drop_vs is not None:
        return [_Limit(1, _number(rule.max_drop))]
    return [_Limit(s, bound) for s, bound in ((1, rule.max), (-1, rule.min)) if bound is not None]


def _finding(rule: Rule, own: Sequence[Measurement], missing: Sequence[tuple[str, str]], policy: Policy) -> Finding:
    limit = limit_text(rule)
    if not own:
        return Finding(rule, Result.INCONCLUSIVE, _why_missing(rule, missing), None, limit)
    sides = _limits(rule)
    judged = [(side.judge(m, policy), m) for side in sides for m in own]
    if not judged:
        return Finding(rule, Result.INCONCLUSIVE, "the rule sets no limit", own[0], limit)
    (result, reason), m = max(judged, key=lambda j: (_SEVERITY[j[0][0]], j[0][1], repr(j[1])))
    return Finding(rule, result, reason, m, limit)


def _why_missing(rule: Rule, missing: Sequence[tuple[str, str]]) -> str:
    """Why a rule's number is not there: reasons that speak of the model it is compared with go before others."""
    versus, kind = _compared(rule)
    reasons = [reason for metric, reason in missing if _covers(metric, rule.metric)]
    reasons = [reason for reason in reasons if versus is not None and versus in reason and kind in reason] or reasons
    return f"not measured: {'; '.join(dict.fromkeys(reasons))}" if reasons else "not measured"


def _covers(skipped: str, metric: str) -> bool:
    return skipped == metric or (skipped.endswith(".*") and metric.startswith(skipped[:-1]))


def _waive(
    findings: Sequence[Finding], waivers: Sequence[Waiver], concept: str, today: date
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Findings with this concept's waivers applied, and a warning for each waiver that forgives nothing."""
    told, warnings = list(findings), []
    for waiver in waivers:
        if waiver.concept != concept:
            continue
        name = f"The waiver of {waiver.rule!r} for {concept!r}"
        if not _is_day(waiver.expires) or today > date.fromisoformat(waiver.expires):
            warnings.append(f"{name} is no waiver: it expired on {waiver.expires!r}.")
            continue
        used = [i for i, f in enumerate(findings) if f.rule.id == waiver.rule and _forgivable(f)]
        for i in used:
            reason = f"{findings[i].reason}; waived until {waiver.expires}: {waiver.reason}"
            told[i] = replace(findings[i], result=Result.WAIVED, reason=reason)
        if not used:
            warnings.append(f"{name} is not used: that rule was met, or was not measured.")
    return tuple(told), tuple(dict.fromkeys(warnings))


def _forgivable(finding: Finding) -> bool:
    """What was measured and found wanting; what was not measured cannot be forgiven, for nobody knows what it is."""
    wanting = finding.result in (Result.FAIL, Result.INCONCLUSIVE)
    return wanting and finding.measurement is not None and not math.isnan(finding.measurement.value)


def _conclude(policy: Policy, findings: Sequence[Finding], controls: Sequence[Control]) -> tuple[Verdict, str]:
    broken = [c for c in controls if c.holds is False]
    if broken:
        told = "; ".join(f"the {c.name} control (expected: {c.expected}) {c.observed}" for c in broken)
        return Verdict.INCONCLUSIVE, f"audit invalid: {told}"
    if not any(f.measurement is not None for f in findings):
        why = "nothing the policy asks for was measured" if findings else "the policy has no rule"
        return Verdict.INCONCLUSIVE, why
    failed = [f for f in findings if f.result is Result.FAIL]
    if failed:
        return Verdict.FAIL, f"{_counted(failed, findings)} failed: {_names(failed)}"
    undecided = [f for f in findings if f.result is Result.INCONCLUSIVE and not f.rule.optional]
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
    return Verdict.PASS, f"{_counted(passed, findings)} passed{told}"


def _counted(some: Sequence[Finding], findings: Sequence[Finding]) -> str:
    return f"{len(some)} of {len(findings)} rule{'' if len(findings) == 1 else 's'}"


def _names(findings: Sequence[Finding]) -> str:
    return ", ".join(f.rule.id for f in findings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_day(value: Any) -> bool:
    try:
        return type(value) is date or date.fromisoformat(value) is not None
    except (TypeError, ValueError):
        return False


def _one_of(*choices: str) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices), f"must be one of {', '.join(choices)}"


_TEXT = (lambda v: isinstance(v, str) and v.strip() != ""), "must be a text that is not empty"
_NUMBER = _is_number, "must be a finite number"
_ROLE = _one_of("original", "filter", "reference")
_Checks = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Key -> what its value must be, and how that is said."""
_AUDIT: _Checks = {
    "profile": _one_of("quick", "standard", "thorough"),
    "confidence": ((lambda v: _is_number(v) and 0.5 <= v < 1), "must be a number from 0.5 to below 1"),
    "min_users": ((lambda v: type(v) is int and v >= 1), "must be a count from 1"),
    "on_inconclusive": _one_of("fail", "inconclusive"),
}
_RULE: _Checks = {
    "id": _TEXT,
    "metric": _TEXT,
    "max": _NUMBER,
    "min": _NUMBER,
    "max_ratio_to": _ROLE,
    "min_ratio_to": _ROLE,
    "max_drop_vs": _ROLE,
    "max_drop": _NUMBER,
    "optional": ((lambda v: isinstance(v, bool)), "must be true or false"),
}
_WAIVER: _Checks = {
    "rule": _TEXT,
    "concept": _TEXT,
    "reason": _TEXT,
    "expires": (_is_day, "must be a date such as 2026-12-31"),
}
_PARTNERS = {"max_drop": "max_drop_vs", "max_drop_vs": "max_drop", "max_ratio_to": "max", "min_ratio_to": "min"}


def check_policy(data: Mapping[str, Any], known: Set[str]) -> list[str]:
    """Every problem of a parsed policy file; `known` are the metrics that exist. An empty list: it can be used."""
    top = ("schema", "audit", "rule", "waiver")
    problems = [f"unknown key {key!r}{_meant(key, top)}" for key in data if key not in top]
    if data.get("schema") != SCHEMA:
        problems.append(f"schema must be {SCHEMA!r}, not {data.get('schema')!r}")
    audit, rules, waivers = data.get("audit", {}), data.get("rule", []), data.get("waiver", [])
    shapes = {"audit": [audit], "rule": rules, "waiver": waivers}
    for key, tables in shapes.items():
        if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
            problems.append(f"{key} must be {'a table: [audit]' if key == 'audit' else f'tables: [[{key}]]'}")
            shapes[key] = []
    problems += [problem for table in shapes["audit"] for problem in _checked("audit", table, _AUDIT)]
    if rules == []:
        problems.append("there is no rule, and without one nothing can pass")
    ids = [str(rule["id"]) for rule in shapes["rule"] if "id" in rule]
    for place, rule in enumerate(shapes["rule"], 1):
        problems += _rule_problems(f"rule {rule.get('id', place)!r}", rule, known)
    for place, waiver in enumerate(shapes["waiver"], 1):
        label = f"waiver {place}"
        problems += _checked(label, waiver, _WAIVER, needed=_WAIVER)
        if "rule" in waiver and str(waiver["rule"]) not in ids:
            problems.append(f"{label}: there is no rule {waiver['rule']!r}{_meant(str(waiver['rule']), ids)}")
    pairs = [f"{w['rule']!r} for {w['concept']!r}" for w in shapes["waiver"] if "rule" in w and "concept" in w]
    for what, names in (("rule id", [repr(name) for name in ids]), ("waiver of", pairs)):
        problems += [f"{what} {name} stands there {n} times" for name, n in Counter(names).items() if n > 1]
    return problems


def _checked(label: str, table: Mapping[str, Any], checks: _Checks, needed: Iterable[str] = ()) -> list[str]:
    problems = [f"{label}: unknown key {key!r}{_meant(key, checks)}" for key in table if key not in checks]
    problems += [f"{label}: {key} is missing" for key in needed if key not in table]
    return problems + [
        f"{label}: {key} {must}, not {table[key]!r:.60}"
        for key, (holds, must) in checks.items()
        if key in table and not holds(table[key])
    ]


def _rule_problems(label: str, rule: Mapping[str, Any], known: Set[str]) -> list[str]:
    """What is wrong with one rule: its keys, its metric, and its limits together (a rule asks one thing, wholly)."""
    problems = _checked(label, rule, _RULE, needed=("id", "metric"))
    metric = rule.get("metric")
    if isinstance(metric, str) and metric not in known:
        problems.append(f"{label}: there is no metric {metric!r}{_meant(metric, known)}")
    plain = sorted({"max", "min", "max_ratio_to", "min_ratio_to"} & set(rule))
    drop = sorted({"max_drop", "max_drop_vs"} & set(rule))
    if not drop and not {"max", "min"} & set(rule):
        problems.append(f"{label}: it sets no limit; give max, min, or max_drop with max_drop_vs")
    if drop and plain:
        problems.append(f"{label}: {drop[0]} and {plain[0]} ask two things; make two rules of them")
    lonely = [(key, partner) for key, partner in _PARTNERS.items() if key in rule and partner not in rule]
    problems += [f"{label}: {key} needs {partner} beside it" for key, partner in lonely]
    if "max" in rule and "min" in rule:
        if rule.get("max_ratio_to") != rule.get("min_ratio_to"):
            problems.append(f"{label}: max and min must speak of one ratio; give both ratio_to alike, or neither")
        if _is_number(rule["max"]) and _is_number(rule["min"]) and rule["min"] > rule["max"]:
            problems.append(f"{label}: min is above max, so nothing can pass")
    return problems


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
