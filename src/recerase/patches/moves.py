"""Which items' SIDs and listing differ between two checkpoint directories: what a patch tells people about its bytes.

The one decision: this is told, not used. A patch is applied by its bytes, so directories whose SIDs cannot be read (a pickle that is
not trusted, a table that lies elsewhere) make a patch all the same, and it says that the moves are not told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import ArtefactError, UsageError
from recerase.runtime import RunConfig
from recerase.sid.table import SidTable
from recerase.types import Observer


def told_moves(before: Path, after: Path, run: RunConfig, observer: Observer, one_way: bool) -> dict[str, Any]:
    """`moves` (item, old and new codes; no old ones in a one-way patch) and `listing` (items taken off, items put on).

    Empty and `unread`, with a note to the observer, where a side cannot be read.
    """
    try:
        old, new = _table(before, run), _table(after, run)
        new = new.aligned(old.item_ids)
    except (ArtefactError, UsageError) as error:
        if isinstance(error, UsageError) and (run.layout is not None or run.layout_options):
            raise
        observer.note(f"the patch does not tell which SIDs moved: {error.message}")
        return {"moves": [], "listing": {"unlisted": [], "listed": []}, "unread": True}
    moves = [
        {
            "item_id": str(old.item_ids[row]),
            "from": None if one_way else _codes(old, row),
            "to": _codes(new, row),
        }
        for row in np.flatnonzero(
            (old.codes != new.codes).any(1) if old.codes.shape == new.codes.shape else _differ(old, new)
        )
    ]
    names = {"unlisted": old.listed & ~new.listed, "listed": new.listed & ~old.listed}
    return {"moves": moves, "listing": {name: [str(i) for i in old.item_ids[mask]] for name, mask in names.items()}}


def _differ(old: SidTable, new: SidTable) -> np.ndarray:
    """[N] the SID differs, where the longest SIDs of two tables differ in length."""
    width = max(old.codes.shape[1], new.codes.shape[1])
    first, second = (np.pad(t.codes, ((0, 0), (0, width - t.codes.shape[1])), constant_values=-1) for t in (old, new))
    return np.asarray((first != second).any(1))


def _codes(table: SidTable, row: np.integer[Any]) -> list[int] | None:
    codes = [int(code) for code in table.codes[row] if code >= 0]
    return codes or None


def _table(path: Path, run: RunConfig) -> SidTable:
    """The SID table of a checkpoint directory; of a native one nothing else is read."""
    from recerase.layouts.native import is_native, load_sids
    from recerase.layouts.registry import open_checkpoint

    if is_native(path) and run.layout in (None, "native"):
        return load_sids(path)[0]
    opened = open_checkpoint(path, trust_pickle=run.trust_pickle, layout=run.layout, options=dict(run.layout_options))
    return opened.table
