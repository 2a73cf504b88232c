"""Directories, and patches between them, made once for all tests of patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.layouts import causal_fixtures, foreign_fixtures
from tests.patches.fixtures import LAYOUTS, RUN, changed

from recerase import api
from recerase.layouts.native import save_checkpoint
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import publish


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME and NAME-after a layout, with NAME.patch and NAME.one-way between them; read only."""
    place = tmp_path_factory.mktemp("patches")
    foreign_fixtures.letter(place / "letter-tiger")
    foreign_fixtures.tiger_cf(place / "tiger-cf")
    causal_fixtures.minionerec(place / "minionerec", causal_fixtures.make_world(), dtype=torch.float32)
    ids = [str(item) for item in range(foreign_fixtures.N)]
    table = SidTable.build(ids, foreign_fixtures.codes(), SidSchema.native((20, 20, 20, 20), "allowed"))
    shape = ModelConfig(kind="causal", width=16, layers=1, heads=2, feed_forward=16, window=4)
    with publish(place / "native") as made:
        save_checkpoint(made.directory, new_recommender(shape, table.schema, 0), table, None, None)
        made.provenance = {"command": "train"}
    for name in LAYOUTS:
        changed(place / name, place / f"{name}-after", name)
        leave = ["optimizer*"] if name == "letter-tiger" else []
        for kind in ("patch", "one-way"):
            given = (place / name, place / f"{name}-after", place / f"{name}.{kind}")
            api.make_patch(*given, one_way=kind == "one-way", leave=leave, run=RUN)
    return place
