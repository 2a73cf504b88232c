"""Files of torch.save (.pt, .ckpt, .pth) read without running them, and written back with nothing but the bytes of tensors changed.

The one decision: such a file is a zip whose records are stored as they are, so a tensor is a place in the file. What the pickle in
it says is read as data (`pickled`); optimiser states, hyperparameters and classes that nobody has installed stay where they are,
byte for byte, whatever they mean.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError
from recerase.layouts.pickle_values import Global, Place, Storage
from recerase.layouts.pickled import read_pickle
from recerase.layouts.zip_records import records

if TYPE_CHECKING:
    import torch

Path = tuple[str, ...]
"""Keys from the outside in; places in a list are written as numbers."""

_PICKLE = "/data.pkl"
_DEEPEST, _MOST_TENSORS, _FEW_VALUES = 100, 1 << 18, 1 << 16
_SMALL = 1 << 24
"""Elements that a tensor may always have, however small the file: views can repeat what they look at."""
_STORED = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}
_DTYPES = frozenset(_STORED.values()) | {"uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex32"}


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    tree: Any
    """Dicts, lists, tuples, numbers, strings, tensors; of `pickle_values`, `Stub` for other objects and `Global` for names."""
    tensors: Mapping[Path, torch.Tensor]
    """Every tensor that is reached through dicts, lists and tuples, by the keys on the way; those that share memory in the file
    share it here."""


def is_torch_zip(data: bytes) -> bool:
    """Whether a file begins like a zip."""
    return data[:4] == b"PK\x03\x04"


def read_torch_zip(data: bytes, name: str = "The file") -> Contents:
    """Read a file of torch.save; `name` is what an error calls it.

    Raises CheckpointError when it is no zip of torch's, is cut or damaged, or claims more than it holds.
    """
    try:
        return _File(data).contents()
    except Exception as error:  # what a hostile file makes a parser raise has no common class
        raise _unreadable(name, error) from error


def exchanged(data: bytes, wanted: Mapping[Path, torch.Tensor], name: str = "The file") -> bytes:
    """The same file with the values of `wanted` (tensors of the same shape and dtype, by path) in the place of its own.

    Memory that tensors share is shared afterwards, so a view of what is exchanged changes with it. Where no value differs, the
    bytes are those given.
    Raises CheckpointError when the file cannot be read, has no such tensor or one of another shape or dtype, or when two of
    `wanted` share memory and disagree.
    """
    try:
        file = _File(data)
        file.contents()  # the file is good throughout
        places = file.places()
    except Exception as error:
        raise _unreadable(name, error) from error
    new: dict[Storage, torch.Tensor] = {}
    for path, tensor in wanted.items():
        if path not in places:
            raise CheckpointError(f"{name} has no tensor {_spelled(path)}.", "Give the file that was read.")
        place = places[path]
        if tuple(tensor.shape) != place.shape or str(tensor.dtype) != f"torch.{_dtype(place)}":
            raise CheckpointError(
                f"{_spelled(path)} is {list(place.shape)} of {_dtype(place)} in {name}, and {list(tensor.shape)} of "
                f"{tensor.dtype} was to be put there.".replace("torch.", ""),
                "Report this: it is a bug.",
            )
        if place.storage not in new:
            new[place.storage] = file.memory(place.storage).clone()
        _put(_view(new[place.storage], place), tensor)
    for path, tensor in wanted.items():
        if not _equal(_view(new[places[path].storage], places[path]), tensor):
            raise CheckpointError(
                f"{_spelled(path)} shares memory with another tensor in {name}, and both were to be changed to different values.",
                "Use a method that leaves tied weights tied.",
            )
    return file.with_memory(new)


def _unreadable(name: str, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{name} cannot be read: {reason}.", "Restore it from where it was made.")


def _spelled(path: Path) -> str:
    return ".".join(path)[:120]


@dataclass
class _File:
    """A zip of torch's, its pickle read, its memory not yet."""

    data: bytes
    _memory: dict[str, tuple[Storage, torch.Tensor]] = field(default_factory=dict)
    """By key: a storage as it was first named, and what it holds."""

    def __post_init__(self) -> None:
        if not is_torch_zip(self.data):
            raise ValueError("it is no zip as torch.save has written since torch 1.6; save it again with a newer one")
        self._records = records(self.data)
        inside = [name for name in self._records if name.endswith(_PICKLE) and name.count("/") == 1]
        if len(inside) != 1:
            raise ValueError(f"it holds {len(inside)} pickles of torch's ({_PICKLE[1:]}) instead of one")
        self._prefix = inside[0].removesuffix(_PICKLE)
        order = self._bytes("byteorder") if f"{self._prefix}/byteorder" in self._records else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order!r:.20}")
        self._foreign = order.decode() != sys.byteorder
        said = self._bytes(_PICKLE[1:])
        self._tree = read_pickle(said)
        self._most = max(_FEW_VALUES, 4 * len(said))

    def _bytes(self, name: str) -> bytes:
        """The content of a record. Raises ValueError when there is none, or it is damaged."""
        record = self._records.get(f"{self._prefix}/{name}")
        if record is None:
            raise ValueError(f"it has no record {name!r:.60}")
        found = self.data[record.begin : record.end]
        if zlib.crc32(found) != record.crc:
            raise ValueError(f"its record {name!r:.60} is damaged")
        return found

    def memory(self, storage: Storage) -> torch.Tensor:
        """uint8 [bytes] of a storage, in this machine's byte order."""
        import torch

        if storage.key not in self._memory:
            found = self._bytes(f"data/{storage.key}")
            unit = _itemsize(_STORED.get(storage.kind, storage.kind))
            if len(found) != storage.count * unit:
                raise ValueError(f"storage {storage.key!r:.40} has {len(found):,} bytes of {storage.count * unit:,}")
            memory = torch.empty(len(found), dtype=torch.uint8)
            memory.numpy()[:] = memoryview(found)
            self._memory[storage.key] = storage, self._turned(memory, storage)
        known, memory = self._memory[storage.key]
        if known != storage:
            raise ValueError(f"storage {storage.key!r:.40} is of two kinds, or of two sizes")
        return memory

    def _turned(self, memory: torch.Tensor, storage: Storage) -> torch.Tensor:
        """Bytes of the other order turned around, from the file or to it."""
        if not self._foreign:
            return memory
        if storage.kind == "UntypedStorage":
            raise ValueError("it was written with another byte order, and has memory without a type")
        dtype = _STORED[storage.kind]
        unit = _itemsize(dtype) // (2 if dtype.startswith("complex") else 1)
        return memory.view(-1, unit).flip(1).flatten()

    def contents(self) -> Contents:
        """Tree and tensors."""
        made: dict[Place, torch.Tensor] = {}
        tensors: dict[Path, torch.Tensor] = {}

        def tensor(place: Place, path: Path | None) -> torch.Tensor:
            if place not in made:
                made[place] = _view(self.memory(place.storage), place, len(self.data))
            if path is not None:
                tensors[path] = made[place]
            return made[place]

        return Contents(_walked(self._tree, self._most, tensor), tensors)

    def places(self) -> dict[Path, Place]:
        """The place of every tensor."""
        found: dict[Path, Place] = {}
        _walked(self._tree, self._most, lambda place, path: path is None or found.update({path: place}))
        return found

    def with_memory(self, new: Mapping[Storage, torch.Tensor]) -> bytes:
        """The file with other bytes in storages, and their checksums."""
        out = bytearray(self.data)
        for storage, memory in new.items():
            if _equal(memory, self.memory(storage)):
                continue
            record = self._records[f"{self._prefix}/data/{storage.key}"]
            out[record.begin : record.end] = self._turned(memory, storage).numpy().tobytes()
            crc = zlib.crc32(memoryview(out)[record.begin : record.end]).to_bytes(4, "little")
            for at in record.sums:
                out[at : at + 4] = crc
        return bytes(out)


def _walked(tree: Any, most: int, tensor: Any) -> Any:
    """The tree with `tensor(place, path)` in the place of tensors; a path is None below keys that are no names or numbers.

    `most`: values that it may have, each counted wherever it is referred to (a short pickle can refer to one for ever).
    """
    seen: set[Path] = set()
    left = most

    def walk(value: Any, path: Path | None, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _DEEPEST or left < 0 or len(seen) > _MOST_TENSORS:
            raise ValueError("its values are nested too deep, or too many")
        if isinstance(value, Place):
            if path in seen:
                raise ValueError(f"two of its tensors are called {_spelled(path)}")
            seen.update(() if path is None else (path,))
            return tensor(value, path)
        if isinstance(value, dict):
            return {key: walk(inner, _below(path, key), depth + 1) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(walk(inner, _below(path, at), depth + 1) for at, inner in enumerate(value))
        if isinstance(value, Global) and value.module == "torch" and value.name in _DTYPES:
            return _torch_dtype(value.name)
        return value

    return walk(tree, (), 0)


def _below(path: Path | None, key: Any) -> Path | None:
    return (*path, str(key)) if path is not None and isinstance(key, (str, int)) else None


def _dtype(place: Place) -> str:
    """The name of a tensor's dtype. Raises ValueError for one that is not read."""
    name = place.dtype or _STORED.get(place.storage.kind, place.storage.kind)
    if name not in _DTYPES:
        raise ValueError(f"it holds a tensor of {name!r:.40}, which is not read")
    return name


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = vars(torch)[name]
    return found


def _itemsize(name: str) -> int:
    if name not in _DTYPES:
        raise ValueError(f"it holds memory of {name!r:.40}, which is not read")
    return _torch_dtype(name).itemsize


def _view(memory: torch.Tensor, place: Place, size: int = 0) -> torch.Tensor:
    """The tensor at a place; `size`: bytes of the file, to which what a view may repeat is bound."""
    name = _dtype(place)
    fitting = len(memory) // _itemsize(name)
    if place.reach > fitting:
        raise ValueError(f"a tensor needs {place.reach:,} elements of a storage of {fitting:,}")
    if size and place.size > max(size, _SMALL):
        raise ValueError(f"a tensor claims {place.size:,} elements in a file of {size:,} bytes")
    typed = memory[: fitting * _itemsize(name)].view(_torch_dtype(name))
    if not place.size:
        return typed[:0].reshape(place.shape)
    return typed.as_strided(place.shape, place.strides, place.offset)


def _put(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy into a view; of what it repeats, the first is taken, and the rest is compared afterwards."""
    source = source.detach().cpu()
    for dimension, (n, step) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if step == 0 and n > 1:
            target, source = target.narrow(dimension, 0, 1), source.narrow(dimension, 0, 1)
    target.copy_(source)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits."""
    import torch

    first, second = (
        t.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8) for t in (one, other)
    )
    return torch.equal(first, second)
