"""The trie's benchmark on small catalogues: its three masks agree, and every row is whole."""

from __future__ import annotations

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
        yield importlib.import_module("bench_trie")


def test_every_row_is_whole(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "RUNS", 1)
    monkeypatch.setattr(bench, "USERS", 2)
    table = bench.drawn(300, 8)
    found = [*bench.build_rows(table), *bench.many_rows(500), *bench.mask_rows(table), *bench.growth_rows(table, 0.02)]
    assert len(found) == 1 + 6 + 2 + 2
    for row in found:
        assert row.name
        assert row.value > 0
        assert (row.ratio is None) == (row.peer == "")
