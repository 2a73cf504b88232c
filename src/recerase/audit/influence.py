"""How much a history's concept items move the rest of the list, beside as many other items of the same history.

The decision that shaped this probe: what is compared is one user's lists of retained items, with and without the items that are
dropped, and what a drop of that size moves anyway is measured on the same users: each concept item is matched with a retained item of
the same history at nearly the same place, and as many are dropped. A history that has too few retained items for that, or would be
empty without them, is not matched; the figure over all users of the concept is `influence.history`, the two beside each other are over
those that are.

Every role is given the histories as they are, a reference too (which its role would not have it read): what it makes of items it never
saw, by the codes they share with others, is what no memory of the concept explains. Under `influence` an erased model's must be about
zero, under `output` it may be the original's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import Case, concept_users_case, mass_users, natural_case
from recerase.audit.likeness import TOP, _first, overlap, retained
from recerase.audit.probes import measured
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings
    from recerase.catalog.interactions import Histories

PERSISTENCE = 0.9
"""p of rank-biased overlap: how likely a reader of rank r is to go on to the next; the first ten hold 86 % of the weight."""


def influence(readings: Readings) -> list[Measurement | Skipped]:
    """1 - overlap@10, and 1 - rank-biased overlap, of the retained items with and without the history's concept items."""
    usual, other = _lists_with_and_without(readings)
    case = concept_users_case(readings.world)
    rows, fewer = without_matched(case.histories, readings.world.members)
    whole = usual if readings.model.reads_concept else other  # the list after the history as it is
    matched = Case("concept users without as many others", fewer)
    left = _left(_as_given(readings).lists(matched), readings.world.members)
    return [
        measured(readings, "influence.history", 1.0 - overlap(usual, other)),
        measured(readings, "influence.history.rbo", 1.0 - rank_biased_overlap(usual, other)),
        measured(readings, "influence.matched.concept", 1.0 - overlap(usual[rows], other[rows])),
        measured(readings, "influence.matched.other", 1.0 - overlap(whole[rows], left)),
    ]


def history_influence(readings: Readings) -> FloatArray:
    """[n] how much of a list changes when the concept items of the history are dropped: 1 - overlap@10 of retained items.

    Over at most `mass_users` users of the concept, for every role of histories as they are.
    """
    usual, other = _lists_with_and_without(readings)
    return 1.0 - overlap(usual, other)


def without_matched(histories: Histories, members: BoolArray) -> tuple[IntArray, Histories]:
    """Which histories [R] hold more other items than concept items, and these without another item for each concept item.

    A concept item with b others before it is matched with the one after these, where that is taken with the next, and at the end with
    the latest; no item is matched twice. `members` [N] marks the concept.
    """
    concept = np.bincount(_owners(histories), weights=members[histories.items], minlength=len(histories)).astype(
        np.int64
    )
    rows = np.flatnonzero(histories.lengths > 2 * concept)
    some = histories.take(rows)
    held, owner, begin = members[some.items], _owners(some), some.offsets[:-1]
    others, places = np.flatnonzero(~held), np.flatnonzero(held)
    owner, start = owner[places], np.searchsorted(others, begin)
    nth = np.arange(len(places)) - np.searchsorted(places, begin)[owner]  # of the history's concept items
    ahead = np.searchsorted(others, places) - start[owner]  # b
    apart = owner * (2 * len(held) + 1)  # the running maximum starts anew with every history
    free = np.maximum.accumulate(ahead - nth + apart) - apart
    room = (some.lengths - 2 * concept[rows])[owner]
    keep = np.ones(len(held), bool)
    keep[others[start[owner] + np.minimum(free, room) + nth]] = False
    offsets = np.concatenate([[0], np.cumsum(keep)])[some.offsets].astype(np.int64)
    return rows, replace(some, items=some.items[keep], offsets=offsets)


def rank_biased_overlap(a: IntArray, b: IntArray) -> FloatArray:
    """[B] of lists `a` [B, k] and `b` [B, k], -1 where there are no more: overlap at every depth, the first weighing most.

    Webber, Moffat & Zobel 2010, with PERSISTENCE, over the k ranks there are, their weights made to sum to one.
    """
    depths = np.arange(1, a.shape[1] + 1)
    weights = PERSISTENCE ** (depths - 1.0)
    apart = np.stack([1.0 - overlap(a[:, :depth], b[:, :depth]) for depth in depths.tolist()])  # [k, B]
    found: FloatArray = 1.0 - weights @ apart / weights.sum()
    return found


def _lists_with_and_without(readings: Readings) -> tuple[IntArray, IntArray]:
    """[n, TOP] twice: retained items of the list as the role's histories are, and of the one with or without the concept."""
    world, sample = readings.world, mass_users(readings.world)
    case = concept_users_case(world)
    usual = readings.lists(natural_case(world))[sample.rows[sample.of_concept]]
    if readings.model.reads_concept:
        other = readings.lists(Case("concept users without the concept", case.histories.without(world.members)))
    else:
        other = _as_given(readings).lists(case)
    return _left(usual, world.members), _left(other, world.members)


def _as_given(readings: Readings) -> Readings:
    """The model reading histories as they are."""
    return replace(readings, model=replace(readings.model, reads_concept=True))


def _left(lists: IntArray, members: BoolArray) -> IntArray:
    return _first(retained(lists, np.zeros(lists.shape), members)[0], TOP)


def _owners(histories: Histories) -> IntArray:
    return np.repeat(np.arange(len(histories)), histories.lengths)
