"""What a cell took, where a kill cut its making in two."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from recerase.comparing.clock import Clock
from recerase.resume import RunState


def test_a_killed_making_is_told_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, busy = [100.0], [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: wall[0])
    monkeypatch.setattr(time, "process_time", lambda: busy[0])
    out = tmp_path / "out"

    def begun(state: RunState) -> Clock:
        state.open({"cell": "a"})
        return Clock(state)

    def killed(clock: Clock) -> None:
        wall[0], busy[0] = 105.0, 13.0
        clock.write("epoch", b"weights")
        wall[0] = 107.0  # nobody was told of these two
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunState(out) as state:
        killed(begun(state))
    wall[0], busy[0] = 500.0, 0.5  # another process
    with RunState(out) as state:
        clock = begun(state)
        assert clock.read("epoch") == b"weights"
        assert clock.read("other") is None
        wall[0], busy[0] = 501.0, 1.0
        assert clock.spent() == (5 + 1, 3 + 0.5)
        clock.write("epoch", b"more")
        assert json.loads(state.read("clock") or b"") == [6.0, 3.5]
    with RunState(out) as state:  # all went well, and nothing is left
        assert begun(state).spent() == (0.0, 0.0)
