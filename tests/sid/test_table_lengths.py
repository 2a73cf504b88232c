"""SIDs of different lengths: how they are spelled, written and read, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import TableError, UsageError
from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.extend import extend
from recerase.sid.ids import as_text, text_rank
from recerase.sid.quality import quality
from recerase.sid.quantize import fit_codebooks
from recerase.sid.table import SidSchema, SidTable
from recerase.sid.table_files import arrow_to_table, read_json_table, read_table, table_to_arrow

CODES = np.array([[1, 0, 2], [1, 0, -1], [1, -1, -1], [-1, -1, -1], [0, 3, -1]])


@pytest.fixture
def table() -> SidTable:
    return SidTable.build(list("abcde"), CODES, SidSchema.native((2, 4, 3)))


def test_a_shorter_sid_is_ended_by_eos(table: SidTable) -> None:
    one, two, three = table.schema.rows
    eos = table.schema.eos
    assert table.rows().tolist() == [
        [one[1], two[0], three[2]],
        [one[1], two[0], eos],
        [one[1], eos, -1],
        [-1, -1, -1],
        [one[0], two[3], eos],
    ]
    assert table.lengths.tolist() == [3, 2, 1, 0, 2]
    assert table.ragged
    assert table.present.tolist() == [True, True, True, False, True]
    assert table.schema.codes_of(table.rows()).tolist() == CODES.tolist()


def test_a_prefix_is_another_sid_and_equal_ones_collide(table: SidTable) -> None:
    assert table.collisions() == ()
    assert table.collision_rate == 0.0
    twins = table.replace(np.array([0]), np.array([[1, -1, -1]]))
    assert [rows.tolist() for rows in twins.collisions()] == [[0, 2]]
    assert [table.usage(level).tolist() for level in range(3)] == [[1, 3], [2, 0, 0, 1], [0, 0, 1]]
    assert quality(table).used == (2, 2, 1)


def test_parquet_and_json_keep_every_length(table: SidTable, tmp_path: Path) -> None:
    content = table_to_arrow(table)
    assert content["codes"].to_pylist() == [[1, 0, 2], [1, 0], [1], None, [0, 3]]
    assert content["codes"].chunk(0).values.to_pylist() == [1, 0, 2, 1, 0, 1, 0, 3]
    pq.write_table(content, tmp_path / "sids.parquet")
    (tmp_path / "sid_schema.json").write_text(json.dumps(table.schema.to_json()))
    assert read_table(tmp_path).digest == table.digest
    (tmp_path / "sids.json").write_text(json.dumps({"a": [1, 0, 2], "b": ["<a_1>", "<b_0>"], "c": ["<a_1>"]}))
    read = read_json_table(tmp_path / "sids.json")
    assert read.codes.tolist() == CODES[:3].tolist()
    assert (read.schema.codes, read.schema.collisions) == ((256, 256, 256), "unique")


def test_the_schema_says_how_long_a_sid_may_be_where_none_is_that_long() -> None:
    lists = pa.table({"item_id": ["a", "b"], "codes": [[0, 1], [1]]})
    read = arrow_to_table(lists, SidSchema.native((2, 2, 2)))
    assert read.codes.tolist() == [[0, 1, -1], [1, -1, -1]]
    assert arrow_to_table(table_to_arrow(read), read.schema).digest == read.digest
    for codes in ([[0, 1], [1, 1]], [[0, 1], None]):  # one length, and not the schema's: of another checkpoint
        with pytest.raises(TableError, match="has 2 levels, its schema 3"):
            arrow_to_table(pa.table({"item_id": ["a", "b"], "codes": codes}), SidSchema.native((2, 2, 2)))
    with pytest.raises(TableError, match="has 2 levels, its schema 3"):
        SidTable.build(["a"], np.array([[0, 1, -1]]), SidSchema.native((2, 2, 2)))
    with pytest.raises(TableError, match="has 3 levels, its schema 2"):
        arrow_to_table(pa.table({"item_id": ["a", "b"], "codes": [[0], [0, 1, 1]]}), SidSchema.native((2, 2)))


@pytest.mark.parametrize("eos", [-1, 4])
def test_sids_that_nothing_ends_are_refused(eos: int) -> None:
    rows = tuple(np.array(r) for r in ([3, 4], [5, 6]))
    schema = SidSchema((2, 2), rows, 7, 0, 1, eos)
    with pytest.raises(TableError, match="no eos token of its own"):
        SidTable.build(["a", "b"], np.array([[0, 1], [1, -1]]), schema)
    assert not SidTable.build(["a", "b"], np.array([[0, 1], [-1, -1]]), schema).ragged  # nothing to end


def test_a_code_behind_the_end_is_refused() -> None:
    with pytest.raises(TableError, match=re.escape("Item a has the SID [1, -1, 0]")):
        SidTable.build(["a", "b"], np.array([[1, -1, 0], [0, 0, 0]]), SidSchema.native((2, 2, 2)))


def test_what_needs_sids_of_one_length_says_so(table: SidTable) -> None:
    recipe = Recipe(np.zeros(2, np.float32), False, False)
    codebooks = Codebooks(tuple(np.eye(k, 2) for k in table.schema.codes), recipe, False, (1.0,) * 3)
    points = np.zeros((5, 2), np.float32)
    sentence = r"needs SIDs of one length; those of this table have 1 to 3 codes\."
    for attempt in (
        lambda: fit_codebooks(points, table),
        lambda: extend(table, codebooks, points, ["f"], points[:1]),
        lambda: table.require_one_length("This"),
    ):
        with pytest.raises(UsageError, match=sentence):
            attempt()
    SidTable.build(["a"], np.array([[1]])).require_one_length("This")


@given(st.lists(st.text(max_size=5), unique=True, max_size=30))
def test_ids_are_ranked_by_code_point(ids: list[str]) -> None:
    found = text_rank(np.array(ids, dtype=object))
    assert [ids[i] for i in np.argsort(found)] == sorted(ids)
    assert as_text(np.array(ids, dtype=object)).to_pylist() == ids


def test_ids_that_are_no_text_are_ranked_too() -> None:
    assert text_rank(np.array([10, 9, "a"], dtype=object)).tolist() == [0, 1, 2]
    assert text_rank(np.array(["b", "\ud800", "a"], dtype=object)).tolist() == [1, 2, 0]
    assert text_rank(np.array(["b", "a"])).tolist() == [1, 0]
    assert as_text(np.array(["x", None], dtype=object)).to_pylist() == ["x", "None"]


def test_ids_are_sorted_once_for_all_tables_of_one_catalogue(table: SidTable) -> None:
    assert table.id_rank.tolist() == [0, 1, 2, 3, 4]
    with mock.patch("recerase.sid.table.text_rank", side_effect=AssertionError):
        hidden = table.unlisted(np.array([True, False, False, False, False]))
        moved = table.replace(np.array([0]), np.array([[0, 0, 0]]))
        assert hidden.id_rank is moved.id_rank is table.id_rank
    turned = table.aligned(list("edcba"))
    assert turned.id_rank.tolist() == [4, 3, 2, 1, 0]
