"""Several references in one audit: what they show together, what each shows, and whether the audited model could be one more.

The decision that shaped this file: a reference is a draw, and no draw is the truth. What the role shows is the mean over its
models, and every interval that rests on it holds each of them too, so that nothing is surer than references that differ in nothing
but the seed. Pooled numbers do not depend on the order in which references are given. That a clean model must pass is asked of each
by itself (`controls.py`): a mean would hide one that knows the concept. With one reference nothing here is asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.audit.equivalence import LEAST_REFERENCES, LEGS, Leg, equivalent_masses
from recerase.audit.likeness import LIMIT, Likeness, likeness, user_features
from recerase.audit.policy import SPREAD, covers
from recerase.audit.two_samples import FOLDS
from recerase.errors import UsageError
from recerase.types import Alike, FloatArray, Interval, LikenessRow, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

AUC = "auc"


def reference_names(k: int) -> tuple[str, ...]:
    """What k references are called among the inputs of a report: reference, reference.2, reference.3."""
    return tuple("reference" if i == 0 else f"reference.{i + 1}" for i in range(k))


def references_told(k: int) -> str:
    """What a report says of its references: how many there are, and what that lets be known."""
    if k == 0:
        return "No reference was given: whether the concept is forgotten further than retraining would was not tested."
    if k == 1:
        return "One reference was given: its seed-to-seed spread is unknown, so likeness to it was not tested."
    told = (
        f"{k} references were given: their figures are means (the JSON report has each one's), and intervals, those of comparisons "
        "too, hold every one of them. How alike the audited model is to them is told, and no rule asks it: how often a clean model "
        "is found alike is not known."
    )
    few = " Two tell nothing of their spread: equivalence was not tested, and overlap of lists was not compared."
    return told + few if k < LEAST_REFERENCES else told


def pooled(found: Sequence[Sequence[Measurement | Skipped]]) -> list[Measurement | Skipped]:
    """What the probes found on each of two or more references, as one finding a metric, in the order of the first.

    The mean of the values, the fewest n, and an interval that holds every reference's value and every reference's interval (none
    where one has none). Values a unit are averaged unit by unit where all have as many. What was not measured on every one is
    Skipped, with the reasons.
    """
    told: list[Measurement | Skipped] = []
    for name in dict.fromkeys(x.metric for some in found for x in some):
        own = [x for some in found for x in some if isinstance(x, Measurement) and x.metric == name]
        if len(own) == len(found):
            told.append(_mean(own))
        elif (why := _why(name, found)) is not None:
            told.append(Skipped(name, "reference", why))
    return told


def _why(name: str, found: Sequence[Sequence[Measurement | Skipped]]) -> str | None:
    """Why a metric was not measured on every reference; None for a whole probe of which some of them have numbers."""
    reasons = [
        "; ".join(dict.fromkeys(x.reason for x in some if isinstance(x, Skipped) and covers(x.metric, name)))
        for some in found
    ]
    if all(reasons) and len(set(reasons)) == 1:
        return reasons[0]
    if name.endswith(".*") and not all(reasons):
        return None
    told = [
        f"reference {i}: {why or 'it gives none'}"
        for i, (why, some) in enumerate(zip(reasons, found, strict=True), 1)
        if why or not any(isinstance(x, Measurement) and x.metric == name for x in some)
    ]
    return "not on every reference: " + "; ".join(told)


def _mean(own: Sequence[Measurement]) -> Measurement:
    values = _mean_values([m.values for m in own])
    mean = math.fsum(m.value for m in own) / len(own)
    return replace(own[0], value=mean, n=min(m.n for m in own), interval=_hull(own), values=values)


def _mean_values(values: Sequence[FloatArray | None]) -> FloatArray | None:
    """[n] the mean over references, the same in whatever order they come; None where there are none, or not as many."""
    some = [x for x in values if x is not None]
    if len(some) < len(values) or len({x.shape for x in some}) > 1:
        return None
    means: FloatArray = np.sort(np.stack(some), axis=0).mean(axis=0)
    return means


def _hull(own: Sequence[Measurement]) -> Interval | None:
    """The smallest interval that holds every value and interval; it keeps the method that all have where they are the same."""
    some = [m.interval for m in own if m.interval is not None]
    if len(some) < len(own):
        return None
    if len(set(some)) == 1 and len({m.value for m in own}) == 1:
        return some[0]
    ends = [end for m, x in zip(own, some, strict=True) for end in (m.value, x.low, x.high)]
    if any(map(math.isnan, ends)):
        return None
    return Interval(min(ends), max(ends), min(x.confidence for x in some), SPREAD)


def stretched(
    compared: Measurement,
    own: Measurement,
    references: Iterable[Measurement],
    each: Sequence[Measurement | Skipped] = (),
) -> Measurement:
    """A comparison of `own` with the mean of `references`, its interval stretched to hold the comparison with each by itself.

    `each` are those comparisons, as they were made: their intervals are held as well. Where the one with the mean has none (exact
    numbers have a mean that is not), it has theirs, and is exact where all of them are.
    """
    singles = [m.interval for m in each if isinstance(m, Measurement)]
    known = [x for x in singles if x is not None]
    base = compared.interval
    if base is None:
        if not known or len(known) < len(each):
            return compared
        method = "exact" if all(x.method == "exact" for x in known) else SPREAD
        base = Interval(compared.value, compared.value, min(x.confidence for x in known), method)
    ends = [*alone(compared, own, references), *(end for x in known for end in (x.low, x.high))]
    low, high = min([base.low, *ends]), max([base.high, *ends])
    method = base.method if base.method == "exact" or (low, high) == (base.low, base.high) else SPREAD
    return replace(compared, interval=replace(base, low=low, high=high, method=method))


def alone(compared: Measurement, own: Measurement, references: Iterable[Measurement]) -> Iterator[float]:
    """The ratio, or the drop, of `own` to each of `references` by itself; infinite where that is 0, none where both are."""
    for base in references:
        if own.value == base.value == 0:
            continue
        ratio = own.value / base.value if base.value != 0 else math.inf
        yield 1.0 - ratio if compared.kind == "drop" else ratio


def pooled_curves(drawn: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The curves of an audit with each reference in turn, as one: its line is the mean, point by point, where every one has it."""
    found: dict[str, Any] = {}
    for name, curve in drawn[0].items():
        lines = [x[name]["reference"] for x in drawn if "reference" in x.get(name, {})]
        rest = {key: line for key, line in curve.items() if key != "reference"}
        whole = len(lines) == len(drawn) and len({len(line) for line in lines}) == 1
        mean = {"reference": [float(x) for x in np.sort(np.array(lines), axis=0).mean(axis=0)]} if whole else {}
        found[name] = rest | mean
    return found


def likeness_rows(
    subject: Readings,
    references: Sequence[Readings],
    measured: Iterable[Measurement],
    singles: Sequence[Iterable[Measurement]],
) -> tuple[LikenessRow, ...]:
    """Whether the subject could be one more of two or more references: a row a mass, and one of the classifier.

    `measured` are the subject's figures, `singles` those of each reference. The masses' tests (`equivalence.py`) take the references'
    own spread for their margin; the classifier (`likeness.py`) is held against how well references are told from each other.
    References are taken by digest, so that their order plays no part. A subject that is one of them cannot be told from itself:
    nothing is known then. Raises as `readings` do.
    """
    order = sorted(range(len(references)), key=lambda i: references[i].model.digest)
    world, k = subject.world, len(references)
    own = _values(measured)
    gold = [_values(singles[i]) for i in order]
    legs = equivalent_masses([own], gold, world.config.confidence)
    rows = [mass_row(name, legs[name], k) for name, _ in LEGS if name in legs]
    features = [user_features(references[i]) for i in order]
    mine = user_features(subject)
    try:
        told = likeness([mine], features, world.scope, seed=world.config.seed, confidence=world.config.confidence)
        rows.append(classifier_row(told))
    except UsageError as error:  # no mass under any table, or too few users for the folds
        few: Alike = "too few" if len(mine.users) < 10 * FOLDS else "not known"
        rows.append(LikenessRow(AUC, few, error.message, len(mine.users)))
    if subject.model.digest and any(x.model.digest == subject.model.digest for x in references):
        why = "the audited model is itself one of the references"
        return tuple(LikenessRow(row.metric, "not known", why, row.n) for row in rows)
    return tuple(rows)


def _values(found: Iterable[Measurement]) -> dict[str, FloatArray]:
    return {m.metric: m.values for m in found if m.kind == "value" and m.values is not None}


def mass_row(name: str, leg: Leg, k: int) -> LikenessRow:
    """The equivalence test of one mass with k references, as a row."""
    told = leg.told
    few: Alike = "too few" if k < LEAST_REFERENCES else "not known"
    row = LikenessRow(name, few, told.reason, leg.n, told.ratio, told.interval, told.margin)
    return replace(row, verdict=alike(row))


def classifier_row(told: Likeness) -> LikenessRow:
    """The two-sample classifier with two references or more, as a row."""
    among = 0.5 if told.references is None else told.references
    reason = f"AUC {told.erased:.3f} from a reference, {among:.3f} among references"
    row = LikenessRow(
        AUC, "too few", reason, told.n, told.difference, told.interval, LIMIT, told.erased, told.references
    )
    return replace(row, verdict=alike(row))


def alike(row: LikenessRow) -> Alike:
    """What a row's numbers say.

    Equivalent where the whole interval is within the limit, not equivalent where the whole of it is beyond (or there is no mass at
    all where references give some), and too few (users, references) where it is on both sides. What has no interval is as it is
    said to be.
    """
    if row.interval is None or row.limit is None or not row.limit > 0:
        unknown: Alike = row.verdict if row.verdict in ("too few", "not known") else "not known"
        return "not equivalent" if row.value == 0 and row.metric != AUC else unknown
    low, high, limit = row.interval.low, row.interval.high, row.limit
    if row.metric == AUC:
        return "equivalent" if high <= limit else "not equivalent" if low > limit else "too few"
    if 1 / limit < low and high < limit:
        return "equivalent"
    return "not equivalent" if high <= 1 / limit or low >= limit else "too few"
