from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from recerase.catalog import Items, load_embeddings, sentence_embeddings, text_embeddings
from recerase.catalog.demo import demo_catalogue
from recerase.catalog.items import items_from_table
from recerase.errors import ArtefactError, DataError, PickleError

MakeItems = Callable[[list[tuple]], Items]


@pytest.fixture(scope="module")
def shop() -> Items:
    return items_from_table(demo_catalogue(n_items=400, n_users=1)[0])


@pytest.fixture(scope="module")
def points(shop: Items) -> np.ndarray:
    return text_embeddings(shop, dims=32)


def test_rows_have_length_one_and_bytes_repeat(shop: Items, points: np.ndarray) -> None:
    assert points.shape == (400, 32)
    assert points.dtype == np.float32
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    assert text_embeddings(shop, dims=32).tobytes() == points.tobytes()


def test_the_number_of_threads_changes_nothing(shop: Items, points: np.ndarray) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    with threadpool_limits(2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        assert text_embeddings(shop, dims=32).tobytes() == points.tobytes()
        assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_no_direction_dominates(points: np.ndarray) -> None:
    spread = points.var(axis=0)
    assert spread.max() < 6 * spread.min(), "whitened: an unwhitened SVD has a ratio of 12 here"
    assert np.abs(points.mean(axis=0)).max() < 0.1


def test_items_of_a_kind_are_nearer_than_strangers(shop: Items, points: np.ndarray) -> None:
    kind = np.array([c[-1] for c in shop.categories])
    cosines = points @ points.T
    same = kind[:, None] == kind
    off = ~np.eye(len(kind), dtype=bool)
    assert cosines[same & off].mean() > cosines[~same].mean() + 0.2


def test_a_small_catalogue_has_zeros_beyond_its_rank(items: Items) -> None:
    points = text_embeddings(items, dims=50)
    assert points.shape == (9, 50)
    assert not points[:, 9:].any()
    assert np.isfinite(points).all()


def test_an_item_without_text_is_nowhere_and_a_catalogue_without_text_is_refused(make_items: MakeItems) -> None:
    rows = [("a", "red pen", "", [], None, None), ("b", "", "", [], None, None), ("c", "blue cup", "", [], None, None)]
    points = text_embeddings(make_items(rows), dims=4)
    assert not points[1].any()
    assert points[0].any()
    for nothing in ("", "!"):
        silent = make_items([(i, nothing, "", [], None, None) for i in "ab"])
        with pytest.raises(DataError, match=r"No item|no words"):
            text_embeddings(silent)


def test_every_format_gives_the_same_array(items: Items, tmp_path: Path, rng: np.random.Generator) -> None:
    made = rng.normal(size=(9, 3)).astype(np.float32)
    np.save(tmp_path / "e.npy", made.astype(np.float64))
    np.savez(tmp_path / "e.npz", embeddings=made, other=made[:2])
    save_file({"anything": made}, tmp_path / "e.safetensors")
    order = rng.permutation(9)
    ids = [*items.item_ids[order].tolist(), "stranger"]
    vectors = [*made[order].tolist(), [9.0, 9.0, 9.0]]
    pq.write_table(pa.table({"item_id": ids, "vector": vectors}), tmp_path / "e.parquet")
    for suffix in ("npy", "npz", "safetensors", "parquet"):
        read = load_embeddings(tmp_path / f"e.{suffix}", items)
        assert read.dtype == np.float32
        assert np.array_equal(read, made), suffix


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((8, 3)), "8 rows"),
        (np.ones(9), r"float64 \[9\]"),
        (np.where(np.arange(9)[:, None] == 4, np.nan, np.ones((9, 2))), "row 4"),
        (np.full((9, 2), 1e300), "infinity"),
        (np.full((9, 2), "x"), "numbers"),
        (np.ones((9, 0)), "9, 0"),
    ],
)
def test_wrong_arrays_are_refused(items: Items, tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(DataError, match=says) as error:
        load_embeddings(tmp_path / "e.npy", items)
    assert error.value.remedy or says in str(error.value)


def test_pickles_are_refused_unread(items: Items, tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", np.array([{"a": 1}] * 9, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "e.npz", np.array([{"a": 1}] * 9, dtype=object))
    (tmp_path / "e.pt").write_bytes(b"\x80\x04.")
    for name in ("e.npy", "e.npz", "e.pt"):
        with pytest.raises(PickleError):
            load_embeddings(tmp_path / name, items)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"item_id": list("abcdefgh"), "vector": [[1.0]] * 8}, "no vector for item i"),
        ({"item_id": list("abcdefghii"), "vector": [[1.0]] * 10}, "two vectors for item i"),
        ({"item_id": list("abcdefghi"), "vector": [[1.0]] * 8 + [[1.0, 2.0]]}, "differ in length"),
        ({"item_id": list("abcdefghi"), "vector": [[1.0]] * 8 + [[None]]}, "null inside"),
        ({"item_id": list("abcdefghi"), "vector": [1.0] * 9}, "Column vector"),
        ({"id": ["a"], "vector": [[1.0]]}, "has columns id, vector"),
    ],
)
def test_wrong_parquet_is_refused(items: Items, tmp_path: Path, table: dict[str, list], says: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    with pytest.raises(DataError, match=says):
        load_embeddings(tmp_path / "e.parquet", items)


def test_unreadable_files_are_refused(items: Items, tmp_path: Path) -> None:
    for name in ("e.npy", "e.npz", "e.safetensors", "e.parquet", "e.txt", "absent.npy"):
        if name != "absent.npy":
            (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ArtefactError):
            load_embeddings(tmp_path / name, items)


def test_sentence_embeddings_need_a_local_model(items: Items, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no model directory"):
        sentence_embeddings(items, tmp_path / "absent")
