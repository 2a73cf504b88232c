"""The codewords behind the codes, and the exact recipe by which residuals are made from embeddings.

A codebook without its recipe is worthless: leaving out one normalisation changes between a sixth and two thirds of the
codes. So the recipe is stored with the vectors and never guessed, embeddings are read at the float32 precision they
are stored in, and every comparison that decides a code is made in float64 (float32 flips about 1 % of them). Where
float32 leaves one candidate by more than it can be wrong, there is nothing to decide, which is so for nearly every item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recerase.errors import DataError, TableError
from recerase.types import FloatArray, IntArray

_REMEDY = "Codebooks and table do not belong together: tokenize again, or restore the directory."
_VANISHED = 1e-6
"""A residual shorter than this is rounding of the float32 codewords; it becomes 0, not a random direction."""
_TIE = 1e-12
"""Squared distances closer than this are equal: far above float64 rounding, far below any real gap."""
_BLOCK = 1 << 18
"""Numbers in one block of embeddings or distances: what a processor's cache holds."""
_ROUND32, _ROUND64 = 2.0**-23, 2.0**-52
"""Twice the relative rounding of one operation in float32 and in float64."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """How an embedding becomes the residual entering each level.

    r_0 = x - centre, of length 1 if `normalise_input`; r_l+1 = r_l - codeword_l, of length 1 if `normalise_residuals`.
    """

    centre: FloatArray
    """float32 [D] subtracted from every embedding."""
    normalise_input: bool
    normalise_residuals: bool


@dataclass(frozen=True, eq=False)
class Codebooks:
    """The codewords of each level in the space of the item embeddings."""

    vectors: tuple[FloatArray, ...]
    """vectors[l] float32 [K_l, D]."""
    recipe: Recipe
    fitted: bool
    """True: fitted to a table that was made elsewhere. False: the table was made with these."""
    agreement: tuple[float, ...]
    """Share of the items, a level, whose stored code is the nearest one under the stored path; 1.0 for our own."""
    scales: tuple[float, ...] | None = None
    """Mean length of the residual entering each level before it was normalised (1.0 where it is not); None = all 1."""

    @property
    def levels(self) -> int:
        return len(self.vectors)

    def enter(self, embeddings: FloatArray) -> FloatArray:
        """float64 [N, D] the residual entering the first level.

        Raises:
            DataError: the embeddings have another width than the codewords.
        """
        width = len(self.recipe.centre)
        if embeddings.ndim != 2 or embeddings.shape[1] != width:
            raise DataError(
                f"Embeddings of shape {list(embeddings.shape)} do not fit codebooks of width {width}.",
                "Use the embeddings that the SIDs were made from.",
            )
        x = np.asarray(embeddings, np.float32).astype(np.float64) - np.asarray(self.recipe.centre, np.float64)
        return unit(x) if self.recipe.normalise_input else x

    def leave(self, residual: FloatArray, codes: IntArray, level: int) -> FloatArray:
        """float64 [N, D] the residual entering `level` + 1, from the one entering `level` and its codes [N].

        A code of -1 (no SID) subtracts nothing.
        """
        rest = residual - np.asarray(self.vectors[level])[np.maximum(codes, 0)].astype(np.float64)
        absent = codes < 0
        rest[absent] = residual[absent]
        return unit(rest) if self.recipe.normalise_residuals else rest

    def residuals(self, embeddings: FloatArray, codes: IntArray) -> FloatArray:
        """float64 [L, N, D] the residual entering each level under the stored path `codes` [N, >= L].

        L is the number of codebooks; further columns of `codes` (a level that only tells twins apart) have none.
        """
        return np.stack([residual for _, residual in self._walk(embeddings, codes)])

    def distances(self, embeddings: FloatArray, codes: IntArray, level: int) -> FloatArray:
        """float64 [N, K_l] squared distances of residuals entering `level` under the stored path to codewords."""
        for reached, residual in self._walk(embeddings, codes):
            if reached == level:
                return squared_distances(residual, self.vectors[level])
        raise TableError(f"There is no codebook for level {level}; there are {self.levels}.", _REMEDY)

    def nearest(self, embeddings: FloatArray, codes: IntArray) -> IntArray:
        """int32 [N, L] the code nearest to the residual entering each level under the stored path `codes` [N, >= L].

        With our own codebooks it is the stored code, for every item whose code collision resolution left alone.
        """
        found = [nearest_codes(residual, self.vectors[level]) for level, residual in self._walk(embeddings, codes)]
        return np.stack(found, axis=1).astype(np.int32)

    def encode(self, embeddings: FloatArray) -> IntArray:
        """int32 [N, L] the nearest code at each level in turn; ties go to the lowest code."""
        step = max(1, _BLOCK // max(1, len(self.recipe.centre)))
        starts = range(0, max(1, len(embeddings)), step)
        return np.concatenate([self.complete(self.enter(embeddings[at : at + step]), 0) for at in starts])

    def complete(self, residual: FloatArray, level: int) -> IntArray:
        """int32 [N, L - level] the nearest codes from `level` on, for residuals [N, D] entering it."""
        chosen = []
        for here in range(level, self.levels):
            codes = nearest_codes(residual, self.vectors[here])
            chosen.append(codes)
            residual = self.leave(residual, codes, here)
        return np.stack(chosen, axis=1).astype(np.int32) if chosen else np.zeros((len(residual), 0), np.int32)

    def point(self, codes: IntArray) -> FloatArray:
        """float64 [..., D] where SIDs `codes` [..., L] lie in the space of the embeddings.

        centre + s_0 (c_0 + s_1 (c_1 + ...)): the plain sum of codewords without normalisation; with it, each length
        that was divided away is put back as its mean over the catalogue (`scales`). A code of -1 adds nothing.
        """
        scales = self.scales or (1.0,) * self.levels
        out = np.zeros((*codes.shape[:-1], len(self.recipe.centre)))
        for level in reversed(range(self.levels)):
            code = codes[..., level]
            words = np.asarray(self.vectors[level], np.float64)[np.maximum(code, 0)]
            out = scales[level] * (out + np.where((code >= 0)[..., None], words, 0.0))
        return out + np.asarray(self.recipe.centre, np.float64)

    def to_tensors(self) -> dict[str, FloatArray]:
        """float32 arrays `codebook.<level>` and `centre`; with `metadata`, all there is to keep."""
        out = {f"codebook.{level}": np.ascontiguousarray(v, np.float32) for level, v in enumerate(self.vectors)}
        out["centre"] = np.ascontiguousarray(self.recipe.centre, np.float32)
        return out

    def metadata(self) -> dict[str, Any]:
        """What is not a tensor, as JSON values."""
        return {
            "normalise_input": self.recipe.normalise_input,
            "normalise_residuals": self.recipe.normalise_residuals,
            "fitted": self.fitted,
            "agreement": list(self.agreement),
            "scales": None if self.scales is None else list(self.scales),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, FloatArray], metadata: Mapping[str, Any]) -> Codebooks:
        """The inverse of `to_tensors` and `metadata`. Raises TableError when they are not a whole set of codebooks."""
        names = [f"codebook.{level}" for level in range(len(tensors) - 1)]
        try:
            vectors = tuple(np.asarray(tensors[name]) for name in names)
            centre = np.asarray(tensors["centre"])
            flags = [metadata[key] for key in ("normalise_input", "normalise_residuals", "fitted")]
            agreement = tuple(float(share) for share in metadata["agreement"])
            scales = metadata["scales"] if metadata["scales"] is None else tuple(float(s) for s in metadata["scales"])
            if not all(isinstance(flag, bool) for flag in flags):
                raise ValueError("the recipe must be true or false")
            if not vectors or len(agreement) != len(vectors) or (scales is not None and len(scales) != len(vectors)):
                raise ValueError(f"{len(vectors)} levels of codewords, {len(agreement)} of figures")
            if (
                any(not np.issubdtype(v.dtype, np.floating) for v in (centre, *vectors))
                or not np.isfinite(centre).all()
            ):
                raise ValueError("codewords must be finite floating-point numbers")
            if any(v.ndim != 2 or v.shape[1:] != centre.shape or not np.isfinite(v).all() for v in vectors):
                raise ValueError("codewords and centre differ in width, or are not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"The codebooks cannot be used: {error!s:.120}.", _REMEDY) from error
        return cls(vectors, Recipe(centre, flags[0], flags[1]), flags[2], agreement, scales)

    def _walk(self, embeddings: FloatArray, codes: IntArray) -> Iterator[tuple[int, FloatArray]]:
        """Each level and the residual [N, D] entering it under `codes`."""
        if codes.ndim != 2 or len(codes) != len(embeddings) or codes.shape[1] < self.levels:
            raise TableError(
                f"Codes of shape {list(codes.shape)} do not fit {len(embeddings)} embeddings, {self.levels} codebooks.",
                _REMEDY,
            )
        sizes = [len(v) for v in self.vectors]
        if (codes[:, : self.levels] >= sizes).any():
            raise TableError(f"The table uses codes beyond its codebooks of {sizes} codewords.", _REMEDY)
        residual = self.enter(embeddings)
        for level in range(self.levels):
            yield level, residual
            if level + 1 < self.levels:
                residual = self.leave(residual, codes[:, level], level)


def unit(x: FloatArray) -> FloatArray:
    """float64 [N, D] rows of length 1; a row that is only rounding becomes 0."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    out: FloatArray = x / np.maximum(norms, _VANISHED)
    out[~(norms[:, 0] > _VANISHED)] = 0.0
    return out


def squared_distances(residual: FloatArray, vectors: FloatArray) -> FloatArray:
    """float64 [N, K] squared Euclidean distances of residuals [N, D] to codewords [K, D], never negative."""
    words = np.asarray(vectors, np.float64)
    products = residual @ words.T
    out = (residual**2).sum(axis=1)[:, None] - 2.0 * products + (words**2).sum(axis=1)
    return np.maximum(out, 0.0)


def nearest_codes(residual: FloatArray, vectors: FloatArray) -> IntArray:
    """int64 [N] the nearest codeword of each residual, the lowest of equals; in blocks, so memory stays bounded.

    `lowest(squared_distances(residual, vectors))`, always: float32 answers alone only where no other codeword can be as near.
    """
    residual = np.asarray(residual, np.float64)
    out = np.empty(len(residual), np.int64)
    step = max(1, _BLOCK // max(1, *vectors.shape))
    for at in range(0, len(residual), step):
        rows = residual[at : at + step]
        out[at : at + step], doubtful = _candidates(rows, vectors)
        if len(doubtful):
            out[at + doubtful] = lowest(squared_distances(rows[doubtful], vectors))
    return out


def _candidates(residual: FloatArray, vectors: FloatArray) -> tuple[IntArray, IntArray]:
    """The nearest codeword [N] as float32 sees it, and the rows that it cannot be sure of.

    What is compared is r . w - |w|^2 / 2, the larger the nearer. The margin bounds what rounding (any order of summation) can
    do to two of them, in float32 here and in float64 in `squared_distances`, and what `lowest` counts as equal.
    """
    words = np.asarray(vectors, np.float64)
    half = (words**2).sum(axis=1) / 2
    lengths = np.sqrt(np.einsum("nd,nd->n", residual, residual))
    longest = float(np.sqrt(2 * half.max()))
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is in doubt
        near = residual.astype(np.float32) @ words.astype(np.float32).T
        near -= half.astype(np.float32)
        best = near.argmax(axis=1)
        apart = (lengths + longest) ** 2
        rounding = _ROUND32 * (lengths * longest + half.max()) + _ROUND64 * apart
        margin = (residual.shape[1] + 8) * rounding + _TIE * (1.0 + apart)
        least = (near[np.arange(len(near)), best] - margin).astype(np.float32)
        least = np.nextafter(least, np.float32(-np.inf))
        alone = np.count_nonzero(near >= least[:, None], axis=1) == 1
    return best, np.flatnonzero(~(alone & np.isfinite(margin)))


def lowest(distances: FloatArray) -> IntArray:
    """int64 [N] the first column of `distances` [N, K] that is as near as the nearest."""
    least = distances.min(axis=1, keepdims=True)
    return np.argmax(distances <= least + _TIE * (1.0 + least), axis=1)
