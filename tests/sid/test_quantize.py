"""Tokenizing is reproducible to the last code, finds planted clusters, and survives odd catalogues."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from recerase.errors import DataError, UsageError
from recerase.sid import quantize
from recerase.sid.quantize import Codebooks, TokenizeConfig, fit_codebooks, rq_kmeans, tokenize
from recerase.sid.table import SidSchema, SidTable
from recerase.sid.table_files import read_json_table

SMALL = TokenizeConfig(levels=3, codes=16, iterations=8)


def points(n: int = 400, d: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def ids(n: int) -> list[str]:
    return [f"i{i}" for i in range(n)]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stored_codes_are_reproduced_from_what_is_stored(normalise: bool, dtype: type) -> None:
    """METHODS 1a: float64 argmin distances under the stored path give 100 % of the codes resolution left alone."""
    x = (5 + points()).astype(dtype)
    table, made, _ = tokenize(x, ids(400), TokenizeConfig(levels=3, codes=16, normalise_residuals=normalise))
    stored = Codebooks.from_tensors(made.to_tensors(), made.metadata())
    kept, stored_x = ~table.resolved, x.astype(np.float32)
    for level in range(3):
        nearest = stored.distances(stored_x, table.codes, level).argmin(axis=1)
        assert (nearest == table.codes[:, level])[kept].all()
    assert 0 < table.resolved.sum() < 200
    np.testing.assert_array_equal(stored.encode(stored_x)[kept], table.codes[kept])


@pytest.mark.parametrize(("inputs", "residuals"), [(False, True), (True, False), (False, False)])
def test_leaving_out_one_normalisation_loses_codes(inputs: bool, residuals: bool) -> None:
    """Items at very different distances from their group's centre, as texts are."""
    rng = np.random.default_rng(3)
    x = 3 * points(16)[rng.integers(0, 16, 400)] + points(seed=4) * rng.uniform(0.05, 1.5, (400, 1))
    codes, codebooks = rq_kmeans(x, SMALL)
    recipe = replace(codebooks.recipe, normalise_input=inputs, normalise_residuals=residuals)
    agreement = (replace(codebooks, recipe=recipe).nearest(x, codes) == codes).mean(axis=0)
    assert agreement.min() < 0.85


def test_same_input_and_seed_give_the_same_table_and_another_seed_another() -> None:
    x = points()
    a, b = (tokenize(x, ids(400), SMALL)[0] for _ in range(2))
    assert a.digest == b.digest
    assert tokenize(x, ids(400), TokenizeConfig(levels=3, codes=16, iterations=8, seed=1))[0].digest != a.digest


def test_tokenizing_leaves_global_state_as_it_was() -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - reading the global state is the point
    tokenize(points(), ids(400), SMALL)
    assert faiss.omp_get_max_threads() == before
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_planted_clusters_are_found() -> None:
    """Eight far groups: the first code is the group, whatever lies below it."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 40)
    x = 10 * np.eye(8)[group] + 0.1 * rng.normal(size=(320, 8))
    codes, _ = rq_kmeans(x, TokenizeConfig(levels=2, codes=8))
    pairs = {(g, c) for g, c in zip(group.tolist(), codes[:, 0].tolist(), strict=True)}
    assert len(pairs) == len({c for _, c in pairs}) == 8


def test_every_level_brings_points_nearer_to_their_items() -> None:
    x = points()
    codes, codebooks = rq_kmeans(x, SMALL)
    errors = [((x - codebooks.point(np.where(np.arange(3) < n, codes, -1))) ** 2).sum(1).mean() for n in range(4)]
    assert all(a > b for a, b in pairwise(errors))


@pytest.mark.parametrize("n", [1, 2, 5, 15, 16, 17])
def test_catalogues_smaller_than_a_codebook(n: int) -> None:
    x = points(n)
    table, codebooks, report = tokenize(x, ids(n), SMALL)
    assert report.collision_after == 0
    np.testing.assert_array_equal(codebooks.nearest(x, table.codes)[~table.resolved], table.codes[~table.resolved])
    assert [v.shape for v in codebooks.vectors] == [(16, 12)] * 3


def test_a_large_catalogue_is_coded_in_blocks_by_codewords_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are still those that the stored codebooks give, and nearly as near as those of k-means on everything."""
    x = points(3000)
    config = TokenizeConfig(levels=3, codes=16, iterations=8)
    whole, all_books = rq_kmeans(x, config)
    monkeypatch.setattr(quantize, "_EACH", 2)
    for size in (3000, 3001):
        monkeypatch.setattr(quantize, "_SAMPLE", size)
        same, books = rq_kmeans(x, config)
        assert same.tobytes() == whole.tobytes()
        assert all(a.tobytes() == b.tobytes() for a, b in zip(books.vectors, all_books.vectors, strict=True))
    monkeypatch.setattr(quantize, "_SAMPLE", 1000)
    monkeypatch.setattr(quantize, "UNIT", 700)
    codes, books = rq_kmeans(x, config)
    assert codes.shape == (3000, 3)
    np.testing.assert_array_equal(codes, books.encode(x))
    assert any((a != b).any() for a, b in zip(books.vectors, all_books.vectors, strict=True))
    errors = [np.square(x - b.point(c)).sum(1).mean() for c, b in ((codes, books), (whole, all_books))]
    assert errors[0] < 1.05 * errors[1]
    assert rq_kmeans(x, config)[0].tobytes() == codes.tobytes()


def test_copies_of_one_item_get_different_sids() -> None:
    x = np.repeat(points(3), 30, axis=0)
    table, codebooks, report = tokenize(x, ids(90), SMALL)
    assert report.collision_before == 1.0
    assert len(np.unique(table.codes, axis=0)) == 90
    kept = ~table.resolved
    assert kept.sum() == 3
    np.testing.assert_array_equal(codebooks.nearest(x, table.codes)[kept], table.codes[kept])


def test_items_without_any_text_have_no_direction_and_still_a_sid() -> None:
    x = points(60)
    x[:10] = 0
    table, _, report = tokenize(x, ids(60), SMALL)
    assert report.collision_after == 0
    assert table.present.all()


def test_collisions_stay_when_asked_for() -> None:
    table, _, report = tokenize(points(), ids(400), TokenizeConfig(levels=2, codes=8, resolve="none"))
    assert report.collision_after == report.collision_before > 0
    assert not table.resolved.any()
    assert table.schema.collisions == "allowed"


def test_fitting_gives_back_the_codebooks_a_table_was_made_with() -> None:
    """Clusters so tight that the mean of a code's residuals is its codeword: agreement is whole, points are near."""
    rng = np.random.default_rng(1)
    a, b = 10 * rng.normal(size=(6, 12)), rng.normal(size=(5, 12))
    codes = np.stack([rng.integers(0, 6, 600), rng.integers(0, 5, 600)], axis=1)
    x = a[codes[:, 0]] + b[codes[:, 1]] + 0.01 * rng.normal(size=(600, 12))
    table = SidTable.build(ids(600), codes, SidSchema.native((6, 5), "allowed"))
    fitted = fit_codebooks(x, table)
    assert fitted.fitted
    assert min(fitted.agreement) > 0.99
    assert np.linalg.norm(x - fitted.point(codes), axis=1).mean() < 0.2 * np.linalg.norm(b, axis=1).mean()


def test_fitting_finds_the_recipe_and_agrees_as_it_says() -> None:
    x = points(600) * np.random.default_rng(5).uniform(0.2, 5, (600, 1)).astype(np.float32)
    codes, _ = rq_kmeans(x, SMALL)
    table = SidTable.build(ids(600), codes, SidSchema.native((16,) * 3, "allowed"))
    fitted = fit_codebooks(x, table)
    assert (fitted.recipe.normalise_input, fitted.recipe.normalise_residuals) == (True, True)
    assert min(fitted.agreement) > 0.9
    np.testing.assert_allclose(fitted.agreement, (fitted.nearest(x, codes) == codes).mean(axis=0), atol=0.005)


def test_fitting_meaningless_codes_says_so() -> None:
    rng = np.random.default_rng(2)
    table = SidTable.build(ids(800), rng.integers(0, 16, (800, 2)), SidSchema.native((16, 16), "allowed"))
    assert max(fit_codebooks(points(800), table).agreement) < 0.4


def test_fitting_ignores_items_without_a_sid_and_never_chooses_unused_codes() -> None:
    x = points(300)
    codes, _ = rq_kmeans(x, SMALL)
    schema = SidSchema.native((40,) * 3, "allowed")
    whole = SidTable.build(ids(300), codes, schema)
    codes[:50] = -1
    x2 = x.copy()
    x2[:50] = 1e3
    partial = fit_codebooks(x2, SidTable.build(ids(300), codes, schema))
    rest = fit_codebooks(x[50:], SidTable.build(ids(300)[50:], whole.codes[50:], schema))
    for a, b in zip(partial.vectors, rest.vectors, strict=True):
        np.testing.assert_array_equal(a, b)
    assert partial.encode(x).max() < 16


@pytest.mark.parametrize(
    "wrong", [{"levels": 0}, {"codes": 1}, {"iterations": 0}, {"threads": 0}, {"seed": -1}, {"resolve": "maybe"}]
)
def test_a_config_that_cannot_be_used_is_refused(wrong: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TokenizeConfig(**wrong)


def test_unusable_embeddings_are_named() -> None:
    bad = points(20)
    bad[7, 3] = np.nan
    with pytest.raises(DataError, match=r"item 7 .*NaN"):
        tokenize(bad, ids(20), SMALL)
    with pytest.raises(DataError, match="20 embeddings for 19 items"):
        tokenize(points(20), ids(19), SMALL)
    with pytest.raises(DataError, match="hold nothing"):
        tokenize(np.zeros((0, 4)), [], SMALL)
    with pytest.raises(UsageError, match="cannot have different SIDs"):
        tokenize(points(20), ids(20), TokenizeConfig(levels=1, codes=16))
    with pytest.raises(DataError, match="3 embeddings for 4 items"):
        fit_codebooks(points(3), SidTable.build(ids(4), np.arange(4)[:, None]))
    with pytest.raises(DataError, match="No item"):
        fit_codebooks(points(2), SidTable.build(ids(2), np.full((2, 1), -1), SidSchema.native((2,))))


@pytest.mark.slow
def test_a_real_catalogue_is_used_evenly_and_without_collisions(data_directory: Path) -> None:
    """FORMATS trap 8: whitened text, normalised residuals, resolution; perplexity of 200 of 256 on every level."""
    from recerase.catalog import embed
    from recerase.catalog.items import load_items

    folder = data_directory / "amazon_industrial"
    if not folder.is_dir():
        pytest.skip("amazon_industrial is not there")
    items = load_items(folder)
    x = embed.text_embeddings(items)
    table, codebooks, report = tokenize(x, items.item_ids, TokenizeConfig())
    assert report.collision_after == 0
    assert min(report.perplexity) >= 200
    kept = ~table.resolved
    np.testing.assert_array_equal(codebooks.nearest(x, table.codes)[kept], table.codes[kept])
    theirs = read_json_table(folder / "sids.json").aligned(items.item_ids)
    assert fit_codebooks(x, theirs).agreement[0] > 0.5  # made from other embeddings of the same texts
