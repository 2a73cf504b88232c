"""--dtype and --exact from the command line: what they change, what the report says, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recerase import api
from recerase.__main__ import run
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.errors import CheckpointError, UsageError
from recerase.model.decode import Recommendations
from recerase.runtime import RunConfig
from recerase.store import publish

SHAPE = ["--width", "32", "--layers", "1", "--heads", "2", "--window", "6"]
TRAIN = [*SHAPE, "--epochs", "4", "--threads", "1", "--device", "cpu", "-q"]
USERS = 150


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("precision")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=260, n_users=USERS))
    assert run(["tokenize", f"{home}/data", "--out", f"{home}/sids", "--codes", "16", "--dims", "16", "-q"]) == 0
    assert run(["train", f"{home}/data", "--sids", f"{home}/sids", "--out", f"{home}/model", *TRAIN]) == 0
    return home


def lists(shop: Path, out: Path, *more: str) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores [U, 5] that `recommend` writes."""
    line = ["recommend", f"{shop}/model", f"--data={shop}/data", f"--out={out}", "--top=5", "--threads=1", "-q", *more]
    assert run(line) == 0
    table = pq.read_table(out)
    return tuple(np.array(table[name].to_pylist()).reshape(-1, 5) for name in ("item_id", "score"))  # type: ignore[return-value]


def test_bfloat16_recommends_much_the_same(shop: Path, tmp_path: Path) -> None:
    items, scores = lists(shop, tmp_path / "stored.parquet")
    again = lists(shop, tmp_path / "float32.parquet", "--dtype", "float32")
    assert np.array_equal(items, again[0])
    assert np.array_equal(scores, again[1])
    for name in ("bfloat16", "float16"):
        other, rough = lists(shop, tmp_path / f"{name}.parquet", "--dtype", name)
        shared = [len(set(one) & set(two)) for one, two in zip(items, other, strict=True)]
        assert np.mean(np.array(shared) >= 4) > 0.8
        assert not np.array_equal(scores, rough)
        assert np.abs(scores - rough).max() < 0.25  # 8 bits of a number of size 8, a few times over


def test_exact_is_what_the_widest_beam_finds(shop: Path, tmp_path: Path) -> None:
    items, scores = lists(shop, tmp_path / "beam.parquet", "--beam", "260")
    exact, close = lists(shop, tmp_path / "exact.parquet", "--exact")
    assert np.array_equal(items, exact)
    np.testing.assert_allclose(close, scores, rtol=1e-5)


def test_an_audit_says_its_dtype_and_does_not_go_on_in_another(shop: Path, tmp_path: Path) -> None:
    spec, found = api.ConceptSpec((DEMO_CONCEPT,)), {}
    for name in (None, "bfloat16"):
        report = api.audit(shop / "model", spec, shop / "data", max_users=30, run=RunConfig(threads=1, dtype=name))
        found[name] = {m.metric: m.value for m in report.measurements}
        assert report.run["environment"]["dtype"] == (name or "float32")
    assert found[None].keys() == found["bfloat16"].keys()
    assert found[None] != found["bfloat16"]
    out = tmp_path / "audit.json"
    line = ["audit", f"{shop}/model", f"--data={shop}/data", f"--concept={DEMO_CONCEPT}", "--max-users=30", "-q"]
    assert run([*line, "--threads=1", "--dtype=bfloat16", "-o", str(out)]) in (1, 5)
    assert json.loads(out.read_bytes())["run"]["environment"]["dtype"] == "bfloat16"


def test_the_key_of_a_run_depends_on_the_dtype() -> None:
    from recerase.assembly import run_key

    keys = {name: run_key(RunConfig(dtype=name), 0, "") for name in (None, "float32", "bfloat16")}
    assert len({key["dtype"] for key in keys.values()}) == 3
    assert all({**key, "dtype": ""} == {**keys[None], "dtype": ""} for key in keys.values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dtype", "float8"], "Unknown dtype 'float8'. Choose one of float32, bfloat16, float16."),
        (["--exact", "--beam", "9"], "--exact uses no beam. Leave --beam out."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    shop: Path, tmp_path: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["recommend", f"{shop}/model", f"--data={shop}/data", f"--out={tmp_path}/r.parquet", *words]
    assert run(line) == 2
    assert capsys.readouterr().err == f"recerase: {says}\n"
    assert not (tmp_path / "r.parquet").exists()


def test_what_changes_weights_keeps_their_dtype(shop: Path, tmp_path: Path) -> None:
    half = RunConfig(dtype="bfloat16")
    with pytest.raises(UsageError, match="erase keeps the dtype of the weights"):
        api.erase(shop / "model", api.ConceptSpec((DEMO_CONCEPT,)), shop / "data", tmp_path / "out", run=half)
    with pytest.raises(UsageError, match="train keeps the dtype of the weights"):
        api.train(shop / "data", shop / "sids", tmp_path / "out", run=half)


def test_a_model_that_says_nothing_makes_no_empty_file(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*given: object, k: int, **_: object) -> Recommendations:
        histories = len(given[2])  # type: ignore[arg-type]
        return Recommendations(np.full((histories, k), -1, np.int32), np.full((histories, k), -np.inf, np.float32))

    monkeypatch.setattr("recerase.model.decode.recommend", nothing)
    with pytest.raises(CheckpointError, match=f"no finite probability after {USERS} of {USERS}"):
        api.recommend(shop / "model", shop / "data", tmp_path / "r.parquet")
    assert not (tmp_path / "r.parquet").exists()
