"""How well a score tells two kinds of rows apart, with every user a unit: AUC, and the hits at a rate of false alarms.

The decision that shaped this file: rows of one user are not independent, so what is returned is a value a user whose mean is
the number itself, and whose spread is that of the number over users (DeLong et al. 1988, summed within users). Whatever makes
intervals of means then makes them of these, also of differences between two scores of the same rows.
"""

from __future__ import annotations

import math

import numpy as np

from recerase.types import BoolArray, FloatArray, IntArray

FALSE_ALARMS = 0.01
"""Share of negatives that may be above the threshold of `hits_at`."""


def auc_by_user(scores: FloatArray, positive: BoolArray, users: IntArray) -> FloatArray:
    """[U] a value a distinct user of `users` [n], ascending, whose mean is the AUC of `scores` [n]; ties count half.

    There must be rows of both kinds. Single values may lie outside [0, 1].
    """
    own, others = scores[positive], scores[~positive]
    above = _share_below(others, own)
    auc = float(above.mean())
    pull = np.empty(len(scores))
    pull[positive] = (above - auc) / len(own)
    pull[~positive] = (1.0 - _share_below(own, others) - auc) / len(others)
    _, unit = np.unique(users, return_inverse=True)
    summed = np.bincount(unit.reshape(-1), weights=pull)
    values: FloatArray = auc + len(summed) * (summed - summed.mean())  # the pulls sum to zero, but for rounding
    return values


def hits_at(scores: FloatArray, positive: BoolArray, rate: float = FALSE_ALARMS) -> BoolArray:
    """[n positives] whether their score is above a threshold that at most a share `rate` of the negatives exceeds."""
    negatives = np.sort(scores[~positive])
    allowed = math.floor(rate * len(negatives) + 1e-9)
    hits: BoolArray = scores[positive] > negatives[len(negatives) - 1 - allowed]
    return hits


def mean_by_user(values: FloatArray | BoolArray, users: IntArray) -> FloatArray:
    """[U] a value a distinct user of `users` [n], ascending, whose mean is the mean of `values` [n] over rows."""
    _, unit = np.unique(users, return_inverse=True)
    unit = unit.reshape(-1)
    rows, sums = np.bincount(unit), np.bincount(unit, weights=np.asarray(values, np.float64))
    mean = float(sums.sum() / rows.sum())
    found: FloatArray = mean + (sums - mean * rows) * (len(rows) / rows.sum())
    return found


def _share_below(values: FloatArray, of: FloatArray) -> FloatArray:
    """[m] which share of `values` [n] is below each of `of` [m]; equal ones count half."""
    ordered = np.sort(values)
    sides = np.searchsorted(ordered, of, "left") + np.searchsorted(ordered, of, "right")
    share: FloatArray = sides / (2.0 * len(ordered))
    return share
