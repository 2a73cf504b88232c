"""`recerase tokenize` on directories of parquet files: what is published, that it is what memory gives, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recerase.__main__ import run
from recerase.catalog.demo import demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.layouts.native import load_sids
from recerase.store import read_manifest, verify_manifest

CODES = ["--codes", "16", "--iterations", "5"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ (200 items), words/ (the same in three files), vectors/ (embeddings of theirs in two), x.parquet (in one)."""
    home = tmp_path_factory.mktemp("streamed")
    for name in ("data", "words", "vectors"):
        (home / name).mkdir()
    write_catalogue(home / "data", *demo_catalogue(0, n_items=200, n_users=5))
    items = pq.read_table(home / "data" / "items.parquet")
    for number, (start, size) in enumerate([(0, 10), (10, 100), (110, 90)]):
        pq.write_table(items.slice(start, size), home / "words" / f"{number}.parquet")
    x = np.random.default_rng(1).normal(size=(200, 6)).astype(np.float32)
    vectors = items.select(["item_id"]).append_column("vector", [x.tolist()])
    pq.write_table(vectors, home / "x.parquet")
    pq.write_table(vectors.slice(0, 70), home / "vectors" / "0.parquet", row_group_size=9)
    pq.write_table(vectors.slice(70), home / "vectors" / "1.parquet")
    assert (
        run(["tokenize", f"{home}/data", "--embeddings", f"{home}/x.parquet", *CODES, "-q", "--out", f"{home}/sids"])
        == 0
    )
    return home


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_stream_publishes_what_memory_publishes(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = {
        "alone": [f"{shop}/vectors"],
        "beside": [f"{shop}/data", "--embeddings", f"{shop}/vectors"],
        "file": [f"{shop}/x.parquet", "--stream", "--threads", "2"],
        "kept": [f"{shop}/words", "--embeddings", f"{shop}/x.parquet", "--stream", "--keep-embeddings"],
    }
    whole, books, stored = load_sids(shop / "sids")
    for name, line in ways.items():
        assert run(["tokenize", *line, *CODES, "--out", f"{tmp_path}/{name}"]) == 0
        assert "200 items, 3 levels: codes in use" in capsys.readouterr().err
        verify_manifest(tmp_path / name)
        assert sorted(contents(tmp_path / name)) == sorted(contents(shop / "sids"))
        table, again, embeddings = load_sids(tmp_path / name)
        assert table.digest == whole.digest
        assert again.metadata() == books.metadata()
        for key, tensor in books.to_tensors().items():
            np.testing.assert_array_equal(again.to_tensors()[key], tensor)
        if name == "kept":
            np.testing.assert_array_equal(embeddings, stored)
        else:
            assert embeddings is None
        facts = read_manifest(tmp_path / name)["provenance"]
        assert facts["quality"] == read_manifest(shop / "sids")["provenance"]["quality"]
        assert facts["embeddings"] == {"from": "file", "items": 200, "dims": 6, "seed": 0, "stored": name == "kept"}
        assert facts["method"] == {"name": "rq-kmeans", "streamed": True}
    assert contents(tmp_path / "alone") == contents(tmp_path / "beside")
    assert (tmp_path / "kept" / "codebooks.safetensors").read_bytes() == (
        shop / "sids/codebooks.safetensors"
    ).read_bytes()


def test_words_are_streamed_the_same_from_one_file_or_three(shop: Path, tmp_path: Path) -> None:
    line = [*CODES, "--dims", "8", "-q"]
    assert run(["tokenize", f"{shop}/words", *line, "--out", f"{tmp_path}/a"]) == 0
    assert run(["tokenize", f"{shop}/data", "--stream", *line, "--out", f"{tmp_path}/b"]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    facts = read_manifest(tmp_path / "a")["provenance"]["embeddings"]
    assert facts == {"from": "text of a sample", "items": 200, "dims": 8, "seed": 0, "stored": False}
    assert run(["tokenize", f"{shop}/data", *line, "--out", f"{tmp_path}/c"]) == 0
    streamed, whole = (load_sids(tmp_path / name)[0].codes for name in "ac")
    assert (streamed == whole).mean() > 0.95  # a fitted item is placed by its words alone: another rounding


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["{shop}/vectors", "--method", "rq-vae"], 2, "--method rq-vae holds every item in memory"),
        (["{shop}/vectors", "--extend", "{shop}/sids"], 2, "--extend holds every item in memory"),
        (["{shop}/vectors", "--dims", "4"], 2, "Leave out --dims"),
        (["{shop}/data", "--stream", "--embeddings", "{shop}/x.npy"], 2, "cannot be streamed"),
        (["{shop}/data", "--embeddings", "{shop}/turned"], 4, "is item"),
        (["{shop}/data", "--embeddings", "{shop}/fewer"], 4, "70 vectors for the 200 items"),
        (["{shop}/vectors", "--levels", "1"], 2, "200 items cannot have different SIDs"),
        (["{shop}/data", "--keep-embeddings"], 2, "--keep-embeddings is of a stream"),
        (["{shop}/strange"], 4, "no column title"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    shop: Path, tmp_path: Path, line: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = pq.read_table(shop / "x.parquet")
    for name, table in (("turned", vectors.take(list(range(199, -1, -1)))), ("fewer", vectors.slice(0, 70))):
        (shop / name).mkdir(exist_ok=True)
        pq.write_table(table, shop / name / "0.parquet")
    (shop / "strange").mkdir(exist_ok=True)
    pq.write_table(vectors.select(["item_id"]), shop / "strange" / "0.parquet")
    words = [word.format(shop=shop) for word in line]
    assert run(["tokenize", *words, *([] if "--extend" in line else CODES), "--out", f"{tmp_path}/out"]) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_sids_without_embeddings_are_not_extended(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenize", f"{shop}/vectors", *CODES, "-q", "--out", f"{tmp_path}/sids"]) == 0
    line = ["tokenize", f"{shop}/data", "--embeddings", f"{shop}/x.parquet", "--extend", f"{tmp_path}/sids"]
    assert run([*line, "--out", f"{tmp_path}/more"]) == 2
    assert "without codebooks or item embeddings" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "sids" / "recerase.json").read_text())["provenance"]["embeddings"]["stored"] is False
