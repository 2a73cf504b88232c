"""A catalogue small enough to check by eye."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recerase.catalog import Catalogue, Items
from recerase.catalog.columns import INTERACTION_SCHEMA, ITEM_SCHEMA
from recerase.catalog.interactions import interactions_from_table
from recerase.catalog.items import items_from_table

ROWS = [
    ("a", "Red vape pen", "mint", ["Smoke", "Vaping"], "Acme", 9.5),
    ("b", "Blue vape pod", "", ["Smoke", "Vaping"], "acme ", None),
    ("c", "Pocket lighter", "for your vape", ["Smoke"], "Bolt", 3.0),
    ("d", "Chef knife", "steel", ["Kitchen", "3D Printing Filament"], None, 20.0),
    ("e", "Bread knife", "steel", ["Kitchen"], "Bolt", 25.0),
    ("f", "Tomato seeds", "red", ["Garden"], "", 2.0),
    ("g", "Basil seeds", "green", ["Garden"], "Fern", 2.0),
    ("h", "Herb pot", "clay", ["Garden"], "Fern", 7.0),
    ("i", "Watering can", "brass", ["Garden"], "Fern", 30.0),
]
SEEN = [
    ("u1", "a", 5), ("u1", "b", 1), ("u1", "c", 5), ("u1", "d", 2),
    ("u2", "e", 1), ("u2", "f", 2),
    ("u0", "a", 3), ("u0", "g", 1), ("u0", "a", 9),
]  # fmt: skip


def item_table(rows: list[tuple] = ROWS) -> pa.Table:
    return pa.table(dict(zip(ITEM_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), schema=ITEM_SCHEMA)


def interaction_table(rows: list[tuple] = SEEN) -> pa.Table:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    return pa.table([users, items, times, [None] * len(rows)], schema=INTERACTION_SCHEMA)


@pytest.fixture(scope="session")
def items() -> Items:
    return items_from_table(item_table())


@pytest.fixture(scope="session")
def catalogue(items: Items) -> Catalogue:
    return Catalogue(items, interactions_from_table(interaction_table(), items))


@pytest.fixture(scope="session")
def make_items() -> Callable[[list[tuple]], Items]:
    """Items from rows of (item_id, title, description, categories, brand, price)."""
    return lambda rows: items_from_table(item_table(rows))


@pytest.fixture
def write_data(tmp_path: Path) -> Callable[..., Path]:
    """Write two tables as a data directory, the good ones unless told otherwise."""

    def write(items: pa.Table | None = None, interactions: pa.Table | None = None) -> Path:
        pq.write_table(item_table() if items is None else items, tmp_path / "items.parquet")
        pq.write_table(interaction_table() if interactions is None else interactions, tmp_path / "interactions.parquet")
        return tmp_path

    return write


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
