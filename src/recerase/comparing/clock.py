"""How long making a cell took, also where a kill cut it in two.

The one decision: the seconds so far are kept with every piece of unfinished work, so that a method which goes on from a piece is
not told as if that piece had cost nothing.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from recerase.store import canonical_json

if TYPE_CHECKING:
    from recerase.resume import Pieces

_PIECE = "clock"


class Clock:
    """The pieces of `state`, and the seconds of all who worked on them."""

    def __init__(self, state: Pieces) -> None:
        kept = state.read(_PIECE)
        self._state = state
        self._before: list[float] = [0.0, 0.0] if kept is None else json.loads(kept)
        self._began = (time.monotonic(), time.process_time())

    def read(self, name: str) -> bytes | None:
        """The piece called `name`, or None when it was not finished."""
        return self._state.read(name)

    def write(self, name: str, data: bytes) -> None:
        """Keep a piece; the seconds first, for what a kill takes away was spent all the same."""
        self._state.write(_PIECE, canonical_json(self.spent()))
        self._state.write(name, data)

    def spent(self) -> tuple[float, float]:
        """Wall and processor seconds up to now."""
        wall, busy = self._before
        return wall + time.monotonic() - self._began[0], busy + time.process_time() - self._began[1]
