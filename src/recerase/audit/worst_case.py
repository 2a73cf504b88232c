"""The worst history an adversary can send: a greedy search for the greatest exact mass of the concept (swaps.py).

The decision that shaped this probe: everybody is attacked alike. The starts (users of the concept without its items, what is
consumed beside it, what lies next to it, and nothing at all) are drawn from the world, and the same search runs on a reference, so
that a mass that any model can be talked into is told from one that was left behind. Of the shop window's adversary the candidates
are listed retained items; `any` has all items, the concept's own among them. A reference is given these too: the attack itself is
the question, and its histories are not a user's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import Case, concept_users
from recerase.audit.neighbours import outside_neighbours
from recerase.audit.probes import counted, measured
from recerase.audit.readings import SIDES, Side, exposure
from recerase.audit.saturated import by_popularity
from recerase.store import sha256_bytes
from recerase.types import FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings
    from recerase.audit.swaps import Target
    from recerase.sid.table import SidTable
    from recerase.types import BoolArray

_POOL = 5
"""Items consumed beside the concept that a start is drawn from, as a multiple of the items of a history."""


def worst_case(readings: Readings) -> list[Measurement | Skipped]:
    """Greatest mass found with retained and with any items, its mean over the starts, and exposure@k after the histories found."""
    world, role = readings.world, readings.model.role
    if not shop_window(readings).any():
        return [Skipped("worst_case.*", role, "no listed item outside the concept can stand in a history")]
    found: list[Measurement | Skipped] = []
    retained = {side: worst(readings, side) for side in SIDES}
    for side, (_, masses) in retained.items():
        found.append(counted(readings, f"worst_case.mass.{side}", float(masses.max()), len(masses), exact=True))
        found.append(measured(readings, f"worst_case.mean.{side}", masses))
    for side in SIDES:
        _, masses = worst(readings, side, anything=True)
        found.append(counted(readings, f"worst_case.any.{side}", float(masses.max()), len(masses), exact=True))
    items, _ = retained["new"]
    lists = readings.lists(_as_case(items))
    return [
        *found,
        *(measured(readings, f"worst_case.exposure@{k}", exposure(lists, world.members, k)) for k in world.config.k),
    ]


def worst(readings: Readings, side: Side, *, anything: bool = False) -> tuple[IntArray, FloatArray]:
    """The histories that a search ended with, int64 [S, m] with -1 behind them, and the exact mass after each, float64 [S].

    `side`: of the SIDs that concept items have now (new), or had before the erasure (old). Read once, and shared where nothing
    moved; no history holds a concept item unless `anything`.
    """
    from recerase.audit.swaps import search

    model, world = readings.model, readings.world
    readable, window = model.table.readable, shop_window(readings)
    allowed = readable if anything else window
    output = _output(readings, side)
    members = world.members & output.present
    weights = model.digest or id(model.recommender)
    spelled = (model.table.codes, readable, window, allowed, members, output.codes[members])
    key = ("worst case", weights, sha256_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in spelled)))
    if key not in readings.cache:
        if anything:
            starts = _saturated_starts(readings, worst(readings, side))
        else:
            starts = admitted(drawn_starts(world, history_items(readings)), allowed)
        target = target_of(readings, side)
        if target is None:  # what has no SID is never generated
            readings.cache[key] = starts, np.zeros(len(starts))
        else:
            found = search(target, starts, np.flatnonzero(allowed), world.config.worst_rounds, readings.observer)
            readings.cache[key] = found.items, np.exp(found.log_mass)
    items, masses = readings.cache[key]
    return items, masses


def target_of(readings: Readings, side: Side) -> Target | None:
    """What a search looks for: the concept under the SIDs of a side; None where no concept item has one there."""
    from recerase.audit.swaps import Target

    output, world = _output(readings, side), readings.world
    if not (world.members & output.present).any():
        return None
    return Target(readings.model, output, world.members, world.config.mass_batch)


def _output(readings: Readings, side: Side) -> SidTable:
    return readings.model.table if side == "new" else readings.model.old_table


def shop_window(readings: Readings) -> BoolArray:
    """[N] listed retained items that a history can hold."""
    model = readings.model
    allowed: BoolArray = model.listed & readings.world.retained & model.table.readable
    return allowed


def history_items(readings: Readings) -> int:
    """m, the most items of a history."""
    return min(readings.world.config.worst_items, readings.model.recommender.window)


def drawn_starts(world: AuditWorld, m: int) -> IntArray:
    """int64 [S, m] retained items from the left, -1 behind them: the same for every model, whatever the order of the users.

    The first is empty. Then, in turn: the last m retained items of a user of the concept (where there is none, of anyone); m items
    drawn among those whose users touch the concept the most above chance; the m items nearest a concept item drawn by popularity,
    the nearest last (without embeddings: a user's again).
    """
    size = world.config.worst_starts
    users = _natural(world, m, size)
    beside = _beside(world, m, size)
    near = _near(world, m, size)
    turn = np.arange(size) % 3
    mixed = np.where((turn == 0)[:, None], beside, np.where((turn == 1)[:, None], users, near))
    mixed[0] = -1
    return mixed


def _natural(world: AuditWorld, m: int, size: int) -> IntArray:
    """The last m retained items of `size` of the concept's users, of anyone where they are none."""
    touched = concept_users(world)
    histories = world.histories.take(touched if touched.any() else np.ones(len(touched), bool))
    pool = np.unique(histories.without(world.out).padded(m), axis=0).astype(np.int64)  # in the order of what they hold
    rng = world.random("worst case users")
    return pool[rng.permutation(len(pool))[np.arange(size) % len(pool)]]


def _beside(world: AuditWorld, m: int, size: int) -> IntArray:
    """m retained items each, drawn among the 5 m that the concept's users take the most above chance (of those seen twice)."""
    histories = world.histories
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    pairs = np.unique(np.stack([owner, histories.items]), axis=1)
    n = len(world.members)
    seen = np.bincount(pairs[1], minlength=n)
    shared = np.bincount(pairs[1][concept_users(world)[pairs[0]]], minlength=n)
    lift = np.where(world.retained, (shared + 1) / (seen + 2) * (seen > 1), -1.0)
    pool = np.argsort(-lift, kind="stable")[: min(_POOL * m, int(world.retained.sum()))]
    rng = world.random("worst case beside")
    order = np.argsort(rng.random((size, len(pool))), axis=1)[:, :m]
    short = np.full((size, m), -1, np.int64)
    short[:, : order.shape[1]] = pool[order]
    return short


def _near(world: AuditWorld, m: int, size: int) -> IntArray:
    """The m retained items nearest a concept item, farthest first; without embeddings what users had."""
    if world.embeddings is None:
        return _natural(world, m, 2 * size)[size:]
    near = outside_neighbours(world.embeddings, world.members, m, world.retained)[:, ::-1]
    counts = np.bincount(world.catalogue.interactions.items, minlength=len(world.members))[world.members]
    anchors = by_popularity(world.random("worst case near"), counts, 1, size)[0]
    short = np.full((size, m), -1, np.int64)
    short[:, : near.shape[1]] = near[anchors]
    return short


def _saturated_starts(readings: Readings, retained: tuple[IntArray, FloatArray]) -> IntArray:
    """Where the search among all items begins: the worst history without the concept, and 1 to m concept items of popularity."""
    world, m = readings.world, history_items(readings)
    size = world.config.worst_starts
    members = np.flatnonzero(world.members)
    counts = np.bincount(world.catalogue.interactions.items, minlength=len(world.members))[members]
    drawn = members[by_popularity(world.random("worst case any"), counts, size, m)]
    starts = np.where(np.arange(m) <= (np.arange(size) % m)[:, None], drawn, -1)
    starts = admitted(starts, readings.model.table.readable)
    items, masses = retained
    starts[0] = items[np.argmax(masses)]
    return starts


def admitted(items: IntArray, allowed: BoolArray) -> IntArray:
    """The histories [S, m] without the items that are not `allowed` [N], those that stay moved to the left."""
    kept = (items >= 0) & allowed[items]
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, items, -1), order, 1)


def _as_case(items: IntArray) -> Case:
    """The histories found, under a name of their own: they differ from model to model."""
    from recerase.audit.swaps import as_histories

    return Case(f"worst case {sha256_bytes(items.tobytes())[:16]}", as_histories(items))
