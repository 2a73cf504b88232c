"""Embeddings of items from their own words, for a catalogue of any size.

The one decision: words, directions and whitening are fitted to a sample drawn with the seed, and every item, in the sample or not, is
then embedded by itself. So an embedding depends on the item and the sample, never on the block it came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from recerase.catalog.dataset import ID, WORDS, Block, Dataset
from recerase.catalog.embed import TextSpace
from recerase.disk import Scratch
from recerase.errors import DataError
from recerase.parallel import Workers
from recerase.store import sha256_bytes
from recerase.types import SILENT, FloatArray, Observer

FITTED = 1 << 15
"""Items that the text embedding is fitted to, at most."""
_BLOCK = 1 << 12


class Embedded:
    """The items of a dataset with embeddings that lie in files of float32 rows, one file after the other."""

    def __init__(self, items: Dataset, paths: list[Path], width: int) -> None:
        self._items, self._paths, self.width = items, paths, width

    def __len__(self) -> int:
        return len(self._items)

    def ids(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[pa.Array]:
        """Item ids, as `Dataset.ids`."""
        return self._items.ids(size, start, stop)

    def vectors(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[FloatArray]:
        """float32 [size, D] the rows from `start` to `stop`, and fewer at the end."""
        stop = len(self) if stop is None else stop
        for at in range(start, stop, size):
            yield self._read(at, min(at + size, stop))

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Ids and embeddings together."""
        for ids, vectors in zip(self.ids(size, start, stop), self.vectors(size, start, stop), strict=True):
            yield Block(start, ids, vectors)
            start += len(ids)

    def _read(self, start: int, stop: int) -> FloatArray:
        found, at = [], 0
        for path in self._paths:
            there = path.stat().st_size // (4 * self.width)
            low, high = max(start - at, 0), min(stop - at, there)
            if low < high:
                found.append(np.fromfile(path, "<f4", (high - low) * self.width, offset=4 * self.width * low))
            at += there
        return np.concatenate(found).reshape(-1, self.width)


def embedded(
    items: Dataset,
    dims: int,
    seed: int,
    home: Path,
    span: tuple[int, int],
    crew: Workers | None = None,
    observer: Observer = SILENT,
) -> tuple[Embedded, int]:
    """All items with an embedding `dims` wide, kept in a file in `home` a process; and how many they were fitted to.

    `span` are the rows of this process. Raises DataError: no item of the sample has words, a column is missing or of another
    kind, or the processes of `crew` do not come to the same embedding.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    crew = crew or Workers()
    rows = np.arange(len(items))
    if len(rows) > FITTED:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), FITTED, replace=False))
    columns = [name for name in (ID, *WORDS) if items.has(name) or name != "brand"]
    for name in columns:
        items.require(name)
    observer.start("fit words", None)
    with threadpool_limits(1):
        space, _ = TextSpace.fit(documents(items.rows(rows, columns)), dims, seed)
    same = crew.gathered(sha256_bytes(np.ascontiguousarray(space.svd.components_).tobytes()))
    if len(set(same)) > 1:
        raise DataError(
            "The processes of this run do not embed the items' words alike.",
            "Give every machine the same inputs and versions.",
        )
    observer.finish("fit words")
    paths = [home / f"embedded-{rank}" for rank in range(crew.size)]
    observer.start("embed", span[1] - span[0])
    with Scratch([paths[crew.rank]]) as file, threadpool_limits(1):
        for table in items.tables(columns, _BLOCK, *span):
            file.append(0, np.ascontiguousarray(space.embed(documents(table)), "<f4").data)
            observer.advance("embed", len(table))
    observer.finish("embed")
    crew.wait()
    return Embedded(items, paths, dims), len(rows)


def documents(table: pa.Table) -> list[str]:
    """[n] one text an item of a table with the columns of items.parquet: as `embed.documents`."""
    columns = (table[name].to_pylist() for name in WORDS)
    return [
        " ".join([title or "", title or "", *(name for name in names or () if name), brand or "", description or ""])
        for title, description, names, brand in zip(*columns, strict=True)
    ]
