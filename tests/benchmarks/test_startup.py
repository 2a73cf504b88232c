"""The rows of the start-up benchmark have what a table needs, and can miss their target."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_rows_hold_a_ratio_to_an_empty_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench_startup = importlib.import_module("bench_startup")
    took = {"-c pass": 0.02, "-c import recerase": 0.03, "-m recerase --help": 0.18, "-m recerase audit --help": 0.4}
    monkeypatch.setattr(bench_startup, "seconds", lambda arguments: took[" ".join(arguments)])
    rows = {row.name: row for row in bench_startup.rows(0.2)}
    assert {name: row.ratio for name, row in rows.items()} == pytest.approx(
        {"import recerase": 1.5, "recerase --help": 9.0, "recerase audit --help": 20.0}
    )
    assert {name: row.met for name, row in rows.items()} == {
        "import recerase": True,
        "recerase --help": True,
        "recerase audit --help": False,
    }
