"""One small directory of every layout: a new layout joins the tests over all of them by one line in `MAKERS`.

What is made must differ from layout to layout in its SIDs, so that two of them mixed do not fit each other by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tests.layouts import causal_fixtures, foreign_fixtures, genrec_twin, level_fixtures, table_fixtures

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


def lc_rec(out: Path) -> Path:
    world = causal_fixtures.make_world()
    turned = np.roll(world.codes, 1, axis=0)
    index = {str(row): [f"<{'abc'[level]}_{code}>" for level, code in enumerate(sid)] for row, sid in enumerate(turned)}
    return causal_fixtures.lc_rec(out, causal_fixtures.World(turned, world.titles, world.histories, index))


MAKERS: dict[str, Callable[[Path], Path]] = {
    "native": native,
    "letter-tiger": foreign_fixtures.letter,
    "tiger-cf": foreign_fixtures.tiger_cf,
    "minionerec": lambda out: causal_fixtures.minionerec(out, causal_fixtures.make_world(), dtype=torch.float32),
    "lc-rec": lc_rec,
    "genrec": genrec_twin.genrec,
    "grid": level_fixtures.grid,
    "rqvae-recommender": level_fixtures.rqvae,
    "rpg": table_fixtures.rpg,
    "torcheasyrec": lambda out: table_fixtures.torcheasyrec(out) / "v1",
}
"""Layout -> makes a directory of it at a path that does not exist, and returns the path that is given to a command."""
