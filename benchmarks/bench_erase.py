"""What erasing costs: seconds of tracer/default against one epoch of training, for every data set and model size.

Both are measured in one run, on the same machine and threads. A retraining is as many epochs as its early stop allows; the
epochs that recorded trainings took (RESULTS.md: 22 on amazon_industrial and 26 on ml-100k with the default model) turn the
ratio into a share, and where none was recorded the share is told for 20 epochs, which flatters nobody: with more it is smaller. The
model that is erased has had one epoch; what a step costs does not depend on what the weights have learned.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace

import numpy as np
from bench import NoDataError, Row, data_directory
from bench_decode import MODELS

from recerase.assembly import open_sids
from recerase.catalog import load_catalogue, text_embeddings
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.model.recommender import ModelConfig, new_recommender
from recerase.model.training import TrainConfig, train
from recerase.runtime import available_threads, pinned
from recerase.sid.quantize import TokenizeConfig
from recerase.sid.quantize import tokenize as make_sids
from recerase.types import SILENT


@dataclass(frozen=True)
class Size:
    data: str
    concept: str
    """A key of the data set's concepts.json."""
    model: ModelConfig
    name: str
    epochs: int
    """Of a recorded training; 20 where there is none."""


SIZES = (
    Size("ml-100k", "horror", ModelConfig(), "causal 3 x 128", 26),
    Size("amazon_industrial", "3d_printing_filament", ModelConfig(), "causal 3 x 128", 22),
    Size("amazon_beauty_2014", "brand_opi", ModelConfig(), "causal 3 x 128", 20),
    Size("amazon_beauty_2014", "brand_opi", MODELS["T5"], "T5 4+4 x 128", 20),
    Size("amazon_beauty_2014", "brand_opi", MODELS["causal"], "causal 4 x 256", 20),
)


def cost(size: Size, threads: int) -> Row:
    """One epoch, then one erasure."""
    place = data_directory(size.data)
    catalogue = load_catalogue(place)
    if (place / "sids.json").is_file():
        table, codebooks, points = open_sids(place / "sids.json", catalogue.items, None, SILENT)
    else:
        points = text_embeddings(catalogue.items)
        table, codebooks, _ = make_sids(points, catalogue.items.item_ids, TokenizeConfig(codes=64))
    concept = np.zeros(len(catalogue.items), bool)
    listed = json.loads((place / "concepts.json").read_text())[size.concept]["item_ids"]
    concept[catalogue.items.index(listed)] = True
    with pinned(threads):
        model = new_recommender(size.model, table.schema)
        config = TrainConfig(epochs=1, validate_every=2)
        split = catalogue.interactions.split()
        began = time.perf_counter()
        train(model, table, replace(split, valid=split.valid.take(np.arange(0))), config)
        epoch = time.perf_counter() - began
        method, preset = get_method("tracer")
        request = EraseRequest(model, table, catalogue.interactions, concept, points, codebooks)
        began = time.perf_counter()
        method.run(request, make_config(method, preset, {}))
        erased = time.perf_counter() - began
    return Row(
        f"tracer/default, {size.data}, {size.name}, {int(concept.sum())} items: share of a training of {size.epochs} epochs",
        erased,
        "s",
        f"one epoch: {epoch:.1f} s",
        erased / (epoch * size.epochs),
    )


def rows(scale: float = 1.0) -> list[Row]:
    """Every size; a `scale` below 1 takes the first share of them."""
    found: list[Row] = []
    for size in SIZES[: max(1, round(len(SIZES) * scale))]:
        try:
            found.append(cost(size, available_threads()))
        except NoDataError as error:
            print(f"not run: {error}", file=sys.stderr)
    return found


if __name__ == "__main__":
    from bench import main

    sys.exit(main(rows, argparse.ArgumentParser(description=__doc__)))
