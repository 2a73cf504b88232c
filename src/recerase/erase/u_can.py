"""U-CAN: turn down the input dimensions of a layer that answer to forget pairs more than to retained ones and carry little for these.

Of a layer W with inputs x, per input dimension j: a_j = sqrt(E x_j^2) over D_F and over D_R; risk_j = relu(z(a_j^F - a_j^R)), z over
the dimensions; util_j = z(||W_:j|| a_j^R); score_j = balance risk_j - (1 - balance) util_j;
W_:j <- W_:j exp(-strength relu(score_j - threshold)). One pass over each set, no gradient, no step; what is turned down is made small,
not cut.
Which layers: where the model carries LoRA factors, those and nothing else, as in the source. A dense model has none: there it is the
second matrix of every feed-forward layer, whose input dimensions are the neurons. No factors are attached to a dense model first:
factors that were never trained are zero, and there is nothing in them to turn down.
Expectations are over all tokens that a layer computes: those of the history (of a causal model's last layer the last alone) and the
codes before the last of the target. Batches hold histories of one length, so no padding is among them.
Source: arXiv 2602.23400 by way of METHODS 3 (a reconstruction: abstract and summaries were read, not its equations; its code was not
found).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.erase.examples import draw
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows, start
from recerase.erase.precision import student
from recerase.erase.steps import finished, grounds, require
from recerase.errors import EraseError, UsageError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable

_SAMPLE = 31
"""The stream of random numbers of a seed that pairs are drawn from."""
_FACTORS = (".lora_A.", ".lora_B.")
_NEURONS = (".down_proj", ".wo")
_FEED_FORWARD = (".mlp.", ".DenseReluDense.")


@dataclass(frozen=True)
class UCanConfig:
    """Settings of `u-can`; untuned."""

    balance: float = 0.5
    """lambda: what risk weighs; the rest is utility's."""
    strength: float = 3.0
    """kappa."""
    threshold: float = 0.0
    """t: a score up to it changes nothing."""
    pairs: int = 2048
    """Most pairs of D_F, and of D_R, that are read."""
    batch: int = 64

    def __post_init__(self) -> None:
        """Raises UsageError for settings that mean nothing."""
        require(self, least={"pairs": 1, "batch": 1}, positive=("balance", "strength"))
        if self.balance > 1:
            raise UsageError(
                "These settings cannot work: balance must be at most 1.", "Change it with --set key=value."
            )


def erase(request: EraseRequest, config: UCanConfig) -> Erased:
    """A copy of the model with the risky dimensions of its layers turned down; the table stays as it is.

    Raises: as `steps.grounds` and `attenuated`; EraseError where no score is above the threshold.
    """
    began = time.monotonic()
    found, model = grounds(request), student(request.model)
    layers, adapters = attenuated(model)
    rng = np.random.default_rng([request.seed, _SAMPLE])
    sets = [draw(part, min(config.pairs, len(part)), rng) for part in (found.forget, found.retain)]
    request.observer.start("u-can", sum(len(part) for part in sets))
    forget, retain = (_strengths(request, model, layers, part, config.batch) for part in sets)
    request.observer.finish("u-can")
    scales = {
        name: scale(layer.weight, forget[name], retain[name], config) for name, layer in layers.items()
    }  # [in] each
    touched = sum(int((factor < 1).sum()) for factor in scales.values())
    if not touched:
        raise EraseError(
            "U-CAN found no dimension whose score is above the threshold, so nothing would change.",
            "Lower threshold, or raise balance.",
        )
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.copy_(layer.weight.double() * scales[name])
    whole = sum(len(factor) for factor in scales.values())
    figures = {
        "layers": len(layers),
        "adapters": adapters,
        "dimensions_turned_down": round(touched / whole, 5),
        "least_scale": round(min(float(factor.min()) for factor in scales.values()), 5),
    }
    return finished(request, model, figures, began)


def attenuated(model: Recommender) -> tuple[Mapping[str, nn.Linear], bool]:
    """The layers that are turned down, by name, and whether they are LoRA factors.

    Raises:
        EraseError: a model without factors whose feed-forward layers are not known, or may not change.
    """
    free = {
        name: module
        for name, module in model.module.named_modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    }
    factors = {name: module for name, module in free.items() if any(part in name for part in _FACTORS)}
    inner = {name: module for name, module in free.items() if any(part in f".{name}" for part in _FEED_FORWARD)}
    dense = {name: module for name, module in free.items() if name.endswith(_NEURONS)} or inner
    if not factors and not dense:
        raise EraseError(
            "U-CAN turns down LoRA factors, or feed-forward layers; this model has none that may change.",
            "Use --method npo.",
        )
    return (factors, True) if factors else (dense, False)


def scale(weight: Tensor, forget: Tensor, retain: Tensor, config: UCanConfig) -> Tensor:
    """float64 [in] what each input dimension of a weight [out, in] is multiplied by, from its strengths [in] in D_F and in D_R."""
    risk = _standard(forget - retain).relu()
    use = _standard(weight.detach().double().norm(dim=0) * retain)
    score = config.balance * risk - (1 - config.balance) * use
    return torch.exp(-config.strength * (score - config.threshold).relu())


def _standard(values: Tensor) -> Tensor:
    """Values [n] less their mean, in standard deviations; zeros where all are alike."""
    spread = values.std(correction=0)
    return (values - values.mean()) / spread if float(spread) > 0 else torch.zeros_like(values)


def _strengths(
    request: EraseRequest, model: Recommender, layers: Mapping[str, nn.Linear], pairs: Histories, batch: int
) -> dict[str, Tensor]:
    """float64 [in] sqrt(E x_j^2) of what goes into each layer while the model reads the histories and says the targets' codes."""
    table = request.table
    with torch.no_grad(), _heard(layers) as (sums, counts):
        for part in _of_one_length(model, table, pairs, batch):
            path, state = item_rows(model, table, part.targets), start(model, table, part)
            for level in range(1, path.shape[1]):
                state = model.advance(state, path[:, level - 1 : level], None)
            request.observer.advance("u-can", len(part))
    return {name: (sums[name] / counts[name]).sqrt() for name in layers}


@contextmanager
def _heard(layers: Mapping[str, nn.Linear]) -> Iterator[tuple[dict[str, Tensor], dict[str, int]]]:
    """Sums of squares [in] of what goes into each layer, and how many vectors went in."""
    sums = {name: torch.zeros(m.in_features, dtype=torch.float64, device=m.weight.device) for name, m in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def listen(name: str, given: Tensor) -> None:
        flat = given.detach().flatten(0, -2)
        sums[name] += flat.double().square().sum(0)
        counts[name] += len(flat)

    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: listen(name, given[0]))
        for name, module in layers.items()
    ]
    try:
        yield sums, counts
    finally:
        for handle in handles:
            handle.remove()


def _of_one_length(model: Recommender, table: SidTable, pairs: Histories, batch: int) -> Iterator[Histories]:
    """The pairs in batches whose histories are spelled with equally many tokens."""
    lengths = model.tokens(pairs, table)[1].cpu().numpy()
    order = np.argsort(lengths, kind="stable")
    edges = np.flatnonzero(np.diff(lengths[order])) + 1
    for alike in np.split(order, edges):
        for first in range(0, len(alike), batch):
            yield pairs.take(alike[first : first + batch])
