"""One small directory of every layout: a new layout joins the tests over all of them by one line in `MAKERS`.

What is made must differ from layout to layout in its SIDs, so that two of them mixed do not fit each other by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tests.layouts import (
    causal_fixtures,
    foreign_fixtures,
    genrec_twin,
    level_fixtures,
    onerec_fixtures,
    table_fixtures,
)
from tests.layouts.causal_fixtures import World

from recerase.layouts.native import save_checkpoint
from recerase.store import publish


def native(out: Path) -> Path:
    from recerase.model.recommender import ModelConfig, new_recommender
    from recerase.sid.quantize import TokenizeConfig, tokenize

    points = np.random.default_rng(3).normal(size=(20, 6)).astype(np.float32)
    ids = np.array([f"i{n}" for n in range(20)], dtype=object)
    table, codebooks, _ = tokenize(points, ids, TokenizeConfig(levels=2, codes=8))
    model = new_recommender(ModelConfig(width=16, layers=1, heads=2, feed_forward=16), table.schema, 0)
    with publish(out) as result:
        save_checkpoint(result.directory, model, table, codebooks, points)
    return out


def turned(world: World, by: int) -> World:
    """The world with the SIDs of each item those of another."""
    codes = np.roll(world.codes, by, axis=0)
    index = {str(row): [f"<{'abc'[level]}_{code}>" for level, code in enumerate(sid)] for row, sid in enumerate(codes)}
    return replace(world, codes=codes, index=index)


def lc_rec(out: Path) -> Path:
    return causal_fixtures.lc_rec(out, turned(causal_fixtures.make_world(), 1))


def openonerec(out: Path) -> Path:
    onerec_fixtures.openonerec(out, turned(onerec_fixtures.the_world(), 2), beside=out)
    return out


def onerec_think(out: Path) -> Path:
    onerec_fixtures.onerec_think(out, turned(onerec_fixtures.the_world(), 3), beside=out)
    for file in [
        *out.glob("*_val.parquet"),
        *out.glob("*_test.parquet"),
    ]:  # the tests over all layouts break every file in turn
        file.unlink()
    return out


MAKERS: dict[str, Callable[[Path], Path]] = {
    "native": native,
    "letter-tiger": foreign_fixtures.letter,
    "tiger-cf": foreign_fixtures.tiger_cf,
    "minionerec": lambda out: causal_fixtures.minionerec(out, causal_fixtures.make_world(), dtype=torch.float32),
    "lc-rec": lc_rec,
    "openonerec": openonerec,
    "onerec-think": onerec_think,
    "genrec": genrec_twin.genrec,
    "grid": level_fixtures.grid,
    "rqvae-recommender": level_fixtures.rqvae,
    "rpg": table_fixtures.rpg,
    "torcheasyrec": lambda out: table_fixtures.torcheasyrec(out) / "v1",
}
"""Layout -> makes a directory of it at a path that does not exist, and returns the path that is given to a command."""
