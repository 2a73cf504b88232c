"""The page of the benchmarks: a target is judged as it is written, and a missed one is told."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("bench")


@pytest.mark.parametrize(
    ("value", "ratio", "target", "met"),
    [
        (0.5, None, "<= 1", True),
        (1.5, None, "<= 1", False),
        (9.0, 1.1, "<= 1.2", True),
        (9.0, 1.3, "<= 1.2", False),
        (9.0, 21.0, ">= 20", True),
        (99.0, 19.0, ">= 20", False),
        (9.0, 0.1, "value <= 8", False),
        (7.0, 99.0, "value <= 8", True),
        (9.0, None, "", None),
    ],
)
def test_a_target_is_judged_as_it_is_written(
    bench: ModuleType, value: float, ratio: float | None, target: str, met: bool | None
) -> None:
    assert bench.Row("x", value, "s", "peer" if ratio else "", ratio, target).met is met


def test_a_missed_target_is_told(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [bench.Row("slow", 3.0, "s", "peer: 1 s", 3.0, "<= 2"), bench.Row("fast", 1.0, "s")]
    monkeypatch.setattr("sys.argv", ["bench"])
    assert bench.main(lambda scale: rows, argparse.ArgumentParser()) == 1
    told = capsys.readouterr().out
    assert "| slow | 3 s | peer: 1 s | **3** | <= 2 (**missed**) |" in told
    assert "| fast | 1 s |  |  |  |" in told
    assert bench.main(lambda scale: rows[1:], argparse.ArgumentParser()) == 0


def test_a_benchmark_without_its_data_says_so(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "HERE", tmp_path / "a" / "b")
    monkeypatch.setenv("RECERASE_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["bench"])
    assert bench.main(lambda scale: [bench.data_directory("nothing")], argparse.ArgumentParser()) == bench.WITHOUT_DATA
    assert "not run: needs the data set nothing" in capsys.readouterr().out


def test_the_page_has_every_benchmark_in_order(bench: ModuleType) -> None:
    found = {"bench_b": {"seconds": 2.0, "rows": [], "made": "a machine"}, "bench_a": None}
    page = bench.page(found)
    assert page.index("bench_a") < page.index("bench_b")
    assert "not run" in page


@pytest.mark.parametrize(
    ("script", "code", "told"),
    [
        ("raise SystemExit('the lists differ')", 1, "did not end"),
        ("raise SystemExit(77)", 0, "every target is met"),
        ("raise RuntimeError('x')", 1, "did not end"),
    ],
)
def test_a_benchmark_that_crashes_is_no_target_met(
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    script: str,
    code: int,
    told: str,
) -> None:
    for name in ("PAGE", "FIGURES"):
        monkeypatch.setattr(bench, name, tmp_path / name)
    monkeypatch.setattr(bench, "HERE", tmp_path)
    (tmp_path / "bench_x.py").write_text(script)
    assert bench.run_all([]) == code
    assert told in capsys.readouterr().out
    assert bench.run_all(["bench_y"]) == 2
