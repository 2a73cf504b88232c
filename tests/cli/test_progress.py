"""Progress goes to stderr, data to stdout, and a long run's log stays short."""

from __future__ import annotations

import pytest

from recerase.cli import progress
from recerase.cli.progress import LineObserver, emit, observing, say, stderr_console
from recerase.cli.tables import Rows, facts_table


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


def test_force_color_colours_but_puts_no_bars_into_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bars move the cursor, which only a terminal can."""
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with observing() as observer:
        assert isinstance(observer, LineObserver)
    emit(facts_table("title", {"name": "value"}))
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    emit(facts_table("title", {"name": "value"}))
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("columns", "most", "lines"), [("40", 40, 8), ("200", 200, 4), ("", 120, 4), ("many", 120, 4)])
def test_a_table_that_does_not_fit_becomes_blocks(
    columns: str, most: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    emit(
        Rows("title", ("id", "one", "two"), [("a-long-name-of-its-own", "x" * 20, "y"), ("b", "x", "a few words " * 4)])
    )
    out = capsys.readouterr().out.splitlines()
    assert len(out) == lines
    assert max(map(len, out)) <= most
    assert any("a-long-name-of-its-own" in line for line in out)
