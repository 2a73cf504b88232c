"""Can two models be told apart by what they do with the same users? A classifier's AUC on users it was not fitted on.

The decision that shaped this file: the unit is the user, never the row. Every user stands in both samples, so folds, intervals
and comparisons all go by user; a classifier that has seen a user under one model is never asked about that user under the
other. Whoever wants to tell the models apart takes the better of a linear and a tree-based classifier, and finds out which
that is without the users it will be judged on. Folds depend on the users' numbers and the seed, not on their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from recerase.errors import UsageError
from recerase.stats import bootstrap_mean
from recerase.types import FloatArray, IntArray, Interval

FOLDS = 5
_INNER = 4
"""One in so many training users is held back to choose the classifier by."""
Kind = Literal["linear", "trees"]
KINDS: tuple[Kind, ...] = ("linear", "trees")
_FAR = 8.0
"""Standard deviations at which a value is cut off for the linear classifier."""


@dataclass(frozen=True, eq=False)
class TwoSample:
    """How well two samples of the same n users can be told apart."""

    auc: float
    """.5: not at all, and what less counts as; 1: always."""
    interval: Interval
    """Over users, of the AUC as it was found (it may be below .5), for the classifiers as they were fitted."""
    parts: FloatArray
    """[n] each user's part in the AUC, which is their mean before .5 is put for less: what bootstraps of differences need."""
    trees: float
    """Share of folds in which the trees were the better choice."""


def two_sample_auc(
    a: FloatArray,
    b: FloatArray,
    *,
    users: IntArray | None = None,
    seed: int = 0,
    folds: int = FOLDS,
    confidence: float = 0.95,
) -> TwoSample:
    """AUC, within folds of users, of a classifier between the rows of `a` [n, F] and of `b` [n, F].

    Args:
        a, b: features of the same users in the same order. NaN is "not known" (the linear classifier takes the mean for it),
            an infinite value lies beyond every finite one.
        users: [n] distinct numbers that say who is who, so that the order of users plays no part; default: their places.
    Raises:
        UsageError: shapes differ, no feature, users that are not distinct, or fewer than ten users a fold.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    users = np.arange(len(a)) if users is None else np.asarray(users)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] < 1 or len(np.unique(users)) != len(a) != len(users):
        raise UsageError(
            f"Features {a.shape} and {b.shape} of {len(np.unique(users))} users are not two samples of the same users.",
            "Give one row a user in both, and every user once.",
        )
    if folds < 2 or len(a) < 10 * folds:
        raise UsageError(f"{len(a)} users are too few for {folds} folds.", "Read ten users a fold at least.")
    order = np.argsort(users, kind="stable")[np.random.default_rng([seed, len(a)]).permutation(len(a))]
    parts, chosen = np.empty(len(a)), []
    with _one_thread():
        for fold in range(folds):
            held = np.arange(len(a)) % folds == fold
            train, test = order[~held], order[held]
            kind = _better(a, b, train)
            chosen.append(kind)
            parts[test] = _parts(*_scores(kind, a, b, train, test))
    found = float(parts.mean())
    interval = bootstrap_mean(parts, confidence, seed=seed)
    return TwoSample(max(found, 0.5), interval, parts, chosen.count("trees") / folds)


def auc_of(a: FloatArray, b: FloatArray) -> float:
    """The chance that a value of `b` [n] is above one of `a` [n], ties half, users for whom either is NaN left out.

    .5 where nobody is left.
    """
    known = ~(np.isnan(a) | np.isnan(b))
    return float(_parts(a[known], b[known]).mean()) if known.any() else 0.5


def _better(a: FloatArray, b: FloatArray, train: IntArray) -> Kind:
    """The classifier that tells users of `train` better apart who were held back; the linear one if they are even."""
    held = np.arange(len(train)) % _INNER == 0
    found = {kind: _parts(*_scores(kind, a, b, train[~held], train[held])).mean() for kind in KINDS}
    return "trees" if found["trees"] > found["linear"] else "linear"


def _scores(kind: Kind, a: FloatArray, b: FloatArray, train: IntArray, test: IntArray) -> tuple[FloatArray, FloatArray]:
    """Scores of the rows `test` of both samples, higher for b, by a classifier fitted on the rows `train` of both."""
    fitted = np.concatenate([a[train], b[train]])
    asked = np.concatenate([a[test], b[test]])
    labels = np.repeat([0, 1], len(train))
    fitted, asked = _scaled(fitted, asked)
    if kind == "linear":
        fitted, asked = (np.clip(np.nan_to_num(x, nan=0.0), -_FAR, _FAR) for x in (fitted, asked))
    classifier = _classifier(kind)
    classifier.fit(fitted, labels)
    scores = np.asarray(classifier.decision_function(asked), dtype=np.float64)
    return scores[: len(test)], scores[len(test) :]


def _classifier(kind: Kind) -> Any:
    if kind == "linear":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=1.0, max_iter=200)
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=40, max_leaf_nodes=8, min_samples_leaf=20, early_stopping=False, random_state=0
    )


def _scaled(fitted: FloatArray, asked: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Both [., F] less the mean of the finite `fitted` values, over their standard deviation; constant columns are zero.

    An infinite value is put one standard deviation (or 1) beyond the extreme finite one. NaN stays.
    """
    finite = np.isfinite(fitted)
    known = np.where(finite, fitted, 0.0)
    count = np.maximum(finite.sum(axis=0), 1)
    mean = known.sum(axis=0) / count
    sd = np.sqrt((np.where(finite, fitted - mean, 0.0) ** 2).sum(axis=0) / count)
    flat = sd <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    step = np.where(flat, 1.0, sd)
    none = ~finite.any(axis=0)
    low = np.where(none, 0.0, np.where(finite, fitted, np.inf).min(axis=0)) - step
    high = np.where(none, 0.0, np.where(finite, fitted, -np.inf).max(axis=0)) + step

    def scale(x: FloatArray) -> FloatArray:
        bounded = np.where(x == -np.inf, low, np.where(x == np.inf, high, x))
        scaled: FloatArray = (bounded - mean) / step
        return scaled

    return scale(fitted), scale(asked)


def _parts(a: FloatArray, b: FloatArray) -> FloatArray:
    """[n] parts of the users in the AUC of scores `a` [n] and `b` [n]: where both of a user's stand among the others'.

    Their mean is the AUC, and their spread over sqrt(n) its standard error to first order (DeLong et al. 1988), with what the
    two scores of one user have in common accounted for.
    """
    above, below = _share_below(a, b), 1.0 - _share_below(b, a)
    parts: FloatArray = above + below - above.mean()
    return parts


def _share_below(values: FloatArray, of: FloatArray) -> FloatArray:
    """[m] which share of `values` [n] is below each of `of` [m]; equal ones count half."""
    ordered = np.sort(values)
    sides = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    share: FloatArray = sides / (2.0 * len(ordered))
    return share


def _one_thread() -> Any:
    """Trees sum in another order with other threads; one is enough for a few thousand rows."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return threadpool_limits(1)
