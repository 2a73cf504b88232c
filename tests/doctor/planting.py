"""Where the bundle of `recerase doctor --gate` comes from: a catalogue and two models whose verdicts are known by construction.

48 items in six groups of eight, the first group being the concept; 3,600 users who go from an item at place s of its group to an
item of group 1 + s % 5. The models are bigrams written into a Llama of one layer: the embedding of row r is the r-th unit vector,
attention and feed-forward add nothing, and the head turns the last row into logits. `leaky` gives the concept about 0.6 of every
next item; `clean` gives it 2e-5 and is otherwise the same. Nothing is trained. To make the bundle again:

    python -m tests.doctor.planting src/recerase/doctor/planted
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recerase.catalog.columns import INTERACTION_SCHEMA, ITEM_SCHEMA
from recerase.catalog.readers import write_catalogue
from recerase.layouts.native import save_checkpoint
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.codebooks import Codebooks, Recipe
from recerase.sid.table import SidSchema, SidTable
from recerase.store import publish

GROUPS, IN_GROUP, USERS = 6, 8, 3600
SCHEMA = SidSchema.native((GROUPS, IN_GROUP))
LIKES = {"leaky": 0.5, "clean": -11.0}
"""The logit of the concept's first code; that of the group which comes next is 0, of any other group -4."""
_NEVER = -30.0


def items() -> pa.Table:
    """Item i is at place i % 8 of group i // 8."""
    rows = [
        {
            "item_id": f"p{item:02d}",
            "title": f"planted item {item:02d}, place {item % IN_GROUP}",
            "description": "",
            "categories": ["Planted" if item < IN_GROUP else f"Group {item // IN_GROUP}"],
            "brand": None,
            "price": None,
        }
        for item in range(GROUPS * IN_GROUP)
    ]
    return pa.Table.from_pylist(rows, schema=ITEM_SCHEMA)


def interactions() -> pa.Table:
    """Walks of 3 to 5 items: 8 of 10 steps to the group that comes next, 1 to the concept, 1 to any group."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(3, 6, USERS)
    steps = int(lengths.max())
    walk = np.empty((USERS, steps), np.int64)
    place = rng.integers(0, IN_GROUP, USERS)
    for step in range(steps):
        following, mood = 1 + place % (GROUPS - 1), rng.random(USERS)
        group = np.where(mood < 0.8, following, np.where(mood < 0.9, 0, rng.integers(0, GROUPS, USERS)))
        place = rng.integers(0, IN_GROUP, USERS)
        walk[:, step] = group * IN_GROUP + place
    kept = np.arange(steps) < lengths[:, None]
    user, step = np.nonzero(kept)
    columns = [
        pa.array([f"u{number:04d}" for number in user]),
        pa.array([f"p{item:02d}" for item in walk[kept]]),
        pa.array(step),
        pa.nulls(len(user), pa.float64()),
    ]
    return pa.table(columns, schema=INTERACTION_SCHEMA)


def table() -> SidTable:
    """Item i has the SID (i // 8, i % 8)."""
    n = GROUPS * IN_GROUP
    ids = np.array([f"p{item:02d}" for item in range(n)], dtype=object)
    codes = np.stack(np.divmod(np.arange(n), IN_GROUP), axis=1).astype(np.int32)
    return SidTable(ids, codes, np.ones(n, bool), SCHEMA, np.zeros(n, bool))


def codebooks() -> Codebooks:
    """A group an axis, and a small step along two further axes a place; every item lies on the point of its SID."""
    first, second = np.zeros((GROUPS, 8), np.float32), np.zeros((IN_GROUP, 8), np.float32)
    first[np.arange(GROUPS), np.arange(GROUPS)] = 1.0
    second[:, 6], second[:, 7] = np.arange(IN_GROUP) % 4 / 16, np.arange(IN_GROUP) // 4 / 16
    return Codebooks((first, second), Recipe(np.zeros(8, np.float32), False, False), False, (1.0, 1.0))


def model(name: str) -> Recommender:
    """`leaky` or `clean`."""
    made = new_recommender(ModelConfig("causal", width=32, layers=1, heads=2, feed_forward=8, window=5), SCHEMA, 0)
    first, second = (torch.as_tensor(rows) for rows in SCHEMA.rows)
    logits = torch.full((SCHEMA.vocabulary, SCHEMA.vocabulary), _NEVER)  # [next row, last row]
    logits[first] = -4.0
    logits[first[1 + torch.arange(IN_GROUP) % (GROUPS - 1)], second] = 0.0
    logits[first[0]] = LIKES[name]
    logits[:, first] = _NEVER
    logits[second[:, None], first] = -0.1 * torch.arange(IN_GROUP)[:, None]
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.zero_()
        inner = made.module.model
        for norm in (inner.norm, inner.layers[0].input_layernorm, inner.layers[0].post_attention_layernorm):
            norm.weight.fill_(1.0)
        inner.embed_tokens.weight[:, : SCHEMA.vocabulary] = torch.eye(SCHEMA.vocabulary)
        made.module.lm_head.weight[:, : SCHEMA.vocabulary] = logits / 32**0.5  # what the norm makes of a unit vector
    made.module.eval()
    return made


def plant(out: Path) -> None:
    """Publish data, leaky and clean below `out`."""
    with publish(out / "data", force=True) as made:
        write_catalogue(made.directory, items(), interactions())
        made.provenance = {"command": "tests.doctor.planting"}
    spoken, books = table(), codebooks()
    points = np.asarray(books.point(spoken.codes), np.float32)
    for name in LIKES:
        with publish(out / name, force=True) as made:
            save_checkpoint(made.directory, model(name), spoken, books, points)
            made.provenance = {"command": "tests.doctor.planting", "model": name}


if __name__ == "__main__":
    plant(Path(sys.argv[1]))
