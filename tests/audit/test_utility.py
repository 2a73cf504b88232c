"""Recall, ndcg and coverage on retained targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from recerase.audit.cases import concept_users
from recerase.audit.probes import AuditModel, AuditWorld
from recerase.audit.readings import Readings
from recerase.audit.utility import coverage, ndcg, near_targets, ranks, recall, utility
from recerase.model.recommender import Recommender
from recerase.types import Measurement


@given(st.permutations(range(8)), st.integers(0, 7), st.integers(1, 8))
def test_recall_and_ndcg_are_those_of_sklearn(order: list[int], target: int, k: int) -> None:
    rank = ranks(np.array([order]), np.array([target]))
    truth, score = np.zeros((1, 8)), np.zeros((1, 8))
    truth[0, target] = 1
    score[0, order] = np.arange(8, 0, -1)
    assert ndcg(rank, k)[0] == pytest.approx(ndcg_score(truth, score, k=k))
    assert recall(rank, k)[0] == (target in order[:k])


def test_a_missing_target_and_an_empty_slot_never_match() -> None:
    rank = ranks(np.array([[3, -1], [3, -1]]), np.array([-1, 5]))
    assert rank.tolist() == [2, 2]
    assert ndcg(rank, 2).tolist() == [0, 0]


def test_segments_are_users_with_retained_targets(
    world: AuditWorld, audited: Callable[..., AuditModel], untrained: Recommender
) -> None:
    found = {m.metric: m for m in utility(Readings(audited(untrained), world)) if isinstance(m, Measurement)}
    retained = ~world.members[world.histories.targets]
    near = near_targets(world)
    assert near is not None
    assert not (near & world.members).any()
    assert found["utility.ndcg@10"].n == retained.sum()
    assert found["utility_concept_users.ndcg@10"].n == (retained & concept_users(world)).sum()
    assert found["utility_neighbours.ndcg@10"].n == near[world.histories.targets].sum()
    recalls = [found[f"utility.recall@{k}"].value for k in (5, 10, 20)]
    assert recalls == sorted(recalls)


def test_an_oracle_of_the_concept_serves_no_one_else(
    world: AuditWorld, audited: Callable[..., AuditModel], planted: Callable[[int], Recommender]
) -> None:
    """Twelve concept items come first, so no retained target is ever among the first ten."""
    found = {m.metric: m for m in utility(Readings(audited(planted(0)), world)) if isinstance(m, Measurement)}
    assert found["utility.recall@10"].value == 0
    assert found["utility.coverage@10"].value == 0


def test_coverage_is_the_share_of_offered_items_shown() -> None:
    offered = np.array([True, True, True, False])
    assert coverage(np.array([[0, 3], [0, -1]]), offered, 2) == pytest.approx(1 / 3)
    assert coverage(np.array([[0, 1], [2, -1]]), offered, 1) == pytest.approx(2 / 3)
