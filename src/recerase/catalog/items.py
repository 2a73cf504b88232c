"""The catalogue's items: what can be recommended, one row each, in the order of items.parquet.

Everywhere else an item is its row number here; ids appear only where a person or a file names an item.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recerase.catalog.columns import ITEM_SCHEMA, conform, first_duplicate, require_files, table_of, texts
from recerase.catalog.files import read_data, read_file
from recerase.errors import DataError
from recerase.types import FloatArray, IntArray

ITEMS_FILE = "items.parquet"


@dataclass(frozen=True, eq=False)
class Items:
    """N items; row i of every field is the same item."""

    item_ids: NDArray[Any]
    """[N] object, distinct strings."""
    titles: tuple[str, ...]
    descriptions: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    """Category names of each item, as the source orders them (often from wide to narrow)."""
    brands: tuple[str | None, ...]
    prices: FloatArray
    """[N] float64, nan where there is none."""
    digest: str = field(repr=False)
    """sha256 over the content of every column, in row order."""

    def __len__(self) -> int:
        return len(self.item_ids)

    def index(self, ids: Sequence[str]) -> IntArray:
        """int64 [len(ids)] row numbers of item ids; raises DataError naming the first unknown ones."""
        try:
            wanted = pa.array(list(ids), pa.string())
        except UnicodeEncodeError as error:
            raise DataError(
                "An item id is no valid text.", "Use ids of the item_id column of items.parquet."
            ) from error
        rows = pc.index_in(wanted, value_set=pa.array(self.item_ids, pa.string()))
        if rows.null_count:
            unknown = [i for i, row in zip(ids, rows.to_pylist(), strict=True) if row is None]
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise DataError(
                f"The catalogue has no item {', '.join(unknown[:3])}{more}.",
                "Use ids of the item_id column of items.parquet.",
            )
        return rows.to_numpy(zero_copy_only=False).astype(np.int64)


def load_items(path: str | os.PathLike[str]) -> Items:
    """The items of a parquet file, or of the items.parquet in a data directory.

    Raises DataError: a missing file or column, a wrong type, an id that is null, empty or used twice, no rows; and
    ArtefactError when a manifest stands beside the file and says otherwise.
    """
    path = Path(path)
    file = path / ITEMS_FILE if path.is_dir() else path
    require_files(file)
    data = read_data(path, [ITEMS_FILE])[ITEMS_FILE] if path.is_dir() else read_file(path)
    return items_from_table(table_of(data, ITEM_SCHEMA, file), file.name)


def items_from_table(table: pa.Table, name: str = ITEMS_FILE) -> Items:
    """Items from a pyarrow table with the columns of items.parquet; raises DataError as `load_items` does."""
    table = conform(table, ITEM_SCHEMA, name)
    duplicate = first_duplicate(table["item_id"])
    if duplicate is not None:
        raise DataError(f"{name} lists item {duplicate!r} more than once.", "Keep one row for each item_id.")
    ids = table["item_id"].to_pylist()
    if "" in ids:
        raise DataError(f"{name} has an empty item_id in row {ids.index('')}.", "Give every item an id.")
    titles, descriptions = texts(table, "title"), texts(table, "description")
    categories = tuple(tuple(c for c in cs or () if c) for cs in table["categories"].to_pylist())
    brands = tuple(b or None for b in table["brand"].to_pylist())
    prices = pc.fill_null(table["price"], float("nan")).to_numpy().astype(np.float64)
    content = json.dumps([ids, titles, descriptions, categories, brands], ensure_ascii=False, separators=(",", ":"))
    return Items(
        item_ids=np.array(ids, dtype=object),
        titles=tuple(titles),
        descriptions=tuple(descriptions),
        categories=categories,
        brands=brands,
        prices=prices,
        digest=hashlib.sha256(content.encode() + prices.astype("<f8").tobytes()).hexdigest(),
    )
