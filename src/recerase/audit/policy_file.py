"""The file a policy is read from, and what can be wrong with it.

The decision that shaped this file: a file is usable or it is not. An unknown key or metric is a problem like a missing
one, nothing is guessed, and all problems are listed at once.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict, replace
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from recerase.errors import PolicyError
from recerase.store import canonical_json, sha256_bytes
from recerase.types import Policy, Rule, Waiver

SCHEMA = "recerase.policy/1"


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
    return replace(policy, digest=policy_digest(policy))


def policy_digest(policy: Policy) -> str:
    """sha256 of all a policy says, whatever its file looked like."""
    said = {name: value for name, value in asdict(policy).items() if name != "digest"}
    return sha256_bytes(canonical_json(said))


def _made(kind: Callable[..., Any], table: Mapping[str, Any]) -> Any:
    """A `kind` of a checked table, with 0 and 0.0, and a date and its text, made the same."""
    floats = ("max", "min", "max_drop", "confidence")
    values = {key: float(value) if key in floats else value for key, value in table.items()}
    return kind(**{key: str(value) if key == "expires" else value for key, value in values.items()})


def _from_text(text: str, where: str, known: Set[str] | None) -> Policy:
    from recerase.audit.cards import known_metrics

    try:
        data = tomllib.loads(text)
        repr(data)  # messages quote what is wrong, and cannot quote a number of 5000 digits
    except (ValueError, RecursionError) as error:  # also such numbers, and lists in lists in lists
        raise PolicyError(f"{where} is not TOML: {error}.", "Mend it at that place.") from error
    return parse_policy(data, known_metrics() if known is None else known, where)


def is_day(value: Any) -> bool:
    """Whether a value is a date, or the text of one."""
    try:
        return type(value) is date or date.fromisoformat(value) is not None
    except (TypeError, ValueError):
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


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
    "profile": _one_of("quick", "standard", "thorough"),
    "scope": _one_of("output", "influence"),
}
_WAIVER: _Checks = {
    "rule": _TEXT,
    "concept": _TEXT,
    "reason": _TEXT,
    "expires": (is_day, "must be a date such as 2026-12-31"),
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
