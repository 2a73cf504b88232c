"""A file of weights with the values of some tensors exchanged: header, order, names, dtypes and every other byte stay.

The one decision: safetensors are patched as they are read, a block at a time, so that writing a shard back takes a few megabytes
whatever its size; a block whose numbers are the old ones keeps the old bytes. What is read is compared with its digest at the end,
before the file appears.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.catalog.files import Verified
from recerase.errors import ArtefactError
from recerase.layouts.tensors import Entry, header, torch_memory
from recerase.layouts.torch_zip import exchanged, read_torch_zip
from recerase.store import read_bytes, sha256_bytes, write_bytes, write_parts

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 20
"""Elements of a tensor that are compared and written at once."""


def write_patched(place: Path, source: Path, digest: str, wanted: Mapping[str, torch.Tensor]) -> None:
    """Write the file `source`, whose sha256 was `digest`, to `place` with the values of `wanted`; tensors not named there stay.

    Raises ArtefactError when the source is not what it was.
    """
    if source.name.endswith(".safetensors"):
        write_parts(place, _patched(source, digest, wanted))
    else:
        write_bytes(place, patched_pickle(reread(source, digest), wanted))


def reread(path: Path, digest: str) -> bytes:
    """A file's content if it still is what was read before. Raises ArtefactError."""
    data = read_bytes(path)
    if sha256_bytes(data) != digest:
        raise _changed(path)
    return data


def _changed(path: Path) -> ArtefactError:
    return ArtefactError(f"{path} was changed while it was in use.", "Run again when nobody writes there.")


def _patched(source: Path, digest: str, wanted: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    """The new content in parts."""
    try:
        with open(source, "rb", buffering=0) as opened:
            file = Verified(source, opened)
            try:
                raw, entries, _ = header(file)
            except ValueError as error:  # it was of good form when it was loaded
                raise _changed(source) from error
            yield raw
            for entry in entries:
                yield from _blocks(file, entry, wanted.get(entry.name))
            if file.sha256() != digest:
                raise _changed(source)
    except OSError as error:
        raise ArtefactError(
            f"Cannot read {source}: {error.strerror}.", "Check the disk, or restore the file."
        ) from error


def _blocks(file: Verified, entry: Entry, new: torch.Tensor | None) -> Iterator[bytes]:
    """The bytes of one tensor: those of `new` where its numbers differ."""
    import torch

    count = prod(entry.shape)
    flat = None if new is None else new.detach().flatten()
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        width = (entry.end - entry.begin) // count
        block, memory = torch_memory(Entry(entry.name, entry.dtype, (size,), 0, size * width))
        file.fill(memory)
        if flat is not None:
            wanted = flat[begin : begin + size].cpu().to(block.dtype)
            block = block if torch.equal(block, wanted) else wanted
        yield block.view(torch.uint8).numpy().tobytes()


def patched_pickle(data: bytes, wanted: Mapping[str, torch.Tensor]) -> bytes:
    """A trusted state dict with the bytes of tensors exchanged whose values differ from `wanted`; nothing else of it changes."""
    stored = read_torch_zip(data).tensors
    return exchanged(
        data, {(name,): wanted[name].detach().to(old.dtype) for (name,), old in stored.items() if name in wanted}
    )
