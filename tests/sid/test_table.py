"""The table keeps items, codes and rows together through every change of order, form and content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import TableError
from recerase.sid.table import SidSchema, SidTable
from recerase.sid.table_files import arrow_to_table, read_json_table, read_table, table_to_arrow

SIZES = (3, 4, 2)


@contextmanager
def refused(problem: str) -> Iterator[None]:
    """A TableError whose sentence says `problem` (a pattern), with a remedy that is a sentence too."""
    with pytest.raises(TableError) as caught:
        yield
    assert re.search(problem, caught.value.message)
    assert caught.value.message.endswith(".")
    assert caught.value.remedy.endswith(".")


@st.composite
def tables(draw: st.DrawFn) -> SidTable:
    """Tables of 1 to 12 items with collisions, items without a SID, and any flags; one item at least has a SID."""
    n = draw(st.integers(1, 12))
    codes = np.array([[draw(st.integers(0, k - 1)) for k in SIZES] for _ in range(n)], np.int32)
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    codes[np.array([False, *draw(flags)[1:]])] = -1
    ids = draw(st.lists(st.text(max_size=4), min_size=n, max_size=n, unique=True))
    schema = SidSchema.native(SIZES, "allowed")
    return SidTable.build(ids, codes, schema, np.array(draw(flags)), np.array(draw(flags)))


@given(tables())
def test_arrow_round_trip_is_lossless(table: SidTable) -> None:
    again = arrow_to_table(table_to_arrow(table), table.schema)
    assert again.digest == table.digest
    assert again.item_ids.tolist() == table.item_ids.tolist()
    assert again.codes.dtype == np.int32


@given(tables())
def test_rows_spell_the_codes(table: SidTable) -> None:
    rows = table.rows()
    np.testing.assert_array_equal(table.schema.codes_of(rows), table.codes)
    assert ((rows == -1).all(axis=1) == ~table.present).all()
    assert ((rows >= 0).all(axis=1) == table.present).all()
    assert rows.dtype == np.int64


@given(tables(), st.randoms())
def test_aligned_moves_whole_rows(table: SidTable, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    aligned = table.aligned(table.item_ids[order])
    for name in ("item_ids", "codes", "listed", "resolved"):
        np.testing.assert_array_equal(getattr(aligned, name), getattr(table, name)[order])
    assert aligned.aligned(table.item_ids).digest == table.digest
    assert (aligned.digest == table.digest) == (order == sorted(order))


@given(tables())
def test_collisions_agree_with_counting_pairs(table: SidTable) -> None:
    sids = [tuple(c) if c[0] >= 0 else None for c in table.codes.tolist()]
    twins = {i: [j for j, s in enumerate(sids) if s == sids[i]] for i, s in enumerate(sids) if s}
    shared = {tuple(group) for group in twins.values() if len(group) > 1}
    assert {tuple(rows.tolist()) for rows in table.collisions()} == shared
    assert table.collision_rate == pytest.approx(sum(len(g) > 1 for g in twins.values()) / len(twins))
    groups = table.groups()
    assert all((groups[i] == groups[j]) == (j in twins[i]) for i in twins for j in twins)
    assert (groups[~table.present] == -1).all()


@given(tables())
def test_usage_counts_every_item_with_a_sid_once_a_level(table: SidTable) -> None:
    for level, size in enumerate(SIZES):
        usage = table.usage(level)
        assert len(usage) == size
        assert usage.sum() == table.present.sum()


def test_the_digest_is_that_of_the_content_spelled_out() -> None:
    """Reports name tables by it, so it must never come out differently for the same content."""
    schema = SidSchema.native((2, 300))
    flags = np.array([True, False]), np.array([False, True])
    table = SidTable.build(["é", "b"], np.array([[1, 258], [-1, -1]]), schema, *flags)
    content = '["é", "b"]'.encode() + bytes.fromhex("01000000 02010000 ffffffff ffffffff 0100 0001")
    content += json.dumps(schema.to_json(), sort_keys=True).encode()
    assert table.digest == hashlib.sha256(content).hexdigest()


def test_digest_depends_on_each_part() -> None:
    table = SidTable.build(["a", "b"], np.array([[0, 1], [1, 0]]), SidSchema.native((2, 2)))
    others = [
        replace(table, item_ids=np.array(["a", "c"], object)),
        replace(table, codes=np.array([[0, 1], [1, 1]], np.int32)),
        table.unlisted(np.array([True, False])),
        replace(table, resolved=np.array([True, False])),
        replace(table, schema=SidSchema.native((2, 3))),
    ]
    assert len({t.digest for t in (table, *others)}) == 6


def test_replace_changes_only_the_items_named_and_marks_them() -> None:
    table = SidTable.build(["a", "b", "c"], np.array([[0, 0], [0, 1], [1, 1]]), SidSchema.native((2, 2)))
    new = table.replace(np.array([2]), np.array([[1, 0]]))
    assert new.codes.tolist() == [[0, 0], [0, 1], [1, 0]]
    assert new.moved(table).tolist() == new.resolved.tolist() == [False, False, True]
    assert table.codes.tolist() == [[0, 0], [0, 1], [1, 1]]
    assert new.item_ids is table.item_ids
    hidden = table.unlisted(np.array([True, False, False]))
    assert hidden.replace(np.array([0]), np.array([[1, 0]])).listed.tolist() == [False, True, True]
    with refused(r"Item a has the SID \[2, 0\], which the schema \[2, 2\] cannot spell \(1 such items\)"):
        table.replace(np.array([0]), np.array([[2, 0]]))


def test_build_keeps_what_it_is_given_and_fills_in_the_rest() -> None:
    codes = np.array([[0, 3], [-1, -1], [0, 1]], np.int64)
    table = SidTable.build(["a", "b", "c"], codes)
    assert (table.codes.dtype, table.codes.tolist()) == (np.int32, codes.tolist())
    assert (table.schema.codes, table.schema.collisions) == ((1, 4), "unique")
    assert table.listed.tolist() == [True, False, True]
    assert table.resolved.tolist() == [False, False, False]
    flagged = SidTable.build(["a", "b", "c"], codes, table.schema, [0, 0, 1], [1, 0, 0])  # type: ignore[arg-type]
    assert flagged.schema is table.schema
    assert (flagged.listed.dtype, flagged.listed.tolist()) == (bool, [False, False, True])
    assert (flagged.resolved.dtype, flagged.resolved.tolist()) == (bool, [True, False, False])
    for flags in ({"listed": np.ones(2, bool)}, {"resolved": np.ones(2, bool)}):
        with refused("flags of a SID table must be one an item"):
            SidTable.build(["a", "b", "c"], codes, **flags)


def test_tables_of_nothing() -> None:
    empty = SidTable.build([], np.zeros((0, 2), np.int32))
    assert (len(empty), empty.schema.codes, empty.collision_rate) == (0, (1, 1), 0.0)
    assert table_to_arrow(empty).schema == table_to_arrow(SidTable.build(["a"], np.array([[0]]))).schema
    without = SidTable.build(["a", "b"], np.full((2, 2), -1), SidSchema.native((2, 2)))
    assert (without.collision_rate, without.collisions()) == (0.0, ())
    assert without.groups().tolist() == [-1, -1]


def test_vocabulary_row_0_may_be_a_code() -> None:
    schema = SidSchema((2,), (np.array([0, 1]),), 2, -1, -1, -1)
    assert SidTable.build(["a", "b"], np.array([[0], [1]]), schema).rows().tolist() == [[0], [1]]


def test_what_is_written_has_the_types_of_the_format() -> None:
    table = SidTable.build(["a", "b"], np.array([[0, 1], [-1, -1]]), SidSchema.native((2, 2)))
    content = table_to_arrow(table)
    flags = [pa.field(name, pa.bool_()) for name in ("listed", "resolved")]
    assert content.schema == pa.schema([("item_id", pa.string()), ("codes", pa.list_(pa.int32())), *flags])
    assert content["codes"].to_pylist() == [[0, 1], None]
    assert content["codes"].chunk(0).values.to_pylist() == [0, 1]  # nothing lies under a null


def test_unlisted_items_keep_their_sid() -> None:
    table = SidTable.build(["a", "b"], np.array([[0], [1]]))
    hidden = table.unlisted(np.array([True, False]))
    assert hidden.listed.tolist() == [False, True]
    assert hidden.present.all()
    assert table.listed.all()


def test_aligned_names_what_is_missing_and_what_is_extra() -> None:
    table = SidTable.build(["a", "b"], np.array([[0], [1]]))
    with refused("lacks 1 items of the catalogue, z first and names 1 items that the catalogue lacks, b first"):
        table.aligned(["a", "z"])
    with refused(r"^The SID table lacks 2 items of the catalogue, y first\.$"):
        table.aligned(["a", "y", "b", "z"])
    with refused(r"^The SID table names 1 items that the catalogue lacks, a first\.$"):
        table.aligned(["b"])
    with refused("twice"):
        table.aligned(["a", "b", "a"])


@pytest.mark.parametrize(
    ("ids", "codes", "problem"),
    [
        (["a", "a"], [[0, 0], [1, 1]], "twice"),
        (["a", "b"], [[0, 0], [1, 9]], "cannot spell"),
        (["a", "b"], [[0, 0], [-1, 0]], "cannot spell"),
        (["a", "b"], [[0, 0], [1, 1]], "cannot spell"),  # code (1, 1) has no vocabulary row
        (["a", "b"], [[0, 0, 0], [1, 0, 0]], "3 levels"),
        (["a"], [[0, 0], [1, 0]], "one row of codes"),
    ],
)
def test_build_refuses(ids: list[str], codes: list[list[int]], problem: str) -> None:
    schema = SidSchema((2, 2), (np.array([3, 4]), np.array([5, -1])), 6, 0, 1, 2)
    with refused(problem):
        SidTable.build(ids, np.array(codes), schema)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({}, "^sids.parquet has no column item_id; found none.$"),
        ({"item_id": ["a"]}, "^sids.parquet has no column codes; found item_id.$"),
        ({"item": ["a"], "codes": [[1]]}, "^sids.parquet has no column item_id; found item, codes.$"),
        ({"item_id": ["a"], "codes": ["1-2"]}, "Unsupported cast from string to list"),
        ({"item_id": ["a", "b"], "codes": [[1, 2], []]}, "an empty SID"),
        ({"item_id": ["a", None], "codes": [[1], [2]]}, "without an id"),
        ({"item_id": ["a"], "codes": [[-1]]}, "negative"),
        ({"item_id": ["a"], "codes": [[1, None]]}, "missing"),
        ({"item_id": pa.array([], pa.string()), "codes": pa.array([], pa.list_(pa.int32()))}, "no SIDs"),
        ({"item_id": ["a"], "codes": [[1]], "listed": ["yes"]}, "^sids.parquet: column listed must be true or false"),
        (
            {"item_id": ["a", "b"], "codes": [[1], [2]], "resolved": [True, None]},
            "column resolved must be true or false",
        ),
    ],
)
def test_a_malformed_parquet_table_is_a_sentence(columns: dict[str, Any], problem: str) -> None:
    with refused(problem):
        arrow_to_table(pa.table(columns))


def test_read_table_finds_the_schema_beside_the_table(tmp_path: Path) -> None:
    schema = SidSchema((4,), (np.array([9, 8, 7, 6]),), 12, 0, 1, 2, "allowed")
    table = SidTable.build(["a", "b"], np.array([[3], [3]]), schema)
    pq.write_table(table_to_arrow(table), tmp_path / "sids.parquet")
    assert read_table(tmp_path).schema.collisions == "allowed"  # it is true of the codes
    (tmp_path / "sid_schema.json").write_text(json.dumps(schema.to_json()))
    for path in (tmp_path, tmp_path / "sids.parquet"):
        assert read_table(path).digest == table.digest
    (tmp_path / "sid_schema.json").write_text("{")
    with refused(r"sid_schema\.json is not JSON"):
        read_table(tmp_path)
    assert read_table(tmp_path, schema).digest == table.digest  # one that is given needs none beside it
    json_table = tmp_path / "published.json"
    json_table.write_text('{"x": [60, 300]}')
    assert read_table(json_table).digest == read_json_table(json_table).digest


def test_read_table_reads_the_flags_and_no_other_column(tmp_path: Path) -> None:
    schema, file = SidSchema.native((2, 2)), tmp_path / "mine.parquet"
    flags = np.array([True, False]), np.array([False, True])
    table = SidTable.build(["a", "b"], np.array([[0, 1], [1, 0]]), schema, *flags)
    content = table_to_arrow(table)
    for _ in range(2):  # two of one name are refused where they are read
        content = content.append_column("note", pa.array(["x", "y"]))
    pq.write_table(content, file)
    assert read_table(file, schema).digest == table.digest
    pq.write_table(content.set_column(1, "codes", pa.array([[0, 1], []])), file)
    with refused(r"^mine\.parquet holds no SIDs, an empty SID"):
        read_table(file, schema)


def test_read_table_refuses_what_is_not_there_and_what_is_no_parquet(tmp_path: Path) -> None:
    with refused(r"no .*sids\.parquet"):
        read_table(tmp_path)
    (tmp_path / "sids.parquet").write_bytes(b"PAR1 not really")
    with refused(r"sids\.parquet cannot be read as parquet \(.+\)"):
        read_table(tmp_path)


def test_tokens_and_integers_in_json_mean_the_same(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps({"x": ["<a_60>", "<b_300>"], "7": ["<a_0>", "<b_1>"]}))
    b.write_text(json.dumps({"x": [60, 300], "7": [0, 1]}))
    tokens, integers = read_json_table(a), read_json_table(b)
    assert tokens.digest == integers.digest
    assert tokens.item_ids.tolist() == ["x", "7"]
    assert tokens.codes.tolist() == [[60, 300], [0, 1]]
    assert tokens.schema.codes == (256, 512)
    assert tokens.schema.collisions == "unique"


def test_a_shared_sid_in_json_makes_a_schema_that_allows_it(tmp_path: Path) -> None:
    path = tmp_path / "sids.json"
    path.write_text('{"x": [0, 255], "y": [0, 255]}')
    table = read_json_table(path)
    assert table.schema.collisions == "allowed"
    assert table.schema.codes == (256, 256)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Expecting"),
        ("[]", "no attribute"),
        ("{}", "there are none"),
        ('{"x": []}', "one is empty"),
        ('{"x": [1], "y": []}', "one is empty"),
        ('{"x": ["<b_1>"]}', "'<b_1>' is no code of level 1"),
        ('{"x": ["<a_1>", "<a_2>"]}', "'<a_2>' is no code of level 2"),
        ('{"x": [-1]}', "-1 is no code"),
        ('{"x": [true]}', "True is no code"),
        ('{"x": [1.5]}', "1.5 is no code"),
        ('{"x": [null]}', "None is no code of level 1"),
        ('{"x": "<a_1>"}', "'<' is no code"),
        ('{"x": null}', "NoneType"),
        ('{"x": [16777216]}', "2 ** 24"),
        ('{"x": [99999999999999999999]}', "too large"),
        ('{"x": [[1]]}', "is no code"),
        ('{"x": [1], "x": [2]}', "twice"),
        ('{"\\ud800": [1]}', "surrogates"),
    ],
)
def test_json_that_is_no_table_is_a_table_error(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "sids.json"
    path.write_text(text)
    with refused(rf"sids\.json is not a SID table in JSON: .*{re.escape(problem)}"):
        read_json_table(path)


def test_tables_published_by_others(data_directory: Path) -> None:
    folder = data_directory / "amazon_industrial"
    if not folder.is_dir():
        pytest.skip("amazon_industrial is not there")
    plain, letter = read_json_table(folder / "sids.json"), read_json_table(folder / "sids_letter_native.json")
    assert plain.codes.shape == letter.codes.shape == (4344, 4)
    assert plain.schema.codes == letter.schema.codes == (256,) * 4
    assert (plain.collision_rate, plain.schema.collisions) == (0, "unique")
    assert len(set(letter.groups().tolist())) == 4317
    assert letter.schema.collisions == "allowed"
