"""Every example runs as its reader would run it, and says what is true."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recerase import api
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.layouts.native import load_checkpoint, load_sids, save_checkpoint
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig
from recerase.sid import TokenizeConfig
from recerase.store import publish

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN = RunConfig(threads=1, device="cpu")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, sids, a causal and a seq2seq checkpoint of a tiny shop, and the causal one with the concept unlisted."""
    home = tmp_path_factory.mktemp("shop")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=260, n_users=150))
    api.tokenize(home / "data", home / "sids", TokenizeConfig(codes=16), dims=16)
    for kind in ("causal", "seq2seq"):
        shape = ModelConfig(kind=kind, width=16, layers=1, heads=2, feed_forward=16, window=6)
        api.train(home / "data", home / "sids", home / kind, shape, TrainConfig(epochs=1, dropout=0.0), run=RUN)
    catalogue = load_catalogue(home / "data")
    whole = load_checkpoint(home / "causal", item_ids=catalogue.items.item_ids)
    concept = parse_concept([DEMO_CONCEPT], catalogue.items)
    with publish(home / "filtered") as made:
        filtered = whole.table.unlisted(concept.members)
        save_checkpoint(made.directory, whole.recommender, filtered, whole.codebooks, whole.embeddings)
    return home


def main_of(name: str) -> Callable[[list[str]], Any]:
    """The `main` of an example, loaded from its file."""
    return runpy.run_path(str(EXAMPLES / name))["main"]


def recommended(shop: Path, checkpoint: Path, tmp_path: Path, top: int) -> dict[str, list[tuple[str, float]]]:
    """User -> what `recerase recommend` writes for them."""
    api.recommend(checkpoint, shop / "data", tmp_path / "lists.parquet", top=top, run=RUN)
    lists: dict[str, list[tuple[str, float]]] = {}
    for row in pq.read_table(tmp_path / "lists.parquet").to_pylist():
        lists.setdefault(row["user_id"], []).append((row["item_id"], row["score"]))
    return lists


def test_every_example_is_tested_here() -> None:
    told = Path(__file__).read_text("utf-8")
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in told] == []


def test_plain_transformers_needs_no_recerase() -> None:
    tree = ast.parse((EXAMPLES / "plain_transformers.py").read_text("utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"__future__"}
    assert outside == {"pyarrow", "torch", "transformers"}


def test_plain_transformers_prints_what_recerase_recommends(shop: Path, tmp_path: Path) -> None:
    wanted = recommended(shop, shop / "causal", tmp_path, top=5)
    users = sorted(wanted)[:12]
    line = [sys.executable, str(EXAMPLES / "plain_transformers.py"), f"{shop}/causal", f"{shop}/data", "--top", "5"]
    done = subprocess.run([*line, "--users", *users], capture_output=True, text=True, check=True, timeout=120)
    rows = [row.split("\t") for row in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [user for user in users for _ in range(5)]
    assert [row[1] for row in rows] == ["1", "2", "3", "4", "5"] * len(users)
    assert [row[2] for row in rows] == [item for user in users for item, _ in wanted[user]]
    scores = [score for user in users for _, score in wanted[user]]
    np.testing.assert_allclose([float(row[3]) for row in rows], scores, atol=2e-4)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_plain_transformers_leaves_out_what_is_not_listed(shop: Path, tmp_path: Path, kind: str) -> None:
    checkpoint = load_checkpoint(shop / kind)
    gone = np.arange(len(checkpoint.table)) % 3 == 0
    with publish(tmp_path / "model") as made:
        save_checkpoint(made.directory, checkpoint.recommender, checkpoint.table.unlisted(gone), None, None)
    wanted = recommended(shop, tmp_path / "model", tmp_path, top=4)
    users = sorted(wanted)[-8:]
    example = runpy.run_path(str(EXAMPLES / "plain_transformers.py"))
    histories = example["read_histories"](shop / "data", users)
    found = example["recommend"](tmp_path / "model", histories, 4)
    items = [[item for item, _ in best] for best in found]
    assert items == [[item for item, _ in wanted[user]] for user in users]
    assert set(checkpoint.table.item_ids[gone]).isdisjoint(item for best in items for item in best)


POLICY = 'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n[[rule]]\nid = "window"\n'


@pytest.mark.parametrize(
    ("subject", "rule", "code", "said"),
    [
        ("filtered", 'metric = "natural.exposure@10"\nmax = 0.03\n', 0, "gate: pass."),
        ("causal", 'metric = "natural.exposure@10"\nmax = 0.03\n', 1, "gate: window: fail."),
        ("causal", 'metric = "natural.exposure@10"\nmax = 0.9\n', 5, "gate: inconclusive."),
        ("causal", 'metrik = "natural.exposure@10"\n', 2, "metrik"),
    ],
)
def test_the_gate_lets_the_verdict_decide(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str, rule: str, code: int, said: str
) -> None:
    policy, paper = tmp_path / "policy.toml", tmp_path / "audit.json"
    policy.write_text(POLICY + rule)
    line = [f"{shop}/{subject}", f"{shop}/data", "--original", f"{shop}/causal", "--concept", DEMO_CONCEPT]
    line += ["--policy", str(policy), "--report", str(paper), "--threads", "1"]
    assert main_of("ci_gate.py")(line) == code
    out, err = capsys.readouterr()
    assert said in out + err
    assert paper.exists() == (code != 2)
    if paper.exists():
        assert {"pass": 0, "fail": 1, "inconclusive": 5}[json.loads(paper.read_text())["verdict"]] == code


def test_the_gate_reports_a_broken_artefact(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(tmp_path / "nowhere"), f"{shop}/data", "--concept", DEMO_CONCEPT]
    assert main_of("ci_gate.py")(line) == 4
    assert "no verdict" in capsys.readouterr().err


def test_bring_your_own_sids(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, _, _ = load_sids(shop / "sids")
    theirs = {
        str(item): [f"<{chr(97 + level)}_{code}>" for level, code in enumerate(codes)]
        for item, codes in zip(table.item_ids[::-1], table.codes[::-1].tolist(), strict=True)
    }
    (tmp_path / "sids.json").write_text(json.dumps(theirs))
    out = tmp_path / "model"
    line = [f"{shop}/data", f"{tmp_path}/sids.json", str(out), "--concept", DEMO_CONCEPT]
    main_of("bring_your_own_sids.py")([*line, "--epochs", "1", "--width", "16", "--layers", "1", "--threads", "1"])
    catalogue = load_catalogue(shop / "data")
    trained = load_checkpoint(out, item_ids=catalogue.items.item_ids)
    assert (trained.table.codes == table.aligned(catalogue.items.item_ids).codes).all()
    assert trained.codebooks is not None
    assert trained.codebooks.fitted
    said = capsys.readouterr().out
    vaping = sum("Vaping" in categories for categories in catalogue.items.categories)
    assert f"{DEMO_CONCEPT}: {vaping} items" in said
    assert "level 3:" in said


def test_a_checkpoint_is_signed_and_a_changed_one_does_not_verify(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("model_signing", reason='model-signing is not installed: pip install "recerase[sign]"')
    main, keys, checkpoint = main_of("sign_checkpoint.py"), tmp_path / "keys", tmp_path / "ckpt"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "verdict.intoto.json").write_text("{}")
    assert main(["keys", str(keys)]) == 0
    assert (keys / "private.pem").stat().st_mode & 0o77 == 0
    with pytest.raises(FileExistsError):
        main(["keys", str(keys)])
    assert main(["sign", str(checkpoint), str(keys / "private.pem")]) == 0
    verify = ["verify", str(checkpoint), str(keys / "public.pem")]
    assert main(verify) == 0
    (checkpoint / "verdict.intoto.json").write_text('{"result": "PASSED"}')
    assert main(verify) == 1
    assert "does not verify" in capsys.readouterr().err
    (checkpoint / "verdict.intoto.json").write_text("{}")
    assert main(verify) == 0
    (checkpoint / "more").write_text("x")
    assert main(verify) == 1
    assert main(["keys", str(tmp_path / "others")]) == 0
    (checkpoint / "more").unlink()
    assert main([*verify[:2], str(tmp_path / "others" / "public.pem")]) == 1
