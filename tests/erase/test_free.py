"""How many SIDs are free, against every SID there could be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recerase.erase.reassign import free_sids, usable
from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

SIZES = (3, 4, 3)


def table_of(seed: int) -> tuple[SidTable, np.ndarray, np.random.Generator]:
    """14 items with SIDs of (3, 4, 3) codes, some of which share theirs, one without; and a concept of some of them."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, 14) for size in SIZES], 1)
    codes[13] = -1
    rows = [np.arange(size) + 10 * level for level, size in enumerate(SIZES)]
    rows[1][2 if not (codes[:, 1] == 2).any() else 3] = -1
    codes[:, 1] = np.where((codes[:, 1] >= 0) & (rows[1][codes[:, 1]] < 0), 0, codes[:, 1])
    schema = SidSchema(SIZES, tuple(rows), 40, 39, -1, 38, "allowed")
    return SidTable.build([str(n) for n in range(14)], codes, schema), rng.random(14) < 0.4, rng


@pytest.mark.parametrize("seed", range(12))
def test_free_sids_are_those_that_one_can_count(seed: int) -> None:
    table, members, rng = table_of(seed)
    known = [
        (rows >= 0) & ((rng.random(len(rows)) < 0.9) | (table.usage(at) > 0))
        for at, rows in enumerate(table.schema.rows)
    ]
    mine = [tuple(sid) for sid in table.codes[members & table.present].tolist()]
    theirs = [tuple(sid) for sid in table.codes[~members & table.present].tolist()]
    alone = {sid[:depth] for sid in mine for depth in (1, 2) if sid[:depth] not in {other[:depth] for other in theirs}}
    usual = [np.flatnonzero(level).tolist() for level in known]
    free = [
        sid
        for sid in itertools.product(*usual)
        if sid not in {*mine, *theirs} and sid[:1] not in alone and sid[:2] not in alone
    ]
    prefixes = [p for p in itertools.product(*usual[:2]) if p[:1] not in alone and p not in alone]
    assert free_sids(table, members, known) == (len(free), len(prefixes))


def test_what_may_be_given() -> None:
    """A row, a codeword, and for fitted codebooks an item that uses it, or an offer; a level without codebook needs the row alone."""
    codes = np.array([[0, 0, 0], [1, 1, 1], [1, 3, 2]])
    rows = (np.arange(3), np.array([10, 11, -1, 13]), np.arange(20, 23))
    table = SidTable.build(["a", "b", "c"], codes, SidSchema(SIZES, rows, 40, 39, -1, 38))
    words = (np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32))
    for fitted, first, second in ((True, [1, 1, 0], [1, 1, 0, 0]), (False, [1, 1, 1], [1, 1, 0, 0])):
        codebooks = Codebooks(words, Recipe(np.zeros(2, np.float32), False, False), fitted, (1.0, 1.0))
        found = [level.astype(int).tolist() for level in usable(table, codebooks)]
        assert found == [first, second, [1, 1, 1]]
        none = np.empty(0, np.int64)
        assert usable(table, codebooks, (np.array([2]), none, none))[0].all()
