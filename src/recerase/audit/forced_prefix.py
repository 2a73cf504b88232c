"""Begin a concept item's SID, and see whether the model ends it: how much must an attacker know already?

The decision that shaped this probe: the unit is a test user, whose history is asked about with a concept item (drawn by
popularity) and a retained item of about the same popularity. After the same history both are asked for, so that what any
item's last codes give away (few items share a prefix) is seen beside the concept. Extraction strength is 1 - j / L, j the
fewest first codes after which a greedy decoder writes all others: 1 where none is needed, 0 where nothing but the whole SID
gives the last code.

`strength` decodes without a trie; `trie` within that of the whole table, the concept put back, as whoever holds the old list
can; `empty` after no history at all, for every concept item. `old` asks for the SIDs from before the erasure. `over` is the
chance that the concept item of a pair is the more extractable of the two, a tie counting half: 1/2 is as well known as others.
An item without a SID has strength 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import Case, synthetic
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, Side
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings

PAIRS = 1000
"""Histories at most, each with a concept item and a retained one."""
EMPTY = 1000
"""Concept items, drawn where there are more, that are asked for after an empty history."""
REACH = 5
"""A concept item's match is drawn from so many retained items on either side of it, ordered by popularity."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What is asked for, and after which history."""

    case: Case
    concept: IntArray
    """[B] a concept item a history."""
    matched: IntArray
    """[B] a retained item of about its popularity."""


def forced_pairs(world: AuditWorld, able: BoolArray) -> Pairs:
    """PAIRS test users with a concept item and a match among `able` [N] each.

    Where there are fewer, everybody is there equally often, all of them before anybody is there again (see `by_user`).
    Popularity is that of the training interactions. `able` are retained items, one at least.
    """
    rng, members = world.random("forced prefix"), np.flatnonzero(world.members)
    counts = np.bincount(world.catalogue.interactions.split().train.items, minlength=len(world.members))
    order = rng.permutation(len(world.histories))[:PAIRS]
    users = np.tile(order, PAIRS // len(order))
    chances = counts[members] + 1.0
    concept = rng.choice(members, size=len(users), p=chances / chances.sum())
    others = np.flatnonzero(able)
    others = others[np.argsort(counts[others], kind="stable")]
    place = np.searchsorted(counts[others], counts[concept]) + rng.integers(-REACH, REACH + 1, len(users))
    matched = others[np.clip(place, 0, len(others) - 1)]
    return Pairs(Case("forced prefix", world.histories.take(users)), concept, matched)


def by_user(values: FloatArray, users: int) -> FloatArray:
    """[U] the mean of each user's pairs [B]: the pairs of one user are no more than one unit, however few users there are."""
    found: FloatArray = np.asarray(values, np.float64).reshape(-1, min(users, PAIRS)).mean(axis=0)
    return found


def forced_prefix(readings: Readings) -> list[Measurement | Skipped]:
    """Extraction strength of concept items under the old and the new table, beside that of matched retained items."""
    world, model = readings.world, readings.model
    able = model.listed & model.table.present & world.retained
    if not able.any():
        return [Skipped("forced_prefix.*", model.role, "no retained item is listed, to match a concept item with")]
    pairs = forced_pairs(world, able)
    users = len(world.histories)
    matched, _ = _strengths(readings, pairs.case, pairs.matched, "new")
    found = [measured(readings, "forced_prefix.retained", by_user(matched, users))]
    empty = _empty(world)
    for side in SIDES:
        free, within = _strengths(readings, pairs.case, pairs.concept, side)
        over = np.where(free == matched, 0.5, free > matched)
        found.append(measured(readings, f"forced_prefix.strength.{side}", by_user(free, users)))
        found.append(measured(readings, f"forced_prefix.trie.{side}", by_user(within, users)))
        found.append(measured(readings, f"forced_prefix.over.{side}", by_user(over, users)))
        alone, _ = _strengths(readings, empty.case, empty.concept, side)
        found.append(measured(readings, f"forced_prefix.empty.{side}", alone))
    return found


def _empty(world: AuditWorld) -> Pairs:
    members = np.flatnonzero(world.members)
    drawn = np.sort(world.random("forced prefix empty").permutation(members)[:EMPTY])
    nothing = synthetic(np.zeros((len(drawn), 1), np.int64), np.zeros(len(drawn), np.int64))
    return Pairs(Case("no history", nothing), drawn, drawn)


def _strengths(readings: Readings, case: Case, items: IntArray, side: Side) -> tuple[FloatArray, FloatArray]:
    """[B] extraction strength of an item a history, without a trie and within that of the whole table."""
    from recerase.model.forced import extraction_strength, likeliest
    from recerase.sid.trie import Trie

    world, model = readings.world, readings.model
    output = model.table if side == "new" else model.old_table
    weights = model.digest or id(model.recommender)
    # A filter asks an original's questions: the trie here is not the one it shows.
    spelled = (model.table.digest, replace(output, listed=output.present).digest)
    key = ("forced", weights, case.name, items.tobytes(), model.reads_concept, *spelled)
    if key not in readings.cache:
        found = likeliest(
            model.recommender,
            model.table,
            readings.histories(case),
            output,
            items[:, None],
            Trie.build(output, output.present),
            batch=world.config.batch,
            observer=readings.observer,
        )
        lengths = np.count_nonzero(output.rows()[items] >= 0, axis=1)
        readings.cache[key] = tuple(extraction_strength(x[:, 0], lengths) for x in (found.free, found.within))
    free, within = readings.cache[key]
    return free, within
