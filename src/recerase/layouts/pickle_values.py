"""What stands for the things a pickle speaks of that are not read: names, objects, memory and tensors; and what may be hashed of it.

The one decision: nothing here goes through a value further than its size allows. A few hundred bytes of a pickle can refer to one
tuple 2 ** 60 times, so neither a hash nor a repr of what came from one is ever taken unseen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_DIMENSIONS = 64
_SHORT = 64
"""Values in a key, or in what an error shows."""
_FOLDED = 1 << 60
"""Integers from here on may hash like each other, and many keys that do take for ever."""


@dataclass(frozen=True)
class Global:
    """The name of a class, function or dtype; what it means is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Stub:
    """An object of a class that is not known here: what would have made it, and nothing that it could do."""

    origin: Global
    args: tuple[Any, ...] = ()
    keywords: Mapping[Any, Any] = field(default_factory=dict)
    state: Any = None
    entries: list[tuple[Any, Any]] = field(default_factory=list)
    """What was set by key, in order."""
    elements: list[Any] = field(default_factory=list)
    """What was appended or added, in order."""


@dataclass(frozen=True)
class Storage:
    """Memory that tensors look at, as its file names it."""

    kind: str
    """The name of its class in torch: FloatStorage, ..., or UntypedStorage."""
    key: str
    count: int
    """Elements; bytes where untyped."""


@dataclass(frozen=True)
class Place:
    """A tensor: how it looks at its storage."""

    storage: Storage
    dtype: str | None
    """None: that of the storage."""
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements it shows."""
        return math.prod(self.shape)

    @property
    def reach(self) -> int:
        """How many elements from the begin of the storage it needs."""
        if 0 in self.shape:
            return 0
        return self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) + 1


def keyed(value: Any) -> Any:
    """`value`, which is about to be hashed: small, for a hash goes through all of a tuple, however often it refers to one inside.

    A few hundred bytes can refer to one tuple 2 ** 60 times, or nest tuples deeper than the stack of a hash.
    """
    left, within = _SHORT, [value]
    while within:
        one = within.pop()
        left -= 1
        if isinstance(one, tuple):
            within += one[:_SHORT]
            left -= max(0, len(one) - _SHORT)
        if left < 0 or (isinstance(one, int) and not -_FOLDED < one < _FOLDED):
            raise ValueError("its pickle has a key that is too large")
    return value


def shown(value: Any) -> str:
    """A value for an error, whatever it refers to."""
    if isinstance(value, (str, bytes)):
        return repr(value[:_SHORT])
    flat = isinstance(value, tuple) and len(value) <= MOST_DIMENSIONS and all(type(n) is int for n in value)
    known = flat or value is None or isinstance(value, (int, float, Global))
    return f"{value!s:.{_SHORT}}" if known else type(value).__name__
