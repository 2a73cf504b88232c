"""Histories of what people take with the concept: what asks for it by taste, however far away its words are.

The decision that shaped this probe: taste is pointwise mutual information in the training interactions alone, between a
retained item and the concept as a whole. Two interactions of one user that lie within WINDOW of each other are together;
an item's PMI is log p(concept | beside the item) / p(concept | beside any). Over whole users it would be flat, for whoever
has a long history has some of everything. An item that few had scores highest by chance alone, so items below a floor do
not count. A history holds no concept item: every role reads the same ones, and comparisons are paired.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import Case, synthetic
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, exposure
from recerase.types import BoolArray, FloatArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings
    from recerase.catalog.interactions import Histories

WINDOW = 5
"""Interactions before and after an item that are beside it."""
FLOOR = 5
"""Training interactions an item needs to be ranked, and among them one beside the concept."""
POOL = 50
"""Items of the highest PMI from which histories are drawn."""


def beside(train: Histories, members: BoolArray) -> tuple[IntArray, IntArray]:
    """[N] how many interactions stand within WINDOW of each item's own, of the same user, and how many of them with `members` [N]."""
    n, items = len(members), train.items
    owner = np.repeat(np.arange(len(train)), train.lengths)
    every, held = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for apart in range(1, WINDOW + 1):
        same = owner[apart:] == owner[:-apart]
        early, late = items[:-apart][same], items[apart:][same]
        every += np.bincount(early, minlength=n) + np.bincount(late, minlength=n)
        held += np.bincount(early[members[late]], minlength=n) + np.bincount(late[members[early]], minlength=n)
    return every, held


def pmi(world: AuditWorld) -> FloatArray:
    """[N] pointwise mutual information, in nats, of each retained item with the concept; -inf for all others.

    Others are items with fewer than FLOOR training interactions, with none beside the concept, or in a concept.
    Church & Hanks (1990), with the floor they give against rare words.
    """
    train = world.catalogue.interactions.split().train
    every, held = beside(train, world.members)
    seen = np.bincount(train.items, minlength=len(world.members))
    ranked = world.retained & (seen >= FLOOR) & (held > 0)
    found = np.full(len(world.members), -np.inf)
    found[ranked] = np.log(held[ranked] / every[ranked]) - np.log(held.sum() / max(int(every.sum()), 1))
    return found


def co_consumed_case(world: AuditWorld) -> Case:
    """`saturated_histories` histories of m of the POOL items of highest PMI, m = 1..20 in turn, the highest last.

    Empty where no item is above the floor; shorter where there are fewer than m. Equal PMI: the more frequent first.
    """
    config, rng, score = world.config, world.random("co-consumed"), pmi(world)
    counts = np.bincount(world.catalogue.interactions.split().train.items, minlength=len(score))
    best = np.lexsort((np.arange(len(score)), -counts, -score))[: min(POOL, int(np.isfinite(score).sum()))]
    rows = config.saturated_histories if len(best) else 0
    m = np.minimum(np.arange(rows) % config.saturated_items + 1, len(best))
    chance = np.argsort(rng.random((rows, len(best))), axis=1)  # [rows, pool] a random order of the pool
    lowest_first = -np.sort(-np.where(np.arange(len(best)) < m[:, None], chance, -1), axis=1)  # then -1
    return Case("co-consumed", synthetic(best[lowest_first] if rows else np.empty((0, 1), np.int64), m))


def co_consumed(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@k and concept mass over histories of the items of highest PMI with the concept."""
    world = readings.world
    case = co_consumed_case(world)
    if len(case) == 0:
        reason = f"no retained item has {FLOOR} training interactions and one beside the concept"
        return [Skipped("co_consumed.*", readings.model.role, reason)]
    lists = readings.lists(case)
    found = [measured(readings, f"co_consumed.exposure@{k}", exposure(lists, world.members, k)) for k in world.config.k]
    return [*found, *(measured(readings, f"co_consumed.mass.{side}", readings.mass(case, side)) for side in SIDES)]
