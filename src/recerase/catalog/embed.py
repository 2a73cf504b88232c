"""An embedding for every item: from its text, or from a file that someone else made.

The default needs no model and no network: TF-IDF, truncated SVD, whitening. Whitening is what keeps a quantiser
from spending its codes on the few directions (department, brand) that dominate the raw SVD.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recerase.catalog.columns import first_duplicate
from recerase.catalog.files import parquet_names, parquet_table, read_file
from recerase.catalog.items import Items
from recerase.errors import ArtefactError, DataError, PickleError, UsageError
from recerase.types import FloatArray, IntArray

_TOKEN = r"(?u)\b\w\w+\b"
_FREE_BYTES, _UNFOLDED = 64 << 20, 50
"""Bytes an .npz may unfold to whatever its size, and times its size beyond them: vectors hardly compress."""


def documents(items: Items) -> list[str]:
    """[N] one text an item: its title twice, then categories, brand and description."""
    return [
        " ".join([title, title, *categories, brand or "", description])
        for title, categories, brand, description in zip(
            items.titles, items.categories, items.brands, items.descriptions, strict=True
        )
    ]


def text_embeddings(items: Items, dims: int = 128, seed: int = 0, fit_to: IntArray | None = None) -> FloatArray:
    """float32 [N, D] whitened TF-IDF + SVD of the items' texts, rows of length 1; D = `dims`.

    Word 1- and 2-grams, sublinear term frequency; truncated SVD; each dimension then has mean 0 and variance 1
    over the catalogue before rows are scaled. Dimensions beyond the rank of the catalogue's text are 0, and so is
    an item without any text. BLAS is held to one thread meanwhile, so that the result depends on `seed` and not on the
    machine's load or cores. With `fit_to` (rows of `items`, in the order of an earlier catalogue) words, directions and
    whitening are those of these items alone: they get the embeddings they had, and the others join them where they are.
    Raises DataError when no item has text.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    texts = documents(items)
    joining = np.setdiff1d(np.arange(len(items)), fit_to) if fit_to is not None else np.zeros(0, np.int64)
    rows = np.arange(len(items)) if fit_to is None else np.asarray(fit_to, np.int64)
    out = np.zeros((len(items), dims), np.float32)
    with threadpool_limits(1):
        space, out[rows] = TextSpace.fit([texts[row] for row in rows], dims, seed)
        if len(joining):
            out[joining] = space.embed([texts[row] for row in joining])
    return out


@dataclass(frozen=True)
class TextSpace:
    """Words, directions and whitening, fitted to some texts; any other text is embedded among them."""

    vectorizer: Any
    svd: Any
    centre: FloatArray
    """float64 [R] mean of the fitted texts before whitening; likewise `scale`, their deviation."""
    scale: FloatArray
    dims: int

    @classmethod
    def fit(cls, texts: list[str], dims: int, seed: int) -> tuple[TextSpace, FloatArray]:
        """The space of S texts, and their float32 [S, D] embeddings. Raises DataError when they hold no words."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(text.strip() for text in texts):
            raise DataError("No item has a title, category, brand or description.", "Give embeddings of your own.")
        rare = 2 if len(texts) >= 200 else 1
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=rare, sublinear_tf=True, token_pattern=_TOKEN)
        try:
            weights = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise DataError(
                "The items' texts hold no words that could be embedded.", "Give embeddings of your own."
            ) from error
        svd = TruncatedSVD(max(1, min(dims, weights.shape[1] - 1, weights.shape[0] - 1)), n_iter=5, random_state=seed)
        points = svd.fit_transform(weights).astype(np.float64)
        centre = points.mean(axis=0)
        space = cls(vectorizer, svd, centre, (points - centre).std(axis=0), dims)
        return space, space._placed(points, weights)

    def embed(self, texts: list[str]) -> FloatArray:
        """float32 [N, D] of texts that need not be the fitted ones; each on its own, whatever is beside it."""
        weights = self.vectorizer.transform(texts)
        return self._placed(self.svd.transform(weights).astype(np.float64), weights)

    def _placed(self, points: FloatArray, weights: Any) -> FloatArray:
        out = np.zeros((len(points), self.dims), np.float32)
        out[:, : points.shape[1]] = _whiten(points, self.centre, self.scale)
        out[np.asarray(weights.getnnz(axis=1) == 0)] = 0
        return out


def sentence_embeddings(items: Items, model_dir: str | os.PathLike[str]) -> FloatArray:
    """float32 [N, D] from a sentence-transformers model in a local directory, rows of length 1.

    Raises UsageError when the `text` extra is not installed, ArtefactError when there is no such directory.
    """
    directory = Path(model_dir)
    if not directory.is_dir():
        raise ArtefactError(
            f"There is no model directory {directory}.", "Download the model first; recerase never reaches the network."
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UsageError(
            "Sentence embeddings need sentence-transformers.", "Install it with: pip install 'recerase[text]'"
        ) from error
    model = SentenceTransformer(str(directory), local_files_only=True)
    vectors = model.encode(documents(items), normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(vectors, np.float32)


def load_embeddings(path: str | os.PathLike[str], items: Items) -> FloatArray:
    """float32 [N, D] embeddings from .npy, .npz, .safetensors (one array, rows as in items.parquet) or .parquet.

    A parquet file has columns item_id and vector and may be in any order and hold further items. Raises DataError
    (unreadable, not [N, D], NaN or infinity, an item without a vector) and PickleError (an object array, a pickle).
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            f"{path} is a directory, and embeddings are read from one file here.",
            "Give one .npy, .npz, .safetensors or .parquet file, or SIDs tokenized with --keep-embeddings.",
        )
    if not path.is_file():
        raise DataError(f"There is no embeddings file {path}.", "Check the path.")
    readers = {".npy": _numpy, ".npz": _numpy, ".safetensors": _safetensors}
    suffix = path.suffix.lower()
    if suffix in {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}:
        raise PickleError(
            f"{path.name} is a pickle, which can run code when it is read.",
            "Save it as .npy, .safetensors or .parquet.",
        )
    if suffix == ".parquet":
        array = _parquet(path, items)
    elif suffix in readers:
        array = readers[suffix](path)
    else:
        raise DataError(
            f"{path.name} is not an embeddings file that recerase reads.", "Use .npy, .npz, .safetensors or .parquet."
        )
    return _checked(array, path.name, len(items))


def _whiten(points: FloatArray, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """[N, D] less `centre`, over `scale` (0 where a dimension is constant), then of length 1."""
    points = points - centre
    live = scale > 1e-9 * max(scale.max(), 1e-300)
    points = np.where(live, points / np.where(live, scale, 1), 0)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(norms > 0, norms, 1)


def _checked(array: Any, name: str, n_items: int) -> FloatArray:
    if array.ndim != 2 or array.shape[1] == 0 or not np.issubdtype(array.dtype, np.number):
        raise DataError(f"{name} holds {array.dtype} {list(array.shape)}.", "Give one row of numbers an item.")
    if len(array) != n_items:
        raise DataError(
            f"{name} has {len(array)} rows, but the catalogue has {n_items} items.",
            "Give one row an item in the order of items.parquet, or a parquet file with item_id and vector.",
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(broken):
        raise DataError(
            f"{name} has NaN or infinity in row {broken[0]} ({len(broken)} such rows).", "Embed these items again."
        )
    return array


def _numpy(path: Path) -> Any:
    try:
        data = io.BytesIO(read_file(path))
        if zipfile.is_zipfile(data):
            return _zipped(data, path.name)
        data.seek(0)
        return np.load(data, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        if "pickle" in str(error).lower():
            raise PickleError(
                f"{path.name} holds a pickle, which can run code when it is read.", "Save it as a plain float array."
            ) from error
        raise DataError(f"{path.name} cannot be read as a numpy array.", "Write it again with numpy.save.") from error


def _zipped(data: io.BytesIO, name: str) -> Any:
    with zipfile.ZipFile(data) as archive:
        unfolded = sum(member.file_size for member in archive.infolist())
    if unfolded > _FREE_BYTES + _UNFOLDED * data.getbuffer().nbytes:
        raise DataError(f"{name} unfolds to {unfolded:,} bytes, which no embeddings do.", "Save it as .npy.")
    data.seek(0)
    with np.load(data, allow_pickle=False) as loaded:
        return loaded[_the_one(loaded.files, name)]


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(read_file(path))
    except (SafetensorError, ValueError, KeyError, AssertionError, MemoryError) as error:
        raise DataError(f"{path.name} cannot be read as safetensors.", "Write it again.") from error
    return arrays[_the_one(list(arrays), path.name)]


def _the_one(names: Sequence[str], file: str) -> str:
    """The name of the one array of a file, or of the one called `embeddings`."""
    if len(names) == 1 or "embeddings" in names:
        return "embeddings" if "embeddings" in names else names[0]
    raise DataError(
        f"{file} holds {len(names)} arrays ({', '.join(sorted(names)[:5])}).", "Name the right one `embeddings`."
    )


def _parquet(path: Path, items: Items) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    data = read_file(path)
    try:
        found, table = parquet_names(data), parquet_table(data, ("item_id", "vector"))
        if not {"item_id", "vector"} <= set(found):
            raise DataError(f"{path.name} has columns {', '.join(found)}.", "Give columns item_id and vector.")
        ids = table["item_id"].cast(pa.string()).combine_chunks()
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{path.name} cannot be read as parquet ({error!s:.120}).", "Write it again.") from error
    duplicate = first_duplicate(ids)
    if duplicate is not None:
        raise DataError(f"{path.name} has two vectors for item {duplicate}.", "Keep one row an item.")
    rows = pc.index_in(pa.array(items.item_ids, pa.string()), value_set=ids)
    if rows.null_count:
        first = items.item_ids[pc.index(rows.is_null(), value=True).as_py()]
        raise DataError(
            f"{path.name} has no vector for item {first} ({rows.null_count} such items).", "Embed every item."
        )
    vectors = table["vector"].combine_chunks()
    kind = vectors.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"Column vector of {path.name} is {kind}.", "Store it as a list of numbers.")
    widths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise DataError(f"The vectors of {path.name} differ in length.", "Give every item a vector of one width.")
    flat = vectors.flatten()
    if flat.null_count:
        raise DataError(f"{path.name} has a null inside a vector.", "Embed these items again.")
    return flat.to_numpy(zero_copy_only=False).reshape(-1, widths[0])[rows.to_numpy(zero_copy_only=False)]
