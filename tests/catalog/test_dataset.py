"""A dataset gives the same rows whatever files and row groups they are in, and names the row that it cannot use."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.catalog import dataset, demo
from recerase.catalog.dataset import Dataset
from recerase.catalog.embed import documents, text_embeddings
from recerase.catalog.items import items_from_table
from recerase.catalog.readers import write_catalogue
from recerase.catalog.texts import documents as streamed_documents
from recerase.catalog.texts import embedded
from recerase.errors import ArtefactError, DataError
from recerase.store import publish

N, D = 101, 3
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
IDS = [f"i{i}" for i in range(N)]


def vectors(kind: str, x: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(x).reshape(-1))
    offsets = np.arange(len(x) + 1) * x.shape[1]
    if kind == "list":
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    if kind == "large":
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), flat)
    return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])


def write(home: Path, cuts: list[int], kind: str = "list", **how: Any) -> Path:
    home.mkdir()
    edges = [0, *cuts, N]
    for number, (low, high) in enumerate(pairwise(edges)):
        table = pa.table({"other": IDS[low:high], "item_id": IDS[low:high], "vector": vectors(kind, X[low:high])})
        pq.write_table(table, home / f"{number:02d}.parquet", **how)
    return home


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
@pytest.mark.parametrize("cuts", [[], [1, 50, 50, 99]])
@pytest.mark.parametrize("how", [{}, {"row_group_size": 4, "use_dictionary": False}])
def test_blocks_are_the_same_however_rows_are_cut(tmp_path: Path, kind: str, cuts: list[int], how: dict) -> None:
    data = Dataset.open(write(tmp_path / "d", cuts, kind, **how))
    assert len(data) == N
    assert data.width == D
    for size, start, stop in [(7, 0, None), (200, 0, None), (1, 48, 53), (10, 13, 97), (5, N, None)]:
        last = N if stop is None else stop
        blocks = list(data.blocks(size, start, stop))
        assert [len(block.ids) for block in blocks] == [min(size, last - at) for at in range(start, last, size)]
        assert [block.start for block in blocks] == list(range(start, last, size))
        assert [i for block in blocks for i in block.ids.to_pylist()] == IDS[start:last]
        found = [block.vectors for block in blocks] or [np.zeros((0, D), np.float32)]
        assert np.concatenate(found).tobytes() == X[start:last].tobytes()
        for x, block in zip(data.vectors(size, start, stop), blocks, strict=True):
            np.testing.assert_array_equal(x, block.vectors)
        for ids, block in zip(data.ids(size, start, stop), blocks, strict=True):
            assert ids.equals(block.ids)
    chosen = np.array([0, 1, 49, 50, 98, 100])
    assert data.rows(chosen, ["item_id"])["item_id"].to_pylist() == [IDS[row] for row in chosen]


def test_one_file_a_data_directory_and_integer_ids(tmp_path: Path) -> None:
    table = pa.table({"item_id": np.arange(N), "vector": vectors("list", X.astype(np.float64))})
    for name in ("items.parquet", "interactions.parquet"):
        pq.write_table(table.slice(0 if name == "items.parquet" else 90), tmp_path / name)
    for path in (tmp_path, tmp_path / "items.parquet"):
        data = Dataset.open(path)
        assert len(data) == N
        assert [i for ids in data.ids(40) for i in ids.to_pylist()] == [str(i) for i in range(N)]
        assert np.concatenate(list(data.vectors(9))).tobytes() == X.tobytes()


def test_files_may_differ_in_how_they_store_the_same(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["0", "1"], "vector": vectors("list", X[:2])}), tmp_path / "0.parquet")
    pq.write_table(
        pa.table({"vector": vectors("fixed", X[2:5].astype(float)), "item_id": [2, 3, 4]}), tmp_path / "1.parquet"
    )
    (block,) = Dataset.open(tmp_path).blocks(10)
    assert block.ids.to_pylist() == list("01234")
    assert block.vectors.tobytes() == X[:5].tobytes()


def spoilt(**columns: Any) -> pa.Table:
    whole: dict[str, Any] = {"item_id": ["a", "b", "c"], "vector": pa.array([[1.0, 2], [3, 4], [5, 6]]), **columns}
    return pa.table({name: column for name, column in whole.items() if column is not None})


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"item_id": ["a", None, "c"]}, r"Row 1 of .*1\.parquet has no item_id"),
        ({"item_id": ["a", "b", ""]}, r"Row 2 of .*1\.parquet has an empty item_id"),
        ({"item_id": [1.5, 2.5, 3.5]}, "item ids that are double"),
        ({"item_id": None}, r"1\.parquet has no column item_id; found vector"),
        ({"vector": None}, r"1\.parquet has no column vector; found item_id"),
        ({"vector": pa.array([[1.0, 2], None, [5, 6]])}, r"Row 1 of .* has no vector"),
        ({"vector": pa.array([[1.0, 2], [3], [5, 6]])}, r"Row 1 of .* a vector of 1 numbers, others have 2"),
        ({"vector": pa.array([[1.0], [3], [5]])}, r"Row 0 of .*1\.parquet has a vector of 1 numbers, others have 2"),
        ({"vector": pa.array([[1.0, 2], [3, 4], [5, None]])}, r"Row 2 of .* a null inside"),
        ({"vector": pa.array([[1.0, 2], [3, np.inf], [5, 6]])}, r"Row 1 of .* NaN or infinity"),
        ({"vector": pa.array([[1e300, 2], [3, 4], [5, 6]])}, r"Row 0 of .* NaN or infinity"),
        ({"vector": pa.array([["a"], ["b"], ["c"]])}, "Store it as a list of numbers"),
        ({"item_id": ["a", "\ud800".encode("utf-8", "surrogatepass"), "c"]}, "item ids that are binary"),
        ({"vector": pa.array([1.0, 2, 3])}, "column vector of double"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(spoilt(), tmp_path / "0.parquet")
    pq.write_table(spoilt(**columns), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=said):
        list(Dataset.open(tmp_path).blocks(2))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no parquet file"):
        Dataset.open(tmp_path)
    with pytest.raises(DataError, match=r"There is no file or directory .*nothing\.parquet"):
        Dataset.open(tmp_path / "nothing.parquet")
    pq.write_table(spoilt().slice(0, 0), tmp_path / "0.parquet")
    with pytest.raises(DataError, match="no rows"):
        Dataset.open(tmp_path)
    pq.write_table(spoilt(), tmp_path / "1.parquet")
    good = (tmp_path / "1.parquet").read_bytes()
    for bad in (b"", b"PAR1", good[:-9], good[:50] + bytes(len(good) - 100) + good[-50:]):
        (tmp_path / "2.parquet").write_bytes(bad)
        with pytest.raises(DataError, match=r"2\.parquet cannot be read as parquet"):
            list(Dataset.open(tmp_path).blocks(2))


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    data = Dataset.open(write(tmp_path / "d", [50]))
    assert len(list(data.ids(10))) == 11
    pq.write_table(
        pa.table({"item_id": IDS[50:], "vector": vectors("list", X[50:] + 1)}), tmp_path / "d" / "01.parquet"
    )
    with pytest.raises(DataError, match=r"01\.parquet changed while it was being read"):
        list(data.vectors(10))
    (tmp_path / "d" / "01.parquet").unlink()
    with pytest.raises(DataError, match="changed"):
        list(data.vectors(10))


def test_a_manifest_beside_the_files_is_believed(tmp_path: Path) -> None:
    with publish(tmp_path / "made") as made:
        pq.write_table(spoilt(), made.directory / "0.parquet")
    assert len(Dataset.open(tmp_path / "made")) == 3
    pq.write_table(spoilt(item_id=["a", "b", "x"]), tmp_path / "made" / "0.parquet")
    with pytest.raises(ArtefactError, match="not what"):
        Dataset.open(tmp_path / "made")


def test_texts_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    ids = pa.DictionaryArray.from_arrays(np.zeros(5000, np.int32), ["x" * 200_000])
    pq.write_table(pa.table({"item_id": ids}), tmp_path / "0.parquet")
    assert (tmp_path / "0.parquet").stat().st_size < 1 << 20
    with pytest.raises(DataError, match="fill the memory"):
        list(Dataset.open(tmp_path).ids(100))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("words")
    write_catalogue(home, *demo.demo_catalogue(0, n_items=260, n_users=5))
    return home


def test_words_are_embedded_one_by_one_in_the_space_of_a_sample(shop: Path, tmp_path: Path, monkeypatch: Any) -> None:
    table = pq.read_table(shop / "items.parquet")
    items = items_from_table(table)
    assert streamed_documents(table) == documents(items)
    monkeypatch.setattr("recerase.catalog.texts.FITTED", 200)
    monkeypatch.setattr("recerase.catalog.texts._BLOCK", 37)
    data = Dataset.open(shop)
    source, fitted = embedded(data, 16, 5, tmp_path, (0, len(data)))
    sample = np.sort(np.random.default_rng(5).choice(260, 200, replace=False))
    assert fitted == 200
    x = np.concatenate(list(source.vectors(11)))
    np.testing.assert_allclose(x, text_embeddings(items, 16, 5, sample), atol=1e-4)
    assert [i for block in source.blocks(90, 20, 230) for i in block.ids.to_pylist()] == items.item_ids[20:230].tolist()
    assert np.concatenate([block.vectors for block in source.blocks(90, 20, 230)]).tobytes() == x[20:230].tobytes()


def test_words_need_their_columns_in_every_file(shop: Path, tmp_path: Path) -> None:
    table = pq.read_table(shop / "items.parquet")
    pq.write_table(table, tmp_path / "0.parquet")
    for name in ("title", "categories", "brand"):
        pq.write_table(table.drop_columns([name]), tmp_path / "1.parquet")
        with pytest.raises(DataError, match=rf"1\.parquet has no column {name}"):
            embedded(Dataset.open(tmp_path), 16, 0, tmp_path, (0, 520))


def claiming(data: bytes, rows: int, claimed: int, places: list[int]) -> bytes:
    """A parquet file whose footer says `claimed` where it said `rows`: at those of the places where this number stands."""

    def number(n: int) -> bytes:  # thrift's zigzag varint
        n, out = 2 * n, b""
        while n > 127:
            n, out = n >> 7, out + bytes([n & 127 | 128])
        return out + bytes([n])

    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer, old, new = bytearray(data[start:-8]), number(rows), number(claimed)
    found = [at for at in range(len(footer)) if footer.startswith(old, at)]
    for place in places:
        footer[found[place] : found[place] + len(old)] = new
    assert len(new) == len(old)
    return data[:start] + bytes(footer) + data[-8:]


@pytest.mark.parametrize(
    ("places", "said"),
    [([0], "do not make up the 1,737 rows"), ([-1], "do not make up"), ([0, -1], "its rows end at 1,237, of 1,737")],
)
def test_rows_that_the_footer_claims_and_the_file_lacks_are_told(tmp_path: Path, places: list[int], said: str) -> None:
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"item_id": [f"i{i}" for i in range(1237)], "vector": [[1.0, 2.0]] * 1237}), path)
    path.write_bytes(claiming(path.read_bytes(), 1237, 1737, places))
    with pytest.raises(DataError, match=said):
        list(Dataset.open(tmp_path).vectors(500))


def test_wide_vectors_are_read_few_at_a_time_and_very_wide_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.open(write(tmp_path / "d", [50]))
    monkeypatch.setattr(dataset, "_NUMBERS", 4 * D)
    assert {len(table) for table in data._pieces(["vector"], 0, N)} == {4, 2, 3}
    assert np.concatenate(list(data.vectors(9))).tobytes() == X.tobytes()
    pq.write_table(pa.table({"item_id": ["a"], "vector": [[0.0] * 65_537]}), tmp_path / "wide.parquet")
    with pytest.raises(DataError, match="a vector of 65,537 numbers"):
        list(Dataset.open(tmp_path / "wide.parquet").blocks(1))


def test_files_that_would_be_passed_over_are_told(tmp_path: Path) -> None:
    home = write(tmp_path / "d", [50])
    for hidden in (".old", "_temporary"):
        (home / hidden).mkdir()
        (home / hidden / "0.parquet").write_bytes(b"")
    (home / "notes").mkdir()
    (home / "01.parquet").rename(home / "01.PARQUET")
    assert len(Dataset.open(home)) == N
    (home / "year=2020" / "month=1").mkdir(parents=True)
    pq.write_table(spoilt(), home / "year=2020" / "month=1" / "0.parquet")
    with pytest.raises(DataError, match=r"in sub-directories, year=2020/month=1/0\.parquet first"):
        Dataset.open(home)
    (tmp_path / "data").mkdir()
    pq.write_table(spoilt(), tmp_path / "data" / "interactions.parquet")
    with pytest.raises(DataError, match=r"has interactions\.parquet and no items\.parquet"):
        Dataset.open(tmp_path / "data")
