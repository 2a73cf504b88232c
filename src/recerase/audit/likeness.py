"""Is an erased model one of the retrained ones? Told by what each does with the same users, user by user.

The decision that shaped this file: "cannot be told apart" is measured against how well two references can be told apart, by
the very same test. So whatever the erased model is given, a pair of references is given too: the same users and features,
and for the overlap of lists the same kind of third model to be held against, which is neither of the two.

What may be compared is decided in one place, `columns`, by the scope. A reference reads histories without concept items,
an erased model reads them as they are. Under `influence` these must come to the same, so every feature of every user counts.
Under `output` a concept item may go on informing the rest of the list: what is read off the list, or depends on how sure the
model is of the rest, counts for users without a concept item in their history only; masses count for everyone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import concept_users, mass_users, natural_case
from recerase.audit.readings import SIDES, Side
from recerase.audit.two_samples import TwoSample, auc_of, two_sample_auc
from recerase.errors import UsageError
from recerase.stats import bootstrap_mean
from recerase.types import BoolArray, FloatArray, IntArray, Interval, Scope

if TYPE_CHECKING:
    from recerase.audit.readings import Readings

TOP = 10
"""Retained items of a list that are looked at."""
LIMIT = 0.05
"""By how much more an erased model may be told from a reference than references from one another."""


@dataclass(frozen=True, eq=False)
class Features:
    """What one model does with each of n users; the same users in the same order for every model of a comparison."""

    users: IntArray
    """int64 [n] who they are, each once."""
    touched: BoolArray
    """[n] whether the history holds a concept item."""
    mass: Mapping[Side, FloatArray]
    """[n] exact concept mass, under the SIDs of the old and of the new table; a table that spells no concept item is left out."""
    best: Mapping[Side, FloatArray]
    """[n] natural log-probability of the likeliest concept item."""
    place: Mapping[Side, FloatArray]
    """[n] where that item would stand among the retained items of the list, from 1; one more than they are if behind them all."""
    entropy: FloatArray
    """[n] nats, of the first code."""
    list_entropy: FloatArray
    """[n] nats, of the TOP retained items' probabilities, made to sum to one."""
    lists: IntArray
    """int64 [n, TOP] retained items, best first, -1 where there are no more."""

    def arrays(self) -> dict[str, FloatArray]:
        """Everything as float64 arrays by name, for a file; `features_of` makes it again."""
        plain = {name: getattr(self, name) for name in ("users", "touched", "entropy", "list_entropy", "lists")}
        sided = {f"{part}.{side}": x for part in ("mass", "best", "place") for side, x in getattr(self, part).items()}
        return {name: np.asarray(x, dtype=np.float64) for name, x in (plain | sided).items()}


def features_of(arrays: Mapping[str, FloatArray]) -> Features:
    """The features whose `arrays` these are."""

    def sided(part: str) -> dict[Side, FloatArray]:
        return {side: arrays[f"{part}.{side}"] for side in SIDES if f"{part}.{side}" in arrays}

    return Features(
        users=arrays["users"].astype(np.int64),
        touched=arrays["touched"] > 0,
        mass=sided("mass"),
        best=sided("best"),
        place=sided("place"),
        entropy=arrays["entropy"],
        list_entropy=arrays["list_entropy"],
        lists=arrays["lists"].astype(np.int64),
    )


def user_features(readings: Readings) -> Features:
    """What the model does with the users whose exact mass is read (`cases.mass_users`), histories as its role reads them.

    Lists and masses are those of the other probes; only the entropy is read anew. Raises CheckpointError, as `Readings` does.
    """
    world, sample = readings.world, mass_users(readings.world)
    everyone = natural_case(world)
    items, scores = retained(
        readings.lists(everyone)[sample.rows], readings.list_scores(everyone)[sample.rows], world.members
    )
    best = {side: readings.best(sample.case, side) for side in SIDES}
    spelled = [side for side in SIDES if np.isfinite(best[side]).any()]
    return Features(
        users=sample.case.histories.users.astype(np.int64),
        touched=concept_users(world)[sample.rows],
        mass={side: readings.mass(sample.case, side) for side in spelled},
        best={side: best[side] for side in spelled},
        place={side: 1.0 + (scores > best[side][:, None]).sum(axis=1) for side in spelled},
        entropy=readings.entropy(sample.case),
        list_entropy=_entropy(scores[:, :TOP]),
        lists=_first(items, TOP),
    )


def retained(lists: IntArray, scores: FloatArray, members: BoolArray) -> tuple[IntArray, FloatArray]:
    """Lists [B, k] and scores [B, k] with the concept's items taken out: the rest moves up, -1 and -inf behind it."""
    gone = (lists < 0) | members[lists]
    order = np.argsort(gone, axis=1, kind="stable")
    items = np.take_along_axis(np.where(gone, -1, lists), order, axis=1)
    left = np.take_along_axis(np.where(gone, -np.inf, scores.astype(np.float64)), order, axis=1)
    return items, left


def overlap(a: IntArray, b: IntArray) -> FloatArray:
    """[B] share of items that lists `a` [B, k] and `b` [B, k] have in common, of the mean of their lengths; 1 if both are empty."""
    shared = ((a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]).sum(axis=(1, 2))
    length = ((a >= 0).sum(axis=1) + (b >= 0).sum(axis=1)) / 2
    return np.divide(shared, length, out=np.ones(len(a)), where=length > 0)


def columns(features: Features, side: Side, scope: Scope, third: Features | None = None) -> dict[str, FloatArray]:
    """What a classifier is given of each user, NaN where the scope does not let it be compared.

    `mass` and `best` (log10) are for everyone under either scope. `place`, `entropy`, `list_entropy` and `overlap` (with the
    list of a `third` model, where there is one) are for everyone under `influence`, and for users without a concept item in
    their history under `output`. A model whose table never changed has one side, and gives it for either.
    """
    side = side if side in features.mass else "old"
    with np.errstate(divide="ignore"):
        always = {"mass": np.log10(features.mass[side]), "best": features.best[side] / np.log(10.0)}
    scoped = {"place": features.place[side], "entropy": features.entropy, "list_entropy": features.list_entropy}
    if third is not None:
        scoped["overlap"] = overlap(features.lists, third.lists)
    blank = features.touched & (scope == "output")
    return always | {name: np.where(blank, np.nan, x) for name, x in scoped.items()}


@dataclass(frozen=True)
class Likeness:
    """How well an erased model can be told from references, beside how well these can be told from one another."""

    scope: Scope
    n: int
    """Users."""
    erased: float
    """Mean AUC of erased models (seeds) against references, under the table where it is larger."""
    sides: Mapping[Side, float]
    """That, a table."""
    references: float | None
    """Mean AUC of pairs of references; None with fewer than two."""
    difference: float | None
    """erased - references."""
    interval: Interval | None
    """Of the difference, over users, and as wide as the values of all seeds."""
    seeds: tuple[float, ...]
    """A seed: its difference, or its AUC where there is no pair of references."""
    tells: Mapping[str, float] = field(default_factory=dict)
    """A feature: the chance that an erased model's user has more of it than a reference's, .5 where it tells nothing."""
    notes: tuple[str, ...] = ()
    """What could not be compared, and why."""

    def within(self, limit: float = LIMIT) -> bool | None:
        """Whether the difference is at most `limit` up to the far end of its interval; None: there is no pair of references."""
        return None if self.interval is None else self.interval.high <= limit


def likeness(
    erased: Sequence[Features], references: Sequence[Features], scope: Scope, *, seed: int = 0, confidence: float = 0.95
) -> Likeness:
    """Tell each of `erased` (one a seed) from each of `references`, and these from one another, on the same users.

    Overlap of lists is taken with a third reference, the next one that is neither of the pair; two references have none, so
    with two nobody is given it. With one there is no pair: the AUC is told and its difference is not known. An AUC below .5
    counts as .5. An erased model is read under its old and its new table, and the one that gives it away counts.
    Raises UsageError: nothing on either side, other users, or too few for the folds.
    """
    everyone = [*erased, *references]
    if not erased or not references:
        raise UsageError("Likeness needs an erased model and a reference.", "Read one of each at least.")
    if any(not np.array_equal(x.users, everyone[0].users) for x in everyone):
        raise UsageError("The models were not read on the same users.", "Read them in the same world.")
    many, sides = len(references) > 2, [side for side in SIDES if all(side in x.mass for x in erased)]
    if not sides or any("old" not in x.mass for x in references):
        raise UsageError("No table spells a concept item, so there is nothing to compare.", "Check the SID tables.")

    def told(a: Features, b: int, side: Side, third: int) -> TwoSample:
        other = references[third % len(references)] if many else None
        pair = (columns(x, side, scope, other) for x in (references[b], a))
        return two_sample_auc(*(_stacked(x) for x in pair), users=a.users, seed=seed, confidence=confidence)

    if len(sides) == 2 and all(_one_table(x) for x in erased):
        sides = ["old"]
    k = len(references)
    found = {side: [[told(x, i, side, i + 1) for i in range(k)] for x in erased] for side in sides}
    pairs = [told(references[i], j, "old", _neither(i, j)) for i, j in combinations(range(k), 2)]
    means = {side: _mean([x for tests in found[side] for x in tests]) for side in sides}
    worst = max(sides, key=lambda side: means[side])
    own = [_mean(tests) for tests in found[worst]]
    base = _mean(pairs) if pairs else None
    interval = None
    if base is not None:
        parts = np.mean([x.parts for tests in found[worst] for x in tests], axis=0) - np.mean(
            [x.parts for x in pairs], axis=0
        )
        interval = bootstrap_mean(parts, confidence, seed=seed)
        points = [means[worst] - base, *(x - base for x in own)]
        interval = replace(interval, low=min(interval.low, *points), high=max(interval.high, *points))
    return Likeness(
        scope=scope,
        n=len(everyone[0].users),
        erased=means[worst],
        sides=means,
        references=base,
        difference=None if base is None else means[worst] - base,
        interval=interval,
        seeds=tuple(x if base is None else x - base for x in own),
        tells=_tells(erased, references, worst, scope, many),
        notes=_notes(k, erased),
    )


def _neither(i: int, j: int) -> int:
    """The next after i that is not j (of three or more, in a ring): i < j."""
    return i + 2 if j == i + 1 else i + 1


def _mean(tests: Sequence[TwoSample]) -> float:
    return float(np.mean([x.auc for x in tests]))


def _stacked(found: Mapping[str, FloatArray]) -> FloatArray:
    return np.stack(list(found.values()), axis=1)


def _one_table(features: Features) -> bool:
    return np.array_equal(features.mass["old"], features.mass["new"])


def _tells(
    erased: Sequence[Features], references: Sequence[Features], side: Side, scope: Scope, many: bool
) -> dict[str, float]:
    """A feature: the mean AUC of that feature alone, over seeds and references; above .5 the erased models have more."""
    found: dict[str, list[float]] = {}
    for own in erased:
        for i, reference in enumerate(references):
            third = references[(i + 1) % len(references)] if many else None
            a, b = (columns(x, side, scope, third) for x in (reference, own))
            for name in a:
                found.setdefault(name, []).append(auc_of(a[name], b[name]))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _notes(k: int, erased: Sequence[Features]) -> tuple[str, ...]:
    notes = []
    if k == 1:
        notes.append("one reference: how well references can be told apart is not known")
    if k < 3:
        notes.append("overlap of lists needs a third reference and was not compared")
    if any("new" not in x.mass for x in erased):
        notes.append("the new table spells no concept item: only the old one was read")
    return tuple(notes)


def _first(lists: IntArray, k: int) -> IntArray:
    """The first k columns, -1 where there are fewer."""
    head = lists[:, :k].astype(np.int64)
    return np.pad(head, ((0, 0), (0, k - head.shape[1])), constant_values=-1)


def _entropy(scores: FloatArray) -> FloatArray:
    """[B] nats, of log-probabilities [B, k] made to sum to one; 0 where there is none."""
    top = np.where(np.isfinite(scores), scores, -np.inf)
    peak = np.maximum(top.max(axis=1, keepdims=True, initial=-np.inf), -1e300)
    weight = np.exp(top - peak)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    share = weight / total
    logs = np.log(np.where(share > 0, share, 1.0))
    found: FloatArray = -(share * logs).sum(axis=1)
    return found
