"""AUC and hits at a rate of false alarms, as means over users, against counting."""

from __future__ import annotations

import numpy as np
import pytest

from recerase.audit.roc import auc_by_user, hits_at, mean_by_user


def counted(scores: np.ndarray, positive: np.ndarray) -> float:
    """Every pair of a positive and a negative, one by one."""
    own, others = scores[positive], scores[~positive]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in own for b in others]))


@pytest.mark.parametrize("rows_a_user", [1, 3])
def test_the_mean_over_users_is_the_auc(rows_a_user: int) -> None:
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 8, 60).astype(float)  # many ties
    positive, users = rng.random(60) < 0.3, rng.permutation(np.arange(60) // rows_a_user)
    values = auc_by_user(scores, positive, users)
    assert values.shape == (60 // rows_a_user,)
    assert values.mean() == pytest.approx(counted(scores, positive))


def test_its_spread_is_that_of_the_auc_over_users_with_all_their_rows() -> None:
    """Rows repeated four times for a user are no more evidence than once."""
    rng = np.random.default_rng(2)
    positive, users = np.arange(200) < 80, np.arange(200)
    scores = rng.normal(size=200) + positive
    one = auc_by_user(scores, positive, users)
    four = auc_by_user(np.tile(scores, 4), np.tile(positive, 4), np.tile(users, 4))
    np.testing.assert_allclose(one, four)
    drawn = [positive[i].any() and counted(scores[i], positive[i]) for i in rng.integers(200, size=(300, 200))]
    assert one.std() / 200**0.5 == pytest.approx(np.std(drawn), rel=0.2)


def test_perfect_scores_are_one_for_every_user() -> None:
    positive = np.arange(30) < 10
    values = auc_by_user(positive.astype(float), positive, np.arange(30))
    np.testing.assert_allclose(values, 1.0)


def test_the_threshold_lets_no_more_false_alarms_through_than_asked() -> None:
    rng = np.random.default_rng(3)
    positive = np.arange(1000) < 400
    scores = rng.integers(0, 200, 1000).astype(float) + 20 * positive
    hits = hits_at(scores, positive, 0.01)
    alarms = (scores[~positive][:, None] > np.unique(scores)[None]).sum(axis=0)
    lowest = np.unique(scores)[np.flatnonzero(alarms <= 6)[0]]  # of 600
    assert hits.tolist() == (scores[positive] > lowest).tolist()
    assert 0 < hits.mean() < 1
    assert not hits_at(np.zeros(1000), positive).any()  # what says the same of everyone finds nobody


def test_a_mean_over_rows_is_a_mean_over_users() -> None:
    values, users = np.array([1.0, 0, 0, 1, 1, 0]), np.array([5, 5, 5, 2, 9, 9])
    assert mean_by_user(values, users).shape == (3,)
    assert mean_by_user(values, users).mean() == pytest.approx(values.mean())
