"""Who interacted with what, and when: every user's history as one ragged array of catalogue rows.

Histories stay ragged (items + offsets) from the file to the model, so that splitting, dropping a concept and
cutting windows are array operations over all users at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recerase.catalog.columns import INTERACTION_SCHEMA, ITEM_SCHEMA, conform, require_files, table_of
from recerase.catalog.files import read_data
from recerase.catalog.items import ITEMS_FILE, Items, items_from_table
from recerase.errors import DataError
from recerase.types import BoolArray, IntArray

INTERACTIONS_FILE = "interactions.parquet"


@dataclass(frozen=True, eq=False)
class Histories:
    """B histories of any length; history b is items[offsets[b]:offsets[b + 1]], oldest first."""

    items: IntArray
    """int32 [offsets[-1]] catalogue rows."""
    offsets: IntArray
    """int64 [B + 1], from 0."""
    users: IntArray
    """int64 [B] row of the history's user in `Interactions.user_ids`; -1 for a history that nobody had."""
    targets: IntArray
    """int32 [B] the item that came next, -1 where there is none."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> IntArray:
        """int64 [B]."""
        return np.diff(self.offsets)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]], targets: Sequence[int] | None = None) -> Histories:
        """Histories of nobody in particular; targets are -1 unless given. Raises ValueError on unequal lengths."""
        if targets is not None and len(targets) != len(lists):
            raise ValueError(f"{len(lists)} histories, but {len(targets)} targets")
        offsets = _offsets(np.fromiter((len(x) for x in lists), np.int64, len(lists)))
        return cls(
            items=np.concatenate([np.asarray(x, np.int32) for x in lists] or [np.empty(0, np.int32)]),
            offsets=offsets,
            users=np.full(len(lists), -1, np.int64),
            targets=np.full(len(lists), -1, np.int32) if targets is None else np.asarray(targets, np.int32),
        )

    def take(self, rows: IntArray | BoolArray | Sequence[int]) -> Histories:
        """The histories at `rows`, in that order; a row may repeat, a BoolArray [B] selects."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        source, offsets = _slices(self.offsets[:-1][rows], self.lengths[rows])
        return Histories(self.items[source], offsets, self.users[rows], self.targets[rows])

    def last(self, h: int) -> Histories:
        """Each history's last `h` items (all of them where it is shorter)."""
        sizes = np.minimum(self.lengths, h)
        source, offsets = _slices(self.offsets[1:] - sizes, sizes)
        return replace(self, items=self.items[source], offsets=offsets)

    def without(self, concept: BoolArray) -> Histories:
        """The histories with the items of `concept` [N] dropped; some may become empty. Targets stay."""
        keep = ~concept[self.items]
        return replace(self, items=self.items[keep], offsets=_counts_before(keep)[self.offsets])

    def touches(self, concept: BoolArray) -> BoolArray:
        """[B] whether the history (not its target) holds an item of `concept` [N]."""
        return np.diff(_counts_before(concept[self.items])[self.offsets]) > 0

    def padded(self, h: int) -> IntArray:
        """int32 [B, h] each history's last `h` items in time order from the left, then -1."""
        recent = self.last(h)
        out = np.full((len(self), h), -1, np.int32)
        out[np.arange(h) < recent.lengths[:, None]] = recent.items
        return out


@dataclass(frozen=True, eq=False)
class Split:
    """Leave-last-two-out: users with fewer than 3 interactions are only trained on."""

    train: Histories
    """All but each user's last two items (all of them for users with fewer than 3), targets -1; none is empty."""
    valid: Histories
    """History: all but the last two; target: the second to last."""
    test: Histories
    """History: all but the last; target: the last."""

    def without(self, concept: BoolArray) -> Split:
        """The retain view: no item of `concept` [N] in any history, none as a target.

        Splitting comes first: dropping items before it would move held-out targets of short histories into training.
        """
        train = self.train.without(concept)
        held = (part.take(~concept[part.targets]).without(concept) for part in (self.valid, self.test))
        return Split(train.take(train.lengths > 0), *held)


@dataclass(frozen=True, eq=False)
class Interactions:
    """R interactions of U users; user u has items[offsets[u]:offsets[u + 1]], oldest first."""

    user_ids: NDArray[Any]
    """[U] object, distinct strings, in the order in which the file first names them."""
    offsets: IntArray
    """int64 [U + 1], from 0."""
    items: IntArray
    """int32 [R] catalogue rows; in time order a user, equal times in file order."""
    timestamps: IntArray
    """int64 [R], in the source's unit."""
    digest: str = field(repr=False)
    """sha256 over users, order and times."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def lengths(self) -> IntArray:
        """int64 [U] interactions a user."""
        return np.diff(self.offsets)

    def split(self) -> Split:
        """Training sequences and the two held-out targets of every user with at least 3 interactions."""
        lengths, users = self.lengths, np.arange(self.n_users)
        trained = np.where(lengths < 3, lengths, lengths - 2)
        held = users[lengths >= 3]
        return Split(
            train=self._heads(users[trained > 0], trained[trained > 0], targets=False),
            valid=self._heads(held, lengths[held] - 2, targets=True),
            test=self._heads(held, lengths[held] - 1, targets=True),
        )

    def without(self, concept: BoolArray) -> Interactions:
        """The retain view: interactions with items of `concept` [N] dropped; every user stays, perhaps with none."""
        keep = ~concept[self.items]
        offsets = _counts_before(keep)[self.offsets]
        return _interactions(self.user_ids, offsets, self.items[keep], self.timestamps[keep])

    def _heads(self, users: IntArray, sizes: IntArray, *, targets: bool) -> Histories:
        """The first `sizes` [B] items of `users` [B], with the item that follows as target when asked."""
        begin = self.offsets[:-1][users]
        source, offsets = _slices(begin, sizes)
        following = self.items[begin + sizes] if targets else np.full(len(users), -1)
        return Histories(self.items[source], offsets, users.astype(np.int64), following.astype(np.int32))


@dataclass(frozen=True, eq=False)
class Catalogue:
    """A data directory, read whole and validated."""

    items: Items
    interactions: Interactions


def load_catalogue(directory: str | os.PathLike[str]) -> Catalogue:
    """items.parquet and interactions.parquet of a data directory.

    Raises DataError: a missing file or column, a wrong type, a null id or time, an item id listed twice, an
    interaction given twice, an interaction with an item that items.parquet lacks, an empty file; and ArtefactError when
    the directory has a manifest that says otherwise.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(
            f"There is no data directory {directory}.", "Give one that holds items.parquet and interactions.parquet."
        )
    require_files(directory / ITEMS_FILE, directory / INTERACTIONS_FILE)
    data = read_data(directory, [ITEMS_FILE, INTERACTIONS_FILE])
    items = items_from_table(table_of(data[ITEMS_FILE], ITEM_SCHEMA, directory / ITEMS_FILE))
    table = table_of(data[INTERACTIONS_FILE], INTERACTION_SCHEMA, directory / INTERACTIONS_FILE)
    return Catalogue(items, interactions_from_table(table, items))


def interactions_from_table(table: pa.Table, items: Items, name: str = INTERACTIONS_FILE) -> Interactions:
    """Interactions from a pyarrow table with the columns of interactions.parquet; raises DataError."""
    table = conform(table, INTERACTION_SCHEMA, name)
    found = pc.index_in(table["item_id"], value_set=pa.array(items.item_ids, pa.string()))
    if found.null_count:
        unknown = pc.unique(pc.filter(table["item_id"], found.is_null())).to_pylist()
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise DataError(
            f"{name} names items that items.parquet lacks: {', '.join(unknown[:3])}{more}.",
            "Add them to items.parquet, or drop these interactions.",
        )
    users = pc.dictionary_encode(table["user_id"]).combine_chunks()
    user = users.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    item = found.to_numpy().astype(np.int32)
    time = table["timestamp"].to_numpy().astype(np.int64)
    _refuse_duplicates(table, user, item, time, name)
    order = np.lexsort((time, user))
    user_ids = np.array(users.dictionary.to_pylist(), dtype=object)
    offsets = _offsets(np.bincount(user, minlength=len(user_ids)))
    return _interactions(user_ids, offsets, item[order], time[order])


def _refuse_duplicates(table: pa.Table, user: IntArray, item: IntArray, time: IntArray, name: str) -> None:
    order = np.lexsort((time, item, user))
    u, i, t = user[order], item[order], time[order]
    twice = np.flatnonzero((u[1:] == u[:-1]) & (i[1:] == i[:-1]) & (t[1:] == t[:-1]))
    if len(twice):
        row = int(order[twice[0] + 1])
        raise DataError(
            f"{name} gives an interaction twice: user {table['user_id'][row]}, item {table['item_id'][row]}, "
            f"timestamp {t[twice[0]]} ({len(twice)} such rows).",
            "Remove the repeated rows.",
        )


def _interactions(user_ids: NDArray[Any], offsets: IntArray, items: IntArray, timestamps: IntArray) -> Interactions:
    digest = hashlib.sha256(json.dumps(user_ids.tolist(), ensure_ascii=False).encode())
    digest.update(offsets.astype("<i8").tobytes() + items.astype("<i4").tobytes())
    digest.update(timestamps.astype("<i8").tobytes())
    return Interactions(user_ids, offsets, items, timestamps, digest.hexdigest())


def _offsets(lengths: IntArray | BoolArray) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _counts_before(mask: BoolArray) -> IntArray:
    """int64 [R + 1] how many True stand before each position."""
    return _offsets(mask)


def _slices(begin: IntArray, sizes: IntArray) -> tuple[IntArray, IntArray]:
    """Positions of the ragged slices begin[b] : begin[b] + sizes[b], joined, and their offsets [B + 1]."""
    offsets = _offsets(sizes)
    return np.repeat(begin - offsets[:-1], sizes) + np.arange(offsets[-1]), offsets
