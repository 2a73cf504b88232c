"""`recerase recommend`: what every user with a history would be shown, as one table.

The one decision: users are asked with their whole history, nothing held out, for this is what they would be shown next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recerase.assembly import RUN, given_paths, open_checkpoint_for, whole_histories
from recerase.catalog import load_catalogue
from recerase.errors import CheckpointError, UsageError
from recerase.runtime import RunConfig, choose_dtype, pinned
from recerase.store import check_file_output, parquet_bytes, write_bytes
from recerase.types import SILENT, Observer


@dataclass(frozen=True)
class Recommended:
    """Where `recommend` wrote, and for how many users."""

    path: Path
    users: int
    rows: int


def recommend(
    checkpoint: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    top: int = 20,
    beam: int | None = None,
    exact: bool = False,
    batch: int = 256,
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Recommended:
    """Write the `top` recommendations of every user with a history: user_id, rank (from 1), item_id, score (log p).

    By beam search, or with `exact` from the scores of all listed items, of which there may be 50,000.
    """
    import pyarrow as pa

    from recerase.model.decode import recommend as decode
    from recerase.model.exact import recommend_exact

    if exact and beam is not None:
        raise UsageError("--exact uses no beam.", "Leave --beam out.")
    choose_dtype(run.dtype)  # a name that is none is refused before anything is read
    out = Path(out)
    check_file_output(out, inputs=given_paths(checkpoint, data, run), force=force)
    catalogue = load_catalogue(data)
    histories = whole_histories(catalogue)
    with pinned(run.threads, run.seed):
        opened = open_checkpoint_for(checkpoint, catalogue, run)
        asked = (opened.recommender, opened.table, histories)
        if exact:
            lists = recommend_exact(*asked, k=top, batch=batch, observer=observer)
        else:
            lists = decode(*asked, k=top, beam=beam, batch=batch, observer=observer)
    without = int((lists.items[:, 0] < 0).sum()) if bool((opened.table.listed & opened.table.present).any()) else 0
    if without:
        raise CheckpointError(
            f"{checkpoint} gives no finite probability after {without} of {len(histories)} histories.",
            "Check its weights; where --dtype was given, leave it out.",
        )
    row, rank = np.nonzero(lists.items >= 0)
    table = pa.table(
        {
            "user_id": pa.array(catalogue.interactions.user_ids[histories.users[row]], pa.string()),
            "rank": pa.array((rank + 1).astype(np.int32)),
            "item_id": pa.array(catalogue.items.item_ids[lists.items[row, rank]], pa.string()),
            "score": pa.array(lists.scores[row, rank].astype(np.float32)),
        }
    )
    write_bytes(out, parquet_bytes(table))
    return Recommended(out, len(histories), table.num_rows)
