"""Checkpoint directories as they are before and after a change, in several layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.runtime import RunConfig
from recerase.store import publish

RUN = RunConfig(device="cpu", trust_pickle=True)
LAYOUTS = ("native", "letter-tiger", "tiger-cf", "minionerec")
MOVED = (4, 10)
"""Items that change places with each other in what is after: no code loses its last item."""


def changed(source: Path, out: Path, name: str, *, sids: bool = True) -> None:
    """As an erasure leaves it: rows of two codes differ, two items have other SIDs, one is unlisted where that can be."""
    found = open_checkpoint(source, trust_pickle=True)
    with torch.no_grad():
        weight = found.recommender.module.get_input_embeddings().weight
        weight[found.table.schema.rows[0][found.table.codes[MOVED[0], 0]]] += 1.0
        weight[found.table.schema.rows[1][found.table.codes[MOVED[1], 1]]] *= 2.0
    table = found.table
    if sids:
        table = table.replace(np.array(MOVED), table.codes[list(MOVED[::-1])])
        if name in ("native", "minionerec"):
            table = table.unlisted(np.arange(len(table)) == MOVED[0])
    with publish(out) as made:
        named_layout(name).write_back(found, found.recommender, table, made.directory)
        made.provenance = {"command": "erase", "method": {"name": "test"}}


def files(path: Path, *without: str) -> dict[str, bytes]:
    found = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if name not in without}
