from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from recerase.catalog import Catalogue, load_catalogue
from recerase.catalog.readers import READERS, write_catalogue
from recerase.errors import DataError, RecEraseError, UsageError

from_rows = pa.Table.from_pylist


@pytest.fixture
def files(tmp_path: Path):
    def write(**contents: str | bytes) -> list[Path]:
        paths = [tmp_path / name.replace("__", ".") for name in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return paths

    return write


def through(reader: str, paths: list[Path], out: Path) -> Catalogue:
    write_catalogue(out, *READERS[reader](*paths))
    return load_catalogue(out)


def seen(catalogue: Catalogue) -> dict[str, list[tuple[str, int]]]:
    interactions, ids = catalogue.interactions, catalogue.items.item_ids
    bounds = zip(interactions.user_ids, interactions.offsets[:-1], interactions.offsets[1:], strict=True)
    return {
        user: [(ids[i], int(t)) for i, t in zip(interactions.items[a:b], interactions.timestamps[a:b], strict=True)]
        for user, a, b in bounds
    }


ITEMS = [
    {"item_id": "01", "title": 'A "b", c', "description": "x\ny", "categories": ["P", "Q"], "brand": "B", "price": 1.5},
    {"item_id": "2", "title": "Ü", "description": "", "categories": [], "brand": None, "price": None},
]
EXPECTED = {"007": [("01", 4), ("2", 5)], "8": [("01", 1)]}


@pytest.mark.parametrize("zipped", [False, True])
def test_csv_keeps_ids_text_and_order(files, tmp_path: Path, zipped: bool) -> None:
    items = 'item_id,title,description,categories,brand,price\n01,"A ""b"", c","x\ny",P|Q,B,1.5\n2,Ü,,,,\n'
    rows = "user_id,item_id,timestamp,rating\n007,2,5,1\n8,01,1,\n007,01,4,2\n007,01,4,2\n"
    if zipped:
        paths = files(i__csv__gz=gzip.compress(items.encode()), r__csv__gz=gzip.compress(rows.encode()))
    else:
        paths = files(i__csv=items, r__csv=rows)
    read = through("csv", paths, tmp_path / "out")
    assert read.items.item_ids.tolist() == ["01", "2"]
    assert read.items.titles == ('A "b", c', "Ü")
    assert read.items.descriptions == ("x\ny", "")
    assert read.items.categories == (("P", "Q"), ())
    assert read.items.brands == ("B", None)
    assert seen(read) == EXPECTED, "sorted by time; the repeated row is dropped"


def test_tsv_without_time_keeps_the_order_of_the_file(files, tmp_path: Path) -> None:
    paths = files(i__tsv="item_id\ttitle\n1\tA, B\n2\tC\n", r__tsv="user_id\titem_id\nu\t2\nv\t1\nu\t1\nu\t2\n")
    read = through("csv", paths, tmp_path / "out")
    assert {u: [i for i, _ in h] for u, h in seen(read).items()} == {"u": ["2", "1", "2"], "v": ["1"]}


def test_jsonl_and_csv_of_one_catalogue_agree(files, tmp_path: Path) -> None:
    rows = [{"user_id": "007", "item_id": "2", "timestamp": 5}, {"user_id": "8", "item_id": "01", "timestamp": 1}]
    rows.append({"user_id": "007", "item_id": "01", "timestamp": 4})
    paths = files(i__jsonl="\n".join(map(json.dumps, ITEMS)), r__jsonl="\n".join(map(json.dumps, rows)))
    read = through("jsonl", paths, tmp_path / "out")
    assert seen(read) == EXPECTED
    assert read.items.categories == (("P", "Q"), ())


def test_writing_and_reading_back_changes_nothing(tmp_path: Path) -> None:
    interactions = from_rows([{"user_id": u, "item_id": i, "timestamp": t} for u, h in EXPECTED.items() for i, t in h])
    write_catalogue(tmp_path / "one", from_rows(ITEMS), interactions)
    one = load_catalogue(tmp_path / "one")
    assert seen(one) == EXPECTED
    write_catalogue(tmp_path / "two", from_rows(ITEMS), interactions)
    for name in ("items.parquet", "interactions.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_is_written_when_the_tables_are_wrong(tmp_path: Path) -> None:
    stranger = from_rows([{"user_id": "u", "item_id": "zz", "timestamp": 1}])
    with pytest.raises(DataError, match="zz"):
        write_catalogue(tmp_path / "out", from_rows(ITEMS), stranger)
    assert not (tmp_path / "out").exists()


def test_recbole_headers_and_token_sequences(files, tmp_path: Path) -> None:
    paths = files(
        m__item='item_id:token\tmovie_title:token_seq\tclass:token_seq\n1\tToy "Story"\tAnimation Film-Noir\n2\tX\t\n',
        m__inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\n5\t2\t3\t9\n5\t1\t4\t8\n",
    )
    read = through("recbole", paths, tmp_path / "out")
    assert read.items.titles == ('Toy "Story"', "X")
    assert read.items.categories == (("Animation", "Film-Noir"), ())
    assert seen(read) == {"5": [("1", 8), ("2", 9)]}


def test_recbole_categories_in_quotes_and_commas(files, tmp_path: Path) -> None:
    paths = files(
        m__item="item_id:token\ttitle:token_seq\tcategories:token_seq\n1\tA\t'Beauty', 'Hair Care'\n",
        m__inter="user_id:token\titem_id:token\n5\t1\n",
    )
    assert through("recbole", paths, tmp_path / "out").items.categories == (("Beauty", "Hair Care"),)


def test_every_movielens_release_reads_the_same(files, tmp_path: Path) -> None:
    flags = "|".join("1" if g in (3, 4) else "0" for g in range(19))
    old = files(
        u__item=f"1|Café (1995)|01-Jan-1995||http://x|{flags}\n2|B, C|||y|{'|'.join('0' * 19)}\n".encode("latin-1"),
        u__data="7\t2\t3\t20\n7\t1\t5\t10\n",
    )
    million = files(
        movies__dat="1::Café (1995)::Animation|Children's\n2::B, C::\n".encode("latin-1"),
        ratings__dat="7::2::3::20\n7::1::5::10\n",
    )
    latest = files(
        movies__csv='movieId,title,genres\n1,Café (1995),Animation|Children\'s\n2,"B, C",(no genres listed)\n',
        ratings__csv="userId,movieId,rating,timestamp\n7,2,3.0,20\n7,1,5.0,10\n",
    )
    reads = [through("movielens", paths, tmp_path / str(n)) for n, paths in enumerate((old, million, latest))]
    assert reads[0].items.titles == ("Café (1995)", "B, C")
    assert reads[0].items.categories == (("Animation", "Children's"), ())
    assert seen(reads[0]) == {"7": [("1", 10), ("2", 20)]}
    assert len({read.items.digest for read in reads}) == 1
    assert len({read.interactions.digest for read in reads}) == 1
    (tmp_path / "movies.csv").unlink()
    assert through("movielens", [tmp_path], tmp_path / "dir").items.digest == reads[0].items.digest


@pytest.mark.parametrize(
    ("reader", "first", "second"),
    [
        ("csv", "item_id,name\n1,A\n", "user_id,item_id\nu,1\n"),
        ("csv", "item_id,title\n1,A,extra\n", "user_id,item_id\nu,1\n"),
        ("csv", "item_id,title\n1,A\n", "user_id,item_id,timestamp\nu,1,monday\n"),
        ("csv", "", "user_id,item_id\nu,1\n"),
        ("jsonl", "{not json}", '{"user_id": 1, "item_id": 1}'),
        ("movielens", "1|A\n", "7\t1\t5\t10\n"),
        ("amazon", "{}\n", "{}\n"),
    ],
)
def test_unusable_files_are_refused_with_a_remedy(files, reader: str, first: str, second: str) -> None:
    with pytest.raises(DataError) as error:
        READERS[reader](*files(first=first, second=second))
    assert error.value.remedy


def test_missing_files_and_wrong_counts_are_refused(tmp_path: Path) -> None:
    for reader in READERS:
        with pytest.raises(RecEraseError):
            READERS[reader](tmp_path / "a", tmp_path / "b")
    with pytest.raises(DataError, match="not a MovieLens directory"):
        READERS["movielens"](tmp_path)
    with pytest.raises(UsageError, match="movielens reader takes"):
        READERS["movielens"](tmp_path / "a")
