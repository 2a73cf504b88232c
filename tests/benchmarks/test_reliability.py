"""The reliability page says how much of a soak was run, and sums its parts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(soak: float, name: str, value: int) -> dict[str, Any]:
    ended = {"passed": 2, "failed": 0, "error": 0, "skipped": 1}
    return {"date": "2026-06-01", "soak": soak, **ended, "figures": {name: {"value": value, "of": 10}}}


@pytest.mark.parametrize(("shares", "told"), [((1.0, 1.0), ""), ((1.0, 0.1), ", some of it at 0.1 of its counts")])
def test_a_part_of_a_soak_is_not_told_as_a_whole(
    shares: tuple[float, float], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("reliability")
    whole = script.merged([run(shares[0], "a: kills", 3), run(shares[1], "b: flips", 0)])
    page = "\n".join(script.page({"test": run(0, "a: kills", 1), "soak": whole}))
    assert f"- `make soak`{told}, 2026-06-01: 4 passed, 0 failed, 0 error, 2 skipped\n" in page
    assert "- `make test`, 2026-06-01: 2 passed" in page
    assert "| a: kills | 1 of 10 | 3 of 10 |" in page
    assert "| b: flips | – | 0 of 10 |" in page
