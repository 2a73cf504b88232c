"""Concepts that were erased before: what a checkpoint remembers of them, and who they are in a catalogue.

The one decision: an item of an earlier concept is neither to be forgotten nor to be kept. It has a SID and stands in histories, so
whatever does not know of it would take it for a retained one, and train it back. So a checkpoint that was erased carries erased.json,
which names the items of every concept, the words that named them, and the SIDs they had before: no other item may get one of those,
and with it the audience. It is one file, so that a patch can leave it out (`--leave erased.json`); recerase.json says only that it is
to be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.assembly import ConceptSpec, choose_concept
from recerase.catalog import Catalogue, Concept, Items, parse_concept
from recerase.catalog.files import read_verified
from recerase.catalog.spec import matching
from recerase.errors import ArtefactError, ConceptError
from recerase.store import canonical_json, pretty_json, sha256_bytes, write_bytes
from recerase.types import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from recerase.layouts.native import Checkpoint
    from recerase.sid.table import SidTable

_REMEDY = (
    "Take the checkpoint with it, or, to erase, prepare, compare and audit, name what was erased with --already-erased."
)
_LISTS = ("@", "item:")
"""How words begin that list ids."""
FILE = "erased.json"
NOTHING = sha256_bytes(b"nothing")
"""The digest of nothing gone."""
SCHEMA = "recerase.erased/1"


@dataclass(frozen=True)
class Earlier:
    """One concept that was erased."""

    name: str
    spec: tuple[str, ...]
    """The words that named it, by which new items of a catalogue are known."""
    digest: str
    """As `Concept.digest`."""
    method: str
    """What erased it; empty where only the command line says that it was."""
    sids: Mapping[str, tuple[int, ...]]
    """Item id -> the codes it had before, () where it had none or they are not known."""

    def to_json(self) -> dict[str, Any]:
        """As erased.json has it."""
        items = {item: list(codes) for item, codes in self.sids.items()}
        return {
            "name": self.name,
            "spec": list(self.spec),
            "digest": self.digest,
            "method": self.method,
            "items": items,
        }

    @property
    def facts(self) -> dict[str, Any]:
        """As the manifest has it: no item is named."""
        return {"name": self.name, "digest": self.digest, "items": len(self.sids)}


@dataclass(frozen=True, eq=False)
class Gone:
    """All concepts that were erased before, in a catalogue of N items and a table of L levels."""

    concepts: tuple[Earlier, ...]
    members: BoolArray
    """[N] items of any of them."""
    sids: IntArray
    """int32 [N, L] the SIDs they had before the first erasure, where it is known that they have others now; else -1."""
    left: IntArray
    """int32 [n, L] every SID that one of them ever had and that no item has now."""

    def besides(self, members: BoolArray) -> BoolArray:
        """[N] items of earlier concepts that are not among `members` [N]."""
        return self.members & ~members

    @cached_property
    def digest(self) -> str:
        """sha256 of all that an erasure and an audit depend on; of nothing gone it is the same whatever the catalogue."""
        if not self.concepts:
            return NOTHING
        return sha256_bytes(self.members.tobytes() + self.sids.tobytes() + self.left.tobytes())

    @property
    def told(self) -> str:
        """Their names and sizes, in one line."""
        return ", ".join(f"{c.name} ({len(c.sids)} items)" for c in self.concepts)

    def noted(self, members: BoolArray) -> tuple[str, ...]:
        """What a report and a comparison on the concept `members` [N] say of earlier ones; () where it has all of their items."""
        besides = self.besides(members)
        if not besides.any():
            return ()
        return (
            f"Erased before: {self.told}. {int(besides.sum())} items of theirs are not in this concept, and count as "
            "retained nowhere: neither in utility nor among neighbours.",
        )


def remembered(directory: Path, provenance: Mapping[str, Any]) -> tuple[Earlier, ...]:
    """What a checkpoint directory says was erased from it, oldest first.

    Raises ArtefactError when erased.json is missing although the manifest speaks of it, or is not what was written.
    """
    if not provenance.get("erased"):
        return ()
    path = directory / FILE
    if not path.is_file():
        raise ArtefactError(f"{directory} was erased before, and has no {FILE} to say which items.", _REMEDY)
    try:
        said = json.loads(read_verified(directory, [FILE])[FILE])
        if said["schema"] != SCHEMA:
            raise ValueError(f"its schema is {said['schema']!r:.40}, and {SCHEMA} is read")
        return tuple(_concept_of(entry) for entry in said["concepts"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read: {error!s:.120}.", _REMEDY) from error


def _concept_of(entry: Mapping[str, Any]) -> Earlier:
    sids = {str(item): tuple(int(code) for code in codes) for item, codes in entry["items"].items()}
    spec = tuple(str(words) for words in entry["spec"])
    return Earlier(str(entry["name"]), spec, str(entry["digest"]), str(entry["method"]), sids)


def _unremembered(
    directory: Path, provenance: Mapping[str, Any], catalogue: Catalogue, embeddings: FloatArray | None
) -> tuple[Earlier, ...]:
    """What the manifest alone says of the last erasure, where the checkpoint was erased before there was an erased.json.

    The SIDs that its items had are not known. Raises ArtefactError when its words no longer name the same items.
    """
    said = provenance.get("concept")
    if provenance.get("command") != "erase" or "erased" in provenance or not isinstance(said, Mapping):
        return ()
    name, spec = str(said.get("name")), tuple(str(words) for words in said.get("spec") or ())
    try:
        found = parse_concept(spec, catalogue.items, embeddings=embeddings, allow_large=True, name=name)
        if found.digest != said.get("digest"):
            raise ConceptError(f"{name} names other items in this catalogue.", _REMEDY)
    except ConceptError as error:
        raise ArtefactError(
            f"{directory} was erased of {name}, and does not say which items these are: {error.message}", _REMEDY
        ) from error
    items = {str(item): () for item in catalogue.items.item_ids[found.members]}
    return (Earlier(name, spec, found.digest, "", items),)


def home_of(checkpoint: Checkpoint) -> tuple[Path, Mapping[str, Any]]:
    """A checkpoint's directory, and its manifest's provenance."""
    return checkpoint.path, checkpoint.manifest.get("provenance", {})


def gone_from(
    homes: Sequence[tuple[Path, Mapping[str, Any]]],
    specs: Sequence[ConceptSpec],
    catalogue: Catalogue,
    table: SidTable,
    embeddings: FloatArray | None = None,
) -> Gone:
    """What was erased from any of the checkpoints `homes`, and what `specs` say was, in the catalogue's order.

    A home is a checkpoint's directory and its manifest's provenance: `home_of`. `table` is the current one. A checkpoint that has
    lost its erased.json is read where `specs` stand in for it; one from before there was such a file is asked what its manifest says.
    Raises ArtefactError as `remembered`, ConceptError for a spec that cannot be read.
    """
    found: dict[bytes, Earlier] = {}
    for directory, provenance in homes:
        try:
            known = remembered(directory, provenance) or _unremembered(directory, provenance, catalogue, embeddings)
        except ArtefactError:
            if not specs or (directory / FILE).is_file():
                raise
            known = ()
        found |= {canonical_json(concept.to_json()): concept for concept in known}
    known_digests = {concept.digest for concept in found.values()}
    said = [_said(spec, catalogue, embeddings) for spec in specs]
    return _gone((*found.values(), *(c for c in said if c.digest not in known_digests)), catalogue, table)


def _said(spec: ConceptSpec, catalogue: Catalogue, embeddings: FloatArray | None) -> Earlier:
    chosen = choose_concept(spec, catalogue, embeddings)
    ids = catalogue.items.item_ids[chosen.members]
    return Earlier(chosen.name, chosen.spec, chosen.digest, "", {str(item): () for item in ids})


def _gone(concepts: tuple[Earlier, ...], catalogue: Catalogue, table: SidTable) -> Gone:
    place = {str(item): row for row, item in enumerate(catalogue.items.item_ids)} if concepts else {}
    members = np.zeros(len(table), bool)
    sids = np.full(table.codes.shape, -1, np.int32)
    had: list[tuple[int, tuple[int, ...]]] = [
        (place[item], codes) for concept in concepts for item, codes in concept.sids.items() if item in place
    ]
    members[[row for row, _ in had]] = True
    spelled = [(row, codes) for row, codes in had if len(codes) == table.levels and _has_rows(codes, table)]
    rows = np.array([row for row, _ in spelled], np.int64)
    codes = np.array([codes for _, codes in spelled], np.int32).reshape(len(spelled), table.levels)
    free = ~_contains(table.codes[table.present], codes)
    first = np.unique(rows[free], return_index=True)[1]  # the oldest of each item
    sids[rows[free][first]] = codes[free][first]
    return Gone(concepts, members, sids, np.unique(codes[free], axis=0))


def _has_rows(codes: Sequence[int], table: SidTable) -> bool:
    """Whether the table's schema can spell the codes."""
    rows = table.schema.rows
    return all(0 <= code < len(rows[level]) and rows[level][code] >= 0 for level, code in enumerate(codes))


def _contains(known: IntArray, codes: IntArray) -> BoolArray:
    """[n] whether each row of `codes` [n, L] is one of `known` [X, L]."""
    _, names = np.unique(np.concatenate([known, codes]), axis=0, return_inverse=True)
    names = names.reshape(-1)
    return np.isin(names[len(known) :], names[: len(known)])


def remember(staging: Path, gone: Gone, concept: Concept, before: SidTable, method: str) -> list[dict[str, Any]]:
    """Write erased.json with the concept erased now at its end; what the manifest is to say under `erased`.

    `before` is the table from before this erasure, in the order of `concept.members`.
    """
    rows = np.flatnonzero(concept.members)
    sids = {str(before.item_ids[row]): tuple(int(c) for c in before.codes[row] if c >= 0) for row in rows}
    return write_remembered(
        staging, [*gone.concepts, Earlier(concept.name, concept.spec, concept.digest, method, sids)]
    )


def write_remembered(staging: Path, concepts: Sequence[Earlier]) -> list[dict[str, Any]]:
    """Write erased.json; what the manifest is to say under `erased`."""
    write_bytes(staging / FILE, pretty_json({"schema": SCHEMA, "concepts": [c.to_json() for c in concepts]}))
    return [c.facts for c in concepts]


def grown_by(
    concepts: Sequence[Earlier], items: Items, new: IntArray, embeddings: FloatArray
) -> tuple[list[Earlier], BoolArray]:
    """The concepts with those of the `new` rows [M] of a grown catalogue that their words name, and which these are, [M].

    Lists of ids name nothing new, and are not read. `embeddings` [N, D] are for `like:`. Raises ConceptError for words that cannot be
    read any more.
    """
    found, gone = [], np.zeros(len(items), bool)
    for concept in concepts:
        named = {True: np.zeros(len(items), bool), False: np.zeros(len(items), bool)}
        for words in concept.spec:
            bare = words.removeprefix("!").strip()
            if not bare.startswith(_LISTS):
                named[not words.startswith("!")] |= matching(bare, items, embeddings)
        fresh = np.zeros(len(items), bool)
        fresh[new] = (named[True] & ~named[False])[new]
        gone |= fresh
        more = {str(item): () for item in items.item_ids[fresh]}
        found.append(replace(concept, sids={**concept.sids, **more}))
    return found, gone[new]


def left_by(concepts: Sequence[Earlier], table: SidTable) -> IntArray:
    """int32 [n, L] the SIDs that erased items had and that nobody has now, of a table on its own."""
    had = {codes for concept in concepts for codes in concept.sids.values() if len(codes) == table.levels}
    codes = np.array(sorted(codes for codes in had if _has_rows(codes, table)), np.int32).reshape(-1, table.levels)
    return codes[~_contains(table.codes[table.present], codes)]
