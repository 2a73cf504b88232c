"""A profile runs its probes and asks its rules, says about how long, and no rule of a wider one makes an audit undecided."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recerase.audit import cards, estimate
from recerase.audit.card import MetricSpec, ProbeCard
from recerase.audit.controls import judge_controls
from recerase.audit.estimate import WORK, duration, estimated
from recerase.audit.gate import gate
from recerase.audit.policy import decide, in_force, policy_digest
from recerase.audit.probes import AuditModel, AuditWorld, measured
from recerase.audit.readings import Readings
from recerase.audit.recheck import inconsistencies
from recerase.audit.run import AuditResult, run_audit
from recerase.model.recommender import Recommender
from recerase.report.html import report_html
from recerase.report.junit import report_junit
from recerase.report.markdown import report_markdown
from recerase.report.sarif import report_sarif
from recerase.report.schema import parse_report, report_bytes
from recerase.types import (
    Control,
    Interval,
    Measurement,
    Policy,
    Profile,
    Report,
    Result,
    Role,
    Rule,
    Silent,
    Skipped,
    Verdict,
    Waiver,
)

DAY = date(2026, 1, 1)
NAME = "group=0"
EXPOSURE = Rule("exposure", "natural.exposure@10", max=0.06)
DEEP = Rule("deep", "deep.share", max=0.5)
BASE = (EXPOSURE, Rule("saturated", "saturated.exposure@10", max=0.08), Rule("mass", "natural.mass.old", max=0.01))
CARD = ProbeCard(
    "deep",
    "Is it still in the weights?",
    "planted",
    (MetricSpec("deep.share", "weights"), MetricSpec("deep_two.share", "weights")),
    "planted_deep:deep",
    how="it is planted",
    cost="nothing",
    misses="anything",
    profile="standard",
)
HELD = tuple(Control(name, "", "", True) for name in ("original", "filter"))  # type: ignore[arg-type]
LEAKS: dict[Role, float] = {"subject": 0.0, "original": 1.0, "filter": 1.0, "reference": 0.0}


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> dict[Role, float]:
    """Beside three quick probes one of the standard profile, in the weights layer; what it finds of each role can be changed."""
    found = dict(LEAKS)
    module = ModuleType("recerase.audit.planted_deep")

    def probe(readings: Readings) -> list[Measurement | Skipped]:
        values = np.full(60, found[readings.model.role])
        return [measured(readings, name, values) for name in ("deep.share", "deep_two.share")]

    module.deep = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recerase.audit.planted_deep", module)
    quick = {name: cards.PROBES[name] for name in ("natural", "saturated", "utility")}
    monkeypatch.setattr(cards, "PROBES", MappingProxyType({**quick, "deep": CARD}))
    return found


@pytest.fixture
def audit(
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    planted: Callable[[int], Recommender],
    deep: dict[Role, float],
) -> Callable[..., AuditResult]:
    def run(policy: Policy, profile: Profile, observer: Any = None) -> AuditResult:
        asked = replace(world, config=replace(world.config, profile=profile))
        models = audited(planted(1), digest="s"), audited(planted(0), digest="o"), [audited(planted(1), digest="r")]
        return run_audit(*models, asked, policy, *([observer] if observer else []), today=DAY)

    return run


def policy(*rules: Rule, **changes: Any) -> Policy:
    return Policy((*BASE, *rules), min_users=10, **changes)


def number(metric: str, value: float = 0.0) -> Measurement:
    return Measurement(metric, "subject", value, 5000, "behaviour", Interval(value, value, 0.95, "bootstrap"))


def test_a_rule_is_asked_from_its_profile_on_and_in_its_scope() -> None:
    rules = (EXPOSURE, replace(DEEP, profile="standard"), Rule("moves", "natural.hit@10", max=1.0, scope="influence"))
    every = Policy(rules)

    def ids(profile: Profile, scope: Any = "output") -> list[str]:
        return [rule.id for rule in in_force(every, profile, scope).rules]

    assert ids("quick") == ["exposure"]
    assert ids("standard") == ids("thorough") == ["exposure", "deep"]
    assert ids("quick", "influence") == ["exposure", "moves"]
    found = decide(every, [number("natural.exposure@10")], (), HELD, NAME, DAY)
    assert [f.rule.id for f in found.findings] == ["exposure"]
    assert (found.verdict, found.profile) == (Verdict.PASS, "quick")
    assert found.reason.endswith("; not asked: deep, moves")
    wide = decide(every, [number("natural.exposure@10")], (), HELD, NAME, DAY, "standard")
    assert (wide.verdict, wide.profile) == (Verdict.INCONCLUSIVE, "standard")
    assert decide(replace(every, profile="standard"), [number("natural.exposure@10")], (), HELD, NAME, DAY) == wide
    moved = decide(
        every, [number("natural.exposure@10"), number("natural.hit@10")], (), HELD, NAME, DAY, "quick", "influence"
    )
    assert [f.result for f in moved.findings] == [Result.PASS, Result.PASS]


def test_a_policy_of_which_nothing_is_asked_passes_nothing() -> None:
    found = decide(Policy((replace(DEEP, profile="thorough"),)), [number("deep.share")], (), HELD, NAME, DAY)
    assert (found.verdict, found.findings) == (Verdict.INCONCLUSIVE, ())
    assert found.reason == "no rule of the policy is asked in this audit"


def test_a_waiver_of_a_rule_that_is_not_asked_says_so() -> None:
    waived = Policy((EXPOSURE, replace(DEEP, profile="standard")), (Waiver("deep", NAME, "ticket", "2026-12-31"),))
    (warning,) = decide(waived, [number("natural.exposure@10")], (), HELD, NAME, DAY).warnings
    assert warning.endswith("is not used: that rule is asked from the standard profile on.")


def test_a_quick_audit_passes_though_the_policy_has_rules_of_a_wider_profile(audit: Callable[..., AuditResult]) -> None:
    found = audit(policy(replace(DEEP, profile="standard")), "quick")
    assert found.decision.verdict is Verdict.PASS
    assert any("deep (asked from the standard profile on)" in text for text in found.limits)
    assert "deep" not in found.seconds
    assert set(found.seconds) == set(cards.probes_of("quick"))


@pytest.mark.parametrize(
    "rule", [DEEP, replace(DEEP, max=3.0, max_ratio_to="original"), replace(DEEP, metric="deep_two.share")]
)
def test_a_rule_without_a_profile_names_the_one_that_would_ask_it(
    audit: Callable[..., AuditResult], rule: Rule
) -> None:
    found = audit(policy(rule), "quick")
    assert found.decision.verdict is Verdict.INCONCLUSIVE
    reasons = {f.rule.id: f.reason for f in found.decision.findings}
    assert "`--profile standard` runs it" in reasons["deep"]


def test_the_weights_layer_judges_the_controls_where_it_was_measured(
    audit: Callable[..., AuditResult], deep: dict[Role, float]
) -> None:
    asked = policy(replace(DEEP, profile="standard"))
    quick, standard = audit(asked, "quick"), audit(asked, "standard")
    assert all("weights layer not measured" in c.observed for c in quick.controls)
    told = {c.name: c for c in standard.controls}
    assert "fails weights" in told["original"].observed
    assert "fails weights" in told["filter"].observed
    assert "passes weights" in told["reference"].observed
    assert [c.holds for c in standard.controls] == [True, True, True]
    assert standard.decision.verdict is Verdict.PASS
    unasked = audit(policy(), "standard")
    assert all("no rule that must be decided asks about the weights layer" in c.observed for c in unasked.controls)
    assert unasked.decision.verdict is Verdict.PASS


@pytest.mark.parametrize(("role", "value"), [("original", 0.0), ("filter", 0.0), ("reference", 1.0)])
def test_an_audit_whose_controls_do_not_separate_in_the_weights_is_invalid_in_every_format(
    audit: Callable[..., AuditResult], deep: dict[Role, float], role: Role, value: float
) -> None:
    deep[role] = value
    asked = policy(replace(DEEP, profile="standard"))
    found = audit(replace(asked, digest=policy_digest(asked)), "standard")
    assert {c.name: c.holds for c in found.controls}[role] is False  # type: ignore[index]
    assert found.decision.verdict is Verdict.INCONCLUSIVE
    report = report_of(found, asked)
    assert report.gate.exit_code == 5
    sayings = [found.decision.reason, report_markdown(report), report_html(report)]
    sayings += [report_junit(report).decode(), report_sarif(report).decode(), report_bytes(report).decode()]
    assert all("audit invalid" in text for text in sayings)


def report_of(found: AuditResult, asked: Policy) -> Report:
    digest = policy_digest(asked)
    return Report(
        decision=found.decision,
        gate=gate(found.decision),
        measurements=found.measurements,
        skipped=found.skipped,
        concept={"name": NAME, "digest": "d", "scope": "output"},
        inputs={"policy": digest},
        policy=replace(asked, digest=digest),
        limits=found.limits,
    )


@pytest.mark.parametrize("profile", ["quick", "standard"])
def test_the_profile_is_in_the_report_and_the_verdict_can_be_made_again(
    audit: Callable[..., AuditResult], profile: Profile
) -> None:
    asked = policy(replace(DEEP, profile="standard"), Rule("moves", "natural.hit@10", max=1.0, scope="influence"))
    report = report_of(audit(asked, profile), asked)
    again = parse_report(report_bytes(report))
    assert again.decision.profile == profile
    assert inconsistencies(again) == ()
    assert f"({profile} profile)" in report_markdown(again)
    other: Profile = "standard" if profile == "quick" else "quick"
    assert inconsistencies(replace(again, decision=replace(again.decision, profile=other)))


class Noted(Silent):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, object, object]] = []

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        if task == "audit":
            self.steps.append((step, figures["probe"], figures["role"]))

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_beforehand_it_is_said_how_long_and_then_which_probe_is_at_work(audit: Callable[..., AuditResult]) -> None:
    observer = Noted()
    heard = audit(policy(), "standard", observer)
    (told,) = observer.notes
    assert told.startswith("standard profile on 4 models (subject, original, filter, reference): about ")
    assert all(f"{name} " in told for name in cards.probes_of("quick"))
    assert told.endswith("; how long deep take is not known")
    order = [(name, role) for role in LEAKS for name in cards.probes_of("standard")]
    assert observer.steps == [(step, name, role) for name, role in order for step in (0, 1)]
    assert heard.measurements == audit(policy(), "standard").measurements


def test_who_does_not_listen_pays_for_no_estimate(
    audit: Callable[..., AuditResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recerase.audit.run.estimated", lambda *_: pytest.fail("timed for nobody"))
    audit(policy(), "quick")


def test_every_probe_says_what_it_asks_of_a_model() -> None:
    """A new probe belongs into `estimate.WORK`: how many lists, masses and free generations it makes of one model."""
    assert set(WORK) == set(cards.PROBES)


@pytest.mark.parametrize("moves", [False, True])
def test_the_counts_are_those_of_the_histories_that_are_read(
    monkeypatch: pytest.MonkeyPatch,
    world: AuditWorld,
    audited: Callable[..., AuditModel],
    untrained: Recommender,
    planted: Callable[[int], Recommender],
    moved: Any,
    moves: bool,
) -> None:
    read = SimpleNamespace(lists=0, masses=0, free=0)
    kinds = {"recommend": "lists", "concept mass": "masses", "free decoding": "free"}
    plain = Readings._in_blocks

    def counting(self: Readings, key: Any, case: Any, table: Any, batch: int, task: str, make: Any) -> Any:
        setattr(read, kinds[task], getattr(read, kinds[task]) + len(case))
        return plain(self, key, case, table, batch, task, make)

    subject = audited(untrained, digest="s", **({"table": moved} if moves else {}))
    seen: list[Readings] = []
    monkeypatch.setattr(
        "recerase.audit.run.estimated", lambda readings: seen.extend(readings) or SimpleNamespace(told="about")
    )
    monkeypatch.setattr(Readings, "_in_blocks", counting)
    run_audit(
        subject, audited(planted(0), digest="o"), [audited(planted(1), digest="r")], world, policy(), Noted(), today=DAY
    )
    asked = estimate._asked(seen)
    total = {kind: 0.0 for kind in ("lists", "masses", "free")}
    for one in asked:
        for work in (WORK[name](one) for name in cards.probes_of("quick")):
            total["lists"] += work.lists * one.listed_anew
            total["masses"] += work.masses * one.weighed_anew
            total["free"] += work.free * one.weighed_anew
    assert total == vars(read)


def test_an_estimate_is_the_counts_times_what_was_timed(
    monkeypatch: pytest.MonkeyPatch, world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    monkeypatch.setattr(estimate, "_speeds", lambda *_: estimate.Speeds(lists=2.0, masses=3.0, free=5.0))
    reading = Readings(audited(untrained), world)
    found = estimated([reading])
    users, sample = len(world.histories), len(estimate.mass_users(world).rows)
    assert found.seconds["natural"] == 2 * users + 3 * sample
    assert found.seconds["saturated"] == 5 * world.config.saturated_histories
    assert found.seconds["aliasing"] == found.seconds["utility"] == found.seconds["replay"] == 0
    assert found.unknown == ()
    twice = estimated([reading, Readings(audited(untrained, role="original"), world)])
    assert twice.seconds == found.seconds  # the same weights and list: read once


def test_what_is_timed_grows_until_it_can_be_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(estimate, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    sizes: list[int] = []

    def read(rows: Any) -> None:
        sizes.append(len(rows))
        clock[0] += 0.01 * len(rows)

    assert estimate._timed(read, 5000, 1e6) == pytest.approx(0.01)
    assert sizes == [1, 4, 16, 64]  # .64 s is long enough
    sizes.clear()
    assert estimate._timed(read, 5000, 10) == pytest.approx(0.01)  # a tenth of a second in all: not worth more
    assert sizes == [1, 4]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "< 1 s"), (42.4, "42 s"), (300.0, "5 min"), (5399, "90 min"), (9000.0, "2.5 h")]
)
def test_a_guess_of_a_time_is_said_as_one(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_shipped_controls_still_wait_for_required_weights_rules() -> None:
    """An optional rule on weights that cannot be decided does not keep a control from holding."""
    optional = replace(DEEP, metric="natural.mass.old", optional=True)
    numbers = [replace(number(m, v), role=r, layer=metric_layer(m)) for r, m, v in planted_numbers()]  # type: ignore[arg-type]
    controls = judge_controls(Policy((*BASE[:1], BASE[2], optional), min_users=10), numbers, (), NAME, DAY)
    assert [c.holds for c in controls] == [True, True]


def planted_numbers() -> list[tuple[str, str, float]]:
    shown = {"original": 1.0, "filter": 0.0}
    return [(role, metric, 1.0 if "mass" in metric else shown[role]) for role in shown for metric in _NAMES]


_NAMES = ("natural.exposure@10", "natural.mass.old")


def metric_layer(metric: str) -> str:
    return "catalogue" if "exposure" in metric else "behaviour"
