"""A stream gives what the same rows give in memory: same codes, codebooks and SIDs, however rows are cut, read or shared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.catalog.dataset import Dataset
from recerase.errors import DataError, UsageError
from recerase.parallel import Workers
from recerase.sid import codebooks, quantize
from recerase.sid import parts as waiting
from recerase.sid import stream as streaming
from recerase.sid.codebooks import lowest, nearest_codes, squared_distances
from recerase.sid.quantize import TokenizeConfig, tokenize
from recerase.sid.stream import Streamed, hashed, sid_rows
from recerase.sid.table_files import arrow_to_table

N, D = 700, 6
CONFIG = TokenizeConfig(levels=3, codes=12, iterations=5)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several units, and codewords from a sample, at sizes of a test."""
    monkeypatch.setattr(quantize, "UNIT", 64)
    monkeypatch.setattr(streaming, "UNIT", 64)
    monkeypatch.setattr(quantize, "_SAMPLE", 300)
    monkeypatch.setattr(quantize, "_EACH", 2)


def points(n: int = N) -> np.ndarray:
    """Around few places, some of them exactly there: crowded SIDs and exact copies."""
    rng = np.random.default_rng(0)
    places = rng.normal(size=(n // 3, D))
    spread = rng.choice([0.0, 0.3], (n, 1))
    return (places[rng.integers(0, len(places), n)] + spread * rng.normal(size=(n, D))).astype(np.float32)


def ids(n: int = N) -> list[str]:
    return [f"item-{i}" for i in range(n)]


def written(home: Path, x: np.ndarray, names: list[str], cuts: list[int], **how: Any) -> Dataset:
    home.mkdir()
    edges = [0, *cuts, len(x)]
    for number, (low, high) in enumerate(pairwise(edges)):
        vectors = pa.array(list(x[low:high]), pa.list_(pa.float32()))
        table = pa.table({"item_id": pa.array(names[low:high], pa.string()), "vector": vectors})
        pq.write_table(table, home / f"p{number:02d}.parquet", **how)
    return Dataset.open(home)


def stream(source: Dataset, config: TokenizeConfig, scratch: Path, *more: Any, **how: Any) -> Streamed:
    """`stream` with a scratch directory that is there."""
    scratch.mkdir(exist_ok=True)
    return streaming.stream(source, config, scratch, *more, **how)


class Together(Workers):
    """Processes played by threads."""

    shared: Any

    def gathered(self, value: Any) -> list[Any]:
        slots, barrier = self.shared
        slots[self.rank] = value
        barrier.wait()
        out = list(slots)
        barrier.wait()
        return out

    def told(self, value: Any = None) -> Any:
        return self.gathered(value)[0]


def as_many(size: int, work: Callable[[Workers], Any]) -> list[Any]:
    shared, out = ([None] * size, threading.Barrier(size)), [None] * size

    def one(rank: int) -> None:
        crew = Together(rank, size)
        object.__setattr__(crew, "shared", shared)
        try:
            out[rank] = work(crew)
        except BaseException:
            shared[1].abort()
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def assert_same(made: Streamed, x: np.ndarray, config: TokenizeConfig) -> None:
    table, books, quality = tokenize(x, ids(len(x)), config)
    np.testing.assert_array_equal(made.codes, table.codes)
    np.testing.assert_array_equal(made.resolved, table.resolved)
    assert made.quality == quality
    for name, words in books.to_tensors().items():
        assert made.codebooks.to_tensors()[name].tobytes() == words.tobytes()
    assert made.codebooks.metadata() == books.metadata()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("cuts", "how", "block"),
    [
        ([], {}, None),
        ([], {"row_group_size": 50}, 33),
        ([1, 64, 65, 640], {"row_group_size": 7}, 64),
        ([100, 350], {"use_dictionary": False, "compression": "none"}, 699),
    ],
)
def test_a_stream_is_the_same_as_memory(
    tmp_path: Path, cuts: list[int], how: dict[str, Any], block: int | None, normalise: bool
) -> None:
    config = replace(CONFIG, normalise_residuals=normalise)
    source = written(tmp_path / "data", points(), ids(), cuts, **how)
    made = stream(source, config, tmp_path / "scratch", block=block)
    assert made.quality.moved_by_resolution > 50
    assert_same(made, points(), config)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_processes_share_the_work_and_all_get_the_same(tmp_path: Path, size: int) -> None:
    source = written(tmp_path / "data", points(), ids(), [500])
    alone = stream(source, CONFIG, tmp_path / "alone")
    for made in as_many(size, lambda crew: stream(source, CONFIG, tmp_path / "together", crew, block=50)):
        assert_same(made, points(), CONFIG)
        assert made.digest == alone.digest


@pytest.mark.parametrize(("levels", "codes"), [(2, 300), (9, 3), (4, 5)])
def test_other_shapes(tmp_path: Path, levels: int, codes: int) -> None:
    """More first codes than files, more levels than fit into one number, few SIDs for many items above the last level."""
    config = TokenizeConfig(levels=levels, codes=codes, iterations=3, threads=2)
    source = written(tmp_path / "data", points(400), ids(400), [])
    if levels == 4:
        config = replace(config, levels=5)
    assert_same(stream(source, config, tmp_path / "scratch"), points(400), config)


def test_collisions_stay_when_asked_for(tmp_path: Path) -> None:
    config = replace(CONFIG, resolve="none")
    made = stream(written(tmp_path / "data", points(), ids(), []), config, tmp_path / "scratch")
    assert made.quality.collision_after > 0
    assert_same(made, points(), config)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_table_comes_in_pieces_with_the_ids_of_its_rows(tmp_path: Path) -> None:
    source = written(tmp_path / "data", points(), ids(), [3, 400])
    made = stream(source, CONFIG, tmp_path / "scratch")
    pieces = list(sid_rows(source, made, 64))
    assert [len(piece) for piece in pieces] == [64] * 10 + [60]
    table = arrow_to_table(pa.concat_tables(pieces))
    assert table.item_ids.tolist() == ids()
    np.testing.assert_array_equal(table.codes, made.codes)
    np.testing.assert_array_equal(table.resolved, made.resolved)


def test_the_digest_says_which_rows_in_which_order(tmp_path: Path) -> None:
    x, names = points(130), ids(130)
    config = replace(CONFIG, levels=5)

    def digest(name: str, x: np.ndarray, names: list[str], cuts: list[int]) -> str:
        return stream(written(tmp_path / name, x, names, cuts), config, tmp_path / f"{name}-scratch").digest

    whole = digest("whole", x, names, [])
    assert digest("cut", x, names, [1, 77]) == whole
    other = x.copy()
    other[129, 0] += 1
    assert digest("vector", other, names, []) != whole
    assert digest("order", x[::-1], names[::-1], []) != whole
    assert digest("id", x, [*names[:-1], "item-x"], []) != whole
    assert digest("ids", x, ["item-01", "tem-1", *names[2:]], []) != digest(
        "moved", x, ["item-0", "1tem-1", *names[2:]], []
    )


@pytest.mark.parametrize("mask", [2**64 - 1, 3, 0])
def test_ids_are_compared_where_hashes_are_equal(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hashes of four values, or one, distinct ids still pass and the one that occurs twice is named."""
    monkeypatch.setattr(streaming, "hashed", lambda found: hashed(found) & np.uint64(mask))
    monkeypatch.setattr(streaming, "_SUSPECTS", 1)
    stream(written(tmp_path / "good", points(), ids(), [333]), CONFIG, tmp_path / "a")
    twice = ids()
    twice[650] = twice[20]
    with pytest.raises(DataError, match="'item-20' more than once"):
        stream(written(tmp_path / "bad", points(), twice, [333]), CONFIG, tmp_path / "b")


def test_hashes_tell_ids_apart_and_do_not_depend_on_the_array_around_them() -> None:
    names = ["a", "b", "ab", "ba", "aa", "aaa", "é", "a\0", "\0a", "item-1", "item-10", "x" * 300, "x" * 301]
    whole = hashed(pa.array(names))
    assert len(set(whole.tolist())) == len(names)
    for at, name in enumerate(names):
        assert hashed(pa.array([name]))[0] == whole[at]
        assert hashed(pa.array(names).slice(at, 1))[0] == whole[at]


def test_what_cannot_have_sids_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "data", points(), ids(), [])
    with pytest.raises(UsageError, match="700 items cannot have different SIDs"):
        stream(source, TokenizeConfig(levels=2, codes=26), tmp_path / "a")
    with pytest.raises(UsageError, match=r"items have the same first code, and only 27 SIDs begin with it"):
        stream(source, TokenizeConfig(levels=2, codes=27), tmp_path / "b")


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e-9, 1.0, 1e6, 1e18, 1e25, 1e36, 1e150])
@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-12, 1e-9, 1e-7, 1e-5, 1e-2])
def test_float32_never_decides_what_it_cannot_know(scale: float, gap: float) -> None:
    """Codewords in pairs that differ by `gap`, residuals on and beside them: the codes of float64, at any scale."""
    rng = np.random.default_rng(0)
    words = rng.normal(size=(20, 24))
    words = np.concatenate([words, words[::-1] + gap * rng.normal(size=(20, 24)), words[:1]]) * min(scale, 1e37)
    words = words.astype(np.float32) if scale < 1e37 else words
    beside = gap * rng.choice([0, 0.5, 1, 50], (300, 1)) * rng.normal(size=(300, 24))
    x = words[rng.integers(0, 41, 300)].astype(np.float64) + scale * beside
    x[:3] = 0
    np.testing.assert_array_equal(nearest_codes(x, words), lowest(squared_distances(x, words)))


def test_nearly_every_code_is_decided_by_float32_alone() -> None:
    rng = np.random.default_rng(0)
    x, words = rng.normal(size=(5000, 64)), rng.normal(size=(256, 64)).astype(np.float32)
    best, doubtful = codebooks._candidates(x, words)
    assert 0 < len(doubtful) < 50
    sure = np.setdiff1d(np.arange(5000), doubtful)
    np.testing.assert_array_equal(best[sure], lowest(squared_distances(x, words))[sure])
    assert (
        nearest_codes(x.astype(np.float32), words) == nearest_codes(x.astype(np.float32).astype(float), words)
    ).all()


def test_copies_of_one_item_are_told_apart_by_their_rows_alone(tmp_path: Path) -> None:
    """Which copy stays does not depend on who else is looked at: what a matrix product rounds may."""
    x = np.repeat(points(100), 7, axis=0)[np.random.default_rng(2).permutation(700)]
    config = replace(CONFIG, levels=4)
    assert_same(stream(written(tmp_path / "data", x, ids(), [350]), config, tmp_path / "scratch"), x, config)


def test_the_mean_is_that_of_float64(tmp_path: Path) -> None:
    x = points() + np.float32(1e5)
    made = stream(written(tmp_path / "data", x, ids(), []), replace(CONFIG, levels=4), tmp_path / "scratch")
    np.testing.assert_array_equal(made.codebooks.recipe.centre, x.astype(np.float64).mean(axis=0).astype(np.float32))


@pytest.mark.parametrize("numbers", [D, 5 * D, 40 * D])
def test_wide_vectors_are_held_in_parts_of_a_unit(
    tmp_path: Path, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "data", points(), ids(), [3, 400])
    whole = stream(source, CONFIG, tmp_path / "whole")
    monkeypatch.setattr(streaming, "NUMBERS", numbers)
    monkeypatch.setattr(waiting, "NUMBERS", numbers)
    parts = [len(x) for _, unit in streaming._units(source, 64, N) for x in unit]
    assert max(parts) <= numbers // D
    assert sum(parts) == N - 64
    made = stream(source, CONFIG, tmp_path / "parts")
    assert_same(made, points(), CONFIG)
    assert made.digest == whole.digest


def test_few_files_may_be_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "spare_files", lambda: 3 + threading.get_ident() % 2)
    source = written(tmp_path / "data", points(), ids(), [500])
    for made in as_many(2, lambda crew: stream(source, CONFIG, tmp_path / "together", crew)):
        assert_same(made, points(), CONFIG)
    assert 3 <= len({path.name.split("-")[1] for path in (tmp_path / "together").iterdir()}) <= 4


def test_copies_of_one_vector_are_told_apart_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([np.ones((100, D), np.float32), points(200)])
    config = replace(CONFIG, levels=4)
    source = written(tmp_path / "data", x, ids(300), [])
    monkeypatch.setattr(streaming, "_MOST", 100)
    assert_same(stream(source, config, tmp_path / "a"), x, config)
    monkeypatch.setattr(streaming, "_MOST", 99)
    with pytest.raises(UsageError, match=r"100 items have the same vector to within the codebooks, and only 12 SIDs"):
        stream(source, config, tmp_path / "b")


def test_there_may_be_more_sids_than_a_float_holds() -> None:
    streaming._require_room(10, TokenizeConfig(levels=400, codes=256))
