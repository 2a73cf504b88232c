"""Every way to end has its exit code, 1 belongs to a violated rule alone, and an error is a sentence on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from recerase import __main__, errors

CODES = {
    errors.RecEraseError: 3,
    errors.UsageError: 2,
    errors.SettingsError: 2,
    errors.PolicyError: 2,
    errors.ConceptError: 2,
    errors.OutputError: 2,
    errors.ArtefactError: 4,
    errors.DataError: 4,
    errors.TableError: 4,
    errors.CheckpointError: 4,
    errors.PickleError: 4,
    errors.WriteError: 3,
    errors.EraseError: 3,
}


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("recerase.api.inspect", fail)


def test_every_error_class_is_covered() -> None:
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.RecEraseError)}
    assert classes == set(CODES)


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.__name__)
def test_an_error_becomes_its_code_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[errors.RecEraseError]
) -> None:
    raising(monkeypatch, kind("The thing is wrong.", "Do this."))
    assert __main__.run(["inspect", "x"]) == CODES[kind]
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "recerase: The thing is wrong. Do this.\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (MemoryError(), 3), (torch.OutOfMemoryError(), 3), (ZeroDivisionError(), 3)],
)
def test_what_no_class_claims(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    raising(monkeypatch, error)
    assert __main__.run(["inspect", "x"]) == code
    err = capsys.readouterr().err
    assert ("bug" in err and "Traceback" in err) == isinstance(error, ZeroDivisionError)


@pytest.mark.parametrize(
    "line",
    [
        ["nonsense"],
        ["inspect"],
        ["inspect", "x", "--nonsense"],
        ["train", "d", "--epochs", "many"],
        ["list", "nonsense"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_read_is_two(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.run(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--help`." in err


@pytest.mark.parametrize("line", [["--help"], ["--version"], ["audit", "--help"]], ids=" ".join)
def test_being_asked_for_help_is_success(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.run(line) == 0
    assert capsys.readouterr().out


def test_the_signal_handler_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    __main__.run(["--version"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = f"""
import sys, time
from pathlib import Path
from recerase import __main__, api, store
def slow(*_, **__):
    with store.publish({str(tmp_path / "out")!r}) as result:
        store.write_bytes(result.directory / "half", b"1")
        Path({str(tmp_path / "ready")!r}).write_text("1")
        time.sleep(60)
api.inspect = slow
__main__.main(["inspect", "x"])
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, complaint = process.communicate(timeout=30)
    assert process.returncode == code
    assert "interrupted" in complaint.lower()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ready"]


def test_a_reader_that_goes_away_changes_nothing() -> None:
    command = f"{sys.executable} -m recerase list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
