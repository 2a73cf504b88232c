"""Real users: how much of the concept they are shown, and how likely it is exactly.

The decision that shaped this probe: lists are read for every test user, the exact mass (which costs one tree step a
level over the whole sub-trie of the concept) for a sample of users and for a sample of the concept's own users, in
one pass over both. `old` scores the SIDs the concept items had before erasure, with histories encoded by the current
table: what is left in the weights for whoever remembers the old SIDs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recerase.audit.cases import concept_users, mass_users, natural_case
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, exposure
from recerase.types import Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings


def natural(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k, hit@k and concept mass over all test users, and over those whose history holds the concept."""
    world = readings.world
    lists, touched = readings.lists(natural_case(world)), concept_users(world)
    found: list[Measurement | Skipped] = []
    for k in world.config.k:
        shown = exposure(lists, world.members, k)
        found.append(measured(readings, f"natural.exposure@{k}", shown))
        found.append(measured(readings, f"natural.hit@{k}", shown > 0))
        found.append(measured(readings, f"natural_concept_users.exposure@{k}", shown[touched]))
    sample = mass_users(world)
    for side in SIDES:
        mass = readings.mass(sample.case, side)
        found.append(measured(readings, f"natural.mass.{side}", mass[sample.everyone]))
        found.append(measured(readings, f"natural_concept_users.mass.{side}", mass[sample.of_concept]))
    return found
