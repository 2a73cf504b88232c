"""A verdict can only get worse with the numbers, and nothing passes that was not measured."""

from __future__ import annotations

import math
import random
from copy import deepcopy
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.audit.cards import known_metrics, metrics
from recerase.audit.policy import (
    check_policy,
    decide,
    default_policy,
    limit_text,
    load_policy,
    parse_policy,
    required,
)
from recerase.errors import PolicyError
from recerase.limits import beyond
from recerase.stats import bootstrap_mean, paired_drop, wilson
from recerase.types import (
    Control,
    Decision,
    Finding,
    Interval,
    Measurement,
    Policy,
    Result,
    Rule,
    Skipped,
    Verdict,
    Waiver,
)

TODAY = date(2026, 6, 1)
CONCEPT = "brand=Acme"
HELD = tuple(Control(name, "", "", True) for name in ("original", "filter"))  # type: ignore[arg-type]
BADNESS = {Verdict.PASS: 0, Verdict.INCONCLUSIVE: 1, Verdict.FAIL: 2}
RULES = (
    Rule("low", "natural.mass.old", max=0.5),
    Rule("high", "utility.ndcg@10", min=0.5),
    Rule("drop", "utility.ndcg@10", max_drop=0.5, max_drop_vs="original"),
    Rule("like", "natural.mass.old", max=0.5, max_ratio_to="reference", optional=True),
    Rule("unlike", "natural.mass.new", min=0.5, min_ratio_to="reference", optional=True),
)


def number(rule: Rule, value: float, reach: float = 0.0, n: int = 5000, **changes: Any) -> Measurement:
    """The measurement `rule` asks for, with an interval that reaches as far to both sides."""
    ((metric, role, versus, kind),) = required(Policy((rule,)))
    interval = Interval(value - reach, value + reach, 0.95, "bootstrap")
    found = Measurement(metric, role, value, n, metrics()[metric].layer, interval, versus, kind)
    return replace(found, **changes)


def verdict(policy: Policy, *found: Measurement, controls: tuple[Control, ...] = HELD, **given: Any) -> Decision:
    return decide(
        policy, found, given.get("skipped", ()), controls, given.get("concept", CONCEPT), given.get("today", TODAY)
    )


def only(rule: Rule, m: Measurement | None, **policy: Any) -> Finding:
    (finding,) = verdict(Policy((rule,), **policy), *([m] if m else [])).findings
    return finding


worse = st.floats(0.0, 1.0).map(lambda x: round(x, 3))
numbers = st.tuples(worse, st.floats(0.0, 0.3), st.sampled_from([10, 5000]))
"""How bad from 0 to 1, how far the interval reaches, and n."""


def badly(rule: Rule, bad: float) -> float:
    """A value that is `bad` in [0, 1] for this rule: high for a maximum, low for a minimum."""
    return 1.0 - bad if rule.min is not None else bad


@st.composite
def cases(draw: st.DrawFn) -> tuple[Policy, list[Measurement]]:
    """Some rules, some of them waived, with a measurement for some of them."""
    rules = draw(st.lists(st.sampled_from(RULES), min_size=1, unique=True))
    waived = draw(st.sets(st.sampled_from(rules)))
    policy = Policy(
        tuple(rules),
        tuple(Waiver(rule.id, CONCEPT, "known", "2026-12-31") for rule in rules if rule in waived),
        on_inconclusive=draw(st.sampled_from(["fail", "inconclusive"])),
    )
    given = [(rule, draw(st.none() | numbers)) for rule in rules]
    return policy, [number(rule, badly(rule, m[0]), m[1], m[2]) for rule, m in given if m is not None]


controls_ = st.tuples(*(st.sampled_from([True, True, False, None]) for _ in range(3))).map(
    lambda holds: tuple(
        Control(name, "", "", h)  # type: ignore[arg-type]
        for name, h in zip(("original", "filter", "reference"), holds, strict=True)
    )
)


@given(cases(), controls_, st.data())
def test_a_worse_measurement_never_improves_a_verdict(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...], data: st.DataObject
) -> None:
    policy, found = case
    if not found:
        return
    i = data.draw(st.integers(0, len(found) - 1))
    m, by = found[i], data.draw(st.floats(0.0, 0.5))
    rule = next(r for r in policy.rules if required(Policy((r,)))[0] == (m.metric, m.role, m.versus, m.kind))
    assert m.interval is not None
    sign = -1 if rule.min is not None else 1
    interval = replace(m.interval, low=m.interval.low + sign * by, high=m.interval.high + sign * by)
    worsened = [*found[:i], replace(m, value=m.value + sign * by, interval=interval), *found[i + 1 :]]
    before, after = verdict(policy, *found, controls=controls), verdict(policy, *worsened, controls=controls)
    assert BADNESS[after.verdict] >= BADNESS[before.verdict]


@given(cases(), controls_, st.data())
def test_a_less_sure_measurement_never_passes_more_and_decides_nothing_else(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...], data: st.DataObject
) -> None:
    policy, found = case
    if not found:
        return
    i, by = data.draw(st.integers(0, len(found) - 1)), data.draw(st.floats(0.0, 0.5))
    interval = found[i].interval
    assert interval is not None
    wider = replace(interval, low=interval.low - by, high=interval.high + by)
    unsure = [*found[:i], replace(found[i], interval=wider), *found[i + 1 :]]
    before, after = verdict(policy, *found, controls=controls), verdict(policy, *unsure, controls=controls)
    assert before.verdict is Verdict.PASS or after.verdict is not Verdict.PASS
    for was, now in zip(before.findings, after.findings, strict=True):
        assert now.result in (was.result, Result.INCONCLUSIVE, Result.WAIVED)
    # and to have no interval at all is never better than any: beyond the limit it fails, within it is open
    blind = verdict(policy, *found[:i], replace(found[i], interval=None), *found[i + 1 :], controls=controls)
    assert blind.verdict is not Verdict.PASS or before.verdict is Verdict.PASS


@given(cases(), controls_)
def test_nothing_passes_with_a_value_beyond_its_limit(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...]
) -> None:
    policy, found = case
    decision = verdict(policy, *found, controls=controls)
    over = [f for f in decision.findings if f.measurement and beyond(f.rule, f.measurement.value)]
    if any(f.result is not Result.WAIVED for f in over):
        assert decision.verdict is not Verdict.PASS


@given(st.sampled_from(RULES), numbers, st.floats(0.0, 0.5))
def test_a_stricter_limit_never_passes_more(rule: Rule, given_: tuple[float, float, int], by: float) -> None:
    changes = {name: bound for name in ("max", "max_drop") if (bound := getattr(rule, name)) is not None}
    stricter = replace(rule, **{name: bound - by for name, bound in changes.items()})
    stricter = replace(stricter, min=None if rule.min is None else rule.min + by)
    m = number(rule, *given_)
    order = [Result.PASS, Result.INCONCLUSIVE, Result.FAIL]
    assert order.index(only(stricter, m).result) >= order.index(only(rule, m).result)


@given(cases(), controls_, st.integers(0, 99))
def test_order_does_not_matter(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...], seed: int
) -> None:
    policy, found = case
    twice = [*found, *[replace(m, value=m.value * 0.9) for m in found]]  # some handed in again, a little better
    skipped = [Skipped("natural.*", "subject", reason) for reason in ("no users", "no time")]
    mixed = [random.Random(seed).sample(list(x), len(x)) for x in (twice, skipped, controls)]
    assert decide(policy, twice, skipped, controls, CONCEPT, TODAY) == decide(policy, *mixed, CONCEPT, TODAY)
    turned = verdict(replace(policy, rules=policy.rules[::-1], waivers=policy.waivers[::-1]), *found)
    assert turned.verdict is verdict(policy, *found).verdict
    assert set(turned.findings) == set(verdict(policy, *found).findings)


@given(cases(), controls_, st.data())
def test_a_stricter_limit_never_improves_a_verdict(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...], data: st.DataObject
) -> None:
    policy, found = case
    i, by = data.draw(st.integers(0, len(policy.rules) - 1)), data.draw(st.floats(0.0, 0.5))
    rule = policy.rules[i]
    changes = {name: end - by for name in ("max", "max_drop") if (end := getattr(rule, name)) is not None}
    if rule.min is not None:
        changes["min"] = rule.min + by
    rules = (*policy.rules[:i], replace(rule, **changes), *policy.rules[i + 1 :])
    before = verdict(policy, *found, controls=controls).verdict
    assert BADNESS[verdict(replace(policy, rules=rules), *found, controls=controls).verdict] >= BADNESS[before]


days = st.dates(date(2026, 12, 1), date(2027, 1, 31))


@given(cases(), controls_, days, st.lists(days, max_size=5))
def test_the_same_is_decided_twice_and_nothing_given_is_changed(
    case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...], today: date, ends: list[date]
) -> None:
    dated = zip(case[0].waivers, ends, strict=False)
    policy = replace(case[0], waivers=tuple(replace(waiver, expires=end.isoformat()) for waiver, end in dated))
    given_ = (policy, list(case[1]), [Skipped("natural.*", "subject", "no time")], list(controls))
    copy = deepcopy(given_)
    found = decide(*given_, CONCEPT, today)
    assert decide(*given_, CONCEPT, today) == found
    assert given_ == copy
    # the day a decision names makes it again, and so does every day between
    assert decide(*given_, CONCEPT, date.fromisoformat(found.as_of) if found.as_of else date.min) == found
    assert (found.as_of == "") == all(today <= end for end in ends[: len(policy.waivers)])
    others = [Waiver("low", "brand=Other", "known", "2020-01-01")]
    assert decide(replace(policy, waivers=(*policy.waivers, *others)), *given_[1:], CONCEPT, today) == found


@given(cases(), st.sampled_from(RULES), st.sampled_from([CONCEPT, "brand=Other"]))
def test_a_waiver_touches_only_its_own_rule_and_concept(
    case: tuple[Policy, list[Measurement]], rule: Rule, concept: str
) -> None:
    policy = replace(case[0], waivers=())
    waived = replace(policy, waivers=(Waiver(rule.id, concept, "known", "2026-12-31"),))
    before, after = verdict(policy, *case[1]), verdict(waived, *case[1])
    for old, new in zip(before.findings, after.findings, strict=True):
        if old != new:
            assert concept == CONCEPT
            assert old.rule.id == rule.id
            assert old.result in (Result.FAIL, Result.INCONCLUSIVE)
            assert new.result is Result.WAIVED
            assert "known" in new.reason
    if concept != CONCEPT:
        assert after == before


@given(cases(), controls_)
def test_nothing_passes_without_evidence(case: tuple[Policy, list[Measurement]], controls: tuple[Control, ...]) -> None:
    policy, found = case
    skipped = [Skipped(m.metric, "subject", "no time") for m in found]
    assert decide(policy, (), skipped, controls, CONCEPT, TODAY).verdict is not Verdict.PASS
    held = {c.name for c in controls if c.holds} >= {"original", "filter"}
    if any(c.holds is False for c in controls) or not held:
        assert verdict(policy, *found, controls=controls).verdict is not Verdict.PASS
    others = [replace(m, role="original") for m in found]
    assert verdict(policy, *others).verdict is not Verdict.PASS  # someone else's numbers are no evidence
    for i in range(len(found)):
        rule = next(r for r in policy.rules if number(r, 0.0).metric == found[i].metric)
        if not rule.optional and required(Policy((rule,)))[0][2:] == (found[i].versus, found[i].kind):
            assert verdict(policy, *found[:i], *found[i + 1 :]).verdict is not Verdict.PASS


def test_what_was_skipped_is_said_where_it_was_asked_for() -> None:
    rule = Rule("like", "natural.mass.old", max=3.0, max_ratio_to="reference")
    skipped = [
        Skipped("natural.*", "subject", "no user"),
        Skipped("natural.mass.old", "subject", "the ratio against the reference: none was given"),
        Skipped("natural.mass.old", "original", "out of time"),
        Skipped("saturated.*", "subject", "other"),
    ]
    (finding,) = verdict(Policy((rule,)), skipped=skipped).findings
    assert finding.result is Result.INCONCLUSIVE
    assert finding.reason == "not measured: the ratio against the reference: none was given"
    (plain,) = verdict(Policy((RULES[0],)), skipped=skipped[:1]).findings
    assert plain.reason == "not measured: no user"


@pytest.mark.parametrize(
    ("value", "reach", "result"),
    [
        (0.375, 0.0625, Result.PASS),
        (0.375, 0.125, Result.PASS),  # an end on the limit respects it
        (0.375, 0.25, Result.INCONCLUSIVE),
        (0.625, 0.25, Result.INCONCLUSIVE),
        (0.625, 0.125, Result.INCONCLUSIVE),
        (0.625, 0.0625, Result.FAIL),
        (0.625, 0.0, Result.FAIL),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_the_pessimistic_end_passes_and_the_favourable_end_fails(
    rule: Rule, value: float, reach: float, result: Result
) -> None:
    found = only(rule, number(rule, badly(rule, value), reach))
    assert found.result is result
    assert found.limit == limit_text(rule)
    assert found.measurement is not None


def test_an_undecided_rule_names_the_n_that_would_suffice() -> None:
    rule = Rule("exposure", "natural.exposure@10", max=0.001)
    few = only(rule, number(rule, 0.0, n=2000, interval=wilson(0, 2000)))
    assert few.result is Result.INCONCLUSIVE
    assert "n = 2996" in few.reason
    assert only(rule, number(rule, 0.0, n=2996, interval=wilson(0, 2996))).result is Result.PASS
    assert "n = 2996" in only(rule, number(rule, 0.0, n=100, interval=wilson(0, 100))).reason
    assert "n = 1000" in only(rule, number(rule, 0.0, n=100)).reason  # sure, but of too few
    assert "no n" in only(rule, number(rule, 0.001, 0.001)).reason  # on the limit


@pytest.mark.parametrize(
    "changes",
    [
        {"value": math.nan},
        {"interval": None},
        {"interval": Interval(0.0, math.nan, 0.95, "bootstrap")},
        {"interval": Interval(0.0, math.inf, 0.95, "bootstrap")},
        {"interval": Interval(0.0, 0.1, 0.8, "bootstrap")},
        {"n": 0},
        {"n": 999},
    ],
)
def test_doubtful_numbers_are_inconclusive(changes: dict[str, Any]) -> None:
    sound = number(RULES[0], 0.1)
    assert only(RULES[0], replace(sound, **changes)).result is Result.INCONCLUSIVE
    assert only(RULES[0], sound).result is Result.PASS


UNJUDGED = [
    {"interval": None},
    {"interval": Interval(0.1, 0.9, 0.8, "bootstrap")},
    {"interval": Interval(0.1, 0.9, math.nan, "bootstrap")},
    {"interval": Interval(0.1, math.nan, 0.95, "bootstrap")},
    {"interval": Interval(math.nan, 0.9, 0.95, "bootstrap")},
    {"interval": Interval(0.1, 0.4, 0.95, "bootstrap")},  # it does not hold the value
    {"n": 0},
]


@pytest.mark.parametrize("changes", UNJUDGED)
@pytest.mark.parametrize("optional", [False, True])
def test_a_value_beyond_the_limit_without_an_interval_to_judge_fails(changes: dict[str, Any], optional: bool) -> None:
    rule = replace(RULES[0], optional=optional)
    unsure = number(rule, 0.6, 0.3)
    assert only(rule, unsure).result is Result.INCONCLUSIVE
    found = only(rule, replace(unsure, **changes))
    assert found.result is Result.FAIL
    assert found.reason.startswith("0.6 is beyond the limit")


def test_an_infinite_value_fails_unless_its_favourable_end_respects_the_limit() -> None:
    like = RULES[3]
    for low, result in ((0.2, Result.INCONCLUSIVE), (0.6, Result.FAIL), (math.inf, Result.FAIL)):
        found = only(like, number(like, math.inf, interval=Interval(low, math.inf, 0.95, "bootstrap")))
        assert (found.result, found.enough) == (result, None)
        assert low != 0.2 or found.reason.endswith("no n would suffice")
    assert only(like, number(like, math.inf, interval=None)).result is Result.FAIL


def test_few_users_fail_what_is_beyond_doubt_and_decide_nothing_else() -> None:
    """One user of ten is far above a thousandth; one of a thousand is not."""
    rule = Rule("exposure", "natural.exposure@10", max=0.001)
    for hits, n, result in ((1, 10, Result.FAIL), (2, 1000, Result.INCONCLUSIVE), (2, 900, Result.INCONCLUSIVE)):
        found = only(rule, number(rule, hits / n, n=n, interval=wilson(hits, n)))
        assert found.result is result, (hits, n)
        assert (found.enough is None) == (result is Result.FAIL)
        assert found.enough is None or found.enough >= max(n, 1000)


@pytest.mark.parametrize("value", [0.0015, 0.002, 0.004])
def test_so_many_users_settle_a_rate_beyond_its_limit(value: float) -> None:
    """At the n that is named, four samples of five fail it, were the value the truth; at a fifth of it, most do not."""
    rule, rng = Rule("exposure", "natural.exposure@10", max=0.001), np.random.default_rng(3)
    n = 2000
    enough = only(rule, number(rule, value, n=n, interval=wilson(round(value * n), n))).enough
    if enough is None:  # it fails already: so many are enough for the largest value
        assert value == 0.004
        return

    def failed(n: int) -> float:
        drawn, counts = np.unique(rng.binomial(n, value, 400), return_counts=True)
        fails = [
            only(rule, number(rule, hits / n, n=n, interval=wilson(int(hits), n))).result is Result.FAIL
            for hits in drawn
        ]
        return float(counts @ np.array(fails)) / 400

    assert 0.72 < failed(enough) < 0.9
    assert failed(enough // 5) < 0.5


@pytest.mark.parametrize("at", ["limit", "beyond"])
@pytest.mark.parametrize("kind", ["rate", "mass", "drop"])
def test_a_clean_model_on_the_limit_seldom_fails_and_one_beyond_it_does(
    kind: str, at: str, effort: Any, figure: Any
) -> None:
    """Audits drawn with a known truth: on the limit the favourable end is beyond it in (1 - confidence) / 2 of them."""
    rng, times = np.random.default_rng(7), effort(60, 2000)
    truth = 1.0 if at == "limit" else 2.0
    fails = 0
    for _ in range(times):
        if kind == "rate":
            rule, n = Rule("r", "natural.exposure@10", max=0.01), 5000
            hits = int(rng.binomial(n, 0.01 * truth))
            found = number(rule, hits / n, n=n, interval=wilson(hits, n))
        elif kind == "mass":
            rule, n = Rule("r", "natural.mass.old", max=0.01), 400
            mass = 0.01 * truth * rng.lognormal(-0.5, 1.0, n)
            found = number(rule, float(mass.mean()), n=n, interval=bootstrap_mean(mass, resamples=300))
        else:
            rule, n = Rule("r", "utility.ndcg@10", max_drop=0.1, max_drop_vs="original"), 400
            base = rng.beta(2.0, 2.0, n)
            value, interval = paired_drop(base * (1 - 0.1 * truth) + rng.normal(0, 0.1, n), base, resamples=300)
            found = number(rule, value, n=n, interval=interval)
        fails += only(rule, found).result is Result.FAIL
    if at == "beyond":
        assert fails > 0.95 * times
    else:
        assert fails < 0.03 * times + 4 * math.sqrt(0.03 * times)
    figure(
        f"simulated audits, truth {'on the limit' if at == 'limit' else 'at twice the limit'}: failed", fails, of=times
    )


def test_what_was_counted_whole_needs_no_thousand() -> None:
    rule = Rule("twins", "aliasing.shared_sid", max=0.0)
    exact = number(rule, 0.0, n=12, interval=Interval(0.0, 0.0, 0.95, "exact"))
    assert only(rule, exact, confidence=0.99).result is Result.PASS
    some = replace(exact, value=1 / 12, interval=Interval(1 / 12, 1 / 12, 0.95, "exact"))
    assert only(rule, some, confidence=0.99).result is Result.FAIL
    # exact ratios to several references that differ: no user would settle it
    steps = Rule("relearning", "relearn.forget.steps", min=0.8, min_ratio_to="reference")
    found = only(steps, number(steps, 0.75, n=8, interval=Interval(0.6, 0.9, 0.95, "exact")))
    assert (found.result, found.enough) == (Result.INCONCLUSIVE, None)
    assert found.reason.endswith("no n would suffice, for references differ by as much")


def test_a_band_has_two_sides() -> None:
    rule = Rule("like", "natural.mass.old", max=3.0, min=0.3, max_ratio_to="reference", min_ratio_to="reference")
    results = [only(rule, number(rule, value, 0.1)).result for value in (0.1, 0.35, 1.0, 2.95, 4.0)]
    undecided = Result.INCONCLUSIVE
    assert results == [Result.FAIL, undecided, Result.PASS, undecided, Result.FAIL]
    # the side the value is on is the one that is told
    assert only(rule, number(rule, 4.0, 3.9)).reason.startswith("4 is beyond the limit, but the favourable end 0.1")
    assert only(rule, number(rule, 0.2, 4.0)).reason.startswith("0.2 is beyond the limit, but the favourable end 4.2")
    assert limit_text(rule) == "ratio to reference >= 0.3 and <= 3"


def test_a_rule_without_a_limit_passes_nothing() -> None:
    assert only(Rule("r", "natural.mass.old"), number(RULES[0], 0.0)).result is Result.INCONCLUSIVE
    lame = Rule("r", "utility.ndcg@10", max_drop_vs="original")
    assert only(lame, number(RULES[2], 0.0)).result is Result.INCONCLUSIVE


PASSED = number(RULES[0], 0.1)
FAILED = number(RULES[1], 0.1)
OPEN = number(RULES[1], 0.6, 0.3)


@pytest.mark.parametrize(
    ("second", "controls", "policy", "expected"),
    [
        (number(RULES[1], 0.9), HELD, {}, Verdict.PASS),
        (FAILED, HELD, {}, Verdict.FAIL),
        (OPEN, HELD, {}, Verdict.INCONCLUSIVE),
        (OPEN, HELD, {"on_inconclusive": "fail"}, Verdict.FAIL),
        (FAILED, (), {}, Verdict.FAIL),  # a violation needs no control
        (number(RULES[1], 0.9), (), {}, Verdict.INCONCLUSIVE),
        (number(RULES[1], 0.9), HELD[:1], {}, Verdict.INCONCLUSIVE),
        (number(RULES[1], 0.9), (*HELD, Control("reference", "", "", None)), {}, Verdict.PASS),
        (number(RULES[1], 0.9), (*HELD, Control("reference", "", "", False)), {}, Verdict.INCONCLUSIVE),
        (FAILED, (replace(HELD[0], holds=False), HELD[1]), {"on_inconclusive": "fail"}, Verdict.INCONCLUSIVE),
    ],
)
def test_the_verdict_follows_from_findings_and_controls(
    second: Measurement, controls: tuple[Control, ...], policy: dict[str, Any], expected: Verdict
) -> None:
    found = verdict(Policy(RULES[:2], **policy), PASSED, second, controls=controls)
    assert found.verdict is expected
    assert found.findings[0].result is Result.PASS  # findings are kept, whatever the controls say


def test_a_broken_control_is_called_an_invalid_audit() -> None:
    broken = Control("filter", "passes catalogue, fails behaviour", "passes behaviour", False)
    found = verdict(Policy(RULES[:1]), PASSED, controls=(HELD[0], broken))
    assert found.reason.startswith("audit invalid: the filter control")


@pytest.mark.parametrize("on", ["fail", "inconclusive"])
def test_nothing_measured_at_all_is_no_violation(on: Any) -> None:
    policy = Policy(RULES, on_inconclusive=on)
    found = verdict(policy, skipped=[Skipped(rule.metric, "subject", "no time") for rule in RULES])
    assert found.verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("on", ["fail", "inconclusive"])
def test_an_optional_rule_counts_once_it_is_measured(on: Any) -> None:
    policy = Policy((RULES[0], RULES[3]), on_inconclusive=on)
    assert verdict(policy, PASSED).verdict is Verdict.PASS
    assert "like" in verdict(policy, PASSED).reason
    assert verdict(policy, PASSED, number(RULES[3], 0.9)).verdict is Verdict.FAIL
    for forgiven_ in (number(RULES[3], 0.4, 0.2), number(RULES[3], 0.1, n=10), number(RULES[3], 0.4, interval=None)):
        assert verdict(policy, PASSED, forgiven_).verdict is Verdict.PASS
    open_ = Verdict.FAIL if on == "fail" else Verdict.INCONCLUSIVE
    for beyond_ in (number(RULES[3], 0.6, 0.2), number(RULES[3], 0.6, 0.2, n=10), number(RULES[3], math.nan, 0.2)):
        found = verdict(policy, PASSED, beyond_)
        assert found.verdict is open_
        assert found.reason.startswith("1 of 2 rules could not be decided: like")
        # told twice, the one that is beyond counts
        assert verdict(policy, PASSED, beyond_, number(RULES[3], 0.4, 0.3)).verdict is open_


def test_no_rules_and_only_waived_rules_pass_nothing() -> None:
    assert verdict(Policy(()), PASSED).verdict is Verdict.INCONCLUSIVE
    waived = Policy(RULES[1:2], (Waiver("high", CONCEPT, "known", "2026-12-31"),), on_inconclusive="fail")
    assert verdict(waived, FAILED).verdict is Verdict.INCONCLUSIVE
    for wanting in (FAILED, OPEN):  # the better of the two must not be worse off
        assert verdict(replace(waived, rules=RULES[:2]), PASSED, wanting).verdict is Verdict.PASS


def test_a_waiver_ends_with_its_day_and_does_not_cover_what_was_not_measured() -> None:
    policy = Policy(RULES[:2], (Waiver("high", CONCEPT, "known", TODAY.isoformat()),))
    assert verdict(policy, PASSED, FAILED).verdict is Verdict.PASS
    late = verdict(policy, PASSED, FAILED, today=TODAY + timedelta(days=1))
    assert late.verdict is Verdict.FAIL
    assert "expired" in late.warnings[0]
    unmeasured = verdict(policy, PASSED)
    assert unmeasured.verdict is Verdict.INCONCLUSIVE
    assert "not used" in unmeasured.warnings[0]
    assert "not used" in verdict(policy, PASSED, number(RULES[1], 0.9)).warnings[0]
    dateless = replace(policy, waivers=(replace(policy.waivers[0], expires="soon"),))
    assert verdict(dateless, PASSED, FAILED).verdict is Verdict.FAIL


def test_each_measurement_is_required_once() -> None:
    twice = replace(RULES[0], id="again", max=0.1)
    assert required(Policy((*RULES, twice))) == (
        ("natural.mass.old", "subject", None, "value"),
        ("utility.ndcg@10", "subject", None, "value"),
        ("utility.ndcg@10", "subject", "original", "drop"),
        ("natural.mass.old", "subject", "reference", "ratio"),
        ("natural.mass.new", "subject", "reference", "ratio"),
    )


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("r", "m", max=0.001), "<= 0.001"),
        (Rule("r", "m", min=0.8), ">= 0.8"),
        (RULES[2], "drop vs original <= 50 %"),
        (RULES[3], "ratio to reference <= 0.5"),
    ],
)
def test_limits_are_shown_in_words(rule: Rule, text: str) -> None:
    assert limit_text(rule) == text


def file(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"schema": "recerase.policy/1", "rule": list(rules), **more}


GOOD = {"id": "a", "metric": "natural.mass.old", "max": 1}
WAIVER = {"rule": "a", "concept": CONCEPT, "reason": "known", "expires": date(2026, 12, 31)}


@given(st.sampled_from(sorted(known_metrics())), st.data())
def test_a_misspelt_metric_is_a_policy_error(metric: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(metric) - 1))
    misspelt = metric[:at] + data.draw(st.sampled_from("xq_@")) + metric[at + 1 :]
    if misspelt in known_metrics():
        return
    with pytest.raises(PolicyError) as error:
        parse_policy(file({**GOOD, "metric": misspelt}), known_metrics())
    assert "did you mean" in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"rule": [GOOD]}, "schema must be"),
        (file(GOOD, schema="recerase.policy/2"), "schema must be"),
        (file(), "no rule"),
        (file(GOOD, rules=[]), "did you mean 'rule'?"),
        (file(GOOD, audit={"min_user": 3}), "did you mean 'min_users'?"),
        (file(GOOD, audit={"min_users": True}), "count from 1"),
        (file(GOOD, audit={"confidence": 95}), "confidence must be"),
        (file(GOOD, audit={"profile": "deep"}), "one of quick"),
        (file(GOOD, audit=3), "audit must be a table"),
        ({"schema": "recerase.policy/1", "rule": GOOD}, "rule must be tables"),
        (file({**GOOD, "id": " "}), "must be a text"),
        (file({"metric": "natural.mass.old", "max": 1}), "id is missing"),
        (file({"id": "a", "max": 1}), "metric is missing"),
        (file({**GOOD, "maximum": 1}), "unknown key 'maximum'"),
        (file({**GOOD, "max": "1"}), "finite number"),
        (file({**GOOD, "max": math.nan}), "finite number"),
        (file({**GOOD, "max": 10**400}), "finite number"),
        (file({**GOOD, "optional": 1}), "true or false"),
        (file({"id": "a", "metric": "natural.mass.old"}), "no limit"),
        (file({**GOOD, "max_ratio_to": "subject"}), "one of original"),
        (file({**GOOD, "min_ratio_to": "reference"}), "min_ratio_to needs min"),
        (file({**GOOD, "max_drop": 0.1, "max_drop_vs": "original"}), "two things"),
        (file({"id": "a", "metric": "natural.mass.old", "max_drop": 0.1}), "max_drop needs max_drop_vs"),
        (file({**GOOD, "min": 0.1, "max_ratio_to": "reference"}), "one ratio"),
        (file({**GOOD, "min": 2}), "nothing can pass"),
        (file(GOOD, GOOD), "2 times"),
        (file(GOOD, waiver=[{**WAIVER, "rule": "b"}]), "no rule 'b'"),
        (file(GOOD, waiver=[WAIVER, WAIVER]), "2 times"),
        (file(GOOD, waiver=[{**WAIVER, "expires": "31.12.2026"}]), "must be a date"),
        (file(GOOD, waiver=[{k: v for k, v in WAIVER.items() if k != "expires"}]), "expires is missing"),
        (file(GOOD, waiver=[{k: v for k, v in WAIVER.items() if k != "reason"}]), "reason is missing"),
        (file(GOOD, waiver=[{**WAIVER, "reason": ""}]), "reason must be"),
    ],
)
def test_each_way_a_policy_can_be_wrong_is_told(data: dict[str, Any], said: str) -> None:
    problems = check_policy(data, known_metrics())
    assert any(said in problem for problem in problems), problems
    assert check_policy(file(GOOD, waiver=[WAIVER]), known_metrics()) == []


def test_all_problems_are_told_at_once() -> None:
    data = file({**GOOD, "metric": "natural.mas.old"}, GOOD, audit={"x": 1}, waiver=[{"rule": "z"}])
    with pytest.raises(PolicyError) as error:
        parse_policy(data, known_metrics())
    for said in ("natural.mas.old", "2 times", "unknown key 'x'", "'z'", "reason is missing", "expires is missing"):
        assert said in str(error.value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
def test_no_value_anywhere_breaks_the_check(value: Any) -> None:
    for data in (file(GOOD, rule=value), file(GOOD, audit=value), file(GOOD, waiver=value), {"schema": value}):
        assert check_policy(data, known_metrics()) or value in ([], None)
    for key in ("id", "metric", "max", "min_ratio_to", "max_drop_vs", "optional"):
        check_policy(file({**GOOD, key: value}), known_metrics())
    for key in WAIVER:
        check_policy(file(GOOD, waiver=[{**WAIVER, key: value}]), known_metrics())


TEXT = """
schema = "recerase.policy/1"
[audit]
confidence = 0.9
min_users = 10
on_inconclusive = "fail"
[[rule]]
id = "drop"
metric = "utility.ndcg@10"
max_drop_vs = "original"
max_drop = 0
[[waiver]]
rule = "drop"
concept = "brand=Acme"
reason = "ticket 412"
expires = 2026-12-31
"""


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT, encoding="utf-8")
    found = load_policy(path)
    assert found.rules == (Rule("drop", "utility.ndcg@10", max_drop_vs="original", max_drop=0.0),)
    assert found.waivers == (Waiver("drop", CONCEPT, "ticket 412", "2026-12-31"),)
    assert (found.confidence, found.min_users, found.on_inconclusive) == (0.9, 10, "fail")
    path.write_text(TEXT.replace("max_drop = 0\n", "max_drop = 0.0  # none\n"), encoding="utf-8")
    assert load_policy(path) == found  # said otherwise, but the same: the same digest
    path.write_text(TEXT.replace("2026-12-31", "2027-12-31"), encoding="utf-8")
    assert load_policy(path).digest != found.digest


def test_a_file_that_cannot_be_read_is_a_policy_error(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    (tmp_path / "broken.toml").write_text("schema = ", encoding="utf-8")
    for name in ("none.toml", "bytes.toml", "broken.toml", "."):
        with pytest.raises(PolicyError):
            load_policy(tmp_path / name)
    with pytest.raises(PolicyError, match="no metric"):
        load_policy(_written(tmp_path), known={"natural.mass.old"})


def _written(folder: Path) -> Path:
    (folder / "policy.toml").write_text(TEXT, encoding="utf-8")
    return folder / "policy.toml"


def best(rule: Rule) -> float:
    """A value every rule of the shipped policy is content with."""
    return 1.0 if rule.max_ratio_to or rule.min_ratio_to else 0.0


def test_the_shipped_policy_can_be_passed_by_a_clean_model_with_its_default_sample_sizes() -> None:
    policy = default_policy()
    users = {"natural.exposure@10": 3000, "replay.exposure@10": 3000, "utility.ndcg@10": 3000}
    found = []
    for rule in policy.rules:
        n = users.get(rule.metric, 1000)
        m = number(rule, best(rule), 0.04, n)
        if ".mass." in rule.metric and m.kind == "value":
            m = number(rule, 2e-4, 2e-4, n)  # a mass is small, and never exactly zero
        elif m.kind == "value":
            m = replace(m, interval=wilson(0, n))
        if rule.metric.startswith("aliasing"):
            m = replace(m, interval=Interval(0.0, 0.0, 0.95, "exact"))
        found.append(m)
    decision = verdict(policy, *found)
    assert [(f.rule.id, f.reason) for f in decision.findings if f.result is not Result.PASS] == []
    assert decision.verdict is Verdict.PASS
    alone = [m for m in found if m.versus != "reference"]
    assert verdict(policy, *alone).verdict is Verdict.PASS  # a reference is not needed


def test_the_shipped_policy_fails_what_was_never_erased_and_a_filter() -> None:
    """Figures of a real original: 4.9 % mass, 7.6 % exposure, .95 on histories of the concept."""
    policy = default_policy()
    leaks = {"exposure@10": 0.076, "mass.old": 0.049, "mass.new": 0.049, "ndcg@10": 0.0}
    original = [
        number(rule, leaks.get(rule.metric.split(".", 1)[1], 0.0), 0.01) for rule in policy.rules if not rule.optional
    ]
    assert verdict(policy, *original, controls=()).verdict is Verdict.FAIL
    hidden = [m for m in original if ".exposure" in m.metric and not m.metric.startswith("replay")]
    filtered = [number(Rule("r", m.metric, max=1), 0.0) if m in hidden else m for m in original]
    failed = {f.rule.metric for f in verdict(policy, *filtered).findings if f.result is Result.FAIL}
    assert {metrics()[metric].layer for metric in failed} == {"behaviour"}
