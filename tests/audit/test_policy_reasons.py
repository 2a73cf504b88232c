"""What a decision says in words: the sentences a report prints are checked as they stand, numbers and all."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from recerase.__main__ import run
from recerase.audit import policy_file
from recerase.audit.cards import known_metrics, metrics
from recerase.audit.policy import check_policy, decide, default_policy, load_policy, parse_policy, policy_digest
from recerase.audit.probes import AuditConfig
from recerase.errors import PolicyError
from recerase.types import Control, Decision, Interval, Measurement, Policy, Result, Rule, Skipped, Verdict, Waiver

TODAY = date(2026, 6, 1)
CONCEPT = "brand=Acme"
HELD = tuple(Control(name, "fails", "failed", True) for name in ("original", "filter"))  # type: ignore[arg-type]
LOW = Rule("low", "natural.mass.old", max=0.5)
HIGH = Rule("high", "utility.ndcg@10", min=0.5)
DROP = Rule("drop", "utility.ndcg@10", max_drop=0.5, max_drop_vs="original")
LIKE = Rule("like", "natural.mass.old", max=2.0, max_ratio_to="reference")
NONE = Rule("none", "natural.mass.old")


def measured(metric: str, value: float, low: float, high: float, n: int = 5000, **more: Any) -> Measurement:
    given = {"interval": Interval(low, high, 0.95, "bootstrap"), "versus": None, "kind": "value", **more}
    return Measurement(metric, "subject", value, n, "output", **given)  # type: ignore[arg-type]


MASS = measured("natural.mass.old", 0.2, 0.1, 0.4)
NDCG = measured("utility.ndcg@10", 0.8, 0.7, 0.9)
FELL = measured("utility.ndcg@10", 0.2, 0.1, 0.4, versus="original", kind="drop")


def decided(rules: tuple[Rule, ...], *found: Measurement, **given: Any) -> Decision:
    policy = Policy(rules, given.get("waivers", ()), **given.get("policy", {}))
    return decide(policy, found, given.get("skipped", ()), given.get("controls", HELD), CONCEPT, TODAY)


@pytest.mark.parametrize(
    ("rule", "found", "result", "reason"),
    [
        (LOW, MASS, Result.PASS, "its pessimistic end 0.4 respects the limit"),
        (LOW, measured("natural.mass.old", 0.2, 0.1, 0.5), Result.PASS, "its pessimistic end 0.5 respects the limit"),
        (HIGH, NDCG, Result.PASS, "its pessimistic end 0.7 respects the limit"),
        (DROP, FELL, Result.PASS, "its pessimistic end 0.4 respects the limit"),
        (LOW, replace(MASS, value=math.nan), Result.INCONCLUSIVE, "the measured value is not a number"),
        (
            LOW,
            replace(MASS, value=0.625),
            Result.FAIL,
            "0.625 is beyond the limit, and its interval does not hold it",
        ),
        (
            HIGH,
            replace(NDCG, value=0.375),
            Result.FAIL,
            "0.375 is beyond the limit, and its interval does not hold it",
        ),
        (LOW, replace(MASS, value=0.625, interval=None), Result.FAIL, "0.625 is beyond the limit"),
        (LOW, measured("natural.mass.old", 0.625, 0.625, 0.625), Result.FAIL, "0.625 is beyond the limit"),
        (
            LOW,
            measured("natural.mass.old", 0.625, 0.1, 0.7, n=0),
            Result.FAIL,
            "0.625 is beyond the limit, and its n is 0",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.625, 0.1, 0.7, interval=Interval(0.1, 0.7, 0.9, "bootstrap")),
            Result.FAIL,
            "0.625 is beyond the limit, and its interval is at 90 % confidence, the policy asks for 95 %",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.625, 0.1, math.nan),
            Result.FAIL,
            "0.625 is beyond the limit, and an end of its interval is not a number",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.625, 0.51, 0.7),
            Result.FAIL,
            "0.625 is beyond the limit, and so is the favourable end 0.51 of its interval",
        ),
        (
            HIGH,
            measured("utility.ndcg@10", 0.375, 0.1, 0.49),
            Result.FAIL,
            "0.375 is beyond the limit, and so is the favourable end 0.49 of its interval",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.75, 0.25, 0.9, n=1000),
            Result.INCONCLUSIVE,
            "0.75 is beyond the limit, but the favourable end 0.25 of its interval is not: n = 8173 or so would settle it",
        ),
        (
            HIGH,
            measured("utility.ndcg@10", 0.25, 0.1, 0.75, n=1000),
            Result.INCONCLUSIVE,
            "0.25 is beyond the limit, but the favourable end 0.75 of its interval is not: n = 8173 or so would settle it",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.75, 0.5, 0.9, n=20),
            Result.INCONCLUSIVE,
            "0.75 is beyond the limit, but the favourable end 0.5 of its interval is not: n = 1000 or so would settle it",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.75, 0.25, 0.9, interval=Interval(0.25, 0.9, 0.95, "references")),
            Result.INCONCLUSIVE,
            "0.75 is beyond the limit, but the favourable end 0.25 of its interval is not: no n would suffice, for references "
            "differ by as much",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.75, 0.25, 0.9, interval=Interval(0.25, 0.9, 0.95, "items")),
            Result.INCONCLUSIVE,
            "0.75 is beyond the limit, but the favourable end 0.25 of its interval is not: no n would suffice, for few items "
            "lie behind it",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.25, 0.1, 0.75, interval=Interval(0.1, 0.75, 0.95, "references")),
            Result.INCONCLUSIVE,
            "its pessimistic end 0.75 is beyond the limit: no n would suffice, for references differ by as much",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.25, 0.1, 0.75, interval=Interval(0.1, 0.75, 1.0, "bootstrap")),
            Result.INCONCLUSIVE,
            "its pessimistic end 0.75 is beyond the limit: no n would suffice",
        ),
        (
            LOW,
            replace(MASS, interval=None),
            Result.INCONCLUSIVE,
            "0.2 has no interval, so how sure it is is not known",
        ),
        (
            LOW,
            replace(MASS, interval=Interval(0.1, 0.4, 0.9, "bootstrap")),
            Result.INCONCLUSIVE,
            "its interval is at 90 % confidence, the policy asks for 95 %",
        ),
        (
            LOW,
            replace(MASS, interval=Interval(0.1, math.nan, 0.95, "bootstrap")),
            Result.INCONCLUSIVE,
            "an end of its interval is not a number",
        ),
        (
            LOW,
            replace(MASS, interval=Interval(0.1, 0.3, math.nan, "bootstrap")),
            Result.INCONCLUSIVE,
            "its interval is at nan % confidence, the policy asks for 95 %",
        ),
        (
            LOW,
            replace(MASS, interval=Interval(0.1, 0.3, 95.0, "bootstrap")),  # a percentage
            Result.INCONCLUSIVE,
            "its interval is at 9500 % confidence, the policy asks for 95 %",
        ),
        (
            LOW,
            measured("natural.mass.old", -math.inf, -math.inf, 0.1),
            Result.INCONCLUSIVE,
            "the measured value is infinite",
        ),
        (LOW, replace(MASS, n=999), Result.INCONCLUSIVE, "n = 999 is too few: n = 1000 or more would suffice"),
        (
            LOW,
            measured("natural.mass.old", 0.2, 0.0, 1.1, n=900),
            Result.INCONCLUSIVE,
            "n = 900 is too few: n = 16550 or more would suffice",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.2, 0.0, 1.1, n=1000),
            Result.INCONCLUSIVE,
            "its pessimistic end 1.1 is beyond the limit: n = 18389 or so would suffice",
        ),
        (
            HIGH,
            measured("utility.ndcg@10", 0.75, 0.25, 0.9, n=1000),
            Result.INCONCLUSIVE,
            "its pessimistic end 0.25 is beyond the limit: n = 8173 or so would suffice",
        ),
        (
            DROP,
            measured("utility.ndcg@10", 0.25, 0.1, 0.75, n=1000, versus="original", kind="drop"),
            Result.INCONCLUSIVE,
            "its pessimistic end 0.75 is beyond the limit: n = 8173 or so would suffice",
        ),
        (
            LOW,
            measured("natural.mass.old", 0.5, 0.4, 0.6),
            Result.INCONCLUSIVE,
            "its pessimistic end 0.6 is beyond the limit: no n would suffice",
        ),
        (NONE, MASS, Result.INCONCLUSIVE, "the rule sets no limit"),
    ],
)
def test_what_is_said_of_a_measurement(rule: Rule, found: Measurement, result: Result, reason: str) -> None:
    (finding,) = decided((rule,), found).findings
    assert (finding.result, finding.reason) == (result, reason)
    assert finding.measurement is found
    assert finding.limit in ("<= 0.5", ">= 0.5", "drop vs original <= 50 %", "no limit")


def test_one_unit_counted_whole_is_enough_and_none_is_not() -> None:
    whole = measured("natural.mass.old", 0.2, 0.2, 0.2, n=1, interval=Interval(0.2, 0.2, 1.0, "exact"))
    assert decided((LOW,), whole).findings[0].result is Result.PASS
    (finding,) = decided((LOW,), replace(whole, n=0), policy={"min_users": 1}).findings
    assert finding.reason == "n = 0 is too few: n = 1 or more would suffice"


def test_too_few_units_on_the_limit_need_no_more_than_the_policy_asks() -> None:
    """The end is on the limit itself: nothing but the number of units is wanting."""
    (finding,) = decided((LOW,), measured("natural.mass.old", 0.2, 0.1, 0.5, n=40)).findings
    assert finding.reason == "n = 40 is too few: n = 1000 or more would suffice"
    (finding,) = decided((LOW,), measured("natural.mass.old", 0.6, 0.55, 0.7, n=40)).findings
    assert finding.result is Result.FAIL  # few, and still beyond doubt


@pytest.mark.parametrize(
    ("rule", "skipped", "reason"),
    [
        (LOW, [], "not measured"),
        (LOW, [("natural.mass.old", "no users")], "not measured: no users"),
        (LOW, [("natural.*", "no users"), ("natural.mass.old", "no time")], "not measured: no users; no time"),
        (LOW, [("natural.mass", "no users"), ("natural.mass.ol.*", "no time")], "not measured"),
        (LOW, [("natural.mass.*", "no users"), ("natura.*", "no time")], "not measured: no users"),
        (LOW, [("utility.*", "no users")], "not measured"),
        (
            LIKE,
            [("natural.mass.old", "no reference, so no ratio"), ("natural.*", "no ratio at all")],
            "not measured: no reference, so no ratio",
        ),
        (LIKE, [("natural.mass.old", "no time")], "not measured: no time"),
    ],
)
def test_why_there_is_no_number(rule: Rule, skipped: list[tuple[str, str]], reason: str) -> None:
    told = [Skipped(metric, "subject", why) for metric, why in skipped]
    (finding,) = decided((rule,), skipped=told).findings
    assert (finding.result, finding.reason, finding.measurement) == (Result.INCONCLUSIVE, reason, None)
    assert finding.limit == ("<= 0.5" if rule is LOW else "ratio to reference <= 2")


BAD = measured("natural.mass.old", 0.75, 0.6, 0.9)
UNSURE = replace(MASS, interval=Interval(0.1, 0.75, 0.95, "bootstrap"))
LOWER = replace(LOW, id="lower")
WAIVED = Waiver("low", CONCEPT, "known", "2026-06-01")


@pytest.mark.parametrize(
    ("rules", "found", "given", "verdict", "reason"),
    [
        ((LOW,), [MASS], {}, Verdict.PASS, "1 of 1 rule passed"),
        ((LOW, HIGH), [MASS, NDCG], {}, Verdict.PASS, "2 of 2 rules passed"),
        ((LOW, LOWER, HIGH), [BAD, NDCG], {}, Verdict.FAIL, "2 of 3 rules failed: low, lower"),
        ((LOW, HIGH), [UNSURE, NDCG], {}, Verdict.INCONCLUSIVE, "1 of 2 rules could not be decided: low"),
        (
            (LOW, HIGH),
            [UNSURE, NDCG],
            {"policy": {"on_inconclusive": "fail"}},
            Verdict.FAIL,
            "1 of 2 rules could not be decided: low; the policy counts that as a failure",
        ),
        ((), [MASS], {}, Verdict.INCONCLUSIVE, "the policy has no rule"),
        ((LOW,), [], {}, Verdict.INCONCLUSIVE, "nothing the policy asks for was measured"),
        (
            (LOW,),
            [BAD],
            {"waivers": (WAIVED,)},
            Verdict.INCONCLUSIVE,
            "no rule passed: those that were measured are waived",
        ),
        (
            (LOW, HIGH, replace(LIKE, optional=True)),
            [BAD, NDCG],
            {"waivers": (WAIVED,)},
            Verdict.PASS,
            "1 of 3 rules passed; waived: low; optional and undecided: like",
        ),
        (
            (LOW, replace(LIKE, optional=True)),
            [MASS, replace(MASS, value=2.5, interval=Interval(1.5, 3.5, 0.95, "x"), versus="reference", kind="ratio")],
            {},
            Verdict.INCONCLUSIVE,
            "1 of 2 rules could not be decided: like",
        ),
        (
            (LOW,),
            [MASS],
            {"controls": ()},
            Verdict.INCONCLUSIVE,
            "no rule failed, but the original and the filter controls did not show that this audit can fail a model",
        ),
        (
            (LOW,),
            [MASS],
            {"controls": HELD[:1]},
            Verdict.INCONCLUSIVE,
            "no rule failed, but the filter control did not show that this audit can fail a model",
        ),
        (
            (LOW,),
            [BAD],
            {"controls": (replace(HELD[1], holds=False, observed="passed"), replace(HELD[0], holds=False))},
            Verdict.INCONCLUSIVE,
            "audit invalid: the original control (expected: fails) failed; the filter control (expected: fails) passed",
        ),
    ],
)
def test_what_is_said_of_an_audit(
    rules: tuple[Rule, ...], found: list[Measurement], given: dict[str, Any], verdict: Verdict, reason: str
) -> None:
    decision = decided(rules, *found, **given)
    assert (decision.verdict, decision.reason) == (verdict, reason)


def test_controls_are_told_in_one_order() -> None:
    reference = Control("reference", "passes", "passed", None)
    doubled = (reference, replace(HELD[1], holds=None), *HELD[::-1])
    told = decided((LOW,), MASS, controls=doubled).controls
    assert [(c.name, c.holds) for c in told] == [
        ("original", True),
        ("filter", None),
        ("filter", True),
        ("reference", None),
    ]
    assert decided((LOW,), MASS, controls=doubled[::-1]).controls == told


def test_what_is_said_of_waivers() -> None:
    over, idle = replace(WAIVED, expires="2026-05-31"), replace(WAIVED, rule="high")
    decision = decided((LOW, HIGH), BAD, NDCG, waivers=(replace(over, concept="brand=Other"), WAIVED, over, idle))
    assert [f.result for f in decision.findings] == [Result.WAIVED, Result.PASS]
    beyond = "0.75 is beyond the limit, and so is the favourable end 0.6 of its interval"
    assert decision.findings[0].reason == f"{beyond}; waived until 2026-06-01: known"
    assert decision.warnings == (
        "The waiver of 'low' for 'brand=Acme' is no waiver: it expired on '2026-05-31'.",
        "The waiver of 'high' for 'brand=Acme' is not used: that rule was met, or was not measured.",
    )
    assert decision.as_of == "2026-06-01"


GOOD = {"id": "a", "metric": "natural.mass.old", "max": 1}
WAIVER = {"rule": "a", "concept": CONCEPT, "reason": "known", "expires": date(2026, 12, 31)}
SCHEMA = "recerase.policy/1"
KNOWN = {"natural.mass.old", "natural.mass.new", "utility.ndcg@10"}


@pytest.mark.parametrize(
    ("data", "problems"),
    [
        ({"schema": SCHEMA, "rule": [GOOD], "waiver": [WAIVER], "audit": {}}, []),
        (
            {"schema": "recerase.policy/2", "rules": [GOOD]},
            [
                "unknown key 'rules' (did you mean 'rule'?)",
                "schema must be 'recerase.policy/1', not 'recerase.policy/2'",
                "there is no rule, and without one nothing can pass",
            ],
        ),
        ({"rule": [GOOD]}, ["schema must be 'recerase.policy/1', not None"]),
        (
            {"schema": SCHEMA, "rule": GOOD, "audit": 3, "waiver": [3]},
            ["audit must be a table: [audit]", "rule must be tables: [[rule]]", "waiver must be tables: [[waiver]]"],
        ),
        (
            {"schema": SCHEMA, "rule": [GOOD], "audit": {"profile": "deep", "confidence": 95, "users": 3}},
            [
                "audit: unknown key 'users' (did you mean 'min_users'?)",
                "audit: profile must be one of quick, standard, thorough, not 'deep'",
                "audit: confidence must be a number from 0.5 to below 1, not 95",
            ],
        ),
        (
            {"schema": SCHEMA, "rule": [GOOD, {"metric": "natural.mas.old", "max": "x" * 80}, {"id": 3, "zzz": 1}]},
            [
                "rule 2: id is missing",
                f"rule 2: max must be a finite number, not '{'x' * 59}",
                "rule 2: there is no metric 'natural.mas.old' (did you mean 'natural.mass.old'?)",
                "rule 3: unknown key 'zzz'",
                "rule 3: metric is missing",
                "rule 3: id must be a text that is not empty, not 3",
                "rule 3: it sets no limit; give max, min, or max_drop with max_drop_vs",
            ],
        ),
        (
            {"schema": SCHEMA, "rule": [{**GOOD, "max_drop": 0.1, "min_ratio_to": "filter"}, GOOD]},
            [
                "rule 'a': max_drop and max ask two things; make two rules of them",
                "rule 'a': max_drop needs max_drop_vs beside it",
                "rule 'a': min_ratio_to needs min beside it",
                "rule id 'a' stands there 2 times",
            ],
        ),
        (
            {"schema": SCHEMA, "rule": [{**GOOD, "min": 2, "max_ratio_to": "filter"}]},
            [
                "rule 'a': max and min must speak of one ratio; give both ratio_to alike, or neither",
                "rule 'a': min is above max, so nothing can pass",
            ],
        ),
        ({"schema": SCHEMA, "rule": [{**GOOD, "min": 1}]}, []),
        ({"schema": SCHEMA, "rule": [{**GOOD, "max": 1e300}]}, ["rule 'a': max must be a finite number, not 1e+300"]),
        (
            {"schema": SCHEMA, "rule": [{**GOOD, "id": "apples"}], "waiver": [WAIVER, {**WAIVER, "rule": "aples"}] * 2},
            [
                "waiver 1: there is no rule 'a'",
                "waiver 2: there is no rule 'aples' (did you mean 'apples'?)",
                "waiver 3: there is no rule 'a'",
                "waiver 4: there is no rule 'aples' (did you mean 'apples'?)",
                "waiver of 'a' for 'brand=Acme' stands there 2 times",
                "waiver of 'aples' for 'brand=Acme' stands there 2 times",
            ],
        ),
        (
            {"schema": SCHEMA, "rule": [GOOD], "waiver": [{"rule": "a", "expires": "soon"}]},
            [
                "waiver 1: concept is missing",
                "waiver 1: reason is missing",
                "waiver 1: expires must be a date such as 2026-12-31, not 'soon'",
            ],
        ),
    ],
)
def test_what_is_said_of_a_policy_file(data: dict[str, Any], problems: list[str]) -> None:
    assert check_policy(data, KNOWN) == problems
    if problems:
        listed = "".join(f"  - {problem}\n" for problem in problems)
        with pytest.raises(PolicyError) as caught:
            parse_policy(data, KNOWN)
        assert caught.value.message == f"the policy cannot be used, for {len(problems)} reasons:\n{listed}"
        assert caught.value.remedy == "`recerase policy init` writes one that can."


@pytest.mark.parametrize(
    ("key", "value"), [("max", 1), ("min", 1), ("max_ratio_to", "filter"), ("min_ratio_to", "filter")]
)
def test_a_drop_is_no_other_limit_as_well(key: str, value: Any) -> None:
    rule = {"id": "a", "metric": "utility.ndcg@10", "max_drop_vs": "original", key: value}
    told = check_policy({"schema": SCHEMA, "rule": [rule]}, KNOWN)
    assert told[0] == f"rule 'a': max_drop_vs and {key} ask two things; make two rules of them"
    assert "rule 'a': max_drop_vs needs max_drop beside it" in told


def test_a_band_of_one_ratio_can_be_used() -> None:
    band = {**GOOD, "min": 0.5, "max_ratio_to": "reference", "min_ratio_to": "reference"}
    assert check_policy({"schema": SCHEMA, "rule": [band]}, KNOWN) == []


def test_a_file_that_is_no_policy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "politique-é.toml"
    gone = f"Cannot read the policy {path}: [Errno 2] No such file or directory: '{path}'."
    says = {None: gone, "schema = ": f"{path} is not TOML: Invalid value (at end of document)."}
    for text, message in says.items():
        if text is not None:
            path.write_text(text, "utf-8")
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        assert caught.value.message == message
        assert caught.value.remedy.endswith(".")
    for text in ("schema = 'é'", f"schema = 0x{'f' * 5000}"):
        path.write_text(text, "utf-8")
        with pytest.raises(PolicyError) as caught:
            load_policy(path)
        assert caught.value.message.startswith(str(path))
        assert caught.value.remedy


def test_whole_numbers_and_dates_mean_what_their_texts_mean() -> None:
    whole = {"schema": SCHEMA, "rule": [{**GOOD, "min": 0}], "audit": {"confidence": 0.5}, "waiver": [WAIVER]}
    fine = {"schema": SCHEMA, "rule": [{**GOOD, "max": 1.0, "min": 0.0}], "audit": {"confidence": 0.5}}
    fine["waiver"] = [{**WAIVER, "expires": "2026-12-31"}]
    one, other = parse_policy(whole, KNOWN), parse_policy(fine, KNOWN)
    assert one == other
    assert one.digest == other.digest == policy_digest(replace(one, digest="another"))
    rule = one.rules[0]
    assert [type(value) for value in (rule.max, rule.min, one.confidence, one.waivers[0].expires)] == [float] * 3 + [
        str
    ]
    plain = parse_policy({"schema": SCHEMA, "rule": [GOOD]}, KNOWN)
    assert (plain.waivers, plain.min_users) == ((), 1000)
    drop = {"id": "a", "metric": "utility.ndcg@10", "max_drop": 0, "max_drop_vs": "original"}
    assert type(parse_policy({"schema": SCHEMA, "rule": [drop]}, KNOWN).rules[0].max_drop) is float


def test_the_shipped_policy_is_read_from_its_file() -> None:
    default_policy.cache_clear()
    shipped = files("recerase.audit").joinpath("default_policy.toml").read_text("utf-8")
    assert default_policy() == parse_policy(tomllib.loads(shipped), known_metrics())


def test_a_choice_is_said_with_all_it_may_be() -> None:
    holds, must = policy_file._one_of("a", "b")
    assert [holds(value) for value in ("a", "b", "c", ["a"], None)] == [True, True, False, False, False]
    assert must == "must be one of a, b"


def test_policy_check_says_which_rules_cannot_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = '[[rule]]\nid = "deep"\nmetric = "depth.exposure@50"\nmax = 0.1\nprofile = "standard"\n'
    (tmp_path / "mine.toml").write_text(f'schema = "recerase.policy/1"\n{rule}')
    assert run(["policy", "check", str(tmp_path / "mine.toml")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "Rule 'deep' is on depth.exposure@50, which is counted over 200 at most" in said
    (tmp_path / "mine.toml").write_text(f'schema = "recerase.policy/1"\n[audit]\nmin_users = 200\n{rule}')
    assert run(["policy", "check", str(tmp_path / "mine.toml")]) == 0
    assert "counted over" not in capsys.readouterr().err


def test_what_a_card_says_of_units_is_what_a_run_reads() -> None:
    config, told = AuditConfig(), {name: spec.units for name, spec in metrics().items() if spec.units is not None}
    assert {units for name, units in told.items() if name.startswith("depth.")} == {config.depth_users}
    assert {units for name, units in told.items() if name.startswith("worst_case.")} == {config.worst_starts}
    assert {name.partition(".")[0] for name in told} == {"depth", "worst_case"}
