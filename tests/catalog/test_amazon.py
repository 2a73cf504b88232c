from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from recerase.catalog.readers import import_amazon
from recerase.errors import DataError

META_2018 = [
    {"asin": "B1", "title": "Pen &amp; Ink", "description": ["a", "b"], "category": ["Office", "Pens"], "brand": "Q"},
    {"asin": "B2", "title": "Cup", "description": "", "category": [], "price": "$1,299.50"},
    {"asin": "B9", "title": "Nobody wants this", "category": []},
]
META_2014 = (
    "{'asin': 'B1', 'title': 'Pen & Ink', 'description': 'a b', 'brand': 'Q', 'categories': [['Office', 'Pens']]}\n"
    "{'asin': 'B2', 'title': 'Cup', 'price': 1299.5, 'categories': [['Home'], ['Home', 'Cups']]}\n"
)
META_2023 = [
    {"parent_asin": "B1", "title": "Pen & Ink", "store": "Q", "categories": ["Office", "Pens"], "price": "None"},
]
OLD = [
    {"reviewerID": "u", "asin": "B2", "overall": 5.0, "unixReviewTime": 20},
    {"reviewerID": "u", "asin": "B1", "overall": 4.0, "unixReviewTime": 10},
    {"reviewerID": "u", "asin": "B1", "overall": 4.0, "unixReviewTime": 10},
    {"reviewerID": "v", "asin": "GONE", "overall": 1.0, "unixReviewTime": 5},
]


def lines(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def read(folder: Path, meta: bytes, reviews: bytes, names: tuple[str, str] = ("meta.json", "reviews.json")) -> tuple:
    for name, content in zip(names, (meta, reviews), strict=True):
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    items, interactions = import_amazon(*(folder / name for name in names))
    by_id = {row["item_id"]: row for row in items.to_pylist()}
    return by_id, [(r["user_id"], r["item_id"], r["timestamp"]) for r in interactions.to_pylist()]


def test_2018_json_lines_are_cleaned_and_unreviewed_items_left_out(tmp_path: Path) -> None:
    items, seen = read(tmp_path, lines(META_2018), lines(OLD), ("meta.json.gz", "reviews.json.gz"))
    assert list(items) == ["B2", "B1", "GONE"]
    assert items["B1"] == {
        "item_id": "B1", "title": "Pen & Ink", "description": "a b", "categories": ["Office", "Pens"], "brand": "Q",
        "price": None,
    }  # fmt: skip
    assert items["B2"]["price"] == 1299.5
    assert items["GONE"]["title"] == "", "an item without metadata stays, without text"
    assert seen == [("u", "B1", 10), ("u", "B2", 20), ("v", "GONE", 5)]


def test_2014_python_literals_are_parsed_and_not_run(tmp_path: Path) -> None:
    items, seen = read(tmp_path, META_2014.encode(), lines(OLD))
    assert items["B1"]["categories"] == ["Office", "Pens"]
    assert items["B2"]["categories"] == ["Home", "Cups"]
    assert (items["B2"]["price"], len(seen)) == (1299.5, 3)
    with pytest.raises(DataError, match=r"Line 1 of meta\.json is neither"):
        read(tmp_path, b"__import__('os').getcwd()\n", lines(OLD))


def test_2023_names(tmp_path: Path) -> None:
    reviews = [{"user_id": "u", "parent_asin": "B1", "asin": "B1-red", "rating": 3.0, "timestamp": 1_600_000_000_000}]
    items, seen = read(tmp_path, lines(META_2023), lines(reviews))
    assert items["B1"]["brand"] == "Q"
    assert items["B1"]["price"] is None
    assert seen == [("u", "B1", 1_600_000_000_000)]


@pytest.mark.parametrize(
    "ratings",
    [
        "u,B2,5.0,20\nu,B1,4.0,10\nv,GONE,1.0,5\n",
        "B2,u,5.0,20\nB1,u,4.0,10\nGONE,v,1.0,5\n",
        "user_id,parent_asin,rating,timestamp\nu,B2,5.0,20\nu,B1,4.0,10\nv,GONE,1.0,5\n",
        "user_id,parent_asin,rating,timestamp,history\nu,B2,5.0,20,\nu,B1,4.0,10,B2\nv,GONE,1.0,5,\n",
    ],
)
def test_ratings_files_in_any_column_order(tmp_path: Path, ratings: str) -> None:
    _, seen = read(tmp_path, lines(META_2018), ratings.encode(), ("meta.json", "ratings.csv"))
    assert seen == [("u", "B1", 10), ("u", "B2", 20), ("v", "GONE", 5)]


def test_a_cut_download_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.json.gz").write_bytes(gzip.compress(lines(META_2018 * 50))[:-20])
    (tmp_path / "reviews.json").write_bytes(lines(OLD))
    with pytest.raises(DataError, match="cannot be read"):
        import_amazon(tmp_path / "meta.json.gz", tmp_path / "reviews.json")


def test_reviews_without_a_time_are_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Line 2 of reviews\.json has no user, item or time"):
        read(tmp_path, lines(META_2018), lines([OLD[0], {"reviewerID": "u", "asin": "B1"}]))
