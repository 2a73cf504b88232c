"""Who is asked in an audit: named sets of histories, drawn once from the world with its seed.

The one decision: a sample is a function of the world and its purpose alone, so that every model of an audit is read on the same users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.probes import AuditWorld, Earlier
from recerase.types import BoolArray, IntArray

if TYPE_CHECKING:
    from recerase.catalog.interactions import Histories
    from recerase.sid.table import SidTable


@dataclass(frozen=True, eq=False)
class Case:
    """Histories a model is read on, under a name; one name never means two sets of histories within an audit."""

    name: str
    histories: Histories

    def __len__(self) -> int:
        return len(self.histories)


def natural_case(world: AuditWorld) -> Case:
    """Every test user of the world."""
    return Case("natural", world.histories)


def concept_users(world: AuditWorld) -> BoolArray:
    """[B] test users whose history holds a concept item."""
    return world.histories.touches(world.members)


@dataclass(frozen=True, eq=False)
class MassUsers:
    """The test users whose exact mass is read, and which of them stand for whom."""

    rows: IntArray
    """[S] positions in `world.histories`, ascending."""
    everyone: IntArray
    """Positions in `rows` of the sample of all users."""
    of_concept: IntArray
    """Positions in `rows` of the sample of the concept's users."""
    case: Case
    """Their histories."""


def mass_users(world: AuditWorld) -> MassUsers:
    """`mass_users` of all test users, and as many of the concept's users, drawn with the world's seed."""
    size = world.config.mass_users
    everyone = _sample(world, "mass", np.arange(len(world.histories)), size)
    touched = _sample(world, "mass concept users", np.flatnonzero(concept_users(world)), size)
    rows = np.union1d(everyone, touched)
    case = Case("mass users", world.histories.take(rows))
    return MassUsers(rows, np.searchsorted(rows, everyone), np.searchsorted(rows, touched), case)


def concept_users_case(world: AuditWorld) -> Case:
    """At most `mass_users` users of the concept: those whose mass is read."""
    sample = mass_users(world)
    return Case("concept users", sample.case.histories.take(sample.of_concept))


def some_users(world: AuditWorld, purpose: str, size: int) -> Case:
    """`size` test users at the most, drawn with the world's seed for a `purpose`, which is the case's name."""
    return Case(purpose, world.histories.take(_sample(world, purpose, np.arange(len(world.histories)), size)))


def held_out(world: AuditWorld) -> Histories:
    """The world's histories, and those before the interaction before, which training does not see either; by user, earlier first.

    A world of validation histories has no others: what is tested on later stays unseen.
    """
    last = world.histories.take(np.argsort(world.histories.users, kind="stable"))
    before = world.catalogue.interactions.split().valid  # one a user, of everyone who can have one, by ascending user
    place = np.searchsorted(before.users, last.users)
    before = before.take(place[before.lengths[place] < last.lengths])
    both = replace(
        last,
        items=np.concatenate([before.items, last.items]),
        offsets=np.concatenate([before.offsets, before.offsets[-1] + last.offsets[1:]]),
        users=np.concatenate([before.users, last.users]),
        targets=np.concatenate([before.targets, last.targets]),
    )
    return both.take(np.argsort(both.users, kind="stable"))


def synthetic(items: IntArray, lengths: IntArray) -> Histories:
    """Histories without users or targets: the first `lengths` [B] items of each row of `items` [B, H]."""
    from recerase.catalog.interactions import Histories

    kept = np.arange(items.shape[1]) < lengths[:, None]
    nobody = np.full(len(items), -1)
    return Histories(
        items=items[kept].astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        users=nobody.astype(np.int64),
        targets=nobody.astype(np.int32),
    )


def _sample(world: AuditWorld, purpose: str, rows: IntArray, size: int) -> IntArray:
    chosen: IntArray = np.sort(world.random(purpose).permutation(rows)[:size])
    return chosen


def codes_before(earlier: Earlier, table: SidTable) -> IntArray:
    """int32 [N, L] the codes of a model's table, with the SIDs that earlier items had first where the table can spell these."""
    if earlier.sids.shape[1] != table.levels:
        return table.codes
    known = earlier.members.copy()
    for level, rows in enumerate(table.schema.rows):
        code = earlier.sids[:, level]
        inside = (code >= 0) & (code < len(rows))
        known &= inside & (rows[np.where(inside, code, 0)] >= 0)
    return np.where(known[:, None], earlier.sids, table.codes)
