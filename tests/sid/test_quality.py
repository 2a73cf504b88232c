"""The report's figures on tables where they are known, and the warnings that a collapsed level must raise."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.sid.quality import collision_share, gini, perplexity, quality
from recerase.sid.table import SidSchema, SidTable

counts = st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any).map(np.array)


def table_of(codes: np.ndarray, sizes: tuple[int, ...]) -> SidTable:
    return SidTable.build([str(i) for i in range(len(codes))], codes, SidSchema.native(sizes, "allowed"))


@given(counts, st.integers(2, 9))
def test_perplexity_and_gini_depend_on_shares_alone(values: np.ndarray, times: int) -> None:
    assert perplexity(values * times) == pytest.approx(perplexity(values))
    assert gini(values * times) == pytest.approx(gini(values))
    assert perplexity(values[::-1]) == pytest.approx(perplexity(values))
    assert 1 - 1e-9 <= perplexity(values) <= (values > 0).sum() + 1e-9
    twin = np.abs(values[:, None] - values[None]).sum() / (2 * len(values) * values.sum())
    assert gini(values) == pytest.approx(twin, abs=1e-12)


def test_the_extremes() -> None:
    even, one = np.full(8, 5), np.eye(8, dtype=int)[3] * 40
    assert (perplexity(even), gini(even)) == (pytest.approx(8), pytest.approx(0))
    assert (perplexity(one), gini(one)) == (pytest.approx(1), pytest.approx(1 - 1 / 8))
    assert perplexity(np.zeros(3, int)) == gini(np.zeros(3, int)) == 0


def test_collision_share_counts_items_not_sids() -> None:
    assert collision_share(np.array([[0, 1], [0, 1], [0, 1], [2, 2]])) == 0.75
    assert collision_share(np.zeros((0, 2), int)) == 0


def test_an_even_table_has_nothing_to_warn_of() -> None:
    codes = np.stack(np.divmod(np.arange(64), 8), axis=1)
    report = quality(table_of(codes, (8, 8)))
    assert report.used == (8, 8)
    assert report.perplexity == pytest.approx((8, 8))
    assert (report.collision_before, report.collision_after, report.moved_by_resolution) == (0, 0, 0)
    assert report.warnings == ()


def test_before_and_after_resolution() -> None:
    before = np.array([[0], [0], [1], [2]])
    after = np.array([[0], [3], [1], [2]])
    report = quality(table_of(after, (8,)), before)
    assert (report.collision_before, report.collision_after, report.moved_by_resolution) == (0.5, 0, 1)


def test_a_collapsed_level_collisions_and_missing_sids_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([np.zeros(200, int), rng.integers(0, 16, 200)], axis=1)
    codes[0] = -1
    report = quality(table_of(codes, (64, 16)))
    text = "\n".join(report.warnings)
    assert "Level 1 has collapsed" in text
    assert "Level 2" not in text
    assert "1 of 200 items have no SID" in text
    assert "share their SID" in text


def test_resolving_a_large_part_of_the_table_is_warned_of() -> None:
    after = np.arange(8)[:, None]
    assert any("Resolution changed 7 of 8" in w for w in quality(table_of(after, (8,)), np.zeros((8, 1), int)).warnings)


def test_the_report_is_json() -> None:
    report = quality(table_of(np.arange(4)[:, None], (8,)))
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["used"] == [4]
    assert set(data) == set(report.__dataclass_fields__)
