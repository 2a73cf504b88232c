"""A safetensors file as arrays: read once, hashed on the way, every tensor straight into memory of its own.

The deciding choice is who holds the bytes that were hashed: the one who uses them, and nobody else. A map of the file would
save the one copy, but what a map shows may change after it was hashed (a private one as well, page by page, until it is
written to), and a file that is cut short under a map ends the process. So the bytes are copied once, out of the file into the
memory that the model then has: aligned as its library wants it (views on one buffer are not, and matrix products may round
otherwise there), writable, and given back tensor by tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recerase.catalog.files import Verified

DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
"""Name in the file -> name in numpy and torch, and bytes an element."""
_LONGEST_HEADER = 100_000_000
_MOST_DIMENSIONS, _MOST_ELEMENTS = 32, 1 << 40
_HEADER = "the header is not as safetensors has it"


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in the file, and what it is."""

    name: str
    dtype: str
    """As numpy and torch call it."""
    shape: tuple[int, ...]
    begin: int
    """Bytes after the header."""
    end: int


Allocate = Callable[[Entry], tuple[Any, memoryview]]
"""Makes the array of an entry, and its memory as bytes to be filled."""


def read_safetensors(
    file: Verified, allocate: Allocate, done: Callable[[Any], Any] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Every tensor of the file by name, and its metadata; `file` is read to its end, and hashed as it is.

    `done` may put another array (of another dtype) in the place of one that has been read.
    Raises ValueError, saying why in a few words: no header, or one that says anything but what the file holds, without
    a gap, an overlap or a name twice.
    """
    _, entries, metadata = header(file)
    found: dict[str, Any] = {}
    for entry in entries:
        array, memory = allocate(entry)
        file.fill(memory)
        found[entry.name] = array if done is None else done(array)
    return found, metadata


def header(file: Verified) -> tuple[bytes, list[Entry], dict[str, str]]:
    """All bytes before the tensors, the tensors in the order of their bytes, and the metadata. Raises ValueError as above."""
    if file.size < 8:
        raise ValueError(f"it has {file.size} bytes")
    raw = file.read(8)
    length = int.from_bytes(raw, "little")
    if length > min(file.size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header claims {length:,} bytes of {file.size:,}")
    try:
        raw += file.read(length)
        said = json.loads(raw[8:], object_pairs_hook=_once, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError(_HEADER) from error
    metadata = said.pop("__metadata__", {}) if isinstance(said, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(_HEADER)
    entries = sorted((_entry(name, value) for name, value in said.items()), key=lambda e: (e.begin, e.end))
    at = 0
    for entry in entries:
        if entry.begin != at:
            raise ValueError(f"the bytes of {entry.name!r:.80} overlap others, or leave a gap")
        at = entry.end
    if at != file.size - 8 - length:
        raise ValueError(f"its tensors claim {at:,} bytes of {file.size - 8 - length:,}")
    return raw, entries, metadata


def _entry(name: str, said: Any) -> Entry:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(_HEADER)
    shape, offsets = said["shape"], said["data_offsets"]
    whole = all(
        isinstance(part, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in part) for part in (shape, offsets)
    )
    if not whole or len(offsets) != 2 or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name!r:.80} has no shape and place")
    if not isinstance(said["dtype"], str) or said["dtype"] not in DTYPES:
        raise ValueError(f"{name!r:.80} is of dtype {said['dtype']!r:.20}, which is not read")
    dtype, size = DTYPES[said["dtype"]]
    begin, end = offsets
    if end - begin != math.prod(shape) * size or math.prod(n for n in shape if n) > _MOST_ELEMENTS:
        raise ValueError(f"{name!r:.80} claims {math.prod(shape):,} elements in {end - begin:,} bytes")
    return Entry(name, dtype, tuple(shape), begin, end)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"its header holds {constant}")


def numpy_memory(entry: Entry) -> tuple[Any, memoryview]:
    """An array for an entry; raises ValueError for a dtype that numpy lacks."""
    import numpy as np

    if entry.dtype == "bfloat16":
        raise ValueError(f"{entry.name!r:.80} is of dtype {entry.dtype}, which numpy lacks")
    raw = np.empty(entry.end - entry.begin, np.uint8)
    return raw.view(entry.dtype).reshape(entry.shape), raw.data


def torch_memory(entry: Entry) -> tuple[Any, memoryview]:
    """A tensor of the processor for an entry."""
    import torch

    raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8, device="cpu")
    return raw.view(getattr(torch, entry.dtype)).reshape(entry.shape), raw.numpy().data
