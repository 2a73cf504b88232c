"""The commands that tell a verdict to other programs, on a whole tiny job."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from recerase.__main__ import run
from recerase.report.json_schema import schema_text


@pytest.fixture
def audit(job: Any) -> list[str]:
    """An audit of the original, which fails or is inconclusive: there is something to annotate."""
    return ["audit", str(job.model), f"--data={job.data}", f"--concept={job.concept}", "--max-users=20",
            f"--policy={job.policy}", "--threads=1", "--device=cpu", "--quiet"]  # fmt: skip


def annotated(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("::")]


def test_annotations_come_where_github_is_and_by_an_option(
    audit: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    summary = tmp_path / "summary.md"
    code = run(audit)
    assert code in (1, 5)
    assert annotated(capsys.readouterr().err) == []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert run([*audit, "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out)["gate"]["exit_code"] == code  # stdout stays data
    lines = annotated(err)
    assert lines
    assert all(re.match("::(error|warning) title=[^:,]+::.+", line) for line in lines)
    assert summary.read_text().startswith("# ")
    summary.write_text("x" * 900 * 1024)
    assert run([*audit, "--no-annotate"]) == code
    assert annotated(capsys.readouterr().err) == []
    assert summary.stat().st_size <= 900 * 1024 + 1  # a line feed alone
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert run([*audit, "--annotate"]) == code
    assert annotated(capsys.readouterr().err) == lines


def test_schema_prints_the_shipped_schema(capsys: Any) -> None:
    assert run(["report", "schema"]) == 0
    assert capsys.readouterr().out == schema_text()


def test_card_is_written_once(job: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "README.md"
    assert run(["report", "card", str(job.report), f"--out={out}"]) == 0
    assert out.read_text().startswith("---\n")
    assert run(["report", "card", str(job.report), f"--out={out}"]) == 2
    assert run(["report", "card", str(job.report), f"--out={out}", "--force"]) == 0
    assert run(["report", "card", str(job.report), f"--out={job.report}", "--force"]) == 2


def test_attest_names_every_file_and_refuses_another_checkpoint(job: Any, tmp_path: Path, capsys: Any) -> None:
    place = tmp_path / "erased"
    shutil.copytree(job.erased, place)
    (place / ".cache").mkdir()
    (place / ".cache" / "x").write_text("hidden")
    out = place / "verdict.intoto.json"
    line = ["report", "attest", str(place / "report.json"), f"--out={out}", "--url=https://ci.example/7"]
    assert run(line) == 0
    found = json.loads(out.read_text())
    named = {entry["name"]: entry["digest"]["sha256"] for entry in found["subject"]}
    files = [p for p in place.rglob("*") if p.is_file() and p.name not in ("report.json", out.name, "x")]
    assert named == {p.relative_to(place).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    assert "model.safetensors" in named
    assert found["predicate"]["url"] == "https://ci.example/7"
    first = out.read_bytes()
    assert run(line) == 2  # it is there
    assert run([*line, "--force"]) == 0
    assert out.read_bytes() == first
    assert run(["report", "attest", str(job.report), f"--subject={job.model}", f"--out={tmp_path}/a.json"]) == 4
    assert run(["report", "attest", str(job.report), f"--subject={tmp_path}/no", f"--out={tmp_path}/a.json"]) == 2
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert run([*line[:3], f"--out={tmp_path}/a.json"]) == 4
    assert not (tmp_path / "a.json").exists()
