"""Several references in one audit: means that no order changes, each of them judged, and likeness that is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch

from recerase.audit import cards, readings, run
from recerase.audit.equivalence import LEGS, equivalent_log_ratio, equivalent_masses
from recerase.audit.policy import SPREAD, decide
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.references import alike, mass_row, pooled, stretched
from recerase.audit.run import AuditResult, run_audit
from recerase.errors import UsageError
from recerase.model.recommender import Recommender
from recerase.parallel import Workers
from recerase.types import Interval, LikenessRow, Measurement, Policy, ReferenceFigures, Result, Rule, Skipped, Verdict

POLICY = Policy(
    rules=(
        Rule("exposure", "natural.exposure@10", max=0.06),
        Rule("saturated", "saturated.exposure@10", max=0.08),
        Rule("mass", "natural.mass.old", max=0.01),
        Rule("like a reference", "natural.mass.old", max=3.0, max_ratio_to="reference", optional=True),
    ),
    min_users=10,
)
TODAY = date(2026, 1, 1)
PROBES = ("natural", "saturated", "utility")
Audit = Callable[..., AuditResult]


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "probes_of", lambda profile: PROBES)


@pytest.fixture
def trained(audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]) -> Callable[..., AuditModel]:
    """trained(seed): a model that never saw the concept, a little unlike those of other seeds; of favourite 0 one that did."""

    def make(seed: int, favourite: int = 1, noise: float = 0.1) -> AuditModel:
        model = planted(favourite)
        with torch.no_grad():
            head = model.module.lm_head.weight
            head += noise * torch.randn(head.shape, generator=torch.Generator().manual_seed(seed))
        return audited(model, digest=f"{favourite}-{seed}")

    return make


@pytest.fixture
def audit(world: AuditWorld, trained: Callable[..., AuditModel]) -> Audit:
    original = trained(9, 0)

    def made(references: Sequence[AuditModel], subject: AuditModel | None = None) -> AuditResult:
        return run_audit(subject or trained(8), original, references, world, POLICY, today=TODAY)

    return made


def of_role(found: AuditResult, role: str) -> dict[tuple[Any, ...], Measurement]:
    return {(m.metric, m.kind, m.versus): m for m in found.measurements if m.role == role}


def number(
    value: float, low: float, high: float, values: Any = None, n: int = 5, method: str = "wilson"
) -> Measurement:
    found = None if values is None else np.asarray(values, float)
    return Measurement(
        "natural.mass.old", "reference", value, n, "behaviour", Interval(low, high, 0.95, method), values=found
    )


def test_a_pair_is_pooled_to_what_it_was_planted_as() -> None:
    one, other = number(0.2, 0.1, 0.3, [0.1, 0.3], 2), number(0.6, 0.5, 0.65, [0.5, 0.7], 2)
    (found,) = pooled([[one], [other]])
    assert isinstance(found, Measurement)
    assert (found.value, found.n) == (pytest.approx(0.4), 2)
    assert found.interval == Interval(0.1, 0.65, 0.95, SPREAD)
    np.testing.assert_allclose(found.values, [0.3, 0.5])
    assert found == pooled([[other], [one]])[0]


def test_what_cannot_be_pooled_is_not_made_up() -> None:
    (found,) = pooled([[number(0.2, 0.1, 0.3, [0.2, 0.2])], [number(0.6, 0.5, 0.7, [0.6])]])
    assert isinstance(found, Measurement)
    assert found.values is None  # not the same users
    (bare,) = pooled([[number(0.2, 0.1, 0.3)], [replace(number(0.6, 0.5, 0.7), interval=None)]])
    assert isinstance(bare, Measurement)
    assert bare.interval is None
    same = number(0.0, 0.0, 0.0, method="exact")
    assert pooled([[same], [same]]) == [same]


def test_what_one_reference_lacks_is_skipped_and_says_which() -> None:
    lacks = Skipped("natural.*", "reference", "it cannot spell them")
    for some in ([[number(0.2, 0.1, 0.3)], [lacks]], [[lacks], [number(0.2, 0.1, 0.3)]]):
        (found,) = pooled(some)
        place = 1 + some.index([lacks])
        assert found == Skipped(
            "natural.mass.old", "reference", f"not on every reference: reference {place}: it cannot spell them"
        )
    assert pooled([[lacks], [lacks]]) == [lacks]
    (silent,) = pooled([[number(0.2, 0.1, 0.3)], []])
    assert isinstance(silent, Skipped)
    assert silent.reason == "not on every reference: reference 2: it gives none"


def test_a_comparison_with_a_mean_is_no_surer_than_with_each() -> None:
    own = replace(number(0.3, 0.2, 0.4), role="subject")
    compared = replace(
        own, value=0.75, interval=Interval(0.7, 0.8, 0.95, "bootstrap"), versus="reference", kind="ratio"
    )
    found = stretched(compared, own, [number(0.2, 0, 1), number(0.6, 0, 1)]).interval
    assert found is not None
    assert (found.low, found.high, found.method) == (pytest.approx(0.5), pytest.approx(1.5), SPREAD)
    assert stretched(compared, own, [number(0.39, 0, 1), number(0.41, 0, 1)]) == compared
    nothing = stretched(compared, own, [number(0.0, 0, 1)]).interval
    assert nothing is not None
    assert nothing.high == np.inf


def test_a_comparison_holds_the_intervals_of_those_with_each() -> None:
    own = replace(number(0.3, 0.2, 0.4), role="subject")
    compared = replace(own, value=2.0, interval=Interval(1.8, 2.2, 0.95, "bootstrap"), versus="reference", kind="ratio")
    golds = [number(0.15, 0, 1), number(0.15, 0, 1)]
    each = [replace(compared, interval=Interval(1.9, 3.5, 0.95, "bootstrap")), compared]
    assert stretched(compared, own, golds, each).interval == Interval(1.8, 3.5, 0.95, SPREAD)
    bare = replace(compared, interval=None)
    assert stretched(bare, own, golds, [each[0], bare]).interval is None  # of one nothing is known
    exact = [replace(compared, value=x, interval=Interval(x, x, 0.95, "exact")) for x in (1.0, 2.5)]
    assert stretched(bare, own, golds, exact).interval == Interval(1.0, 2.5, 0.95, "exact")
    assert stretched(bare, own, golds, [exact[0], each[0]]).interval == Interval(1.0, 3.5, 0.95, SPREAD)


def test_an_exact_number_can_pass_beside_several_references_and_is_held_against_the_worst(world: AuditWorld) -> None:
    """As `worst_case.mass.old` of 12 histories is: far fewer than the policy wants behind a number that is not exact."""
    rule = Rule("adversary", "worst_case.mass.old", max=3.0, max_ratio_to="reference")
    policy = replace(POLICY, rules=(rule,), min_users=1000)

    def exact(value: float, role: Any) -> Measurement:
        return Measurement(rule.metric, role, value, 12, "behaviour", Interval(value, value, 0.95, "exact"))

    for golds, wanted, said in (
        ((0.1, 0.2), Result.PASS, "2 respects"),
        ((0.05, 0.2), Result.INCONCLUSIVE, "no n would suffice"),
    ):
        each = [exact(x, "reference") for x in golds]
        mean = pooled([[x] for x in each])
        figures = [ReferenceFigures(f"reference.{i}", (x,)) for i, x in enumerate(each)]
        found = run._compare_all([exact(0.2, "subject"), *mean], (), policy, world, figures)  # type: ignore[list-item]
        (finding,) = decide(policy, [m for m in found if isinstance(m, Measurement)], [], [], "c", TODAY).findings
        assert finding.result is wanted
        assert said in finding.reason


def test_a_rule_that_one_reference_leaves_open_is_open_beside_several(
    audit: Audit, trained: Callable[..., AuditModel], world: AuditWorld
) -> None:
    golds = [trained(seed, noise=0.5) for seed in (1, 2, 3)]
    found = audit(golds)
    ratio = of_role(found, "subject")["natural.mass.old", "ratio", "reference"].interval
    assert ratio is not None
    for gold in golds:
        alone = of_role(audit([gold]), "subject")["natural.mass.old", "ratio", "reference"].interval
        assert alone is not None
        assert ratio.low <= alone.low <= alone.high <= ratio.high


def test_no_order_of_references_changes_what_is_read_beside_one(
    audit: Audit, trained: Callable[..., AuditModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def looks(reading: readings.Readings) -> list[Measurement | Skipped]:
        seen.append(reading.beside["reference"].model.digest)
        return []

    load = run.load_probe
    monkeypatch.setattr(run, "probes_of", lambda profile: (*PROBES, "looks"))
    monkeypatch.setattr(run, "load_probe", lambda name: looks if name == "looks" else load(name))
    audit([trained(1), trained(2)])
    audit([trained(2), trained(1)])
    assert set(seen) == {trained(1).digest}


def test_one_reference_is_as_it_was(audit: Audit, trained: Callable[..., AuditModel], world: AuditWorld) -> None:
    found = audit([trained(1)])
    assert (found.references, found.likeness) == ((), ())
    assert any("One reference was given" in limit for limit in found.limits)
    assert not any("were given" in limit for limit in found.limits)
    assert [c.observed for c in found.controls if c.name == "reference"] == [
        "passes catalogue; passes behaviour; weights layer not measured"
    ]
    assert all(m.interval is None or m.interval.method != SPREAD for m in found.measurements)
    own = readings.Readings(replace(trained(1), role="reference", reads_concept=False), world)
    alone = [m for name in PROBES for m in cards.load_probe(name)(own)]
    told = [m for m in found.measurements if m.role == "reference" and m.kind == "value"]
    assert told == [m for m in alone if isinstance(m, Measurement)]


def test_no_order_of_references_changes_a_number(audit: Audit, trained: Callable[..., AuditModel]) -> None:
    golds = [trained(seed) for seed in (1, 2, 3)]
    first, second = audit(golds), audit([golds[2], golds[0], golds[1]])
    for one, other in zip(first.measurements, second.measurements, strict=True):
        assert one == other
        np.testing.assert_array_equal(one.values, other.values)
    assert first.likeness == second.likeness
    assert first.curves == second.curves
    assert first.decision == second.decision
    alone = [{m.metric: m for m in x.measurements if m.kind == "value"}["natural.mass.old"] for x in first.references]
    assert [x.measurements for x in second.references] == [first.references[i].measurements for i in (2, 0, 1)]
    assert of_role(audit(golds[1:2]), "reference")["natural.mass.old", "value", None] == alone[1]
    told = of_role(first, "reference")["natural.mass.old", "value", None]
    assert told.value == pytest.approx(np.mean([m.value for m in alone]))
    assert told.interval is not None
    for m in alone:
        assert m.interval is not None
        assert told.interval.low <= m.interval.low <= m.interval.high <= told.interval.high
    ratio = of_role(first, "subject")["natural.mass.old", "ratio", "reference"]
    own = of_role(first, "subject")["natural.mass.old", "value", None]
    assert ratio.interval is not None
    assert ratio.value == pytest.approx(own.value / told.value)
    for m in alone:
        assert ratio.interval.low <= own.value / m.value <= ratio.interval.high


def test_one_more_reference_is_alike_and_the_original_is_not(audit: Audit, trained: Callable[..., AuditModel]) -> None:
    golds = [trained(seed) for seed in (1, 2, 3)]
    alike_rows = {row.metric: row for row in audit(golds, trained(4)).likeness}
    assert {*alike_rows} == {*(name for name, _ in LEGS), "auc"}
    assert {row.verdict for row in alike_rows.values()} <= {"equivalent", "too few"}
    assert "equivalent" in {row.verdict for row in alike_rows.values()}
    original = audit(golds, trained(9, 0)).likeness
    assert {row.verdict for row in original} == {"not equivalent"}
    told = {row.metric: row for row in original}["auc"]
    assert told.auc is not None
    assert told.auc_references is not None
    assert told.value == pytest.approx(told.auc - told.auc_references)
    assert told.auc > 0.95
    assert all(row.verdict == alike(row) for row in (*original, *alike_rows.values()))


def test_two_references_tell_of_no_spread_and_a_subject_among_them_of_nothing(
    audit: Audit, trained: Callable[..., AuditModel]
) -> None:
    pair = [trained(1), trained(2)]
    found = audit(pair)
    masses = [row for row in found.likeness if row.metric != "auc"]
    assert {row.verdict for row in masses} == {"too few"}
    assert all("needs 3" in row.reason and row.value is not None for row in masses)
    assert {row.metric: row for row in found.likeness}["auc"].auc_references is not None
    assert any("Two tell nothing of their spread" in limit for limit in found.limits)
    itself = audit([*pair, trained(3)], trained(2)).likeness
    assert {(row.verdict, row.value) for row in itself} == {("not known", None)}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_reference_that_knows_the_concept_makes_the_audit_invalid(
    audit: Audit, trained: Callable[..., AuditModel], place: int
) -> None:
    golds = [trained(1), trained(2)]
    golds.insert(place, trained(3, 0))
    found = audit(golds)
    control = {c.name: c for c in found.controls}["reference"]
    assert control.holds is False
    assert f"reference {place + 1}: fails" in control.observed
    others = ", ".join(str(i + 1) for i in range(3) if i != place)
    assert f"references {others}: passes" in control.observed
    assert found.decision.verdict is Verdict.INCONCLUSIVE
    assert "audit invalid" in found.decision.reason


def test_a_ratio_that_references_disagree_about_needs_no_more_users() -> None:
    """Where references are what differs, nobody is told that users are lacking."""
    rule = Rule("ratio", "natural.mass.old", max=3.0, max_ratio_to="reference")
    for method, enough in (("bootstrap", True), (SPREAD, False)):
        found = Measurement(
            rule.metric, "subject", 1.0, 500, "behaviour", Interval(0.4, 5.0, 0.95, method), "reference", "ratio"
        )
        (finding,) = decide(replace(POLICY, rules=(rule,)), [found], [], [], "c", TODAY).findings
        assert finding.result is Result.INCONCLUSIVE
        assert ("no n would suffice" in finding.reason) != enough
        assert (finding.enough is not None) == enough


def test_one_reference_given_twice_is_refused(audit: Audit, trained: Callable[..., AuditModel]) -> None:
    with pytest.raises(UsageError, match="twice"):
        audit([trained(1), trained(2), trained(1)])


def test_masses_are_tested_as_equivalence_says() -> None:
    rng = np.random.default_rng(0)
    for shift in (1.0, 1.4, 20.0):
        gold = [rng.lognormal(-9, 1, 400) * factor for factor in (0.9, 1.0, 1.15)]
        own = shift * gold[1]
        names = dict.fromkeys(("natural.mass.old", "natural.mass.new"), own)
        legs = equivalent_masses([names], [{"natural.mass.old": x} for x in gold])
        assert {*legs} == {*names}
        row = mass_row("natural.mass.new", legs["natural.mass.new"], 3)
        told = equivalent_log_ratio([own], gold)
        assert (row.value, row.interval, row.limit) == (told.ratio, told.interval, told.margin)
        assert (row.verdict == "equivalent") == told.equivalent
    assert row.verdict == "not equivalent"
    nothing = equivalent_masses([{"natural.mass.old": np.zeros(400)}], [{"natural.mass.old": x} for x in gold])
    assert mass_row("natural.mass.old", nothing["natural.mass.old"], 3).verdict == "not equivalent"


def test_in_between_is_too_few() -> None:
    row = LikenessRow("natural.mass.old", "too few", "why", 9, 1.2, Interval(0.8, 1.9, 0.9, "welch"), 1.5)
    assert alike(row) == "too few"
    assert alike(replace(row, interval=Interval(1.1, 1.4, 0.9, "welch"))) == "equivalent"
    assert alike(replace(row, interval=Interval(1.6, 1.9, 0.9, "welch"))) == "not equivalent"
    assert alike(replace(row, interval=Interval(0.2, 0.6, 0.9, "welch"))) == "not equivalent"
    assert alike(replace(row, interval=None, value=0.0)) == "not equivalent"
    assert alike(replace(row, interval=None, verdict="equivalent")) == "not known"
    assert alike(replace(row, limit=0.0, verdict="equivalent")) == "not known"
    auc = LikenessRow("auc", "too few", "why", 9, 0.04, Interval(-0.01, 0.08, 0.95, "bootstrap"), 0.05)
    assert alike(auc) == "too few"
    assert alike(replace(auc, interval=Interval(-0.01, 0.05, 0.95, "bootstrap"))) == "equivalent"
    assert alike(replace(auc, interval=Interval(0.051, 0.08, 0.95, "bootstrap"))) == "not equivalent"


class Threaded(Workers):
    """One of several processes, each played by a thread."""

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(board))
        object.__setattr__(self, "board", board)
        object.__setattr__(self, "barrier", barrier)

    def gathered(self, value: Any) -> list[Any]:
        own: Any = self
        own.board[self.rank] = value
        own.barrier.wait()
        found = list(own.board)
        own.barrier.wait()
        return found

    def told(self, value: Any = None) -> Any:
        return self.gathered(value)[0]


def test_two_processes_find_what_one_does(
    audit: Audit, trained: Callable[..., AuditModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    golds, subject = [trained(seed) for seed in (1, 2, 3)], trained(4)
    wanted = audit(golds, subject)
    local, found = threading.local(), {}
    monkeypatch.setattr(readings, "workers", lambda: getattr(local, "who", Workers()))
    board: list[Any] = [None, None]
    barrier = threading.Barrier(2, timeout=60)

    def work(rank: int) -> None:
        local.who = Threaded(rank, board, barrier)
        found[rank] = audit(golds, subject)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(2):
        assert found[rank].measurements == wanted.measurements
        assert found[rank].likeness == wanted.likeness
        assert found[rank].references == wanted.references
        assert found[rank].decision == wanted.decision
