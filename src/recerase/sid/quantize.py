"""Embeddings to semantic IDs: residual k-means, level by level, then codes that keep SIDs apart.

faiss finds the codewords on a pinned number of threads (another count gives other codewords); which code an item gets
is then decided here, in float64, by the same function that erasing uses later, so the stored codes can be reproduced.
Beyond some ten thousand items the codewords are found on a sample and every item is coded afterwards, a block at a time.
Normalised residuals (as in GRID) keep the deeper levels as evenly used as the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recerase.errors import DataError, UsageError
from recerase.sid.codebooks import Codebooks, Recipe, nearest_codes, unit
from recerase.sid.quality import QualityReport, quality
from recerase.sid.resolve import resolve_collisions
from recerase.sid.table import SidSchema, SidTable
from recerase.types import FloatArray, IntArray

__all__ = [
    "Codebooks",
    "Recipe",
    "TokenizeConfig",
    "beyond_chance",
    "checked",
    "fit_codebooks",
    "kmeans",
    "resolve_collisions",
    "rq_kmeans",
    "spell",
    "tokenize",
]

_SAMPLE, _EACH = 1 << 16, 256
"""Items that codewords are found on: at most the first number, or the second a codeword where that is more."""
UNIT = 1 << 14
"""Items summed at a time for the mean: the same pieces wherever the embeddings come from, so that it is the same to the bit."""
_FAR = 4.0
"""Where codes of unknown meaning lie, in lengths of the longest residual: never the nearest of any item."""
_DISTINCT = 5
"""Decimals in which two residuals must differ to be two."""
_BESIDE = 1e-2
"""Distance of a spare codeword from the one it stands beside: far above rounding, far below real gaps."""


@dataclass(frozen=True)
class TokenizeConfig:
    """How items become SIDs."""

    levels: int = 3
    codes: int = 256
    """K, the same at every level."""
    iterations: int = 25
    """k-means iterations a level."""
    seed: int = 0
    threads: int = 1
    """faiss threads; other counts may give other codes."""
    normalise_residuals: bool = True
    """Scale embeddings and residuals to length 1 before each level."""
    resolve: Literal["next-nearest", "none"] = "next-nearest"
    """What happens to items that share a SID."""

    def __post_init__(self) -> None:
        lower = {"levels": 1, "codes": 2, "iterations": 1, "threads": 1, "seed": 0}
        wrong = [f"{name} must be at least {least}" for name, least in lower.items() if getattr(self, name) < least]
        if self.resolve not in ("next-nearest", "none"):
            wrong.append(f"resolve must be next-nearest or none, not {self.resolve}")
        if wrong:
            raise UsageError(f"SIDs cannot be made so: {'; '.join(wrong)}.", "Correct these values.")


def rq_kmeans(embeddings: FloatArray, config: TokenizeConfig) -> tuple[IntArray, Codebooks]:
    """Codes int32 [N, L] and the codebooks they come from, for embeddings [N, D]. SIDs may still collide.

    `codebooks.encode(embeddings)` gives the same codes again, always. With fewer distinct residuals than K the
    spare codewords lie close beside the others; no item has one of them until collisions are resolved. Beyond 65,536 items
    (256 a codeword, where that is more) the codewords are those of a sample drawn with the seed.

    Raises:
        DataError: no items, NaN or infinity.
    """
    points = checked(embeddings)
    rows = sample_rows(len(points), config)
    sums = [unit_sum(points[at : at + UNIT]) for at in range(0, len(points), UNIT)]
    codes, codebooks = codewords(points if rows is None else points[rows], centre_of(sums, len(points)), config)
    return (codes if rows is None else codebooks.encode(points)), codebooks


def sample_rows(n_items: int, config: TokenizeConfig) -> IntArray | None:
    """int64 [S], ascending: the items that codewords are found on; None for all, when they are few enough."""
    size = max(_SAMPLE, _EACH * config.codes)
    if n_items <= size:
        return None
    return np.sort(np.random.default_rng(config.seed).choice(n_items, size, replace=False))


def unit_sum(points: FloatArray, before: FloatArray | None = None) -> FloatArray:
    """float64 [D] sum of up to `UNIT` embeddings: the piece in which sums are made, in memory and in a stream.

    Of a unit in parts, `before` is the sum of the parts above: rows are added one after the other, as in one part.
    """
    rows = points if before is None else np.concatenate([before[None], points])
    total: FloatArray = rows.sum(axis=0, dtype=np.float64)
    return total


def centre_of(sums: Sequence[FloatArray], n_items: int) -> FloatArray:
    """float32 [D] mean embedding, from the sums of all units in their order."""
    total = np.zeros_like(sums[0])
    for part in sums:
        total += part
    return (total / n_items).astype(np.float32)


def codewords(sample: FloatArray, centre: FloatArray, config: TokenizeConfig) -> tuple[IntArray, Codebooks]:
    """Codes int32 [S, L] of a sample [S, D] float32, and the codebooks found on it."""
    recipe = Recipe(centre, config.normalise_residuals, config.normalise_residuals)
    vectors: list[FloatArray] = []
    scales: list[float] = []
    codes: list[IntArray] = []
    raw = sample.astype(np.float64) - centre.astype(np.float64)
    for level in range(config.levels):
        scales.append(float(np.linalg.norm(raw, axis=1).mean()) if config.normalise_residuals else 1.0)
        residual = unit(raw) if config.normalise_residuals else raw
        vectors.append(kmeans(residual, config, config.seed + level))
        codes.append(nearest_codes(residual, vectors[-1]))
        raw = residual - vectors[-1].astype(np.float64)[codes[-1]]
    codebooks = Codebooks(tuple(vectors), recipe, False, (1.0,) * config.levels, tuple(scales))
    return np.stack(codes, axis=1).astype(np.int32), codebooks


def fit_codebooks(embeddings: FloatArray, table: SidTable) -> Codebooks:
    """Codebooks for a table that was made elsewhere: what its codes mean in the space of `embeddings` [N, D].

    Level by level the codeword of a code is the mean (the least-squares fit) of the residuals of the items that have
    it. Its recipe is not known, so both normalisations are tried with and without, and the one under which the most
    stored codes are the nearest ones is kept. `agreement` says how well that worked, a level; chance is about 1 / K.
    A code that no item has is put far outside, so that it is never the nearest.

    Raises:
        DataError: the embeddings are not one finite row an item, or no item has a SID.
        UsageError: SIDs differ in length.
    """
    points = checked(embeddings)
    if len(points) != len(table):
        raise DataError(f"{len(points)} embeddings for {len(table)} items.", "Give one row an item of the table.")
    table.require_one_length("Fitting codebooks")
    points, codes = points[table.present], table.codes[table.present]
    if not len(points):
        raise DataError("No item of the table has a SID.", "Tokenize the catalogue first.")
    candidates = [_fit(points, codes, table.schema, x, r) for x in (False, True) for r in (False, True)]
    return max(candidates, key=lambda found: float(np.mean(found.agreement)))


def beyond_chance(embeddings: FloatArray, table: SidTable, codebooks: Codebooks) -> float:
    """How much of the first codes fitted codebooks explain: 1 all, 0 or less no more than of the same table shuffled.

    Fitting alone reproduces some codes of any table, and most of a small one; this is `agreement` with that taken off.
    """
    points, codes = checked(embeddings)[table.present], table.codes[table.present, 0]
    residual = codebooks.enter(points)
    shuffled = np.random.default_rng(0).permutation(codes)
    words = _means(residual, shuffled, table.schema.codes[0])
    chance = float((nearest_codes(residual, words) == shuffled).mean())
    return (codebooks.agreement[0] - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def tokenize(
    embeddings: FloatArray, item_ids: Sequence[str] | NDArray[Any], config: TokenizeConfig
) -> tuple[SidTable, Codebooks, QualityReport]:
    """A SID for each of N items: table, codebooks, and how evenly the codes are used.

    Raises:
        DataError: embeddings are not one finite row an item.
        UsageError: there are more items than SIDs.
    """
    if len(embeddings) != len(item_ids):
        raise DataError(f"{len(embeddings)} embeddings for {len(item_ids)} items.", "Give one row an item.")
    before, codebooks = rq_kmeans(embeddings, config)
    table, report = spell(embeddings, item_ids, before, codebooks, config)
    return table, codebooks, report


def spell(
    embeddings: FloatArray,
    item_ids: Sequence[str] | NDArray[Any],
    before: IntArray,
    codebooks: Codebooks,
    config: TokenizeConfig,
) -> tuple[SidTable, QualityReport]:
    """The table of codes `before` [N, L], collisions resolved as `config` says. Raises UsageError: more items than SIDs."""
    resolving = config.resolve == "next-nearest"
    codes, resolved = before, np.zeros(len(before), bool)
    if resolving:
        codes, resolved = resolve_collisions(before, codebooks, embeddings)
    schema = SidSchema.native([config.codes] * config.levels, "unique" if resolving else "allowed")
    table = SidTable.build(item_ids, codes, schema, resolved=resolved)
    return table, quality(table, before)


def _fit(points: FloatArray, codes: IntArray, schema: SidSchema, inputs: bool, residuals: bool) -> Codebooks:
    """The codebooks of one recipe for points [N, D] with codes [N, L]."""
    centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
    raw = points.astype(np.float64) - centre.astype(np.float64)
    vectors: list[FloatArray] = []
    scales: list[float] = []
    agreement: list[float] = []
    for level, size in enumerate(schema.codes):
        normalised = residuals if level else inputs
        scales.append(float(np.linalg.norm(raw, axis=1).mean()) if normalised else 1.0)
        residual = unit(raw) if normalised else raw
        code = codes[:, level]
        words = _means(residual, code, size)
        vectors.append(words)
        agreement.append(float((nearest_codes(residual, words) == code).mean()))
        raw = residual - words.astype(np.float64)[code]
    return Codebooks(tuple(vectors), Recipe(centre, inputs, residuals), True, tuple(agreement), tuple(scales))


def _means(residual: FloatArray, code: IntArray, size: int) -> FloatArray:
    """float32 [K, D] mean residual a code; codes without items lie 4 of the longest residual away from 0."""
    counts = np.bincount(code, minlength=size)
    sums = np.zeros((size, residual.shape[1]))
    np.add.at(sums, code, residual)
    words = sums / np.maximum(counts, 1)[:, None]
    longest = float(np.linalg.norm(residual, axis=1).max()) or 1.0
    away = unit(np.random.default_rng(0).normal(size=words.shape)) * _FAR * longest
    return np.where(counts[:, None] > 0, words, away).astype(np.float32)


def kmeans(residual: FloatArray, config: TokenizeConfig, seed: int) -> FloatArray:
    """float32 [K, D] centroids of residuals [N, D]; fewer distinct rows than K: the rows, then points beside them."""
    import faiss

    rows = np.ascontiguousarray(residual, np.float32)
    distinct = rows[: 4 * config.codes]
    for some in (distinct, rows):  # nearly always the first few settle it, and comparing all rows takes long
        distinct = some[np.unique(some.round(_DISTINCT), axis=0, return_index=True)[1]]
        if len(distinct) > config.codes:
            break
    else:
        turn, which = np.divmod(np.arange(config.codes), len(distinct))
        aside = unit(np.random.default_rng(seed).normal(size=(config.codes, rows.shape[1])))
        words: FloatArray = distinct[which] + (_BESIDE * turn[:, None] * aside).astype(np.float32)
        return words
    search = faiss.Kmeans(
        rows.shape[1],
        config.codes,
        niter=config.iterations,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(rows),
    )
    with _faiss_threads(config.threads):
        search.train(rows)
    centroids: FloatArray = np.asarray(search.centroids, np.float32).reshape(config.codes, -1)
    return centroids


@contextmanager
def _faiss_threads(threads: int) -> Iterator[None]:
    """faiss on `threads` threads inside, as it was before outside."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def checked(embeddings: FloatArray) -> FloatArray:
    """float32 [N, D], the precision in which embeddings are stored."""
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise DataError(f"Embeddings of shape {list(embeddings.shape)} hold nothing.", "Give one row an item.")
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(embeddings, np.float32)
    broken = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(broken):
        raise DataError(
            f"The embedding of item {broken[0]} has NaN or infinity ({len(broken)} such items).", "Embed them again."
        )
    return points
