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


@pytest.mark.parametrize("name", ["report.json", "more.html"])
def test_a_report_is_not_written_into_the_checkpoint(
    own_job: Job, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --force the directory is there before, and a report.json of the run would not be the one in the manifest."""
    out, before = own_job.erased, store.read_manifest(own_job.erased)
    assert run([*erase(own_job, out, out / name), "--force"]) == 2
    assert f"lies inside, --out {out}" in capsys.readouterr().err
    assert store.read_manifest(out) == before
    assert not (out / "more.html").exists()
    assert run(erase(own_job, own_job.home / "new.json", own_job.home / "new.json")) == 2
    assert not (own_job.home / "new.json").exists()


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
