"""Weights in several files: the index that says which tensor lies where, held against where they lie.

The one decision: the index is a file of its own that is copied, never made again, so one that says anything but what the shards
hold is refused when it is read: another tool would load other tensors than these.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from recerase.errors import CheckpointError
from recerase.store import read_bytes


def check_shards(path: Path, held: Mapping[str, Collection[str]]) -> None:
    """Hold the index beside weight files against the tensors that each file has; where there is none, one file has all.

    Raises CheckpointError naming a tensor that is not where the index says.
    """
    for ending in ("safetensors", "bin"):
        whole = f"model.{ending}" if ending == "safetensors" else f"pytorch_model.{ending}"
        index = path / f"{whole}.index.json"
        if whole in held or not index.is_file() or not all(name.endswith(f".{ending}") for name in held):
            continue
        said = json.loads(read_bytes(index))["weight_map"]
        there = {tensor: name for name, tensors in held.items() for tensor in tensors}
        wrong = sorted(name for name in said.keys() | there.keys() if said.get(name) != there.get(name))
        if wrong:
            raise CheckpointError(
                f"{index} places {wrong[0]} in {said.get(wrong[0], 'no file')}, and it is in {there.get(wrong[0], 'none')}.",
                "Restore the index and the shards of one saving.",
            )
