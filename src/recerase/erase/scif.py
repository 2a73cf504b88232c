"""SCIF: one Newton step that undoes what the forget pairs weigh, instead of many small ones.

theta -= (H + damping I)^-1 (g_R - g_F) / |D_R|, g the summed gradients of the NLL, H the mean Hessian on D_R, not computed but
multiplied by (conjugate gradients, at most `iterations`), the step no longer than `radius`.
The trap: the Hessian of a network is indefinite, and where it is, conjugate gradients walk uphill without noticing; a damping of .01
does not mend that. So the solver is Steihaug's: it stops at the first direction of negative curvature, or where the step is `radius`
long, and goes to the bound. Gradients and products come from at most `pairs` and `curvature` pairs, drawn by the seed, in float32.
Source: Li et al. 2023, arXiv 2304.10199, by way of METHODS 4 (a reconstruction: the paper moves the embeddings of the users and items
concerned alone, "selective and collaborative"; with codes shared by many items there are no such rows, and all weights move; nor is
what is forgotten given a label averaged over what is like it). Where training ended in an optimum g_R = -g_F, and the step is twice
the influence of D_F; where it was stopped before, g_R also pulls towards what is retained.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.examples import draw
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.precision import student
from recerase.erase.steps import BATCHES, evidence, finished, grounds, require, target_log_probs, trainable
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable


@dataclass(frozen=True)
class ScifConfig:
    """Settings of `scif`; untuned but for the published damping, iterations and radius."""

    iterations: int = 200
    """Products with the Hessian, at most."""
    damping: float = 0.01
    radius: float = 1.0
    """Longest step, in the norm over all weights."""
    tolerance: float = 1e-3
    """The solver is done when its residual is this share of what it began with."""
    pairs: int = 2048
    """Pairs of D_F and of D_R that gradients come from, at most."""
    curvature: int = 256
    """Pairs of D_R that products with the Hessian come from, at most."""
    batch: int = 64
    """Pairs computed at once."""

    def __post_init__(self) -> None:
        """Raises UsageError for settings with which no step could be taken."""
        least = {"iterations": 1, "pairs": 1, "curvature": 1, "batch": 1}
        require(self, least=least, positive=("damping", "radius", "tolerance"))


def erase(request: EraseRequest, config: ScifConfig) -> Erased:
    """A copy of the model after one influence step; the table stays as it is.

    Raises:
        ConceptError: no training interaction leads to the concept.
        UsageError: SIDs differ in length.
    """
    began = time.monotonic()
    found, table = grounds(request), request.table
    model = student(request.model)
    weights = trainable(model)
    rng = np.random.default_rng([request.seed, BATCHES])
    forget, retain = (draw(h, min(config.pairs, len(h)), rng) for h in (found.forget, found.retain))
    curved = draw(found.retain, min(config.curvature, len(found.retain)), rng)
    request.observer.start("scif", config.iterations)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        share = len(found.forget) / len(found.retain)
        slope = _gradient(model, table, retain, config.batch, weights)
        slope -= share * _gradient(model, table, forget, config.batch, weights)

        def bend(direction: Tensor) -> Tensor:
            return _product(model, table, curved, config.batch, weights, direction) + config.damping * direction

        def told(residual: float) -> None:
            request.observer.advance("scif", 1, residual=residual)

        step, used, stopped = steihaug(slope, bend, config.radius, config.iterations, config.tolerance, told)
    request.observer.advance("scif", config.iterations - used)
    request.observer.finish("scif")
    with torch.no_grad():
        sizes = [weight.numel() for weight in weights]
        for weight, part in zip(weights, step.split(sizes), strict=True):
            weight.add_(part.view_as(weight))
    figures = {"iterations": used, "stopped": stopped, "norm": round(float(step.norm()), 5), **evidence(request, found)}
    return finished(request, model, figures, began)


def _parts(histories: Histories, chunk: int) -> list[tuple[float, Histories]]:
    """The histories in parts of at most `chunk`, each with its share of them all."""
    parts = np.array_split(np.arange(len(histories)), -(-len(histories) // chunk))
    return [(len(part) / len(histories), histories.take(part)) for part in parts]


def _gradient(
    model: Recommender, table: SidTable, histories: Histories, chunk: int, weights: list[nn.Parameter]
) -> Tensor:
    """The gradient [P] of the mean NLL of the histories' targets, over all weights laid out in a row."""
    total = weights[0].new_zeros(sum(w.numel() for w in weights))
    for share, part in _parts(histories, chunk):
        loss = objectives.nll(target_log_probs(model, table, part))
        total += share * _flat(torch.autograd.grad(loss, weights, allow_unused=True), weights)
    return total


def _product(
    model: Recommender,
    table: SidTable,
    histories: Histories,
    chunk: int,
    weights: list[nn.Parameter],
    direction: Tensor,
) -> Tensor:
    """H v [P] of the Hessian of the mean NLL and `direction` v [P], by differentiating the gradient along v."""
    total = torch.zeros_like(direction)
    for share, part in _parts(histories, chunk):
        loss = objectives.nll(target_log_probs(model, table, part))
        slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        along = _flat(slopes, weights) @ direction
        total += share * _flat(torch.autograd.grad(along, weights, allow_unused=True), weights)
    return total


def _flat(parts: tuple[Tensor | None, ...], weights: list[nn.Parameter]) -> Tensor:
    """[P]; zeros for a weight that nothing depends on."""
    filled = [torch.zeros_like(w) if p is None else p for p, w in zip(parts, weights, strict=True)]
    return torch.cat([p.flatten() for p in filled])


def steihaug(
    slope: Tensor,
    bend: Callable[[Tensor], Tensor],
    radius: float,
    iterations: int,
    tolerance: float,
    told: Callable[[float], None],
) -> tuple[Tensor, int, str]:
    """The step x [P] that makes slope x + x bend(x) / 2 small within |x| <= radius, how many products it took, and why it ended.

    Steihaug 1983: conjugate gradients that go to the bound along the first direction that leaves it or does not curve upwards.
    """
    x, rest = torch.zeros_like(slope), slope.clone()
    direction, size = -rest, float(rest.double().square().sum())
    first = size**0.5
    if first == 0:
        return x, 0, "nothing to do"
    for count in range(1, iterations + 1):
        bent = bend(direction)
        curve = float(direction.double() @ bent.double())
        told(size**0.5 / first)
        if curve <= 0:
            return _to_bound(x, direction, radius), count, "negative curvature"
        pace = size / curve
        further = x + pace * direction
        if float(further.double().norm()) >= radius:
            return _to_bound(x, direction, radius), count, "radius"
        x, rest = further, rest + pace * bent
        now = float(rest.double().square().sum())
        if now**0.5 <= tolerance * first:
            return x, count, "converged"
        direction, size = -rest + now / size * direction, now
    return x, iterations, "iterations"


def _to_bound(x: Tensor, direction: Tensor, radius: float) -> Tensor:
    """x + t direction with t > 0 and norm `radius`."""
    a, b, c = (float(p.double() @ q.double()) for p, q in ((direction, direction), (x, direction), (x, x)))
    t = (-b + (b * b + a * (radius * radius - c)) ** 0.5) / a
    return x + t * direction
