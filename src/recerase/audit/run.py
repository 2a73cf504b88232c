"""An audit, whole: every probe on every model, the comparisons a policy asks for, the controls, the verdict.

The decision that shaped this file: the probes run on each model apart and know of no other; what relates two models
(drops, ratios, controls) is computed afterwards, from the per-user values their measurements carry. The filter
control is made here, from the original and the concept, and is read like any other model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import chain
from typing import Any, Literal

from recerase.audit.cards import cards_beyond, load_probe, probes_of
from recerase.audit.controls import judge_controls
from recerase.audit.estimate import estimated
from recerase.audit.evidence import curves, worst_examples
from recerase.audit.policy import covers, decide, default_policy, in_force, not_asked, required
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Cache, Readings
from recerase.audit.references import likeness_rows, pooled, pooled_curves, reference_names, references_told, stretched
from recerase.errors import UsageError
from recerase.resume import Pieces
from recerase.stats import paired_drop, paired_ratio
from recerase.types import (
    SILENT,
    Control,
    Decision,
    Example,
    Interval,
    LikenessRow,
    Measurement,
    Observer,
    Policy,
    Profile,
    ReferenceFigures,
    Role,
    Scope,
    Skipped,
)

Kind = Literal["drop", "ratio"]
Comparison = tuple[str, Role, Kind]
"""metric, versus, kind: what every other role is compared in."""

TOLD: tuple[Comparison, ...] = (
    ("utility.ndcg@10", "original", "drop"),
    ("utility.recall@10", "original", "drop"),
    ("utility_concept_users.ndcg@10", "original", "drop"),
    ("utility_neighbours.ndcg@10", "original", "drop"),
    ("utility_neighbours.ndcg@10", "reference", "ratio"),
    ("natural.mass.old", "reference", "ratio"),
    ("natural_concept_users.mass.old", "reference", "ratio"),
    ("saturated.mass.old", "reference", "ratio"),
)
"""Comparisons that are in every report, whatever the policy asks."""


_BEGUN = "begun"
"""The piece that says that a probe is done, so that a run which is continued times nothing again."""


@dataclass(frozen=True)
class AuditResult:
    """What an audit found: everything in a report that is not provenance."""

    decision: Decision
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    controls: tuple[Control, ...]
    examples: tuple[Example, ...]
    curves: Mapping[str, Any]
    limits: tuple[str, ...]
    references: tuple[ReferenceFigures, ...] = ()
    likeness: tuple[LikenessRow, ...] = ()
    """Both empty unless there are two references or more."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Probe -> seconds it took on all models together; what two probes both read is counted with the first."""


def run_audit(
    subject: AuditModel,
    original: AuditModel | None,
    references: Sequence[AuditModel],
    world: AuditWorld,
    policy: Policy,
    observer: Observer = SILENT,
    *,
    today: date | None = None,
    state: Pieces | None = None,
) -> AuditResult:
    """Measure `subject` and the models it is held against, and let the policy decide.

    Without an original the controls cannot run, and no verdict is a pass. When the subject is the original (same
    digest) its readings are made once. `today` (default: the system's date) is what waivers expire against; `state`
    is where the readings of an interrupted run are kept and found. The world's config says which profile is run; an observer that
    listens is told beforehand about how long that takes. Of several `references` the role's numbers are means (`references.py`), each
    must be clean by itself, and it is tested whether the subject could be one more; a probe that looks at another model beside its own
    is given the one of the smallest digest. Raises UsageError where one of them is given twice.
    """
    profile, scope = world.config.profile, world.scope
    _check_once(references)
    cache: Cache = {}
    models = [subject, *_held_against(original, references, world)]
    beside: dict[Role, Readings] = {}
    readings = [Readings(model, world, cache, observer, state, beside) for model in models]
    for reading in sorted(readings, key=lambda reading: reading.model.digest):  # no order of references plays a part
        beside.setdefault(reading.model.role, reading)
    if observer is not SILENT and (state is None or state.read(_BEGUN) is None):
        observer.note(estimated(readings).told)
    found, seconds = _probe(readings, observer, state)
    others, golds = found[: len(found) - len(references)], found[len(found) - len(references) :]
    together = [x for some in others for x in some] + (pooled(golds) if len(golds) > 1 else [*chain(*golds)])
    measurements = [x for x in together if isinstance(x, Measurement)]
    skipped = [x for x in together if isinstance(x, Skipped)]
    skipped += not_run(world.config.profile)
    asked = in_force(policy, profile, scope)
    figures = _each(golds, measurements, asked, world)
    compared = _compare_all(measurements, skipped, asked, world, figures)
    measurements += [x for x in compared if isinstance(x, Measurement)]
    skipped += [x for x in compared if isinstance(x, Skipped)]
    name, today = world.concept.name, today or date.today()
    controls = judge_controls(policy, measurements, skipped, name, today, profile, scope, figures)
    rows, spent = _alike(readings, measurements, figures)
    return AuditResult(
        decision=decide(policy, measurements, skipped, controls, name, today, profile, scope),
        measurements=tuple(measurements),
        skipped=tuple(skipped),
        controls=controls,
        examples=worst_examples(beside["subject"], beside.get("original")),
        curves=_curves(readings),
        limits=(*_limits(world, len(references), measurements), *_unasked(policy, profile, scope)),
        seconds=seconds | spent,
        references=figures,
        likeness=rows,
    )


def _check_once(references: Sequence[AuditModel]) -> None:
    known = [model.digest or id(model.recommender) for model in references]
    if len(set(known)) < len(known):
        raise UsageError("One reference is given twice.", "Give each retrained checkpoint once.")


def _held_against(original: AuditModel | None, references: Sequence[AuditModel], world: AuditWorld) -> list[AuditModel]:
    models = []
    if original is not None:
        original = replace(original, role="original")
        models += [original, replace(original, role="filter", listed=original.listed & world.retained)]
    return models + [replace(reference, role="reference", reads_concept=False) for reference in references]


def _each(
    golds: Sequence[Sequence[Measurement | Skipped]],
    measurements: Sequence[Measurement],
    policy: Policy,
    world: AuditWorld,
) -> tuple[ReferenceFigures, ...]:
    """What each of several references showed, comparisons with the original included; `measurements` are those of every role."""
    if len(golds) < 2:
        return ()
    others = [m for m in measurements if m.role != "reference"]
    made = []
    for name, some in zip(reference_names(len(golds)), golds, strict=True):
        own = [x for x in some if isinstance(x, Measurement)]
        compared = _compare_all([*others, *own], (), policy, world, among=("reference",))
        made.append(
            ReferenceFigures(
                name,
                (*own, *(x for x in compared if isinstance(x, Measurement))),
                tuple(x for x in (*some, *compared) if isinstance(x, Skipped)),
            )
        )
    return tuple(made)


def _alike(
    readings: Sequence[Readings], measurements: Sequence[Measurement], figures: Sequence[ReferenceFigures]
) -> tuple[tuple[LikenessRow, ...], dict[str, float]]:
    """The rows of likeness where there are several references, and the seconds they took."""
    if not figures:
        return (), {}
    began, golds = time.monotonic(), readings[len(readings) - len(figures) :]
    own = [m for m in measurements if m.role == "subject"]
    rows = likeness_rows(readings[0], golds, own, [x.measurements for x in figures])
    return rows, {"likeness": round(time.monotonic() - began, 3)}


def _curves(readings: Sequence[Readings]) -> Mapping[str, Any]:
    golds = [reading for reading in readings if reading.model.role == "reference"]
    if len(golds) < 2:
        return curves(readings)
    others = readings[: len(readings) - len(golds)]
    return pooled_curves([curves([*others, gold]) for gold in golds])


def _probe(
    readings: Sequence[Readings], observer: Observer, state: Pieces | None
) -> tuple[list[list[Measurement | Skipped]], dict[str, float]]:
    """What every probe found, a list a model, and how long each took; the observer is told which is at work on which."""
    names = probes_of(readings[0].world.config.profile)
    observer.start("audit", len(readings) * len(names))
    found: list[list[Measurement | Skipped]] = [[] for _ in readings]
    seconds = dict.fromkeys(names, 0.0)
    for told, reading, role in zip(found, readings, _called(readings), strict=True):
        for name in names:
            observer.advance("audit", 0, probe=name, role=role)
            began = time.monotonic()
            told += load_probe(name)(reading)
            seconds[name] += time.monotonic() - began
            if state is not None and reading is readings[0] and name == names[0]:
                state.write(_BEGUN, b"")
            observer.advance("audit", 1, probe=name, role=role)
    observer.finish("audit")
    return found, {name: round(spent, 3) for name, spent in seconds.items()}


def _called(readings: Sequence[Readings]) -> list[str]:
    """The role of each, and of further references which one."""
    roles = [reading.model.role for reading in readings]
    nth = [roles[: i + 1].count(role) for i, role in enumerate(roles)]
    return [role if n == 1 else f"{role} {n}" for role, n in zip(roles, nth, strict=True)]


def not_run(profile: Profile) -> list[Skipped]:
    """What the probes of wider profiles would have asked, as a `Skipped` of the subject for each name their metrics begin with."""
    return [
        Skipped(
            f"{stem}.*", "subject", f"not in the {profile} profile, `--profile {card.profile}` runs it: {card.goal}"
        )
        for card in cards_beyond(profile)
        for stem in dict.fromkeys(spec.name.partition(".")[0] for spec in card.metrics)
    ]


def _unasked(policy: Policy, profile: Profile, scope: Scope) -> tuple[str, ...]:
    """One sentence that names the rules of the policy that an audit of this profile and scope does not ask, and why."""
    why = [f"{rule.id} ({said})" for rule in policy.rules if (said := not_asked(rule, profile, scope))]
    return (f"Rules of the policy that this audit did not ask: {', '.join(why)}.",) if why else ()


def _asked(policy: Policy) -> tuple[Comparison, ...]:
    """The comparisons a policy's rules need."""
    return tuple((m, versus, kind) for m, _, versus, kind in required(policy) if versus is not None and kind != "value")


def _compare_all(
    measurements: Sequence[Measurement],
    skipped: Sequence[Skipped],
    policy: Policy,
    world: AuditWorld,
    references: Sequence[ReferenceFigures] = (),
    among: Sequence[Role] | None = None,
) -> list[Measurement | Skipped]:
    """Every role (of `among`) in each comparison that the policy asks for, that the controls may lean on, or that is always told.

    What the policy asks for and the subject cannot be given is Skipped. A comparison with the mean of several `references` is
    never surer than those with each of them.
    """
    by_name = {(m.metric, m.role): m for m in measurements}
    single = [{m.metric: m for m in x.measurements if m.kind == "value"} for x in references]
    roles = list(dict.fromkeys(m.role for m in measurements if among is None or m.role in among))
    asked = _asked(policy)
    found: list[Measurement | Skipped] = []
    for metric, versus, kind in dict.fromkeys([*asked, *_asked(default_policy()), *TOLD]):
        base = by_name.get((metric, versus))
        for role in [r for r in roles if r != versus]:
            own = by_name.get((metric, role))
            if own is not None and base is not None:
                made = compare(own, base, kind, world)
                if versus == "reference" and single and isinstance(made, Measurement):
                    golds = [x[metric] for x in single if metric in x]
                    made = stretched(made, own, golds, [compare(own, gold, kind, world) for gold in golds])
            elif role == "subject":
                made = Skipped(metric, role, _why_not(metric, versus, kind, own, versus in roles, skipped))
            else:
                continue
            if isinstance(made, Measurement) or (metric, versus, kind) in asked:
                found.append(made)
    return found


def _why_not(
    metric: str, versus: Role, kind: Kind, own: Measurement | None, given: bool, skipped: Sequence[Skipped]
) -> str:
    if own is None:
        reasons = [s.reason for s in skipped if s.role == "subject" and covers(s.metric, metric)]
        told = f"the {kind} against the {versus} needs {metric}, which was not measured"
        return "; ".join(dict.fromkeys([told, *reasons]))
    return f"the {kind} against the {versus} needs {'its ' + metric if given else 'a checkpoint of it: none was given'}"


def compare(own: Measurement, versus: Measurement, kind: Kind, world: AuditWorld) -> Measurement | Skipped:
    """The drop (versus - own) / versus or the ratio own / versus; paired where both carry a value a user, exact where both are.

    Skipped when `versus` is zero: there is nothing to drop from.
    """
    config = world.config
    if versus.value == 0:
        return Skipped(own.metric, own.role, f"the {kind} against the {versus.role} has no meaning: its value is 0")
    interval: Interval | None = None
    if own.values is not None and versus.values is not None:
        paired = paired_drop if kind == "drop" else paired_ratio
        value, interval = paired(own.values, versus.values, confidence=config.confidence, seed=config.seed)
    else:
        ratio = own.value / versus.value
        value = 1.0 - ratio if kind == "drop" else ratio
        if all(m.interval is not None and m.interval.method == "exact" for m in (own, versus)):
            interval = Interval(value, value, config.confidence, "exact")
    better = own.better
    if kind == "drop" and better != "neither":
        better = "lower" if better == "higher" else "higher"
    return replace(
        own, value=float(value), interval=interval, versus=versus.role, kind=kind, better=better, values=None
    )


def _limits(world: AuditWorld, references: int, measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """What a pass does not mean, in sentences."""
    moved = any(m.metric.startswith("influence.") for m in measurements)
    influence = {
        "output": "Scope output: a history that holds the concept may still inform other recommendations.",
        "influence": "Scope influence: how far the concept in a history moves the rest of a list is told for the histories that "
        "were read."
        if moved
        else "Scope influence: that the concept in a history moves nothing else was not measured here.",
    }
    by_weights = dict.fromkeys(m.metric.partition(".")[0] for m in measurements if m.layer == "weights")
    weights = (
        f"Of the weights layer, what {', '.join(by_weights)} ask was measured; a longer or another attack was not tried."
        if by_weights
        else "The weights layer (relearning, probes, membership, precision) was not measured."
    )
    return (
        "Concept erasure is not user-data erasure: that users interacted with the concept may still be inferable.",
        influence[world.scope],
        references_told(references),
        f"This was the {world.config.profile} profile.",
        weights,
        "The reference is read under the old table on histories without concept items; its saturated figures are "
        "those of the concept's own users, because a history of nothing but the concept is empty to it.",
        "Exposure is counted by item: where items share a SID, all of them are listed when it is generated.",
    )
