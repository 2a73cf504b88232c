"""The ordinary commands on other tools' directories: audit, erase, and what is published is theirs again, item for item."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from transformers import T5ForConditionalGeneration

from recerase import api
from recerase.__main__ import run
from recerase.errors import EraseError
from recerase.layouts.registry import open_checkpoint
from recerase.report.schema import read_report
from recerase.runtime import RunConfig

POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 5
[[rule]]
id = "exposure"
metric = "natural.exposure@10"
max = 1.0
"""
"""What is tested is the files: any model passes."""
TRACER = ["--set", "reassign_steps=2", "--set", "settle_steps=2", "--set", "pool=1", "--set", "min_moved=0"]
CONCEPT = "--concept=brand=brand2"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shop")
    fixtures.data(place / "data")
    fixtures.letter(place / "letter-tiger")
    fixtures.tiger_cf(place / "tiger-cf")
    (place / "policy.toml").write_text(POLICY)
    return place


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["letter-tiger", "tiger-cf"])
def test_erase_publishes_the_same_layout_and_audit_reads_it(
    home: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = home / name, home / f"{name}-erased"
    before = files(source)
    common = [
        f"--data={home}/data",
        f"--policy={home}/policy.toml",
        CONCEPT,
        "--threads=1",
        "--device=cpu",
        "--trust-pickle",
        "--max-users=12",
    ]
    assert run(["erase", str(source), "--out", str(out), *TRACER, *common]) in (0, 5)
    said = capfd.readouterr().err
    assert "codebooks fitted" in said
    assert files(source) == before  # the input is never written to
    after = files(out)
    ours = {"recerase.json", "report.json", "erased.json", "codebooks.safetensors"}
    assert after.keys() == before.keys() - {"optimizer.pt"} | ours
    index = "Toy.index.json" if name == "letter-tiger" else "index_rqkmeans.json"
    weights = "model.safetensors" if name == "letter-tiger" else "tiger_toy_final_state.pth"
    assert all(after[file] == before[file] for file in before.keys() & after.keys() - {index, weights})
    old, new = json.loads(before[index]), json.loads(after[index])
    assert list(new)[: len(old)] == list(old)
    moved = {key for key in old if old[key] != new[key]}
    members = {str(item) for item in range(fixtures.N) if item % fixtures.TASTES == 2}
    assert moved
    assert moved <= members
    report = read_report(out / "report.json")
    assert {move.item_id for move in report.moves} == moved
    assert any("fitted from the items' words" in limit for limit in report.limits)
    theirs(name, out, old, new)
    assert run(["audit", str(out), "--original", str(source), *common, "-q"]) in (0, 5)
    assert api.verify_report(out / "report.json", subject=out, original=source) == ()


def theirs(name: str, out: Path, old: dict[str, list], new: dict[str, list]) -> None:
    """What the other tool's own reader makes of what was published."""
    ours = open_checkpoint(out, trust_pickle=True)
    state = ours.recommender.module.state_dict()
    if name == "letter-tiger":
        rows = json.loads((out / "added_tokens.json").read_text())
        assert {t for sid in new.values() for t in sid} == {t for sid in old.values() for t in sid}
        wanted = {key: [rows[token] for token in new[key]] for key in old}
        loaded = T5ForConditionalGeneration.from_pretrained(out, local_files_only=True).state_dict()
    else:
        wanted = {key: [level * 32 + code for level, code in enumerate(new[key])] for key in old}
        saved = torch.load(out / "tiger_toy_final_state.pth", weights_only=True)
        loaded = {key.removeprefix("model."): tensor for key, tensor in saved.items()}
        assert not torch.equal(loaded["shared.weight"], loaded["lm_head.weight"])
    assert dict(zip(ours.table.item_ids, ours.table.rows().tolist(), strict=True)) == wanted
    assert all(torch.equal(state[key], tensor) for key, tensor in loaded.items())
    assert ours.codebooks is not None
    assert ours.codebooks.fitted
    assert pickle.dumps(ours)  # so that it can be told to other processes
    ids = [str(item) for item in range(fixtures.N)]
    aligned = open_checkpoint(out, item_ids=ids, trust_pickle=True)
    place = {item: row for row, item in enumerate(ours.table.item_ids)}
    assert np.array_equal(aligned.embeddings, ours.embeddings[[place[item] for item in ids]])


def test_inspect_json_tells_the_agreement(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(home / "letter-tiger"), "--data", str(home / "data"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["facts"]["layout"] == "letter-tiger"
    assert "agreement a level" in said["facts"]["codebooks"]
    assert all(set(trap) == {"what", "remedy"} for trap in said["traps"])
    assert run(["inspect", str(home / "tiger-cf")]) == 4


def test_codebooks_that_say_nothing_are_refused(home: Path, tmp_path: Path) -> None:
    """SIDs that have nothing to do with the words: the distances would be noise, and TRACER says so."""
    index = fixtures.index_of(fixtures.codes())
    shuffled = dict(zip(index, np.random.default_rng(2).permutation(list(index.values())).tolist(), strict=True))
    source = fixtures.letter(tmp_path / "ckpt", shuffled)
    given = (source, api.ConceptSpec(("brand=brand2",)), home / "data", tmp_path / "out")
    with pytest.raises(EraseError, match="min_agreement") as refused:
        api.erase(
            *given,
            policy=home / "policy.toml",
            run=RunConfig(threads=1, device="cpu"),
        )
    assert "min_agreement=0" in refused.value.remedy
    with pytest.raises(EraseError, match="min_agreement"):
        api.plan_erase(*given[:3], run=RunConfig(threads=1, device="cpu"))
    assert api.plan_erase(*given[:3], method="npo", run=RunConfig(threads=1, device="cpu")).preview is not None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["filter", "retrain"])
def test_methods_that_do_not_apply_are_refused(home: Path, tmp_path: Path, method: str) -> None:
    given = [
        "erase",
        str(home / "letter-tiger"),
        "--data",
        str(home / "data"),
        CONCEPT,
        "-m",
        method,
        "-q",
        "--threads=1",
    ]
    assert run([*given, "--out", str(tmp_path / "out"), "--device=cpu"]) in (2, 3)
    assert not (tmp_path / "out").exists()


def test_recommend_reads_it(home: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    given = ["recommend", str(home / "tiger-cf"), "--data", str(home / "data"), "--top", "3", "--trust-pickle", "-q"]
    assert run([*given, "--layout-set", "user=3", "--out", str(tmp_path / "recs.parquet"), "--threads=1"]) == 0
    assert pq.read_table(tmp_path / "recs.parquet").num_rows == 3 * 40
