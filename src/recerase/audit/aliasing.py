"""Concept items that hide behind a retained item's SID, or stand right beside one.

The decision that shaped this probe: SID-level hits can be gamed by collisions, so the table itself is read, item by
item and exactly. Unlisted concept items count too: a SID that two items share resolves to either. Nothing is sampled,
so the interval is the number itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.free import contains
from recerase.audit.probes import counted
from recerase.types import Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings


def aliasing(readings: Readings) -> list[Measurement | Skipped]:
    """Share of concept items whose SID, or whose codes but the last, a retained item has too (current table)."""
    world, table = readings.world, readings.model.table
    held = table.present
    concept, retained = table.codes[held & world.members], table.codes[held & world.retained]
    n = len(concept)
    if n == 0:
        return [Skipped("aliasing.*", readings.model.role, "no concept item has a SID in the current table")]
    shared = contains(concept, retained)
    found: list[Measurement | Skipped] = [counted(readings, "aliasing.shared_sid", float(shared.mean()), n, exact=True)]
    if table.levels > 1:
        depth = np.arange(table.levels)
        concept, retained = (np.where(depth < (c >= 0).sum(1)[:, None] - 1, c, -1) for c in (concept, retained))
        beside = contains(concept, retained)  # without the last code, wherever it stands
        found.append(counted(readings, "aliasing.shared_prefix", float(beside.mean()), n, exact=True))
    else:
        found.append(Skipped("aliasing.shared_prefix", readings.model.role, "SIDs of one level have no prefix"))
    return found
