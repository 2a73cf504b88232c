"""The schema spells every code once, and reads its own spelling back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import TableError
from recerase.sid.schema import SidSchema

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


@given(sizes)
def test_native_rows_are_the_vocabulary_without_the_special_tokens(codes: list[int]) -> None:
    schema = SidSchema.native(codes)
    assert np.concatenate(schema.rows).tolist() == list(range(3, schema.vocabulary))
    assert {schema.pad, schema.bos, schema.eos} == {0, 1, 2}
    assert schema.levels == len(codes)


@given(sizes)
def test_codes_of_inverts_rows_and_knows_no_other_row(codes: list[int]) -> None:
    schema = SidSchema.native(codes)
    for level, size in enumerate(codes):
        asked = np.zeros((schema.vocabulary + 2, schema.levels), np.int64)
        asked[:, level] = np.arange(-1, schema.vocabulary + 1)
        found = schema.codes_of(asked)[:, level]
        inverse = {int(row): code for code, row in enumerate(schema.rows[level])}
        assert found.tolist() == [inverse.get(row, -1) for row in range(-1, schema.vocabulary + 1)]
        assert (found >= 0).sum() == size


def test_codes_of_reads_any_leading_shape() -> None:
    schema = SidSchema.native((3, 2))
    rows = np.array([[[3, 6], [5, 7]], [[7, 3], [0, -1]]])
    assert schema.codes_of(rows).tolist() == [[[0, 0], [2, 1]], [[-1, -1], [-1, -1]]]


@given(sizes, st.sampled_from(["unique", "allowed"]))
def test_json_round_trip_is_lossless(codes: list[int], collisions: Any) -> None:
    schema = SidSchema.native(codes, collisions)
    again = SidSchema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again.to_json() == schema.to_json()


def test_a_vocabulary_without_some_codes_round_trips() -> None:
    schema = SidSchema((3,), (np.array([7, -1, 5]),), 9, 0, -1, 1, "allowed")
    again = SidSchema.from_json(schema.to_json())
    assert again.rows[0].tolist() == [7, -1, 5]
    assert again.codes_of(np.array([[5], [7], [6]])).tolist() == [[2], [0], [-1]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", "recerase.sids/99"),
        ("codes", [4, 4]),
        ("codes", [4.0, 3]),
        ("codes", []),
        ("rows", [[3, 4, 5, 6], [7, 8]]),
        ("rows", [[3, 4, 5, 6], [6, 7, 8]]),
        ("rows", [[3, 4, 5, 6], [7, 8, 10]]),
        ("rows", [[3, 4, 5, 6], [7, 8, "9"]]),
        ("rows", [[3, 4, 5, 1], [7, 8, 9]]),
        ("vocabulary", 9),
        ("vocabulary", None),
        ("special", {"pad": 0, "bos": 1}),
        ("special", {"pad": 0, "bos": 1, "eos": 10}),
        ("collisions", "perhaps"),
    ],
)
def test_a_contradiction_is_a_table_error(key: str, value: Any) -> None:
    with pytest.raises(TableError, match=r"sid_schema\.json"):
        SidSchema.from_json({**SidSchema.native((4, 3)).to_json(), key: value})


@pytest.mark.parametrize("missing", ["schema", "codes", "rows", "vocabulary", "special", "collisions"])
def test_a_missing_key_is_a_table_error(missing: str) -> None:
    data = SidSchema.native((4, 3)).to_json()
    del data[missing]
    with pytest.raises(TableError):
        SidSchema.from_json(data)


def test_not_an_object_is_a_table_error() -> None:
    with pytest.raises(TableError):
        SidSchema.from_json([1, 2])  # type: ignore[arg-type]
