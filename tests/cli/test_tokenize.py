"""`recerase tokenize` on a catalogue that grows: what stays, what is refused, and what is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.__main__ import run
from recerase.catalog import load_items
from recerase.catalog.demo import demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.layouts.native import load_sids
from recerase.store import publish, read_manifest


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old.parquet (200 items), new.parquet (the same among 60 others) and old SIDs made from words, by RQ-VAE, and from a file."""
    home = tmp_path_factory.mktemp("grown")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=260, n_users=20))
    everything = pq.read_table(home / "data" / "items.parquet")
    order = np.random.default_rng(0).permutation(260)
    pq.write_table(everything.take(np.sort(order[:200])[::-1]), home / "old.parquet")
    pq.write_table(everything.take(order), home / "new.parquet")
    x = np.random.default_rng(1).normal(size=(260, 6)).astype(np.float32)
    ids = everything["item_id"]
    pq.write_table(pa.table({"item_id": ids, "vector": pa.array(x.tolist())}), home / "points.parquet")
    line = ["tokenize", f"{home}/old.parquet", "--codes", "16", "-q"]
    assert run([*line, "--dims", "16", "--seed", "3", "--out", f"{home}/words"]) == 0
    assert run([*line, "--embeddings", f"{home}/points.parquet", "--out", f"{home}/file"]) == 0
    learned = ["--method", "rq-vae", "--epochs", "5", "--latent", "8", "--dims", "16"]
    assert run([*line, *learned, "--out", f"{home}/learned"]) == 0
    return home


def extended(shop: Path, out: Path, source: str, *more: str) -> int:
    return run(["tokenize", f"{shop}/new.parquet", "--extend", f"{shop}/{source}", "--out", str(out), *more])


@pytest.mark.parametrize("source", ["words", "learned", "file"])
def test_old_sids_do_not_move(shop: Path, tmp_path: Path, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--embeddings", f"{shop}/points.parquet"] if source == "file" else []
    assert extended(shop, tmp_path / "sids", source, *given) == 0
    assert "260 items (60 of them new), 3 levels" in capsys.readouterr().err
    old, books, stored = load_sids(shop / source)
    new, new_books, points = load_sids(tmp_path / "sids")
    was, now = (pq.read_table(path / "sids.parquet") for path in (shop / source, tmp_path / "sids"))
    assert now.slice(0, 200).equals(was)
    assert (shop / source / "sid_schema.json").read_bytes() == (tmp_path / "sids" / "sid_schema.json").read_bytes()
    assert stored is not None
    assert points is not None
    np.testing.assert_array_equal(points[:200], stored)
    for name, words in books.to_tensors().items():
        np.testing.assert_array_equal(words, new_books.to_tensors()[name])
    assert new_books.metadata() == books.metadata()
    assert len(np.unique(new.codes, axis=0)) == 260
    assert points.shape == (260, {"words": 16, "learned": 8, "file": 6}[source])
    free = ~new.resolved
    np.testing.assert_array_equal(new_books.nearest(points, new.codes)[free], new.codes[free])
    items = load_items(shop / "new.parquet")
    assert load_sids(tmp_path / "sids", item_ids=items.item_ids)[0].item_ids.tolist() == items.item_ids.tolist()
    facts = read_manifest(tmp_path / "sids")["provenance"]["extends"]
    assert facts == {"table": old.digest, "items": 200, "new": 60}
    again = ["tokenize", f"{shop}/new.parquet", "--extend", f"{tmp_path}/sids", "--out", f"{tmp_path}/again", *given]
    assert run([*again, "-q"]) == 0
    assert load_sids(tmp_path / "again")[0].digest == new.digest


def test_new_words_are_embedded_as_the_old_ones_were(shop: Path, tmp_path: Path) -> None:
    """A new item with the words of an old one lies where the old one lies."""
    old = pq.read_table(shop / "old.parquet")
    twin = old.slice(4, 1).set_column(0, "item_id", pa.array(["twin"])).cast(old.schema)
    pq.write_table(pa.concat_tables([old, twin]), tmp_path / "items.parquet")
    line = ["tokenize", f"{tmp_path}/items.parquet", "--extend", f"{shop}/words", "--out", f"{tmp_path}/sids", "-q"]
    assert run(line) == 0
    table, _, points = load_sids(tmp_path / "sids")
    np.testing.assert_allclose(points[-1], points[4], atol=1e-5)
    np.testing.assert_array_equal(table.codes[-1, :2], table.codes[4, :2])


@pytest.mark.parametrize(
    ("source", "more", "code", "said"),
    [
        ("words", ["--codes", "16"], 2, "--codes cannot be given with --extend"),
        ("learned", ["--method", "rq-vae", "--epochs", "3"], 2, "Leave out --method, --epochs"),
        ("words", ["--seed", "0", "--dims", "16"], 2, "Leave out --dims, --seed"),
        ("file", [], 2, "--embeddings"),
        ("words", ["--embeddings", "{shop}/points.parquet"], 4, "6 wide"),
        ("learned", ["--embeddings", "{shop}/points.parquet"], 4, "encoder of width 16"),
        ("nowhere", [], 4, "sids.parquet"),
    ],
)
def test_what_cannot_be_extended_is_refused(
    shop: Path, tmp_path: Path, source: str, more: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extended(shop, tmp_path / "sids", source, *(word.format(shop=shop) for word in more)) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "sids").exists()


def test_changed_words_and_lost_items_are_named(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = pq.read_table(shop / "old.parquet")
    titles = old["title"].to_pylist()
    titles[7] = "something else altogether " + titles[8]
    column = old.schema.get_field_index("title")
    pq.write_table(old.set_column(column, "title", pa.array(titles)), tmp_path / "changed.parquet")
    pq.write_table(old.slice(1), tmp_path / "lost.parquet")
    for name, said in (("changed", "largest difference"), ("lost", f"{old['item_id'][0].as_py()} first")):
        line = ["tokenize", f"{tmp_path}/{name}.parquet", "--extend", f"{shop}/words", "--out", f"{tmp_path}/sids"]
        assert run([*line, "-q"]) == 4
        assert said in " ".join(capsys.readouterr().err.split())


def test_rq_vae_publishes_the_same_bytes_twice_and_says_how_it_learned(shop: Path, tmp_path: Path) -> None:
    line = ["tokenize", f"{shop}/old.parquet", "--codes", "16", "--method", "rq-vae", "--epochs", "5", "--latent", "8"]
    assert run([*line, "--dims", "16", "-q", "--out", f"{tmp_path}/sids"]) == 0
    assert read_manifest(tmp_path / "sids") == read_manifest(shop / "learned")
    facts = read_manifest(tmp_path / "sids")
    assert set(facts["files"]) == {"sids.parquet", "sid_schema.json", "codebooks.safetensors", "encoder.safetensors"}
    method = facts["provenance"]["method"]
    assert method["name"] == "rq-vae"
    assert method["learned"]["epochs"] <= 5
    assert len(method["learned"]["perplexity"]) == 3


def test_options_of_the_other_method_and_spoilt_encoders_are_refused(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tokenize", f"{shop}/old.parquet", "--epochs", "5", "--out", f"{tmp_path}/sids"]) == 2
    assert "--method rq-vae" in capsys.readouterr().err
    shutil.copytree(shop / "learned", tmp_path / "learned")
    file = tmp_path / "learned" / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    line = ["tokenize", f"{shop}/new.parquet", "--extend", f"{tmp_path}/learned", "--out", f"{tmp_path}/sids"]
    assert run(line) == 4
    assert "encoder.safetensors" in capsys.readouterr().err


def test_an_erased_checkpoint_hands_no_sid_of_the_concept_to_new_items(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with publish(tmp_path / "erased") as made:
        for name in ("sids.parquet", "sid_schema.json", "codebooks.safetensors"):
            shutil.copy(shop / "words" / name, made.directory)
        made.provenance = {"command": "erase"}
    line = ["tokenize", f"{shop}/new.parquet", "--extend", f"{tmp_path}/erased", "--out", f"{tmp_path}/sids"]
    assert run(line) == 2
    assert "erased checkpoint" in " ".join(capsys.readouterr().err.split())
