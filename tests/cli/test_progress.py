"""Progress goes to stderr, data to stdout, and a long run's log stays short."""

from __future__ import annotations

import pytest

from recerase.cli import progress
from recerase.cli.progress import LineObserver, emit, observing, say, stderr_console


def test_data_and_talk_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    emit("data")
    say("talk [bold]as it is[/bold]")
    with observing() as observer:
        observer.note("note [3/4]")
    out, err = capsys.readouterr()
    assert out == "data\n"
    assert err == "talk [bold]as it is[/bold]\nnote [3/4]\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say("talk", quiet=True)
    with observing(quiet=True) as observer:
        observer.start("work", 3)
        observer.advance("work")
        observer.note("note")
        observer.finish("work")
    assert capsys.readouterr() == ("", "")


def test_plain_lines_are_throttled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    observer = LineObserver(stderr_console())
    observer.start("work", 1000)
    for _ in range(1000):
        now[0] += 0.03
        observer.advance("work", 1, loss=1.25)
    observer.finish("work")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("work: 33")
    assert "loss 1.25" in lines[0]
    assert lines[-1] == "work: done in 30.0 s"


def test_a_short_task_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    observer = LineObserver(stderr_console())
    observer.start("work", 2)
    observer.advance("work", 2)
    observer.finish("work")
    assert capsys.readouterr().err == ""


def test_an_unknown_task_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    observer = LineObserver(stderr_console())
    observer.advance("never started")
    observer.finish("never started")
    assert capsys.readouterr().err == ""
