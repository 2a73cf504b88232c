"""What the hidden state after a history gives away: was a concept item in it, and is one next?

The decision that shaped this file: the attacker knows the training interactions. He fits a classifier on the states after
training histories, and is asked about histories before held-out interactions, of users of whom he has seen nothing (folds go by
user). An AUC is worth what it is above its control: the same question about retained items, drawn to be as many and as popular,
which tells how much of it is popularity, length and a rich classifier (Hewitt & Liang 2019). Intervals are over users, for the
classifiers as they were fitted.

Which histories. Every model reads the same, so that what differs is the weights. `next` is asked on histories without concept
items, all that a reference ever saw. `history` is the attack itself and needs the concept items in the input, the reference's too:
any weights pass on something of what they read, and the codes of a concept item are those of retained items as well, so the AUC of
a model that never saw one is above .5; what counts is how far above *that* it is. Retained items that go together (a genre) are
also easier to see than a random set: selectivity is to be held against the reference's, not against 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recerase.audit.cases import held_out
from recerase.audit.probes import counted, interval_of, measured
from recerase.audit.roc import auc_by_user
from recerase.errors import CheckpointError
from recerase.store import sha256_bytes
from recerase.types import BoolArray, FloatArray, IntArray, Interval, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings
    from recerase.catalog.interactions import Histories

Question = Literal["next", "history"]
QUESTIONS: tuple[Question, ...] = ("next", "history")
Kind = Literal["linear", "mlp"]
KINDS: tuple[Kind, ...] = ("linear", "mlp")
CONTROLS = 3
"""Item sets drawn for the control."""
FOLDS = 5
FITTED, ASKED = 1000, 3000
"""Training pairs fitted on and test users asked: so many of everyone, and half as many that lead to each set's items."""
LEAST = 10
"""Rows of either answer without which a question is not asked."""
SPREAD = 0.25
"""How far, in natural logarithms of popularity, a control item may be moved from the item it stands for, so that draws differ."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """The histories whose hidden states are read; the same for every model."""

    fitted: Histories
    """Training pairs, of several for a user."""
    asked: Histories
    """Histories before held-out interactions, at most two of a user."""
    fold: IntArray
    """[users of the data] which part of the users each belongs to."""


def hidden(readings: Readings) -> list[Measurement | Skipped]:
    """AUC and selectivity of linear and MLP probes for both questions."""
    world, window = readings.world, readings.model.recommender.window
    sets = [world.members, *control_sets(world, CONTROLS)]
    rows = _rows(world, sets, window)
    found: list[Measurement | Skipped] = []
    for question in QUESTIONS:
        labels = [(_answers(rows.fitted, s, question, window), _answers(rows.asked, s, question, window)) for s in sets]
        if (problem := _problem(labels[0], rows)) is not None:
            names = ("auc", "mlp", "control", "selectivity", "mlp_selectivity")
            found += [Skipped(f"hidden.{question}.{name}", readings.model.role, problem) for name in names]
            continue
        found += _told(readings, question, labels, rows)
    return found


def control_sets(world: AuditWorld, draws: int) -> list[BoolArray]:
    """`draws` sets [N] of retained items, each as many as the concept's and, item for item, about as popular.

    None where there are fewer retained items than concept items.
    """
    counts = np.bincount(world.catalogue.interactions.items, minlength=len(world.members))
    if world.members.sum() > world.retained.sum():
        return []
    return [
        matched_items(world.random(f"hidden control {i}"), counts, world.members, world.retained) for i in range(draws)
    ]


def matched_items(rng: np.random.Generator, counts: IntArray, members: BoolArray, among: BoolArray) -> BoolArray:
    """[N] as many items of `among` [N] as `members` [N] has, each the next free one in the order of popularity `counts` [N].

    The order is that of log popularity moved by up to SPREAD. `among` must hold as many.
    """
    place = np.log1p(counts) + rng.uniform(-SPREAD, SPREAD, len(counts))
    free = np.flatnonzero(among)
    free = free[np.argsort(place[free])]
    wanted = np.searchsorted(place[free], np.sort(place[members]))
    nth = np.arange(len(wanted))
    at = np.maximum.accumulate(wanted - nth) + nth  # everyone the next free place
    last = len(free) - len(wanted) + nth
    chosen = np.zeros(len(members), bool)
    chosen[free[np.minimum(at, last)]] = True
    return chosen


def _rows(world: AuditWorld, sets: list[BoolArray], window: int) -> _Rows:
    """Pairs and users of everyone, and those whose target is in a set, drawn with the world's seed alone."""
    from recerase.model.batches import pairs

    train = pairs(world.catalogue.interactions.split().train, 2 * window)
    asked = held_out(world)
    fold = world.random("hidden folds").integers(FOLDS, size=world.catalogue.interactions.n_users)
    return _Rows(_drawn(world, "fitted", train, sets, FITTED), _drawn(world, "asked", asked, sets, ASKED), fold)


def _drawn(world: AuditWorld, purpose: str, histories: Histories, sets: list[BoolArray], size: int) -> Histories:
    rows = [world.random(f"hidden {purpose}").permutation(len(histories))[:size]]
    for number, chosen in enumerate(sets):
        leading = np.flatnonzero((histories.targets >= 0) & chosen[histories.targets])
        rows.append(world.random(f"hidden {purpose} {number}").permutation(leading)[: size // 2])
    return histories.take(np.unique(np.concatenate(rows)))


def _answers(histories: Histories, chosen: BoolArray, question: Question, window: int) -> BoolArray:
    """[B] whether the next item, or one of the last `window`, is in the set `chosen` [N]."""
    if question == "next":
        return (histories.targets >= 0) & chosen[histories.targets]
    return histories.last(window).touches(chosen)


def _problem(labels: tuple[BoolArray, BoolArray], rows: _Rows) -> str | None:
    """Why a question cannot be asked; None: it can."""
    for answer, histories, name in zip(
        labels, (rows.fitted, rows.asked), ("training pairs", "test users"), strict=True
    ):
        fewest = int(min(answer.sum(), (~answer).sum()))
        if name == "training pairs":  # what is left when a fold is away
            each = [np.bincount(answer[rows.fold[histories.users] != k], minlength=2) for k in range(FOLDS)]
            fewest = int(min(part.min() for part in each))
        if fewest < LEAST:
            return f"only {fewest} {name} give one of the two answers, and {LEAST} are needed"
    return None


def _told(
    readings: Readings, question: Question, labels: list[tuple[BoolArray, BoolArray]], rows: _Rows
) -> list[Measurement | Skipped]:
    usable = [pair for pair in labels if _problem(pair, rows) is None]  # the first is the concept's
    values = _values(readings, question, usable, rows)
    found: list[Measurement | Skipped] = []
    for kind in KINDS:
        own, others = values[kind][0], values[kind][1:]
        stem = f"hidden.{question}"
        found.append(measured(readings, f"{stem}.{'auc' if kind == 'linear' else kind}", own))
        selectivity = f"{stem}.{'' if kind == 'linear' else 'mlp_'}selectivity"
        if not len(others):
            reason = "no control set of retained items can be asked about"
            names = [selectivity] + [f"{stem}.control"] * (kind == "linear")
            found += [Skipped(name, readings.model.role, reason) for name in names]
            continue
        if kind == "linear":
            found.append(measured(readings, f"{stem}.control", others.mean(axis=0)))
        found.append(_above(readings, selectivity, own - others.mean(axis=0)))
    return found


def _above(readings: Readings, metric: str, values: FloatArray) -> Measurement:
    """The mean of `values` [n] where it is above zero, else zero, with an interval cut in the same way."""
    interval = interval_of(values, readings.world.config)
    low, high = max(interval.low, 0.0), max(interval.high, 0.0)
    made = counted(readings, metric, max(float(values.mean()), 0.0), len(values))
    return replace(made, interval=Interval(low, high, interval.confidence, interval.method))


def _values(
    readings: Readings, question: Question, labels: list[tuple[BoolArray, BoolArray]], rows: _Rows
) -> dict[Kind, FloatArray]:
    """A kind: [sets, users] the value a user of the AUC of each set's question; read once for models of the same weights."""
    table, world = readings.model.table, readings.world
    weights = readings.model.digest or id(readings.model.recommender)
    spelled = sha256_bytes(table.codes.tobytes() + table.readable.tobytes())
    key = ("hidden", weights, question, spelled)
    if key not in readings.cache:
        out = world.out if question == "next" else np.zeros_like(world.out)
        task = f"hidden {question}"
        readings.observer.start(task, len(rows.fitted) + len(rows.asked))
        known, asked = (hidden_states(readings, part.without(out), task) for part in (rows.fitted, rows.asked))
        readings.observer.finish(task)
        users = rows.asked.users
        folds = rows.fold[rows.fitted.users], rows.fold[users]
        made: dict[Kind, FloatArray] = {}
        for kind in KINDS:
            scores = [crossed(kind, known, fit, asked, *folds) for fit, _ in labels]
            parts = [auc_by_user(score, answer, users) for score, (_, answer) in zip(scores, labels, strict=True)]
            made[kind] = np.stack(parts)
        readings.cache[key] = made
    found: dict[Kind, FloatArray] = readings.cache[key]
    return found


def hidden_states(readings: Readings, histories: Histories, task: str = "hidden") -> FloatArray:
    """float64 [B, D] what the output head reads for the first code after each history, under the current table.

    Raises CheckpointError when one is not finite.
    """
    import torch

    from recerase.model.decode import length_batches

    model, table = readings.model.recommender, readings.model.table
    found: FloatArray | None = None
    with torch.inference_mode():
        for rows in length_batches(model, table, histories, readings.world.config.batch):
            state = model.start(*model.tokens(histories.take(rows), table)).hidden.double().cpu().numpy()
            found = np.empty((len(histories), state.shape[1])) if found is None else found
            found[rows] = state
            readings.observer.advance(task, len(rows))
    assert found is not None
    if not np.isfinite(found).all():
        raise CheckpointError(
            f"The {readings.model.role} model's hidden state is not finite.", "Check its weights for NaN or overflow."
        )
    return found


def crossed(
    kind: Kind, known: FloatArray, answers: BoolArray, asked: FloatArray, fold: IntArray, asked_fold: IntArray
) -> FloatArray:
    """[n] scores of `asked` [n, D], each by a classifier fitted on the rows of `known` [m, D] of other folds."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    scores = np.zeros(len(asked))
    with threadpool_limits(1):
        for number in range(FOLDS):
            away, here = fold != number, asked_fold == number
            if here.any():
                scores[here] = _fitted(kind, known[away], answers[away])(asked[here])
    return scores


def _fitted(kind: Kind, known: FloatArray, answers: BoolArray) -> Callable[[FloatArray], FloatArray]:
    """What gives scores [n] for states [n, D]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    mean, spread = known.mean(axis=0), known.std(axis=0)
    spread = np.where(spread > 1e-9 * np.maximum(np.abs(mean), 1.0), spread, np.inf)  # what never changes says nothing

    def scaled(states: FloatArray) -> FloatArray:
        made: FloatArray = np.clip((states - mean) / spread, -8.0, 8.0)
        return made

    if kind == "linear":
        linear: Any = LogisticRegression(C=0.01, max_iter=300, class_weight="balanced").fit(scaled(known), answers)
        return lambda states: np.asarray(linear.decision_function(scaled(states)), np.float64)
    mlp: Any = MLPClassifier((32,), solver="lbfgs", alpha=10.0, max_iter=60, max_fun=100, random_state=0)
    with np.errstate(over="ignore"):
        _quietly(mlp, scaled(known), answers)
    return lambda states: np.asarray(mlp.predict_proba(scaled(states))[:, 1], np.float64)


def _quietly(model: Any, states: FloatArray, answers: BoolArray) -> None:
    """Fit; that it stops at its last iteration is how it is meant."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(states, answers)
