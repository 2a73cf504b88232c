"""What must survive: retained items, recommended to those who go on to choose them.

The decision that shaped this probe: only users whose next item is retained count (a concept item that is not found is
the point of erasing), and the list is taken as it is, concept items included, so an original pays for the slots it
gives to the concept. Per-user values stand in the same order for every role: drops are paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import concept_users, natural_case
from recerase.audit.neighbours import outside_neighbours
from recerase.audit.probes import counted, measured
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings


def ranks(lists: IntArray, targets: IntArray) -> IntArray:
    """[B] place of each target in its list [B, k], from 0; k where it is missing."""
    hit = (lists == targets[:, None]) & (targets >= 0)[:, None]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), lists.shape[1])


def recall(rank: IntArray, k: int) -> FloatArray:
    """[B] 1 where the target is among the first k."""
    return (rank < k).astype(np.float64)


def ndcg(rank: IntArray, k: int) -> FloatArray:
    """[B] 1 / log2(rank + 2) where the one target is among the first k, else 0; the ideal list scores 1."""
    return np.where(rank < k, 1.0 / np.log2(rank + 2.0), 0.0)


def near_targets(world: AuditWorld) -> BoolArray | None:
    """[N] the `target_neighbours` nearest outside items of every concept item; None without embeddings."""
    if world.embeddings is None or not world.retained.any():
        return None
    near = np.zeros(len(world.members), dtype=bool)
    near[outside_neighbours(world.embeddings, world.members, world.config.target_neighbours, world.retained)] = True
    return near


def coverage(lists: IntArray, offered: BoolArray, k: int) -> float:
    """Share of the `offered` [N] items that stand in someone's first k."""
    head = lists[:, :k]
    shown = np.zeros(len(offered), dtype=bool)
    shown[head[head >= 0]] = True
    return float((shown & offered).sum() / max(int(offered.sum()), 1))


def utility(readings: Readings) -> list[Measurement | Skipped]:
    """recall@k and ndcg@k on retained targets: all, users of the concept, buyers of its neighbours; coverage@k."""
    world, role = readings.world, readings.model.role
    lists, targets = readings.lists(natural_case(world)), world.histories.targets
    rank = ranks(lists, targets)
    retained = (targets >= 0) & world.retained[targets]
    touched, near = concept_users(world), near_targets(world)
    offered = readings.model.listed & readings.model.table.present & world.retained
    found: list[Measurement | Skipped] = []
    if near is None:
        found.append(Skipped("utility_neighbours.*", role, "no item embeddings, or no item outside the concept"))
    for k in world.config.k:
        gain = ndcg(rank, k)
        found.append(measured(readings, f"utility.recall@{k}", recall(rank, k)[retained]))
        found.append(measured(readings, f"utility.ndcg@{k}", gain[retained]))
        found.append(measured(readings, f"utility_concept_users.ndcg@{k}", gain[retained & touched]))
        if near is not None:
            found.append(measured(readings, f"utility_neighbours.ndcg@{k}", gain[retained & near[targets]]))
        found.append(counted(readings, f"utility.coverage@{k}", coverage(lists, offered, k), len(lists)))
    return found
