"""What makes a SID table one: distinct items, codes that the schema can spell, and an end to every shorter SID."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recerase.errors import TableError
from recerase.sid.schema import SidSchema
from recerase.types import BoolArray, IntArray

_APART = "The table and the checkpoint do not belong together; use the table the model was trained with."


def check_table(item_ids: NDArray[Any], codes: IntArray, schema: SidSchema) -> None:
    """Raises TableError unless codes [N, L] of `item_ids` [N] are SIDs of `schema`."""
    if len(set(item_ids.tolist())) != len(item_ids):
        raise TableError("The SID table names an item twice.", "Keep one row an item.")
    if codes.shape[1] != schema.levels:
        raise TableError(f"The SID table has {codes.shape[1]} levels, its schema {schema.levels}.", _APART)
    broken = ((codes[:, 1:] >= 0) & (codes[:, :-1] < 0)).any(1)  # a code behind the end
    bad = np.flatnonzero((codes >= np.asarray(schema.codes)).any(1) | broken)
    if not len(bad):
        bad = np.flatnonzero(_unspelled(codes, schema))
    if len(bad):
        raise TableError(
            f"Item {item_ids[bad[0]]} has the SID {codes[bad[0]].tolist()}, which the schema "
            f"{list(schema.codes)} cannot spell ({len(bad)} such items).",
            _APART,
        )
    _check_ends(np.count_nonzero(codes >= 0, axis=1), schema)


def _unspelled(codes: IntArray, schema: SidSchema) -> BoolArray:
    """[N] the SID has a code without a vocabulary row."""
    found = np.zeros(len(codes), bool)
    for level, rows in enumerate(schema.rows):
        if (rows < 0).any():
            found |= (rows[codes[:, level]] < 0) & (codes[:, level] >= 0)
    return found


def _check_ends(lengths: IntArray, schema: SidSchema) -> None:
    """Raises TableError when SIDs of `lengths` [N] codes (0: none) cannot be told from longer ones that begin with them."""
    some = lengths[lengths > 0]
    if not len(some) or some.min() == schema.levels:
        return
    if some.min() == some.max():
        raise TableError(f"The SID table has {some[0]} levels, its schema {schema.levels}.", _APART)
    if schema.eos < 0 or any((rows == schema.eos).any() for rows in schema.rows):
        raise TableError(
            f"SIDs have {some.min()} to {some.max()} codes, and the schema has no eos token of its own to end them.",
            "Name the vocabulary row that ends a SID as eos in the schema, or give every SID the same levels.",
        )
