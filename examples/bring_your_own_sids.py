"""Start from SIDs made elsewhere: a JSON table, a recommender trained to speak it, and a look at what to erase.

The table is what the tools of the field publish:
{"item id": ["<a_60>", "<b_159>", ...]}, or {"item id": [60, 159, ...]}.
Its codebooks are not part of it: `train` fits some to the items' own words (or to --embeddings) and keeps them in the
checkpoint, so that it can be erased and not just audited.

    python examples/bring_your_own_sids.py DATA sids.json OUT --concept brand=Acme
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recerase import api
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig
from recerase.sid import read_table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sids", type=Path, help="the JSON table")
    parser.add_argument("out", type=Path, help="where to publish the checkpoint")
    parser.add_argument("--embeddings", type=Path, help="item vectors (npy, npz, parquet, safetensors)")
    parser.add_argument("--concept", action="append", required=True, help="repeat for a union")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: all cores")
    given = parser.parse_args(arguments)

    table = read_table(given.sids)
    print(f"{len(table)} items, {table.levels} levels, {table.collision_rate:.1%} of the items share a SID")

    shape = ModelConfig(width=given.width, layers=given.layers, feed_forward=2 * given.width)
    settings = TrainConfig(epochs=given.epochs)
    run = RunConfig(threads=given.threads)
    made = api.train(given.data, given.sids, given.out, shape, settings, embeddings=given.embeddings, run=run)
    figures = ", ".join(f"{name} {value:.4f}" for name, value in made.log.validation.items())
    print(f"{made.path}: {made.parameters:,} parameters, {made.log.epochs} epochs; validation {figures}")

    concept, seen, _ = api.concept_preview(given.data, api.ConceptSpec(tuple(given.concept)), sids=made.path)
    print(f"{concept.name}: {seen.items} items, {seen.interactions} interactions, {seen.users} users")
    for level in seen.levels:
        print(f"  level {level.level + 1}: {level.codes} codes, which {level.sharing} other items use too")
    for item in seen.borderline:
        print(f"  {'inside' if item.inside else 'outside'}, cosine {item.similarity:.2f}: {item.title}")


if __name__ == "__main__":
    main()
