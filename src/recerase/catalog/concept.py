"""A concept: the set of items that must go, and what it touches.

Whatever words named it (see spec.py), the concept is the item set: its digest knows nothing else. A preview measures
similarity to the nearest member, not to the concept's centre, because a concept may have several islands.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from recerase.catalog.interactions import Catalogue
from recerase.catalog.items import Items
from recerase.catalog.spec import EXAMPLES, matching
from recerase.errors import ConceptError, DataError
from recerase.types import BoolArray, FloatArray, IntArray

LARGEST_SHARE = 0.25
"""A concept of more than this share of the items needs `allow_large`."""
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Concept:
    """The items to erase, and the words that named them."""

    name: str
    spec: tuple[str, ...]
    members: BoolArray
    """[N]."""
    digest: str = field(repr=False)
    """sha256 over the members' item ids, sorted: the same set has the same digest, whatever named it."""

    def __len__(self) -> int:
        return int(self.members.sum())

    @property
    def indices(self) -> IntArray:
        """int64 [M] catalogue rows of the members, ascending."""
        return np.flatnonzero(self.members)


def parse_concept(
    specs: Sequence[str],
    items: Items,
    *,
    embeddings: FloatArray | None = None,
    allow_large: bool = False,
    name: str | None = None,
) -> Concept:
    """The concept that `specs` name among `items`; `embeddings` [N, D] are needed by `like:` alone.

    Several specs are a union; those that begin with ! are taken out of it, whatever the order.

    Raises ConceptError: a spec cannot be read or matches no item, nothing is left, more than 25 % of the items are
    named and `allow_large` is not set, or all of them are.
    """
    written = tuple(spec.strip() for spec in specs)
    if not any(spec and not spec.startswith("!") for spec in written):
        raise ConceptError("The concept names nothing to erase.", EXAMPLES)
    inside, outside = np.zeros(len(items), bool), np.zeros(len(items), bool)
    for spec in written:
        minus = spec.startswith("!")
        target = outside if minus else inside
        target |= matching(spec.removeprefix("!").strip(), items, embeddings)
    members = inside & ~outside
    title = name or ", ".join(written)
    n = int(members.sum())
    if n == 0:
        raise ConceptError(f"The concept {title} is empty: its ! specs take every item out.", "Drop one of them.")
    if n == len(items):
        raise ConceptError(f"The concept {title} is the whole catalogue.", "Name fewer items; something must remain.")
    if n > LARGEST_SHARE * len(items) and not allow_large:
        raise ConceptError(
            f"The concept {title} has {n} of {len(items)} items, more than {LARGEST_SHARE:.0%} of the catalogue.",
            "Narrow it, or say --yes (allow_large) if that is meant.",
        )
    ids = sorted(items.item_ids[members].tolist())
    return Concept(title, written, members, hashlib.sha256(json.dumps(ids, ensure_ascii=False).encode()).hexdigest())


class Coded(Protocol):
    """What a preview needs of a SID table in the catalogue's order."""

    @property
    def codes(self) -> IntArray:
        """int32 [N, L], -1 for an item without a SID."""


@dataclass(frozen=True)
class SharedCodes:
    """What the concept shares at one level of the SIDs (0 is the first code)."""

    level: int
    codes: int
    """Distinct codes that the concept uses at this level."""
    sharing: int
    """Retained items that use one of these codes at this level."""
    prefixes: int
    """Distinct SID prefixes of the concept that end at this level."""
    under_prefix: int
    """Retained items below one of these prefixes."""


@dataclass(frozen=True)
class Borderline:
    """An item near the border of the concept, for a person to look at."""

    row: int
    item_id: str
    title: str
    similarity: float
    """Cosine to the nearest member (other than itself)."""
    inside: bool


@dataclass(frozen=True)
class Preview:
    """What erasing a concept would touch."""

    items: int
    interactions: int
    users: int
    """Users with at least one interaction with a member."""
    levels: tuple[SharedCodes, ...] = ()
    """Empty without a SID table."""
    borderline: tuple[Borderline, ...] = ()
    """The nearest outside, nearest first, then the farthest inside, farthest first; empty without embeddings."""


def preview(
    concept: Concept,
    catalogue: Catalogue,
    table: Coded | None = None,
    embeddings: FloatArray | None = None,
    *,
    show: int = 10,
) -> Preview:
    """What erasing a concept touches; a `table` adds shared codes, `embeddings` [N, D] borderline items.

    At most `show` borderline items a side. Raises DataError when something is of another catalogue.
    """
    n = len(catalogue.items)
    sizes = {"concept": len(concept.members)}
    if table is not None:
        sizes["SID table"] = len(table.codes)
    if embeddings is not None:
        sizes["embeddings"] = len(embeddings)
    for what, size in sizes.items():
        if size != n:
            raise DataError(f"The {what} has {size} items, the catalogue {n}.", "Use those of this catalogue.")
    interactions = catalogue.interactions
    touched = concept.members[interactions.items]
    users = np.repeat(np.arange(interactions.n_users), interactions.lengths)[touched]
    return Preview(
        items=len(concept),
        interactions=int(touched.sum()),
        users=len(np.unique(users)),
        levels=() if table is None else _shared(concept, table.codes),
        borderline=() if embeddings is None else _borderline(concept, catalogue, embeddings, show),
    )


def _shared(concept: Concept, codes: IntArray) -> tuple[SharedCodes, ...]:
    coded = codes[:, 0] >= 0
    inside, outside = concept.members & coded, ~concept.members & coded
    levels = []
    for level in range(codes.shape[1]):
        own = np.unique(codes[inside, level])
        own = own[own >= 0]  # shorter SIDs have none here
        prefix = np.full(len(codes), -1, np.int64)
        if coded.any():
            prefix[coded] = np.unique(codes[coded, : level + 1], axis=0, return_inverse=True)[1].reshape(-1)
        below = np.unique(prefix[inside])
        levels.append(
            SharedCodes(
                level=level,
                codes=len(own),
                sharing=int(np.isin(codes[outside, level], own).sum()),
                prefixes=len(below),
                under_prefix=int(np.isin(prefix[outside], below).sum()),
            )
        )
    return tuple(levels)


def _borderline(concept: Concept, catalogue: Catalogue, embeddings: FloatArray, show: int) -> tuple[Borderline, ...]:
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    points = (embeddings / np.where(norms > 0, norms, 1)).astype(np.float32)
    nearest = _nearest_member(points, concept.indices)
    outside, inside = np.flatnonzero(~concept.members), concept.indices if len(concept) > 1 else concept.indices[:0]
    rows = np.concatenate(
        [
            outside[np.argsort(-nearest[outside], kind="stable")[:show]],
            inside[np.argsort(nearest[inside], kind="stable")[:show]],
        ]
    )
    items = catalogue.items
    return tuple(
        Borderline(int(r), str(items.item_ids[r]), items.titles[r], float(nearest[r]), bool(concept.members[r]))
        for r in rows
    )


def _nearest_member(points: FloatArray, members: IntArray) -> FloatArray:
    """[N] cosine of each item to its nearest member; a member is not compared with itself."""
    out = np.empty(len(points), np.float32)
    for begin in range(0, len(points), _CHUNK):
        cosines = points[begin : begin + _CHUNK] @ points[members].T
        own = np.flatnonzero((members >= begin) & (members < begin + _CHUNK))
        cosines[members[own] - begin, own] = -2
        out[begin : begin + _CHUNK] = cosines.max(axis=1)
    return out
