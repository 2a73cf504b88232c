"""Each of the catalogued user mistakes ends in its exit code, one line that says cause and remedy, and nothing written."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recerase.__main__ import run

from .conftest import Job
from .mistakes import CSV_ACTS, CSV_ITEMS, MISTAKES


def snapshot(home: Path) -> dict[str, tuple[int, int]]:
    """Every file below, with its size and time of change."""
    return {str(p.relative_to(home)): (s.st_size, s.st_mtime_ns) for p in home.rglob("*") if (s := p.lstat())}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    figure: Callable[..., None],
) -> None:
    mistake = MISTAKES[name]
    job: Job = request.getfixturevalue("own_job" if mistake.setup else "job")
    if mistake.setup:
        mistake.setup(job)
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(job.home)
    line = mistake.line.format(concept=shlex.quote(job.concept), out=tmp_path / "new" / "out")
    before = snapshot(job.home)
    capsys.readouterr()
    code = run(shlex.split(line))
    out, err = capsys.readouterr()
    assert code == mistake.code, err
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("recerase: ")
    assert err.count("\n") <= mistake.lines, err
    assert len(err) < 700
    said = err.removeprefix("recerase: ")
    cause = re.search(mistake.cause, said)
    assert cause, err
    assert re.search(rf"[.?!:\n].*({mistake.remedy})", said[cause.end() :], re.DOTALL), (
        f"the remedy follows the cause: {err}"
    )
    assert snapshot(job.home) == before
    assert not list((tmp_path / "new").iterdir())
    figure("interface: user mistakes answered in one sentence", 1, of=1)


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 40


def test_a_file_that_may_not_be_read(own_job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (own_job.data / "items.parquet").chmod(stat.S_IWUSR)
    assert run(["concept", "brand=x", "--data", str(own_job.data)]) == 4
    assert "items.parquet" in capsys.readouterr().err


def test_a_name_that_is_not_utf8(job: Job, tmp_path: Path) -> None:
    """A path of any bytes is read, and a complaint about one can be printed."""
    strange = os.fsencode(tmp_path) + b"/caf\xe9"
    for code in (4, 0):
        line = [os.fsencode(sys.executable), b"-m", b"recerase", b"inspect", strange, b"--json"]
        done = subprocess.run(line, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
        if code:
            job.copy("data", Path(os.fsdecode(strange)))
    assert json.loads(done.stdout)["path"].endswith("caf\\xe9")


def test_a_stdout_that_knows_no_line_drawing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run(["report", "show", str(job.report)]) == 0
    assert b"exposure" in raw.getvalue()


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Spreadsheets write one; the first column must not be called \\ufeffitem_id for it."""
    (tmp_path / "items.csv").write_bytes(b"\xef\xbb\xbf" + CSV_ITEMS.encode())
    (tmp_path / "acts.csv").write_bytes(b"\xef\xbb\xbf" + CSV_ACTS.encode())
    line = ["import", "csv", f"{tmp_path}/items.csv", f"{tmp_path}/acts.csv", "--out", f"{tmp_path}/data", "-q"]
    assert run(line) == 0, capsys.readouterr().err
