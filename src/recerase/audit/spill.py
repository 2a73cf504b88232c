"""What an erasure takes along, and what it leaves: items that lie beside the concept, on either side of the request's edge.

The decision that shaped this probe: a near miss (one of the nearest retained items by embedding, the same for every role) is
held against the *original*, user by user. `lost` is the share of its probability, or of its slots, that is gone: an erasure
that cut too wide. `gained` is the other way: where the concept's probability went. A filter cannot lose probability, and a
model trained without the concept says how much of either is the concept's own absence.

Where the world knows items of the concept's kind that were not in the request (`held_out`), how likely they are is told too,
and that is neither good nor bad: erasing the request alone leaves them as they were, erasing what it stands for takes them along.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import mass_users, natural_case
from recerase.audit.neighbours import outside_neighbours
from recerase.audit.probes import counted, measured
from recerase.audit.readings import exposure
from recerase.stats import paired_drop
from recerase.types import BoolArray, FloatArray, Interval, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings


def near_misses(world: AuditWorld) -> BoolArray:
    """[N] the `target_neighbours` nearest retained items of every concept item that are not `held_out`. Needs embeddings."""
    assert world.embeddings is not None
    among = world.retained if world.held_out is None else world.retained & ~world.held_out
    near = np.zeros(len(world.members), dtype=bool)
    if among.any():
        near[outside_neighbours(world.embeddings, world.members, world.config.target_neighbours, among)] = True
    return near


def spill(readings: Readings) -> list[Measurement | Skipped]:
    """Exposure and mass of near misses, what of them is lost or gained beside the original, and the same of held-out items."""
    world, role = readings.world, readings.model.role
    if world.embeddings is None:
        return [Skipped("spill.*", role, "the checkpoint and the command line bring no item embeddings")]
    near = near_misses(world)
    if not near.any():
        return [Skipped("spill.*", role, "no item is outside the concept")]
    shown, mass = _shown(readings, near), _mass(readings, near)
    found = [measured(readings, f"spill.exposure@{k}", shown[k]) for k in world.config.k]
    found += [
        measured(readings, "spill.mass", mass),
        *_beside_original(readings, near, shown, mass),
        *_held_out(readings),
    ]
    return found


def _shown(readings: Readings, items: BoolArray) -> dict[int, FloatArray]:
    """A cut-off: [B] the share of each test user's list that is of `items` [N]."""
    lists = readings.lists(natural_case(readings.world))
    return {k: exposure(lists, items, k) for k in readings.world.config.k}


def _mass(readings: Readings, items: BoolArray) -> FloatArray:
    """[S] exact mass of `items` [N] for the users whose mass is read."""
    sample = mass_users(readings.world)
    return readings.mass_of(sample.case, items)[sample.everyone]


def _beside_original(
    readings: Readings, near: BoolArray, shown: dict[int, FloatArray], mass: FloatArray
) -> list[Measurement | Skipped]:
    original = readings if readings.model.role == "original" else readings.beside.get("original")
    if original is None:
        reason = "it needs the original, and none was given"
        names = ["spill.lost.mass", "spill.gained.mass", *(f"spill.lost.exposure@{k}" for k in shown)]
        return [Skipped(name, readings.model.role, reason) for name in names]
    before, had = _shown(original, near), _mass(original, near)
    return [
        _relative(readings, "spill.lost.mass", mass, had),
        _relative(readings, "spill.gained.mass", mass, had, gain=True),
        *(_relative(readings, f"spill.lost.exposure@{k}", shown[k], before[k]) for k in shown),
    ]


def _relative(
    readings: Readings, metric: str, own: FloatArray, original: FloatArray, *, gain: bool = False
) -> Measurement | Skipped:
    """How much smaller (or larger, with `gain`) the mean of `own` [B] is than that of `original` [B], in shares of it; 0 at least.

    The interval is the paired bootstrap's, cut off at 0 as well.
    """
    config = readings.world.config
    if not original.mean() > 0:
        return Skipped(
            metric, readings.model.role, "the original gives near misses nothing that could be lost or gained"
        )
    drop, ends = paired_drop(own, original, config.confidence, seed=config.seed)
    value, low, high = (-drop, -ends.high, -ends.low) if gain else (drop, ends.low, ends.high)
    made = counted(readings, metric, max(0.0, value), len(own))
    return replace(made, interval=Interval(max(0.0, low), max(0.0, high), ends.confidence, ends.method))


def _held_out(readings: Readings) -> list[Measurement | Skipped]:
    world, stem = readings.world, "spill.held_out"
    held = world.held_out
    if held is None or not held.any():
        names = [f"{stem}.mass", *(f"{stem}.exposure@{k}" for k in world.config.k)]
        reason = "no items are known that belong to the concept and were not in the request"
        return [Skipped(name, readings.model.role, reason) for name in names]
    shown = _shown(readings, held)
    found = [measured(readings, f"{stem}.exposure@{k}", shown[k]) for k in world.config.k]
    return [*found, measured(readings, f"{stem}.mass", _mass(readings, held))]
