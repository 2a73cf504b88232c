"""Without a trie: what the weights would say if nothing held them to the catalogue.

The decision that shaped this probe: other tools' constraints are per level, or absent, so a checkpoint must be read
without any. It is read on the histories of the concept's own users, where a leak is likeliest. An old concept SID
that a retained item held as well says nothing about the concept and is not counted; aliasing reports such pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recerase.audit.cases import concept_users_case
from recerase.audit.probes import measured
from recerase.types import BoolArray, IntArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.readings import Readings


def free(readings: Readings) -> list[Measurement | Skipped]:
    """Share of free generations that are no listed item's SID, and that are a concept item's old SID."""
    world, model = readings.world, readings.model
    case = concept_users_case(world)
    if len(case) == 0:
        return [Skipped("free.*", model.role, "no test user's history holds the concept")]
    rows = np.asarray(readings.free(case).rows)  # [B, W, L]
    valid = contains(rows, model.table.rows()[model.listed & model.table.present])
    old = model.old_table.rows()
    retained = old[model.old_table.present & world.retained]
    concept = old[model.old_table.present & world.members]
    leaked = contains(rows, concept[~contains(concept, retained)])
    return [
        measured(readings, "free.invalid", 1.0 - valid.mean(axis=1)),
        measured(readings, "free.old_concept", leaked.mean(axis=1)),
    ]


def contains(rows: IntArray, known: IntArray) -> BoolArray:
    """[...] whether each SID of `rows` [..., L] is one of `known` [X, L]."""
    flat = np.concatenate([known.reshape(-1, rows.shape[-1]), rows.reshape(-1, rows.shape[-1])])
    _, names = np.unique(flat, axis=0, return_inverse=True)
    names = names.reshape(-1)
    found: BoolArray = np.isin(names[len(known) :], names[: len(known)]).reshape(rows.shape[:-1])
    return found
