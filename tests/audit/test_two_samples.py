"""A classifier tells samples apart where they differ, by users it has not seen, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

from recerase.audit.two_samples import auc_of, two_sample_auc
from recerase.errors import UsageError


def drawn(n: int, f: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, f))


def test_equal_distributions_cannot_be_told_apart() -> None:
    found = [two_sample_auc(drawn(160, seed=i), drawn(160, seed=100 + i), folds=3) for i in range(6)]
    assert abs(np.mean([x.parts.mean() for x in found]) - 0.5) < 0.03
    assert all(x.auc >= 0.5 for x in found)
    assert sum(x.interval.low <= 0.5 <= x.interval.high for x in found) >= 5


def test_a_shift_is_found_as_large_as_it_is() -> None:
    """Two normals a standard deviation apart: AUC = Phi(1 / sqrt 2) = .760."""
    a, b = drawn(1500, seed=1), drawn(1500, seed=2)
    b[:, 1] += 1.0
    found = two_sample_auc(a, b)
    assert found.auc == pytest.approx(0.760, abs=0.03)
    assert found.interval.low < 0.760 < found.interval.high
    assert found.trees < 1.0


def test_a_spread_is_found_by_trees_where_no_line_can() -> None:
    a, b = drawn(500, 2, seed=1), 3.0 * drawn(500, 2, seed=2)
    found = two_sample_auc(a, b)
    assert found.auc > 0.75
    assert found.trees == 1.0


def test_equal_rows_tell_nothing_at_all() -> None:
    a = drawn(200)
    found = two_sample_auc(a, a.copy())
    assert found.auc == 0.5
    np.testing.assert_allclose(found.parts, 0.5)


def test_rows_of_one_user_never_stand_on_both_sides_of_a_fold() -> None:
    """Users who differ much, two noisy looks at each: what a classifier learned of a user must not help, nor hurt.

    Were rows split, a user's other look would be next to it with the other label, and the AUC would fall well below .5.
    """
    who = 100.0 * drawn(300, 2, seed=3)
    found = two_sample_auc(who + drawn(300, 2, seed=4), who + drawn(300, 2, seed=5))
    assert abs(found.parts.mean() - 0.5) < 0.06


def test_copies_of_users_teach_nothing_of_one_another() -> None:
    """20 users under 30 names each: split by name, trees learn each by heart and tell all of them apart."""
    a, b = np.repeat(drawn(40, seed=6), 15, axis=0), np.repeat(drawn(40, seed=7), 15, axis=0)
    assert two_sample_auc(a, b).parts.mean() < 0.65
    rng = np.random.default_rng(0)  # the same with what makes copies unlike one another: the trap is real
    blurred = [x + 0.05 * rng.normal(size=x.shape) for x in (a, b)]
    assert two_sample_auc(*blurred).parts.mean() > 0.85


def test_the_order_of_users_does_not_matter() -> None:
    a, b = drawn(200, seed=8), drawn(200, seed=9) + 0.3
    order, users = np.random.default_rng(1).permutation(200), np.arange(200) * 7
    straight = two_sample_auc(a, b, users=users, seed=3)
    shuffled = two_sample_auc(a[order], b[order], users=users[order], seed=3)
    np.testing.assert_array_equal(straight.parts[order], shuffled.parts)
    assert straight.auc == pytest.approx(shuffled.auc, abs=1e-12)


def test_the_seed_decides_the_folds_and_nothing_else_does() -> None:
    a, b = drawn(200, seed=8), drawn(200, seed=9) + 0.3
    first, again, other = (two_sample_auc(a, b, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.parts, again.parts)
    assert first.interval == again.interval
    assert not np.array_equal(first.parts, other.parts)
    assert first.auc == pytest.approx(other.auc, abs=0.05)


def test_constants_gaps_and_infinities_are_features_too() -> None:
    a, b = drawn(200, 4, seed=1), drawn(200, 4, seed=2)
    a[:, 0] = b[:, 0] = 7.0
    a[:, 1] = b[:, 1] = np.nan
    a[::3, 2] = b[::3, 2] = -np.inf
    assert two_sample_auc(a, b).parts.mean() == pytest.approx(0.5, abs=0.1)
    b[:, 2] = -np.inf  # a third of the one, all of the other
    assert two_sample_auc(a, b).auc == pytest.approx(0.5 + (2 / 3) / 2, abs=0.06)
    flat = np.zeros((200, 1))
    assert two_sample_auc(flat, flat).auc == 0.5
    assert two_sample_auc(flat, flat + 1).auc == 1.0
    assert two_sample_auc(np.full((200, 1), -np.inf), flat).auc == 1.0


def test_units_do_not_matter() -> None:
    a, b = drawn(200, seed=8), drawn(200, seed=9) + 0.5
    scale, shift = np.array([1e-6, 4.0, 1e5]), np.array([3.0, -2.0, 0.0])
    found = two_sample_auc(a * scale + shift, b * scale + shift)
    assert found.auc == pytest.approx(two_sample_auc(a, b).auc, abs=0.02)


def test_auc_of_one_feature_counts_pairs() -> None:
    """Twin: every pair, ties half."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 30).astype(float), rng.integers(2, 8, 30).astype(float)
    pairs = (b[:, None] > a).mean() + 0.5 * (b[:, None] == a).mean()
    assert auc_of(a, b) == pytest.approx(pairs, abs=1e-12)
    assert auc_of(np.append(a, np.nan), np.append(b, 9.0)) == pytest.approx(pairs, abs=1e-12)
    assert auc_of(np.full(3, np.nan), np.zeros(3)) == 0.5


@pytest.mark.parametrize(
    ("a", "b", "users"),
    [
        (drawn(200), drawn(199), None),
        (drawn(200), drawn(200, 2), None),
        (drawn(200, 0), drawn(200, 0), None),
        (drawn(200), drawn(200), np.zeros(200, dtype=int)),
        (drawn(49), drawn(49), None),
    ],
)
def test_what_are_no_two_samples_of_the_same_users_is_refused(
    a: np.ndarray, b: np.ndarray, users: np.ndarray | None
) -> None:
    with pytest.raises(UsageError):
        two_sample_auc(a, b, users=users)
