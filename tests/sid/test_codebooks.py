"""Codebooks reproduce codes exactly, whatever the batch, and only under their own recipe."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import DataError, TableError
from recerase.sid.codebooks import Codebooks, Recipe, lowest, squared_distances, unit

N, D, SIZES = 150, 10, (8, 6, 7)


def random_codebooks(seed: int, inputs: bool, residuals: bool, scales: tuple[float, ...] | None = None) -> Codebooks:
    rng = np.random.default_rng(seed)
    vectors = tuple(rng.normal(size=(k, D)).astype(np.float32) * 0.5 for k in SIZES)
    centre = rng.normal(size=D).astype(np.float32)
    return Codebooks(vectors, Recipe(centre, inputs, residuals), False, (1.0,) * len(SIZES), scales)


def embeddings(seed: int, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed + 1000).normal(size=(n, D)).astype(np.float32)


def encode_one(codebooks: Codebooks, x: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """The twin: one item, one level, one codeword at a time."""
    residual = x.astype(np.float64) - codebooks.recipe.centre.astype(np.float64)
    codes, residuals = [], []
    for level, words in enumerate(codebooks.vectors):
        if codebooks.recipe.normalise_residuals if level else codebooks.recipe.normalise_input:
            residual = residual / np.sqrt((residual**2).sum())
        gaps = [((residual - word.astype(np.float64)) ** 2).sum() for word in words]
        residuals.append(residual)
        codes.append(int(np.argmin(gaps)))
        residual = residual - words[codes[-1]].astype(np.float64)
    return codes, residuals


@given(st.integers(0, 500), st.booleans(), st.booleans())
def test_encoding_agrees_with_one_item_at_a_time(seed: int, inputs: bool, residuals: bool) -> None:
    codebooks, x = random_codebooks(seed, inputs, residuals), embeddings(seed, 12)
    codes = codebooks.encode(x)
    found = codebooks.residuals(x, codes)
    for i in range(len(x)):
        twin_codes, twin_residuals = encode_one(codebooks, x[i])
        assert codes[i].tolist() == twin_codes
        np.testing.assert_allclose(found[:, i], np.stack(twin_residuals), atol=1e-12)


@given(st.integers(0, 500), st.booleans(), st.booleans(), st.integers(1, N - 1))
def test_codes_do_not_depend_on_the_batch(seed: int, inputs: bool, residuals: bool, cut: int) -> None:
    codebooks, x = random_codebooks(seed, inputs, residuals), embeddings(seed)
    parts = np.concatenate([codebooks.encode(x[:cut]), codebooks.encode(x[cut:])])
    np.testing.assert_array_equal(codebooks.encode(x), parts)
    np.testing.assert_array_equal(codebooks.encode(x[::-1])[::-1], parts)


@given(st.integers(0, 500), st.booleans(), st.booleans())
def test_distances_under_the_stored_path_reproduce_every_code(seed: int, inputs: bool, residuals: bool) -> None:
    codebooks, x = random_codebooks(seed, inputs, residuals), embeddings(seed)
    codes = codebooks.encode(x)
    for level in range(len(SIZES)):
        distances = codebooks.distances(x, codes, level)
        assert distances.dtype == np.float64
        assert distances.shape == (N, SIZES[level])
        np.testing.assert_array_equal(distances.argmin(axis=1), codes[:, level])
    np.testing.assert_array_equal(codebooks.nearest(x, codes), codes)


def test_the_path_is_the_stored_one_even_where_it_is_not_the_nearest() -> None:
    codebooks, x = random_codebooks(1, False, False), embeddings(1, 1)
    codes = np.array([[7, 0, 3]])
    expected = x[0].astype(np.float64) - codebooks.recipe.centre - codebooks.vectors[0][7] - codebooks.vectors[1][0]
    np.testing.assert_allclose(codebooks.residuals(x, codes)[2, 0], expected, atol=1e-6)


def test_equal_codewords_give_the_lowest_code() -> None:
    words = np.ones((4, D), np.float32)
    codebooks = Codebooks((words,), Recipe(np.zeros(D, np.float32), False, False), False, (1.0,))
    assert (codebooks.encode(embeddings(2)) == 0).all()
    assert lowest(np.array([[0.3, 0.1 + 1e-16, 0.1]])).tolist() == [1]
    assert lowest(np.array([[0.3, 0.1 + 1e-9, 0.1]])).tolist() == [2]


def test_a_residual_that_is_only_rounding_has_no_direction() -> None:
    rows = unit(np.array([[3.0, 4.0], [1e-8, 0.0], [0.0, 0.0]]))
    assert rows.tolist() == [[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]]


@given(st.integers(0, 100))
def test_distances_are_the_squared_lengths_of_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(9, 4)), rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(squared_distances(a, b), ((a[:, None] - b[None]) ** 2).sum(-1), atol=1e-12)


def test_point_is_the_sum_of_codewords_and_exact_for_items_that_lie_on_it() -> None:
    codebooks = random_codebooks(3, False, False)
    codes = np.stack([np.random.default_rng(3).integers(0, k, 5) for k in SIZES], axis=1)
    total = sum(codebooks.vectors[level][codes[:, level]] for level in range(3)) + codebooks.recipe.centre
    np.testing.assert_allclose(codebooks.point(codes), total, atol=1e-6)
    assert codebooks.point(codes.reshape(5, 1, 3)).shape == (5, 1, D)
    np.testing.assert_allclose(codebooks.point(np.array([-1, -1, -1])), codebooks.recipe.centre)


def test_point_puts_normalised_lengths_back() -> None:
    """Built with known lengths: x = centre + 2 (c0 + .5 (c1 + .25 c2)), unit codewords."""
    codebooks = random_codebooks(4, True, True, scales=(2.0, 0.5, 0.25))
    codebooks = replace(codebooks, vectors=tuple(unit(v).astype(np.float32) for v in codebooks.vectors))
    codes = np.array([[1, 2, 3], [4, 5, 6]])
    c0, c1, c2 = (codebooks.vectors[level][codes[:, level]].astype(np.float64) for level in range(3))
    expected = codebooks.recipe.centre + 2.0 * (c0 + 0.5 * (c1 + 0.25 * c2))
    np.testing.assert_allclose(codebooks.point(codes), expected, atol=1e-12)


def test_an_item_without_a_sid_subtracts_nothing() -> None:
    codebooks, x = random_codebooks(5, False, False), embeddings(5, 2)
    residuals = codebooks.residuals(x, np.full((2, 3), -1))
    np.testing.assert_array_equal(residuals, np.stack([codebooks.enter(x)] * 3))


@pytest.mark.parametrize("scales", [None, (2.0, 0.5, 0.25)])
def test_tensors_and_metadata_are_all_there_is(scales: tuple[float, ...] | None) -> None:
    codebooks, x = random_codebooks(6, True, False, scales), embeddings(6)
    again = Codebooks.from_tensors(codebooks.to_tensors(), codebooks.metadata())
    codes = codebooks.encode(x)
    np.testing.assert_array_equal(again.encode(x), codes)
    np.testing.assert_array_equal(again.point(codes), codebooks.point(codes))
    assert again.metadata() == codebooks.metadata()


def test_tensors_that_are_not_a_whole_set_are_refused() -> None:
    codebooks = random_codebooks(7, True, True)
    tensors, metadata = codebooks.to_tensors(), codebooks.metadata()
    broken: list[tuple[dict, dict]] = [
        ({k: v for k, v in tensors.items() if k != "centre"}, metadata),
        ({k: v for k, v in tensors.items() if k != "codebook.2"}, metadata),
        ({**tensors, "codebook.1": tensors["codebook.1"][:, :3]}, metadata),
        ({**tensors, "codebook.1": np.full_like(tensors["codebook.1"], np.nan)}, metadata),
        (tensors, {}),
        (tensors, {**metadata, "normalise_residuals": "yes"}),
        (tensors, {**metadata, "agreement": [1.0]}),
    ]
    for bad, meta in broken:
        with pytest.raises(TableError, match="codebooks cannot be used"):
            Codebooks.from_tensors(bad, meta)


def test_what_does_not_fit_is_named() -> None:
    codebooks, x = random_codebooks(8, True, True), embeddings(8)
    with pytest.raises(DataError, match="width 10"):
        codebooks.encode(x[:, :4])
    with pytest.raises(TableError, match="beyond its codebooks"):
        codebooks.residuals(x, np.full((N, 3), 7))
    with pytest.raises(TableError, match="do not fit"):
        codebooks.residuals(x, np.zeros((N, 2), int))
    with pytest.raises(TableError, match="no codebook for level 3"):
        codebooks.distances(x, np.zeros((N, 3), int), 3)
