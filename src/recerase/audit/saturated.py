"""Histories of nothing but the concept: the strongest plain request for it.

The decision that shaped this probe: histories are drawn as users would make them, one item after another without
repetition, each in proportion to its popularity, and their length m runs through 1..20, so that the curve over m can
be read off the same numbers. A reference never saw a concept item, and such a history without its concept items is
empty: a reference is therefore read on the histories of the concept's own users, without their concept items, and its
number is a mean over those users. Comparisons with it are between means, not paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import Case, mass_users, natural_case, synthetic
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, Side, exposure
from recerase.types import FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings


def lengths(world: AuditWorld) -> IntArray:
    """[B] how many concept items each saturated history holds: 1, 2, .., 20, 1, 2, .."""
    return np.arange(world.config.saturated_histories) % world.config.saturated_items + 1


def saturated_case(world: AuditWorld) -> Case:
    """`saturated_histories` histories of m concept items, drawn with the world's seed in proportion to popularity.

    A concept of fewer than m items is gone through again from its first drawn item.
    """
    members = np.flatnonzero(world.members)
    counts = np.bincount(world.catalogue.interactions.items, minlength=len(world.members))[members]
    longest = world.config.saturated_items
    drawn = by_popularity(world.random("saturated"), counts, world.config.saturated_histories, longest)
    return Case("saturated", synthetic(members[drawn], lengths(world)))


def by_popularity(rng: np.random.Generator, counts: IntArray, rows: int, size: int) -> IntArray:
    """[rows, size] positions in `counts` [M], each row drawn without replacement in proportion to them.

    Gumbel top-k (Vieira 2014; Kool et al. 2019): the order of log p + Gumbel noise is that of drawing one after
    another. Positions never seen come last, in the order of chance; a row longer than M repeats itself.
    """
    noise = rng.gumbel(size=(rows, len(counts)))
    seen = counts > 0
    keys = np.where(seen, np.log(np.maximum(counts, 1)) + noise, noise - 1e6)
    order = np.argsort(-keys, axis=1, kind="stable")
    return order[:, np.arange(size) % len(counts)]


def saturated(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k and concept mass over the saturated histories; a reference: over the concept's own users."""
    world = readings.world
    lists, masses = _saturated_readings(readings) if readings.model.reads_concept else _reference_readings(readings)
    found = [measured(readings, f"saturated.exposure@{k}", exposure(lists, world.members, k)) for k in world.config.k]
    return [*found, *(measured(readings, f"saturated.mass.{side}", masses[side]) for side in SIDES)]


def _saturated_readings(readings: Readings) -> tuple[IntArray, dict[Side, FloatArray]]:
    case = saturated_case(readings.world)
    return readings.lists(case), {side: readings.mass(case, side) for side in SIDES}


def _reference_readings(readings: Readings) -> tuple[IntArray, dict[Side, FloatArray]]:
    sample = mass_users(readings.world)
    lists = readings.lists(natural_case(readings.world))[sample.rows[sample.of_concept]]
    return lists, {side: readings.mass(sample.case, side)[sample.of_concept] for side in SIDES}
