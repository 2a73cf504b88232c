from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.catalog import Items, load_items
from recerase.catalog.columns import ITEM_SCHEMA
from recerase.catalog.items import items_from_table
from recerase.errors import DataError

Write = Callable[..., Path]
GOOD = {
    "item_id": ["x", "y"],
    "title": ["X", "Y"],
    "description": ["", "y"],
    "categories": [["A"], []],
    "brand": ["B", None],
    "price": [1.0, None],
}


def replaced(**columns: object) -> pa.Table:
    return pa.table({name: column for name, column in (GOOD | columns).items() if column is not None})


def test_a_directory_and_its_items_file_read_the_same(write_data: Write, items: Items) -> None:
    directory = write_data()
    for path in (directory, directory / "items.parquet"):
        read = load_items(path)
        assert read.item_ids.tolist() == items.item_ids.tolist() == list("abcdefghi")
        assert (read.titles, read.categories, read.brands) == (items.titles, items.categories, items.brands)
        assert read.digest == items.digest


def test_absence_is_said_in_one_way(items: Items) -> None:
    assert np.isnan(items.prices[1])
    assert items.prices[0] == 9.5
    assert items.brands[3] is None
    assert items.brands[5] is None, "an empty brand is no brand"
    read = items_from_table(replaced(title=["X", None], description=pa.nulls(2), categories=[None, ["C", None, ""]]))
    assert read.titles == ("X", "")
    assert read.descriptions == ("", "")
    assert read.categories == ((), ("C",))


def test_casts_that_lose_nothing_are_made() -> None:
    text = items_from_table(replaced(item_id=["1", "2"], price=[3.0, 4.0]))
    for same in (
        replaced(item_id=[1, 2], price=[3, 4]),
        replaced(item_id=pa.array(["1", "2"]).dictionary_encode(), price=[3.0, 4.0]),
        replaced(item_id=pa.array(["1", "2"], pa.large_string()), price=pa.array([3, 4], pa.float32())),
    ):
        assert items_from_table(same).digest == text.digest
    assert np.isnan(items_from_table(replaced(price=pa.nulls(2))).prices).all()
    assert items_from_table(replaced(brand=None, price=None)).brands == (None, None)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"title": None}, "no column title"),
        ({"categories": None, "description": None}, "no column description, categories"),
        ({"item_id": ["x", "x"]}, "'x' more than once"),
        ({"item_id": ["x", None]}, "no item_id in row 1"),
        ({"item_id": ["", "x"]}, "empty item_id in row 0"),
        ({"item_id": [1.5, 2.0]}, "item_id"),
        ({"categories": ["A|B", "C"]}, "categories"),
        ({"price": ["9.99", "1"]}, "price"),
        ({"title": [1.5, 2.5]}, "title"),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence(write_data: Write, columns: dict[str, object], says: str) -> None:
    directory = write_data(items=replaced(**columns))
    with pytest.raises(DataError, match=says) as error:
        load_items(directory)
    assert error.value.remedy
    assert "items.parquet" in error.value.message


def test_what_is_not_there_or_not_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no file"):
        load_items(tmp_path)
    (tmp_path / "items.parquet").write_text("item_id,title\n")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_items(tmp_path)
    pq.write_table(ITEM_SCHEMA.empty_table(), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="no rows"):
        load_items(tmp_path)


def test_index_is_the_inverse_of_item_ids(items: Items, rng: np.random.Generator) -> None:
    rows = rng.integers(len(items), size=50)
    assert items.index(items.item_ids[rows].tolist()).tolist() == rows.tolist()
    assert items.index([]).shape == (0,)
    with pytest.raises(DataError, match="no item zz, a1, q and 1 more"):
        items.index(["a", "zz", "a1", "q", "r"])


@pytest.mark.parametrize("column", GOOD)
def test_the_digest_depends_on_every_column(column: str) -> None:
    other = {"categories": [["A"], ["Z"]], "price": [1.0, 2.0]}.get(column, ["x", "changed"])
    assert items_from_table(replaced(**{column: other})).digest != items_from_table(replaced()).digest
