"""Resolution makes every SID unique, touches nobody it need not, and lets the nearest item stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import UsageError
from recerase.sid import resolve
from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.resolve import resolve_collisions

D = 5


def crowded(seed: int, sizes: tuple[int, ...], n: int, normalise: bool) -> tuple[np.ndarray, Codebooks, np.ndarray]:
    """n items around few places, so that many share a SID; some are exact copies."""
    rng = np.random.default_rng(seed)
    vectors = tuple((rng.normal(size=(k, D)) / (1 + level)).astype(np.float32) for level, k in enumerate(sizes))
    codebooks = Codebooks(vectors, Recipe(np.zeros(D, np.float32), normalise, normalise), False, (1.0,) * len(sizes))
    places = rng.normal(size=(max(1, n // 4), D))
    x = places[rng.integers(0, len(places), n)] + rng.choice([0.0, 0.05], (n, 1)) * rng.normal(size=(n, D))
    return codebooks.encode(x), codebooks, x.astype(np.float32)


def unique(codes: np.ndarray) -> bool:
    return len(np.unique(codes, axis=0)) == len(codes)


@given(st.integers(0, 10**6), st.sampled_from([(4, 4, 4), (3, 8), (64,), (2, 2, 2, 8)]), st.booleans(), st.floats(0, 1))
def test_every_sid_is_unique_however_full_the_table(
    seed: int, sizes: tuple[int, ...], normalise: bool, fill: float
) -> None:
    n = max(1, round(fill * float(np.prod(sizes))))
    codes, codebooks, x = crowded(seed, sizes, n, normalise)
    out, resolved = resolve_collisions(codes, codebooks, x)
    assert unique(out)
    assert ((out >= 0) & (out < sizes)).all()
    np.testing.assert_array_equal(resolved, (out != codes).any(axis=1))


@given(st.integers(0, 10**6), st.booleans())
def test_only_crowded_items_move_and_each_sid_keeps_its_nearest(seed: int, normalise: bool) -> None:
    codes, codebooks, x = crowded(seed, (6, 5, 40), 40, normalise)  # no prefix can hold more items than codes
    out, resolved = resolve_collisions(codes, codebooks, x)
    gaps = codebooks.distances(x, codes, 2)
    np.testing.assert_array_equal(out[:, :2], codes[:, :2])
    for sid in np.unique(codes, axis=0):
        group = np.flatnonzero((codes == sid).all(axis=1))
        stayed = group[~resolved[group]]
        assert len(stayed) == 1  # nobody else may take a SID that was in use, and nobody need leave it empty
        assert gaps[stayed[0], sid[2]] <= gaps[group, sid[2]].min() + 1e-9


def test_the_crowd_gets_its_next_nearest_free_code() -> None:
    """One level on a line: codewords at 0, 1, 2, 5; three items at .1, .2, .3 and one at 1."""
    words = np.array([[0.0], [1.0], [2.0], [5.0]], np.float32)
    codebooks = Codebooks((words,), Recipe(np.zeros(1, np.float32), False, False), False, (1.0,))
    x = np.array([[0.1], [0.2], [0.3], [1.0]], np.float32)
    out, resolved = resolve_collisions(codebooks.encode(x), codebooks, x)
    assert out[:, 0].tolist() == [0, 3, 2, 1]  # .3 is nearer to 2 than .2 is; 1 was taken
    assert resolved.tolist() == [False, True, True, False]


def test_a_prefix_with_more_items_than_codes_spills_to_the_next_nearest_prefix() -> None:
    """Two levels: five copies of one item, three last codes; the nearest prefix takes three, the next two."""
    first = np.array([[0.0], [10.0], [2.0]], np.float32)
    last = np.array([[0.0], [0.1], [-0.1]], np.float32)
    codebooks = Codebooks((first, last), Recipe(np.zeros(1, np.float32), False, False), False, (1.0, 1.0))
    x = np.full((5, 1), 0.4, np.float32)
    out, resolved = resolve_collisions(codebooks.encode(x), codebooks, x)
    assert unique(out)
    assert sorted(out[:, 0].tolist()) == [0, 0, 0, 2, 2]
    assert resolved.sum() == 4


def test_a_table_without_collisions_is_left_alone() -> None:
    codes, codebooks, x = crowded(3, (8, 8, 8), 60, True)
    first = np.unique(codes, axis=0, return_index=True)[1]
    out, resolved = resolve_collisions(codes[first], codebooks, x[first])
    np.testing.assert_array_equal(out, codes[first])
    assert not resolved.any()


def test_more_items_than_sids_is_refused() -> None:
    codes, codebooks, x = crowded(4, (3, 3), 10, False)
    with pytest.raises(UsageError, match="10 items cannot have different SIDs"):
        resolve_collisions(codes, codebooks, x)


@pytest.mark.parametrize(("sizes", "n"), [((4, 4, 8), 100), ((12, 16), 190), ((2, 2, 2, 8), 64)])
def test_blocks_of_prefixes_change_nothing(sizes: tuple[int, ...], n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, codebooks, x = crowded(3, sizes, n, True)
    held = np.zeros(n, bool)
    held[np.unique(codes, axis=0, return_index=True)[1]] = True
    whole = [resolve_collisions(codes, codebooks, x, h)[0] for h in (None, held)]
    monkeypatch.setattr(resolve, "_BLOCK", 5)
    for before, h in zip(whole, (None, held), strict=True):
        np.testing.assert_array_equal(resolve_collisions(codes, codebooks, x, h)[0], before)
    np.testing.assert_array_equal(whole[1][held], codes[held])


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 2, 2, 8), (60,)])
def test_vectors_are_asked_for_a_few_at_a_time(sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    codes, codebooks, x = crowded(3, sizes, 60, True)
    whole = resolve_collisions(codes, codebooks, x)
    asked = []

    class Few:
        def __getitem__(self, rows: np.ndarray) -> np.ndarray:
            asked.append(len(rows))
            assert (np.diff(rows) > 0).all()
            return x[rows]

    monkeypatch.setattr(resolve, "_NUMBERS", 7 * D)
    for one, other in zip(resolve_collisions(codes, codebooks, Few()), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(asked) == 7


def test_levels_without_end_are_counted_in_whole_numbers() -> None:
    words = np.array([[0.0] * D, [1.0] * D], np.float32)
    codebooks = Codebooks((words,) * 1100, Recipe(np.zeros(D, np.float32), False, False), False, (1.0,) * 1100)
    codes = np.zeros((2, 1100), np.int32)
    out, resolved = resolve_collisions(codes, codebooks, np.zeros((2, D), np.float32))
    assert resolved.tolist() == [False, True]
    assert out[1].tolist() == [0] * 1099 + [1]
