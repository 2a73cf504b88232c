"""Histories of the concept's nearest outside items: what asks for the concept without naming it.

The decision that shaped this probe: nearness is the cosine of the item embeddings, searched exactly by faiss among
the items outside the concept. A history is drawn from the nearest items of one concept item (itself drawn in
proportion to popularity + 1), the nearest last, where a sequential model listens most. It holds no concept item, so
every role reads the same histories and comparisons are paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from recerase.audit.cases import Case, synthetic
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, exposure
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings


def outside_neighbours(embeddings: FloatArray, members: BoolArray, k: int, among: BoolArray | None = None) -> IntArray:
    """[M, min(k, n)] the nearest of the n items `among` [N] (default: all outside) of each concept item, nearest first, by cosine."""
    import faiss

    unit = np.array(embeddings, dtype=np.float32, order="C")
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    outside = np.flatnonzero(~members if among is None else among)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit[outside])
    _, near = index.search(unit[members], min(k, len(outside)))
    return cast(IntArray, outside[near])


def neighbours_case(world: AuditWorld) -> Case:
    """`saturated_histories` histories of m nearest outside items of one concept item, m = 1..20 in turn.

    Each history takes m of the `neighbours` nearest, drawn with the world's seed; it is shorter where there are fewer.
    Needs the world's embeddings.
    """
    config, rng = world.config, world.random("neighbours")
    embeddings = cast(FloatArray, world.embeddings)
    near = outside_neighbours(embeddings, world.members, config.neighbours, world.retained)  # [M, pool]
    counts = np.bincount(world.catalogue.interactions.items, minlength=len(world.members))[world.members] + 1
    rows, pool = config.saturated_histories, near.shape[1]
    anchors = rng.choice(len(near), size=rows, p=counts / counts.sum())
    m = np.minimum(np.arange(rows) % config.saturated_items + 1, pool)
    chance = np.argsort(rng.random((rows, pool)), axis=1)  # [rows, pool] a random order of the pool
    taken = np.where(np.arange(pool) < m[:, None], chance, -1)
    farthest_first = -np.sort(-taken, axis=1)  # the m taken, farthest first, then -1
    return Case("neighbours", synthetic(near[anchors[:, None], farthest_first], m))


def neighbours(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k and concept mass over histories of the concept's nearest outside items."""
    world, role = readings.world, readings.model.role
    if world.embeddings is None:
        return [Skipped("neighbours.*", role, "the checkpoint and the command line bring no item embeddings")]
    if not world.retained.any():
        return [Skipped("neighbours.*", role, "no item is outside the concept")]
    case = neighbours_case(world)
    lists = readings.lists(case)
    found = [measured(readings, f"neighbours.exposure@{k}", exposure(lists, world.members, k)) for k in world.config.k]
    return [*found, *(measured(readings, f"neighbours.mass.{side}", readings.mass(case, side)) for side in SIDES)]
