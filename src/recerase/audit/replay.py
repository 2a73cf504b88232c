"""A stale client: it still sends old SIDs and still resolves them.

The decision that shaped this probe: an erasure that moves concept items to new SIDs makes "p(new SID) is low" worth
nothing, because new SIDs are untrained. So the table from before the erasure is put back on both sides, with the
concept listed, whatever the checkpoint lists today. For a model whose table never changed (original, reference) this
is the model itself; for a filter it is the original behind it, which is why a filter cannot pass here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recerase.audit.cases import mass_users, natural_case
from recerase.audit.probes import measured
from recerase.audit.readings import exposure
from recerase.types import Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings


def replay(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k and concept mass over test users, under the table from before the erasure on both sides."""
    world = readings.world
    lists = readings.lists(natural_case(world), "old")
    found = [measured(readings, f"replay.exposure@{k}", exposure(lists, world.members, k)) for k in world.config.k]
    sample = mass_users(world)
    mass = readings.mass(sample.case, "old", read="old")
    return [*found, measured(readings, "replay.mass.old", mass[sample.everyone])]
