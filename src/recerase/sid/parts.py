"""Vectors that wait on the disk while a stream of items is given SIDs.

The one decision: they wait in files by the first code of their items, for only items with one first code can collide, and are read
by row, no more than what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recerase.disk import Scratch
from recerase.types import FloatArray, IntArray

NUMBERS = 1 << 22
"""Numbers in a block of embeddings."""


class Parts:
    """Vectors in files by the first code of their items; within a file in the order of the rows."""

    def __init__(self, home: Path, codes: int, width: int, most: int) -> None:
        self.home, self.width, self._codes = home, width, codes
        self.count = min(codes, most)

    def of(self, first: IntArray) -> IntArray:
        """The part of each first code."""
        return first.astype(np.int64) * self.count // self._codes

    def opened(self, rank: int) -> Scratch:
        """The files that one process adds to."""
        return Scratch([self._path(part, rank) for part in range(self.count)])

    def rows(self, codes: IntArray) -> Callable[[int], IntArray]:
        """The rows [n] of a part, for codes [N, L]; a part may hold several first codes, never a share of one."""
        firsts = [np.flatnonzero(self.of(np.arange(self._codes)) == part) for part in range(self.count)]
        column = np.ascontiguousarray(codes[:, 0])

        def rows(part: int) -> IntArray:
            low, high = firsts[part][0], firsts[part][-1]
            return np.flatnonzero(column == low if low == high else (column >= low) & (column <= high))

        return rows

    def vectors(self, part: int, size: int) -> Kept:
        """The vectors of a part, as the processes left them one after the other."""
        return Kept([self._path(part, rank) for rank in range(size)], self.width)

    def _path(self, part: int, rank: int) -> Path:
        return self.home / f"part-{part}-{rank}"


class Kept:
    """Vectors in files, read by row; no more than what is asked for is held."""

    def __init__(self, paths: list[Path], width: int) -> None:
        self._paths, self._width = paths, width

    def __getitem__(self, rows: IntArray) -> FloatArray:
        out = np.empty((len(rows), self._width), np.float32)
        at, step = 0, max(1, NUMBERS // self._width)
        for path in self._paths:
            there = path.stat().st_size // (4 * self._width)
            for begin in range(at, at + there, step):
                low, high = np.searchsorted(rows, [begin, min(begin + step, at + there)])
                if low < high:
                    first, last = int(rows[low]), int(rows[high - 1]) + 1
                    numbers = (last - first) * self._width
                    found = np.fromfile(path, "f4", numbers, offset=4 * self._width * (first - at))
                    out[low:high] = found.reshape(-1, self._width)[rows[low:high] - first]
            at += there
        return out
