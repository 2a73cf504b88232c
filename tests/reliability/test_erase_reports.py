"""A report that cannot be made stops an erasure before it publishes; one that cannot be written does not hide what is out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.reliability.conftest import Job

from recerase import store
from recerase.__main__ import run
from recerase.errors import WriteError


def erase(job: Job, out: Path, report: Path) -> Sequence[str]:
    at = ["--data", str(job.data), "--concept", job.concept, "--policy", str(job.policy), "--threads", "1", "-q"]
    return ["erase", str(job.model), "--out", str(out), "-m", "filter", "-o", str(report), *at]


def test_a_report_that_cannot_be_made_publishes_nothing(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(report: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("recerase.report.markdown.report_markdown", broken)
    assert run(erase(job, tmp_path / "out", tmp_path / "a.md")) == 3
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "a.md").exists()
    assert capsys.readouterr().out == ""


def test_a_report_that_cannot_be_written_says_where_the_checkpoint_is(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> str:
        raise WriteError(f"Cannot write {path}: No space left on device.", "Free some space.")

    monkeypatch.setattr("recerase.reporting.write_bytes", full)
    out = tmp_path / "out"
    assert run(erase(job, out, tmp_path / "a.md")) == 3
    store.verify_manifest(out)
    told = capsys.readouterr()
    assert told.out == ""
    assert f"The checkpoint is published: `recerase report show {out}/report.json -o FILE`" in told.err
    monkeypatch.undo()
    assert run(["report", "show", str(out / "report.json"), "-o", str(tmp_path / "a.md")]) == 0
    assert (tmp_path / "a.md").is_file()
