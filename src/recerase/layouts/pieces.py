"""The SID files of a native directory, written as they are made: what `native.save_sids` writes, for what no memory holds.

The one decision: both files are made of parts in their order, a row group or a block of embeddings each, so that one part is held.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from recerase.layouts.native import CODEBOOKS, SCHEMA, SIDS
from recerase.sid.codebooks import Codebooks
from recerase.sid.schema import SidSchema
from recerase.store import canonical_json, pretty_json, write_bytes, write_parts
from recerase.types import FloatArray


def save_streamed_sids(
    staging: Path,
    pieces: Iterable[Any],
    schema: SidSchema,
    codebooks: Codebooks,
    embeddings: Iterable[FloatArray] = (),
    n_embeddings: int = 0,
) -> None:
    """`save_sids` for what does not fit into memory: the table in `pieces` (arrow, a row group each), embeddings [n, D] in blocks."""
    write_parts(staging / SIDS, parquet_parts(pieces))
    write_bytes(staging / SCHEMA, pretty_json(schema.to_json()))
    tensors = sorted(codebooks.to_tensors().items())
    shapes = [(name, list(tensor.shape)) for name, tensor in tensors]
    if n_embeddings:
        shapes.append(("embeddings", [n_embeddings, len(codebooks.recipe.centre)]))
    ends = np.cumsum([4 * np.prod(shape, dtype=np.int64) for _, shape in shapes]).tolist()
    header: dict[str, Any] = {"__metadata__": {"recerase": canonical_json(codebooks.metadata()).decode()}}
    for (name, shape), begin, end in zip(shapes, [0, *ends[:-1]], ends, strict=True):
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    arrays = chain((tensor for _, tensor in tensors), embeddings)
    content = (np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)
    write_parts(staging / CODEBOOKS, chain([len(text).to_bytes(8, "little"), text], content))


def parquet_parts(tables: Iterable[Any]) -> Iterator[bytes]:
    """The bytes of a parquet file of one row group a table, as far as they are made: no more than one group is held."""
    import pyarrow.parquet as pq

    sink = _Drain()
    writer: Any = None
    for table in tables:
        writer = writer or pq.ParquetWriter(sink, table.schema, compression="zstd")
        writer.write(table, row_group_size=len(table))
        yield sink.drained()
    writer.close()
    yield sink.drained()


class _Drain(io.RawIOBase):
    """What is written to it is handed on, and only counted."""

    def __init__(self) -> None:
        self._held, self._at = bytearray(), 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._held += data
        self._at += len(data)
        return len(data)

    def drained(self) -> bytes:
        """What came since it was asked last."""
        out = bytes(self._held)
        self._held.clear()
        return out
