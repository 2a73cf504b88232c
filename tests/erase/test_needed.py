"""A code from which another tool takes the shape of its model stays some item's, or nothing is done, and that is said early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import level_checks as checks
from tests.layouts import level_fixtures as levels

from recerase.erase import tracer
from recerase.erase.reassign import CommitConfig, commit, quantiser
from recerase.errors import EraseError
from recerase.sid.quantize import fit_codebooks
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.types import FloatArray

TOP = 8


def embedded(table: SidTable) -> FloatArray:
    """[N, D] vectors that the codes of a table follow from."""
    rng = np.random.default_rng(0)
    words = [rng.normal(size=(table.schema.codes[0], 6)) / (level + 1) for level in range(table.levels)]
    points = sum(words[level][table.codes[:, level]] for level in range(table.levels))
    return (np.asarray(points) + rng.normal(scale=0.01, size=(len(table), 6))).astype(np.float32)


def rare(place: int) -> tuple[SidTable, np.ndarray]:
    """Sixty items of 3 levels; code 8 is item 2's alone, at `place`, and item 2 is of the concept."""
    sids = levels.plain_codes() % TOP
    sids[2, place] = TOP
    members = np.arange(fixtures.N) % fixtures.TASTES == 2
    return SidTable.build(np.arange(fixtures.N).astype(str), sids, SidSchema.native([TOP + 1] * 3, "allowed")), members


def committed(table: SidTable, members: np.ndarray, needed: int | None) -> SidTable:
    points = embedded(table)
    codebooks = fit_codebooks(points, table)
    quant = quantiser(table, members, codebooks, points)
    phi = [torch.zeros_like(d) for d in quant.distances]
    phi = [p - 5.0 * (torch.arange(p.shape[1]) == TOP) for p in phi]  # nobody would take it
    return commit(table, members, codebooks, points, quant, phi, CommitConfig(candidates=4), needed)


@pytest.mark.parametrize("place", [1, 2])
def test_the_commit_leaves_the_code_to_the_item_whom_it_costs_least(place: int) -> None:
    table, members = rare(place)
    free = committed(table, members, None)
    assert free.codes.max() < TOP
    kept = committed(table, members, TOP)
    assert (kept.codes == TOP).any(1).sum() == 1
    assert kept.moved(table)[members].all()
    assert not kept.moved(table)[~members].any()
    sids = [tuple(sid) for sid in kept.codes[members].tolist()]
    assert len(set(sids)) == len(sids)
    assert not set(sids) & {tuple(sid) for sid in table.codes.tolist()}
    assert (committed(table, members, 5).codes == free.codes).all()  # retained items have it


def test_what_cannot_be_kept_is_told_before_anything_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, members = rare(0)
    with pytest.raises(EraseError, match="none of them could keep it"):
        committed(table, members, TOP)
    learned: list[Any] = []
    monkeypatch.setattr(tracer, "soft_tokens", lambda *given: learned.append(given))
    sids = levels.grid_codes()
    sids[:, :3] %= TOP
    sids[2, 0] = TOP
    with pytest.raises(EraseError, match="the code 8, the largest"):
        checks.erased(checks.opened(levels.grid(tmp_path / "ckpt", sids)), "tracer")
    assert not learned


@pytest.mark.parametrize("method", ["tracer", "paper"])
def test_a_method_on_a_grid_checkpoint_writes_what_grid_can_load(tmp_path: Path, method: str) -> None:
    sids = levels.grid_codes()
    sids[:, :3] %= TOP
    sids[2, 1] = TOP
    source = checks.opened(levels.grid(tmp_path / "ckpt", sids))
    assert source.extra["needed"] == TOP
    made, table, _ = checks.erased(source, method)
    assert table.codes.max() == TOP
    out = checks.written(made, tmp_path / "out", table)
    checks.speaks_as_its_tool(out, None)
    assert "needed" in checks.opened(out).extra
