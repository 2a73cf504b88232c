"""`recerase tokenize` on directories of parquet files: what is published, that it is what memory gives, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recerase import streaming
from recerase.__main__ import run
from recerase.catalog.demo import demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.errors import UsageError
from recerase.layouts.native import load_sids
from recerase.parallel import Workers
from recerase.store import read_manifest, verify_manifest

CODES = ["--codes", "16", "--iterations", "5"]
TRAIN = ["train", "--width", "16", "--layers", "1", "--heads", "2", "--epochs", "1", "-q"]


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
        (["{shop}/absent", "--stream"], 4, "There is no file or directory"),
        (["{shop}/halves"], 4, "has interactions.parquet and no items.parquet"),
        (["{shop}/years"], 4, "has parquet files in sub-directories, 2020/0.parquet first"),
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
    for name, place in (("halves", "interactions.parquet"), ("years", "2020/0.parquet")):
        (shop / name / place).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(vectors, shop / name / place)
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
    assert "Tokenize again with --keep-embeddings." in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "sids" / "recerase.json").read_text())["provenance"]["embeddings"]["stored"] is False


@pytest.mark.parametrize("kept", [[], ["--keep-embeddings"]])
def test_streamed_words_are_not_extended(
    shop: Path, tmp_path: Path, kept: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenize", f"{shop}/words", *CODES, *kept, "-q", "--out", f"{tmp_path}/sids"]) == 0
    line = ["tokenize", f"{shop}/data", "--extend", f"{tmp_path}/sids", "--out", f"{tmp_path}/more"]
    assert run(line) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "words of a sample" in said
    assert "Tokenize the grown catalogue afresh." in said


@pytest.fixture(scope="module")
def trained(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with sids/ from a stream and model/ that was trained on them."""
    home = tmp_path_factory.mktemp("trained")
    assert run(["tokenize", f"{shop}/vectors", *CODES, "-q", "--out", f"{home}/sids"]) == 0
    assert run([*TRAIN, f"{shop}/data", "--sids", f"{home}/sids", "--out", f"{home}/model"]) == 0
    return home


def test_codebooks_of_a_stream_get_no_embeddings_of_another_space(
    shop: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the items' own words give lies elsewhere than the codewords: nothing is put beside them, and what needs it says so."""
    _, books, points = load_sids(trained / "model")
    assert books is not None
    assert not books.fitted
    assert points is None
    concept = ["--concept", f"item:{_first(shop)}", "--data", f"{shop}/data"]
    for plan in (["--plan"], []):
        assert run(["erase", f"{trained}/model", *concept, *plan, "--out", f"{tmp_path}/erased"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "TRACER needs the item embeddings" in said
        assert "Tokenize again with --keep-embeddings" in said
    assert not list(tmp_path.iterdir())
    run(["audit", f"{trained}/model", *concept, "--max-users", "20", "-q", "-o", f"{tmp_path}/audit.json"])
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {"nearest.*", "neighbours.*"} <= {skipped["metric"] for skipped in report["skipped"]}


def test_embeddings_given_join_the_codebooks_that_were_made_from_them(
    shop: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = load_sids(trained / "sids")[1]
    line = [*TRAIN, f"{shop}/data", "--sids", f"{trained}/sids"]
    vectors = pq.read_table(shop / "x.parquet")
    other = vectors.set_column(1, "vector", vectors["vector"].take(list(range(199, -1, -1))))
    pq.write_table(other, tmp_path / "other.parquet")
    for path, fitted in ((shop / "x.parquet", False), (tmp_path / "other.parquet", True)):
        out = tmp_path / path.stem
        assert run([*line, "--embeddings", f"{path}", "--out", f"{out}"]) == 0
        _, books, points = load_sids(out)
        assert books is not None
        assert books.fitted is fitted
        np.testing.assert_array_equal(points, pq.read_table(path)["vector"].to_pylist())
        assert (books.to_tensors()["codebook.0"].tobytes() == exact.to_tensors()["codebook.0"].tobytes()) is not fitted
    capsys.readouterr()
    assert run([*line, "--embeddings", f"{shop}/vectors", "--out", f"{tmp_path}/no"]) == 4
    assert "is a directory, and embeddings are read from one file" in " ".join(capsys.readouterr().err.split())


def _first(shop: Path) -> str:
    return str(pq.read_table(shop / "data" / "items.parquet")["item_id"][0])


def test_a_file_is_known_by_its_ending_in_any_case(shop: Path, tmp_path: Path) -> None:
    shutil.copy(shop / "x.parquet", tmp_path / "X.PARQUET")
    line = ["tokenize", f"{shop}/data", "--stream", "--embeddings", f"{tmp_path}/X.PARQUET", *CODES, "-q"]
    assert run([*line, "--out", f"{tmp_path}/sids"]) == 0


def test_processes_that_do_not_see_the_place_are_told(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(Workers):
        def gathered(self, value: Any) -> list[Any]:
            return [value, False]

        def told(self, value: Any = None) -> Any:
            return value

    monkeypatch.setattr(streaming, "workers", lambda: Elsewhere(0, 2))
    with pytest.raises(UsageError, match="--out must be on storage that every process sees"):
        streaming.tokenize_stream(shop / "vectors", tmp_path / "sids")
    assert not list(tmp_path.iterdir())
