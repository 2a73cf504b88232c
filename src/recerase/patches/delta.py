"""One file from another: ranges copied from the source, and bytes that are new.

The one decision: both directions and all kinds of files are the same list of copies and insertions. What differs is how the ranges
are found: tensors of one name and length are compared row by row where they lie, texts by their pieces wherever these lie.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recerase.errors import ArtefactError
from recerase.patches.segments import Segment, segments
from recerase.types import IntArray

_BLOCK = 1 << 22
_GAP = 32
"""Equal bytes between two changes that are not worth a range of their own: a range takes 32 bytes."""
_TEXT = 64 << 20
"""Bytes of a file that is compared piece by piece, at most."""
_PIECE = re.compile(rb"[^\n\]}]*[\n\]}]|[^\n\]}]+")
"""A line of a text, or an entry of JSON that stands in one line."""
MOST_COPIED = 2
"""Bytes copied from a source in all, a byte of it: a patch cannot make a small file a huge one by repeating it."""


class Blob:
    """A file that is read in any order; `seen` is told the bytes of every read. Raises ArtefactError."""

    def __init__(self, path: Path, seen: Callable[[int], None] = lambda count: None) -> None:
        self.path, self._seen = path, seen
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check its permissions.") from error
        self.size = os.fstat(self._file).st_size

    def __enter__(self) -> Blob:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def read(self, begin: int, count: int) -> bytes:
        """`count` bytes from `begin` on."""
        parts, at = [], begin
        while at < begin + count:
            try:
                part = os.pread(self._file, min(begin + count - at, _BLOCK), at)
            except OSError as error:
                raise ArtefactError(f"Cannot read {self.path}: {error.strerror}.", "Check the disk.") from error
            if not part:
                raise ArtefactError(
                    f"{self.path} became shorter while it was read.", "Run again when nobody writes there."
                )
            parts.append(part)
            at += len(part)
        self._seen(count)
        return b"".join(parts)

    def blocks(self, begin: int = 0, count: int | None = None) -> Iterator[bytes]:
        """The bytes from `begin` on, in blocks."""
        end = self.size if count is None else begin + count
        for at in range(begin, end, _BLOCK):
            yield self.read(at, min(_BLOCK, end - at))

    def sha256(self) -> str:
        """The hex digest of the content."""
        whole = hashlib.sha256()
        for block in self.blocks():
            whole.update(block)
        return whole.hexdigest()


@dataclass
class Delta:
    """How a file is made from another."""

    steps: IntArray
    """int64 [n, 2] one after another: where in the source a range begins and its length; -1 for the next `length` new bytes."""
    new: bytes
    rows: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Tensors of which whole rows are new: how many, of how many."""

    @classmethod
    def whole(cls, data: bytes) -> Delta:
        """A file that takes nothing from another."""
        return cls(np.array([[-1, len(data)]] if data else [], np.int64).reshape(-1, 2), data)


class _Steps:
    """Steps as they are found; neighbours become one."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self.new: list[bytes] = []
        self.rows: dict[str, tuple[int, int]] = {}

    def copy(self, begin: int, count: int) -> None:
        last = self.steps[-1] if self.steps else [-1, 0]
        if last[0] >= 0 and sum(last) == begin:
            last[1] += count
        elif count:
            self.steps.append([begin, count])

    def insert(self, data: bytes) -> None:
        self.new.append(data)
        if self.steps and self.steps[-1][0] < 0:
            self.steps[-1][1] += len(data)
        elif data:
            self.steps.append([-1, len(data)])

    def delta(self) -> Delta:
        return Delta(np.array(self.steps, np.int64).reshape(-1, 2), b"".join(self.new), self.rows)


def find_delta(source: Blob, target: Blob) -> Delta:
    """How `target` is made from `source`."""
    found = _Steps()
    old, new = segments(source), segments(target)
    if old and new:
        _by_segments(source, target, old, new, found)
    elif source.size == target.size:
        _aligned(source, target, Segment("", 0, source.size), Segment("", 0, target.size), found)
    elif max(source.size, target.size) <= _TEXT:
        _by_pieces(source.read(0, source.size), target.read(0, target.size), found)
    made = found.delta()
    copied = int(made.steps[made.steps[:, 0] >= 0, 1].sum())
    if made.steps[:, 1].sum() != target.size or copied > MOST_COPIED * source.size:
        return Delta.whole(target.read(0, target.size))
    return made


def made_from(delta: Delta, source: Blob | None) -> Iterator[bytes]:
    """The bytes of the file that a delta makes; its steps have been checked against the source."""
    at = 0
    for begin, count in delta.steps.tolist():
        if begin < 0:
            yield delta.new[at : at + count]
            at += count
        else:
            assert source is not None
            yield from source.blocks(begin, count)


def _by_segments(source: Blob, target: Blob, old: list[Segment], new: list[Segment], found: _Steps) -> None:
    """Segments of one name and length are compared, and of tensors with longer or fewer rows those rows that both have."""
    known = {part.name: part for part in old}
    for part in new:
        same = known.get(part.name)
        if same is not None and same.size == part.size:
            _aligned(source, target, same, part, found)
        elif same is not None and same.unit == part.unit > 1:
            both = min(same.size, part.size)
            _aligned(source, target, same.until(both), part.until(both), found)
            found.insert(target.read(part.begin + both, part.size - both))
            found.rows[part.name] = (
                found.rows.get(part.name, (0, 0))[0] + (part.size - both) // part.unit,
                part.size // part.unit,
            )
        else:
            found.insert(target.read(part.begin, part.size))


def _aligned(source: Blob, target: Blob, old: Segment, new: Segment, found: _Steps) -> None:
    """Two ranges of one length, unit by unit: a unit with a changed byte is new."""
    unit = new.unit
    step = max(1, _BLOCK // unit) * unit
    changed = 0
    for begin in range(0, new.size, step):
        count = min(step, new.size - begin)
        first, second = source.read(old.begin + begin, count), target.read(new.begin + begin, count)
        if first == second:
            found.copy(old.begin + begin, count)
            continue
        differs = np.frombuffer(first, np.uint8) != np.frombuffer(second, np.uint8)
        units = differs.reshape(-1, unit).any(1)
        changed += int(units.sum())
        at = 0
        for low, high in _runs(units, 0 if unit > 1 else _GAP):
            found.copy(old.begin + begin + at, low * unit - at)
            found.insert(second[low * unit : high * unit])
            at = high * unit
        found.copy(old.begin + begin + at, count - at)
    if changed and unit > 1:
        found.rows[new.name] = (changed, new.size // unit)


def _runs(mask: np.ndarray, gap: int) -> list[list[int]]:
    """Begin and end of the runs of true values; runs at most `gap` apart are one."""
    places = np.flatnonzero(mask)
    breaks = np.flatnonzero(np.diff(places) > gap + 1)
    begins, ends = places[np.append(0, breaks + 1)], places[np.append(breaks, len(places) - 1)] + 1
    return np.stack([begins, ends], 1).tolist()


def _by_pieces(old: bytes, new: bytes, found: _Steps) -> None:
    """Pieces that the source has somewhere are copied, from behind the last copy where it has them there."""
    known: dict[bytes, int] = {}
    for match in _PIECE.finditer(old):
        known.setdefault(match[0], match.start())
    follows = 0
    for match in _PIECE.finditer(new):
        piece = match[0]
        begin = follows if old.startswith(piece, follows) else known.get(piece, -1)
        if begin < 0:
            found.insert(piece)
        else:
            found.copy(begin, len(piece))
            follows = begin + len(piece)
