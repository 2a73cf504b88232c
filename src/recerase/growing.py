"""--grow-vocabulary: the step before a method, which offers codes without a vocabulary row, and the one after, which keeps those used.

The one decision: how many are offered is worked out from what is missing. Offered are all codes below the largest of a level that
have no row, and on the last level as many codes above it as give the concept twice the free SIDs that it needs; each of these
makes one below every prefix, so a handful is usually enough; where enough SIDs are free, none is offered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.earlier import Gone
from recerase.errors import EraseError, UsageError
from recerase.layouts.growth import Room, asked_rows, further, lacking, new_codes, room_of
from recerase.types import BoolArray, IntArray

if TYPE_CHECKING:
    from recerase.erase.method import Method
    from recerase.layouts.native import Checkpoint
    from recerase.model.recommender import Recommender
    from recerase.sid.codebooks import Codebooks
    from recerase.sid.table import SidTable

_AMPLE = 2
"""Free SIDs an item of the concept that `auto` provides for."""


@dataclass(frozen=True)
class Offer:
    """A checkpoint with rows to choose from."""

    checkpoint: Checkpoint
    room: Room
    facts: Mapping[str, Any]
    """For --plan."""

    @property
    def told(self) -> str:
        """The offer in one line."""
        if not self.facts["new rows offered"]:
            return f"no vocabulary row is added: {self.facts['free SIDs without them']} SIDs are free"
        return (
            f"{self.facts['new rows offered']} vocabulary rows may be added: {self.facts['free SIDs with them']} SIDs are free with "
            f"them, {self.facts['free SIDs without them']} without"
        )

    def settled(
        self, before: Checkpoint, model: Recommender, table: SidTable
    ) -> tuple[Checkpoint, Recommender, SidTable, dict[str, Any]]:
        """What is written: the source with its codebooks, model and table, all with the new rows in use alone; and figures."""
        from recerase.layouts.grown import trimmed

        model, table, codebooks = trimmed(before, self.checkpoint, self.room, model, table)
        added = new_codes(before.table.schema, table.schema)
        figures = {
            "rows_added": len(added),
            "new_codes": [[level, code, int(table.schema.rows[level][code])] for level, code in added],
        }
        return replace(before, codebooks=codebooks), model, table, figures


def check_grow(eraser: Method, grow: str | None) -> None:
    """Raises UsageError when --grow-vocabulary says nothing that can be done, or the method has no use for it."""
    if grow is None:
        return
    asked_rows(grow)
    if not eraser.moves:
        raise UsageError(
            f"Method {eraser.name} moves no item, so it needs no new vocabulary row.", "Leave --grow-vocabulary out."
        )


def offer(
    before: Checkpoint,
    members: BoolArray,
    eraser: Method,
    settings: Any,
    asked: str | None,
    seed: int,
    gone: Gone | None = None,
) -> Offer | None:
    """The checkpoint with new rows for the items `members` [N] to choose from; `asked` is `auto`, the most rows, or None for none.

    SIDs that items of earlier concepts (`gone`) have or had are not free.

    Raises EraseError when the layout's vocabulary cannot grow, or has no room left and too few SIDs are free; and what the method
    refuses.
    """
    from recerase.erase.vacant import free_sids, usable
    from recerase.layouts.grown import grown
    from recerase.layouts.registry import named_layout

    if asked is None:
        return None
    eraser.check(before.table, before.codebooks, before.embeddings, settings)
    if before.codebooks is None:
        raise UsageError("No item moves without codebooks, so no row is needed.", "Leave --grow-vocabulary out.")
    table, codebooks, most = before.table, before.codebooks, asked_rows(asked)
    room = room_of(named_layout(before.layout), before)
    concept = members & table.present
    taken = (None, None) if gone is None else (gone.besides(members), gone.left)
    free, prefixes = free_sids(table, concept, usable(table, codebooks), *taken)
    holes = lacking(table.schema, room)
    if most is None:
        holed = _usable_with(before, holes)
        there, prefixes = free_sids(table, concept, holed, *taken)
        missing = _AMPLE * int(concept.sum()) - there
        codes = holes + further(table.schema, room, -(-missing // max(1, prefixes)) if missing > 0 else 0)
    else:
        codes = (holes + further(table.schema, room, max(0, most - len(holes))))[:most]
    if not codes and free < int(concept.sum()):
        raise EraseError(
            f"No vocabulary row can be added to {before.path}, and {free} SIDs are free for {int(concept.sum())} items.",
            room.hint or "Tokenize with more codes a level.",
        )
    made = grown(before, room, codes, seed)
    assert made.codebooks is not None
    then, _ = free_sids(made.table, concept, usable(made.table, made.codebooks, offered_codes(before, made)), *taken)
    facts = {
        "new rows offered": len(codes),
        "new codes a level": [sum(level == at for level, _ in codes) for at in range(table.levels)],
        "free SIDs without them": free,
        "free SIDs with them": then,
        "concept items": int(concept.sum()),
        "vocabulary": f"{table.schema.vocabulary} rows, at most {made.table.schema.vocabulary} then; unused ones are dropped",
    }
    return Offer(made, room, facts)


def _usable_with(before: Checkpoint, holes: list[tuple[int, int]]) -> list[BoolArray]:
    """Codes that may be given once `holes` have rows."""
    from recerase.erase.vacant import usable

    assert before.codebooks is not None
    known = usable(before.table, before.codebooks)
    for level, code in holes:
        known[level][code] = True
    return known


def offered_codes(before: Checkpoint, made: Checkpoint) -> tuple[IntArray, ...]:
    """A level: the codes that have a row in `made` alone."""
    added = new_codes(before.table.schema, made.table.schema)
    return tuple(np.array([code for at, code in added if at == level], np.int64) for level in range(made.table.levels))


def codebooks_for(source: Checkpoint, subject: Checkpoint) -> Codebooks | None:
    """The source's codebooks; where the subject has codes that the source lacks, its own, if they say the same of all others."""
    mine, theirs = source.codebooks, subject.codebooks
    old, new = source.table.schema, subject.table.schema
    if mine is None or theirs is None or old.levels != new.levels or mine.levels != theirs.levels:
        return mine
    added = new_codes(old, new)
    words = enumerate(zip(mine.vectors, theirs.vectors, strict=True))
    kept = {
        level: np.setdiff1d(np.arange(len(a)), [code for at, code in added if at == level]) for level, (a, _) in words
    }
    same = all(
        len(a) <= len(b) and np.array_equal(a[kept[level]], b[kept[level]])
        for level, (a, b) in enumerate(zip(mine.vectors, theirs.vectors, strict=True))
    )
    return theirs if added and same else mine
