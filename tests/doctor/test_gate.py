"""The gate is proven by models whose verdicts are known, and the proof can fail."""

from __future__ import annotations

import functools
import json
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.conftest import REPOSITORY
from tests.doctor import planting

from recerase.__main__ import run
from recerase.audit import probes
from recerase.catalog import load_catalogue
from recerase.doctor import gate, prove_gate
from recerase.doctor.gate import DIGESTS, PLANTED, Proof, exit_code_of, judge
from recerase.errors import ArtefactError
from recerase.layouts.native import load_checkpoint
from recerase.runtime import RunConfig
from recerase.store import read_manifest
from recerase.types import Finding, Measurement, Result, Rule, Verdict

RUN = RunConfig(threads=1, device="cpu")
HEAD = 'schema = "recerase.policy/1"\n[audit]\nmin_users = 1\n'
EXPOSURE = '[[rule]]\nid = "window"\nmetric = "natural.exposure@10"\nmax = 0.05\n'


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same planted models for 200 users, in the place of those that are shipped; as many made histories."""
    monkeypatch.setattr(planting, "USERS", 200)
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=200))
    place = tmp_path / "planted"
    planting.plant(place)
    monkeypatch.setattr(gate, "PLANTED", place)
    monkeypatch.setattr(gate, "DIGESTS", {name: read_manifest(place / name)["digest"] for name in DIGESTS})
    return place


def test_what_is_shipped_is_what_planting_makes(tmp_path: Path) -> None:
    planting.plant(tmp_path)
    shipped, made = load_catalogue(PLANTED / "data"), load_catalogue(tmp_path / "data")
    assert (shipped.items.digest, shipped.interactions.digest) == (made.items.digest, made.interactions.digest)
    for name in planting.LIKES:
        mine, theirs = load_checkpoint(tmp_path / name), load_checkpoint(PLANTED / name)
        assert mine.table.digest == theirs.table.digest
        for file in ("model.safetensors", "codebooks.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (PLANTED / name / file).read_bytes()


def test_what_is_shipped_is_small_and_in_the_wheel() -> None:
    files = [path for path in PLANTED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["recerase"]
    package = PLANTED.parents[1]
    taken = {path for pattern in patterns for path in package.glob(pattern)}
    assert set(files) <= taken


def test_models_that_were_changed_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(PLANTED, tmp_path / "planted")
    monkeypatch.setattr(gate, "PLANTED", tmp_path / "planted")
    gate._check_planted()
    weights = tmp_path / "planted" / "leaky" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        prove_gate(run=RUN)
    shutil.rmtree(tmp_path / "planted" / "leaky")
    shutil.copytree(PLANTED / "clean", tmp_path / "planted" / "leaky")  # whole and verified, and another model
    with pytest.raises(ArtefactError, match="not what recerase ships"):
        prove_gate(run=RUN)


def test_the_shipped_policy_blocks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is shipped, in larger batches than an audit's own: models as small as these take half of the time."""
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, batch=512, mass_batch=256))
    assert run(["doctor", "--gate", "--json", "--threads", "1", "--device", "cpu", "-q"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    verdicts = [(proof["model"], proof["verdict"], proof["exit_code"], proof["state"]) for proof in told["gate"]]
    assert verdicts == [("leak", "fail", 1, "ok"), ("filter", "fail", 1, "ok"), ("clean", "pass", 0, "ok")]
    reasons = {proof["model"]: proof["reason"] for proof in told["gate"]}
    assert "exposure" in reasons["leak"]
    assert " exposure," not in reasons["filter"]  # the filter hides it from the lists: its weights are what fails
    assert "mass-old" in reasons["filter"]
    assert (told["schema"], told["exit_code"], err) == ("recerase.doctor/1", 0, "")


def test_a_policy_that_only_looks_at_the_window_is_found_out(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(HEAD + EXPOSURE)
    assert run(["doctor", "--gate", "--policy", str(policy), "--threads", "1", "--device", "cpu", "-q"]) == 1
    out, err = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:5] for line in out.splitlines() if line[:5] in ("leak ", "filte", "clean")}
    assert rows == {
        "leak": ["fail", "fail", "1", "ok"],
        "filter": ["fail", "pass", "0", "fail"],
        "clean": ["pass", "pass", "0", "ok"],
    }
    assert "THE GATE DOES NOT BLOCK" in err
    assert "natural.mass.old" in err


@pytest.mark.parametrize(
    ("model", "verdict", "results", "state", "code"),
    [
        ("leak", "fail", ["fail", "pass"], "ok", 0),
        ("leak", "pass", ["pass"], "fail", 1),
        ("leak", "inconclusive", ["inconclusive"], "fail", 1),
        ("leak", "fail", ["inconclusive"], "undecided", 5),  # on_inconclusive = "fail"
        ("filter", "fail", ["fail"], "ok", 0),
        ("filter", "pass", ["pass"], "fail", 1),
        ("filter", "inconclusive", ["inconclusive"], "undecided", 5),
        ("filter", "fail", ["inconclusive"], "undecided", 5),
        ("clean", "pass", ["pass"], "ok", 0),
        ("clean", "fail", ["fail"], "fail", 1),
        ("clean", "fail", ["inconclusive"], "undecided", 5),
        ("clean", "inconclusive", ["pass", "inconclusive"], "undecided", 5),
        ("clean", "inconclusive", ["fail"], "fail", 1),  # audit invalid, and a rule fails what is clean
    ],
)
def test_what_a_verdict_on_a_planted_model_means(
    model: Any, verdict: str, results: list[str], state: str, code: int
) -> None:
    def finding(result: str) -> Finding:
        measured = Measurement("natural.exposure@10", "subject", 0.5, 10, "catalogue")
        return Finding(Rule(result, "natural.exposure@10", max=0.1), Result(result), "because", measured)

    wanted = Verdict(verdict)
    decision = SimpleNamespace(verdict=wanted, findings=tuple(map(finding, results)), reason="so it is")
    report = cast(Any, SimpleNamespace(decision=decision, gate=SimpleNamespace(exit_code=wanted.exit_code)))
    proof = judge(model, report)
    assert (proof.state, proof.exit_code, proof.reason) == (state, wanted.exit_code, "so it is")
    held = Proof("leak", Verdict.FAIL, Verdict.FAIL, 1, "ok", "")
    assert exit_code_of((held, proof)) == code
    assert exit_code_of((proof, Proof("clean", Verdict.PASS, Verdict.FAIL, 1, "fail", ""))) == 1
