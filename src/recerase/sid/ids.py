"""Item ids as a column of text, and their order: arrow does both without a Python loop over the items."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recerase.types import IntArray


def as_text(ids: NDArray[Any]) -> pa.Array:
    """`ids` [N] as arrow strings; what is no string is written as `str` does."""
    try:
        text = pa.array(ids, pa.string())
    except pa.ArrowException:
        text = None
    if text is None or text.null_count:
        text = pa.array([str(i) for i in ids.tolist()], pa.string())
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def text_rank(ids: NDArray[Any]) -> IntArray:
    """int64 [N] place of each id when they are sorted as text, by code point; equal ones in the order given."""
    try:
        order = pc.array_sort_indices(as_text(ids)).to_numpy()
    except UnicodeEncodeError:  # half a surrogate pair, which arrow cannot hold
        order = np.array(sorted(range(len(ids)), key=[str(i) for i in ids.tolist()].__getitem__), np.int64)
    rank = np.empty(len(ids), np.int64)
    rank[order] = np.arange(len(ids))
    return rank
