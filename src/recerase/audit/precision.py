"""Whether rounding, pruning or noise on the weights brings the concept back.

The decision that shaped this probe: the model is asked as whoever holds its weights would ask it, with the concept in the trie and no
retrieval filter before it, first as it is stored and then in each of six coarser copies; so the filter fails here, and a model that
was only pushed a little past the edge shows itself in the copy that falls back. Only weights are rounded, the arithmetic is float32
("weight-only" quantisation, round to nearest). A reference reads its histories without the concept's items.

int8: symmetric, one scale a row (absmax / 127). int4: symmetric, one scale for every 128 weights of a row (absmax / 7). Pruned: the
30 % of a tensor's weights that are smallest in magnitude are zero (Han et al. 2015, arXiv 1506.02626, without training afterwards).
Noise: Gaussian, of .5 % of a tensor's root mean square. The first two leave vectors (norms, biases) alone, and so does pruning. That
4 bits can bring back what was unlearned: Zhang et al. 2024, arXiv 2410.16454.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recerase.audit.cases import Case, mass_users
from recerase.audit.probes import measured
from recerase.audit.readings import SIDES, exposure
from recerase.audit.shared import weights_of
from recerase.errors import CheckpointError
from recerase.types import FloatArray, Measurement, Skipped

if TYPE_CHECKING:
    from recerase.audit.probes import AuditWorld
    from recerase.audit.readings import Readings

TOP = 10
"""Slots of a list in which concept items are counted."""
GROUP = 128
"""Weights of a row that share a scale in 4 bits."""
PRUNED = 0.3
"""Share of a tensor's weights that pruning takes."""
NOISE = 0.005
"""Standard deviation of the noise, in root mean squares of the tensor."""

Coarse = Callable[[Tensor, np.random.Generator], Tensor]


def rounded_to(dtype: torch.dtype) -> Coarse:
    """What rounds a float32 tensor to a narrower float; beyond its range the largest number stands."""

    def rounded(weight: Tensor, rng: np.random.Generator) -> Tensor:
        most = torch.finfo(dtype).max
        return weight.clamp(-most, most).to(dtype).float()

    return rounded


def quantised(most: int, group: int | None) -> Coarse:
    """What rounds a matrix to whole multiples -most..most of a scale, one for every `group` weights of a row (None: all)."""

    def rounded(weight: Tensor, rng: np.random.Generator) -> Tensor:
        if weight.dim() < 2:
            return weight
        rows = weight.reshape(weight.shape[0], -1)
        width = rows.shape[1] if group is None else min(group, rows.shape[1])
        padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % width)).unflatten(1, (-1, width))
        scale = padded.abs().amax(2, keepdim=True) / most
        whole = torch.where(scale > 0, (padded / scale.clamp(min=torch.finfo(scale.dtype).tiny)).round() * scale, 0.0)
        return whole.flatten(1)[:, : rows.shape[1]].reshape(weight.shape)

    return rounded


def pruned(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """A matrix without its smallest weights."""
    gone = int(PRUNED * weight.numel())
    if weight.dim() < 2 or gone == 0:
        return weight
    flat = weight.flatten()
    smallest = torch.argsort(flat.abs(), stable=True)[:gone]
    return flat.index_fill(0, smallest, 0.0).reshape(weight.shape)


def noisy(weight: Tensor, rng: np.random.Generator) -> Tensor:
    """A tensor with noise on it."""
    drawn = torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)).to(weight.device)
    return weight + NOISE * weight.square().mean().sqrt() * drawn


COARSE: Mapping[str, Coarse] = {
    "bf16": rounded_to(torch.bfloat16),
    "fp16": rounded_to(torch.float16),
    "int8": quantised(127, None),
    "int4": quantised(7, GROUP),
    "pruned": pruned,
    "noise": noisy,
}
"""Name -> what it does to a float32 tensor, drawing from a generator where it must."""
NAMES = ("stored", *COARSE)


def precision(readings: Readings) -> list[Measurement | Skipped]:
    """exposure@10 and exact concept mass of the model as stored and of every copy, and the worst of them."""
    figures: dict[str, dict[str, FloatArray]] = {}
    found: list[Measurement | Skipped] = []
    parts = (f"exposure@{TOP}", *(f"mass.{side}" for side in SIDES))
    for name in NAMES:
        try:
            figures[name] = _figures(_asked(readings, name))
        except CheckpointError as error:
            if name == "stored":
                raise
            found += [Skipped(f"precision.{name}.{part}", readings.model.role, str(error)) for part in parts]
            continue
        found += [measured(readings, f"precision.{name}.{part}", figures[name][part]) for part in parts]
    for part in parts:  # as much as the worst of them, over its own users
        worst = max(figures, key=lambda name: float(figures[name][part].mean()) if len(figures[name][part]) else 0.0)
        found.append(measured(readings, f"precision.{part}", figures[worst][part]))
    return found


def coarser(module: torch.nn.Module, coarse: Coarse, rng: np.random.Generator) -> torch.nn.Module:
    """A float32 copy of a module with every weight made coarser, in the order of their names; buffers stay as they are."""
    made = copy.deepcopy(module).float()
    with torch.no_grad():
        for _, weight in sorted(made.named_parameters()):
            weight.copy_(coarse(weight, rng))
    return made


def users(world: AuditWorld) -> Case:
    """The sample of all test users whose mass is read (`mass_users` of them)."""
    sample = mass_users(world)
    return Case("mass users of all", sample.case.histories.take(sample.everyone))


def _asked(readings: Readings, name: str) -> Readings:
    """The model, or a coarser copy, without any filter before it or behind it."""
    model, world = readings.model, readings.world
    table = model.table.unfiltered
    recommender, digest, state = model.recommender, model.digest, readings.state
    if name != "stored":
        recommender = recommender.around(coarser(recommender.module, COARSE[name], world.random(f"precision {name}")))
        digest, state = f"{weights_of(readings)} {name}", state if model.digest else None
    bare = replace(model, recommender=recommender, table=table, listed=model.listed | world.members, digest=digest)
    return replace(readings, model=bare, state=state, world=replace(world, config=replace(world.config, k=(TOP,))))


def _figures(readings: Readings) -> dict[str, FloatArray]:
    case = users(readings.world)
    shown = exposure(readings.lists(case), readings.world.members, TOP)
    return {f"exposure@{TOP}": shown} | {f"mass.{side}": readings.mass(case, side) for side in SIDES}
