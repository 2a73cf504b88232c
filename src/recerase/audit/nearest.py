"""What a free generation means: its point in the quantiser's space, and the item that lies nearest to it.

The decision that shaped this probe: a SID can be new, moved, invalid or a twin's, but it always has a point (the sum
of its codewords), and the nearest catalogue item to that point by faiss says what it stands for. A generation leaks
within radius r when that item is in the concept and lies within r. The radii are made from the concept itself: r25 is
the distance within which a quarter of the concept's own old SIDs lie from their nearest concept item, so they include
the quantiser's error and mean the same on any catalogue. A generation with a row that is no code of its level has no
point and leaks nothing here; `free.invalid` counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from recerase.audit.cases import concept_users_case
from recerase.audit.probes import measured
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings
    from recerase.sid.schema import SidSchema
    from recerase.sid.table import SidTable

RADII = (10, 25, 50)
RANDOM_RADIUS = 25
RANDOM_GENERATIONS = 10_000


@dataclass(frozen=True, eq=False)
class Compass:
    """Says of a SID what it means, in one world."""

    world: AuditWorld
    radii: FloatArray
    """[3] distances within which 10, 25 and 50 % of the concept's old SIDs lie from their nearest concept item."""

    def leaks(self, codes: IntArray) -> BoolArray:
        """[..., 3] whether each SID of `codes` [..., L] leaks within each radius; a code of -1 never does."""
        flat = codes.reshape(-1, codes.shape[-1])
        sids, where = np.unique(flat, axis=0, return_inverse=True)
        pointed = (sids >= 0).all(axis=1)
        found = np.zeros((len(sids), len(self.radii)), dtype=bool)
        if pointed.any():
            distance, item = nearest_items(self.world, sids[pointed])
            found[pointed] = self.world.members[item][:, None] & (distance[:, None] <= self.radii)
        return cast(BoolArray, found[where.reshape(-1)].reshape(*codes.shape[:-1], len(self.radii)))


def compass(world: AuditWorld, old_table: SidTable) -> Compass:
    """The radii of the concept's old SIDs; needs embeddings, codebooks and a concept item with an old SID."""
    old = old_table.codes[world.members & old_table.present]
    distance, _ = nearest_items(world, old, among=world.members)
    return Compass(world, np.percentile(distance, RADII))


def nearest_items(world: AuditWorld, codes: IntArray, among: BoolArray | None = None) -> tuple[FloatArray, IntArray]:
    """Distance [G] and row [G] of the catalogue item (one of `among` [N]) nearest to each SID's point; codes [G, L].

    Euclidean distance, exact search (faiss IndexFlatL2), in the space the codebooks quantise. A table may have more
    levels than there are codebooks (a level that only tells twins apart): those have no codeword and move no point.
    """
    import faiss

    from recerase.sid.quantize import Codebooks

    codebooks = cast(Codebooks, world.codebooks)
    space = np.ascontiguousarray(world.embeddings, dtype=np.float32)
    rows = np.arange(len(space)) if among is None else np.flatnonzero(among)
    index = faiss.IndexFlatL2(space.shape[1])
    index.add(space[rows])
    points = codebooks.point(codes)
    squared, near = index.search(np.ascontiguousarray(points, dtype=np.float32), 1)
    return np.sqrt(np.maximum(squared[:, 0], 0.0)), rows[near[:, 0]]


def nearest(readings: Readings) -> list[Measurement | Skipped]:
    """Share of free generations on the concept users' histories that mean the concept, beside that of random SIDs."""
    world, model = readings.world, readings.model
    reason = _missing(readings)
    if reason:
        return [Skipped("nearest.*", model.role, reason)]
    case, compass_ = concept_users_case(world), compass(world, model.old_table)
    rows = np.asarray(readings.free(case).rows)  # [B, W, L]
    share = compass_.leaks(model.table.schema.codes_of(rows)).mean(axis=1)  # [B, 3]
    found = [measured(readings, f"nearest.leak@r{r}", share[:, i]) for i, r in enumerate(RADII)]
    random = compass_.leaks(random_codes(world, model.table.schema))[:, RADII.index(RANDOM_RADIUS)]
    return [*found, measured(readings, "nearest.random", random)]


def random_codes(world: AuditWorld, schema: SidSchema) -> IntArray:
    """[10000, L] SIDs with each code drawn evenly from those of its level that have a vocabulary row."""
    spelled = [np.flatnonzero(rows >= 0) for rows in schema.rows]
    sizes = np.array([len(codes) for codes in spelled])
    drawn = world.random("random generations").integers(0, sizes, size=(RANDOM_GENERATIONS, len(sizes)))
    return np.stack([codes[drawn[:, level]] for level, codes in enumerate(spelled)], axis=1)


def _missing(readings: Readings) -> str:
    world, old = readings.world, readings.model.old_table
    if old.ragged or readings.model.table.ragged:
        return "SIDs differ in length, and codebooks give a point to whole ones only"
    if world.embeddings is None or world.codebooks is None:
        return "it needs item embeddings and the codebooks the SIDs were made with"
    if not (world.members & old.present).any():
        return "no concept item had a SID"
    if len(concept_users_case(world)) == 0:
        return "no test user's history holds the concept"
    return ""
