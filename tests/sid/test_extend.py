"""A grown catalogue: old SIDs stay to the byte, new items get free ones near them, and what cannot be extended is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recerase.errors import DataError, TableError, UsageError
from recerase.sid.codebooks import Codebooks
from recerase.sid.extend import check_extendable, check_same, extend, new_rows
from recerase.sid.quantize import TokenizeConfig, fit_codebooks, tokenize
from recerase.sid.resolve import resolve_collisions
from recerase.sid.table import SidTable

SMALL = TokenizeConfig(levels=3, codes=8, iterations=8)


def points(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def ids(n: int, name: str = "i") -> list[str]:
    return [f"{name}{i}" for i in range(n)]


@pytest.fixture(scope="module")
def made() -> tuple[SidTable, Codebooks, np.ndarray]:
    x = points(200)
    table, codebooks, _ = tokenize(x, ids(200), SMALL)
    return table.unlisted(np.arange(200) % 7 == 0), codebooks, x


def first(table: SidTable, n: int) -> SidTable:
    return replace(
        table,
        item_ids=table.item_ids[:n],
        codes=table.codes[:n],
        listed=table.listed[:n],
        resolved=table.resolved[:n],
    )


@pytest.mark.parametrize("new", [0, 1, 150, 312])
def test_not_one_old_sid_flag_or_row_moves(made: tuple[SidTable, Codebooks, np.ndarray], new: int) -> None:
    """Up to the last free SID: 200 + 312 = 8 ** 3."""
    table, codebooks, x = made
    y = points(new, seed=1)
    y[: new // 2] = x[: new // 2]  # copies of old items, which want their very SIDs
    grown, report = extend(table, codebooks, x, ids(new, "n"), y)
    assert first(grown, 200).digest == table.digest
    assert len(np.unique(grown.codes, axis=0)) == len(grown) == 200 + new
    assert report.collision_after == 0
    assert grown.listed[200:].all()
    free = ~grown.resolved[200:]
    np.testing.assert_array_equal(grown.codes[200:][free], codebooks.encode(y)[free])
    assert new < 100 or 0 < free.sum() < new


def test_a_new_item_goes_to_its_nearest_free_code(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table, codebooks, x = made
    grown, _ = extend(table, codebooks, x, ["twin"], x[5:6])
    twin = grown.codes[-1]
    np.testing.assert_array_equal(twin[:2], table.codes[5, :2])
    taken = table.codes[(table.codes[:, :2] == twin[:2]).all(axis=1), 2]
    distances = codebooks.distances(x[5:6], table.codes[5:6], 2)[0]
    distances[taken] = np.inf
    assert twin[2] == distances.argmin()
    assert grown.resolved[-1]


def test_a_nearer_new_item_does_not_push_an_old_one_out() -> None:
    """The resolver alone lets the nearest stay; held items stay whoever is nearer."""
    x = points(60)
    table, codebooks, _ = tokenize(x, ids(60), SMALL)
    kept = np.flatnonzero(~table.resolved)
    exact = codebooks.point(table.codes[kept]).astype(np.float32)
    np.testing.assert_array_equal(codebooks.encode(exact)[:, 0], table.codes[kept, 0])
    both = np.concatenate([table.codes, table.codes[kept]])
    everyone = np.concatenate([x, exact])
    held = np.arange(len(both)) < 60
    assert (resolve_collisions(both, codebooks, everyone)[0][:60] != table.codes).any()
    codes, moved = resolve_collisions(both, codebooks, everyone, held)
    np.testing.assert_array_equal(codes[:60], table.codes)
    assert moved[60:].all()


def test_extending_twice_is_extending(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table, codebooks, x = made
    y = points(40, seed=2)
    once, _ = extend(table, codebooks, x, ids(20, "a"), y[:20])
    twice, _ = extend(once, codebooks, np.concatenate([x, y[:20]]), ids(20, "b"), y[20:])
    assert first(twice, 220).digest == once.digest
    assert len(np.unique(twice.codes, axis=0)) == 240


def test_items_without_a_sid_keep_none_and_shared_sids_stay_allowed() -> None:
    x = points(100)
    table, codebooks, _ = tokenize(x, ids(100), replace(SMALL, resolve="none"))
    codes = table.codes.copy()
    codes[3] = -1
    table = SidTable.build(ids(100), codes, table.schema)
    grown, _ = extend(table, codebooks, x, ["twin"], x[5:6])
    np.testing.assert_array_equal(grown.codes[-1], codes[5])
    assert (grown.codes[3] == -1).all()
    unique = SidTable.build(ids(100), codes, replace(table.schema, collisions="unique"))
    grown, _ = extend(unique, codebooks, x, ["twin"], x[5:6])
    assert (grown.codes[:-1] == codes).all()
    assert not (grown.codes[:-1] == grown.codes[-1]).all(axis=1).any()


def test_a_full_house_and_strange_items_are_told(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table, codebooks, x = made
    with pytest.raises(UsageError, match="513 items cannot"):
        extend(table, codebooks, x, ids(313, "n"), points(313))
    assert not any("as far" in line for line in extend(table, codebooks, x, ids(20, "n"), points(20, 9))[1].warnings)
    far = extend(table, codebooks, x, ids(20, "n"), 9 * points(20, 9))[1]
    assert any("times as far from their SIDs" in line for line in far.warnings)


def test_rows_of_old_and_new_items_in_any_order(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table = first(made[0], 3)
    old, new = new_rows(table, ["n0", "i2", "i0", "n1", "i1"])
    assert (old.tolist(), new.tolist()) == ([2, 4, 1], [0, 3])
    with pytest.raises(TableError, match=r"2 items that have a SID are not in the catalogue, i1 first\. Keep the rows"):
        new_rows(table, ["i0", "n0"])


def test_embeddings_must_be_those_the_sids_were_made_from(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table, _, x = made
    check_same(x, x + np.float32(1e-6), table.item_ids)
    other = x.copy()
    other[17, 2] += 0.25
    with pytest.raises(DataError, match=r"largest difference is 0\.25, of item i17"):
        check_same(x, other, table.item_ids)
    with pytest.raises(DataError, match="5 wide"):
        check_same(x, x[:, :5], table.item_ids)
    with pytest.raises(DataError, match="largest difference is nan"):
        check_same(x, np.full_like(x, np.nan), table.item_ids)


def test_sids_of_unknown_meaning_are_not_extended(made: tuple[SidTable, Codebooks, np.ndarray]) -> None:
    table, codebooks, x = made
    assert check_extendable(table, codebooks, x) is codebooks
    with pytest.raises(UsageError, match="without codebooks"):
        check_extendable(table, None, x)
    with pytest.raises(UsageError, match="did not keep the item embeddings") as caught:
        check_extendable(table, codebooks, None)
    assert caught.value.remedy == "Tokenize again with --keep-embeddings."
    with pytest.raises(UsageError, match="fitted"):
        check_extendable(table, fit_codebooks(x, table), x)
