"""RMU: what one layer makes of a forget pair is steered to a random direction; of a retained pair it stays what it was.

L = mean (h(D_F) - c u)^2 + retain_weight * mean (h(D_R) - h_0(D_R))^2, h the residual stream behind one layer, u a random unit
vector, the same in every step. Read are the L places at which a SID's codes are said: the last token of the history and the codes
before the last (the decoder's, in a T5); in the source all tokens of a text. Only the feed-forward outputs of that layer and of the
two before it move, as in the source; where none of them may, all that may in these layers.
Traps: which layer it is decides what it does, and the source looked for it on a 32-layer model (layer 7, c 6.5 to 20); here it is
the middle one unless said otherwise, and behind the last of a shallow model the final norm takes c away and leaves the direction.
On the one-layer T5 of the tests the defaults leave .093 of .096 of the forget pairs' probability, and c 20 takes as much from
retained pairs as from those (.066 left, .080 of .114): there it is a baseline, no remedy.
Both terms compare tensors of one shape (METHODS 4: a broadcast once made a (B, B) of it).
Source: Li et al. 2024, arXiv 2403.03218; c and retain_weight after METHODS 4 and open-unlearning.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recerase.catalog.interactions import Histories
from recerase.erase import objectives
from recerase.erase.method import Erased, EraseRequest
from recerase.erase.paths import item_rows
from recerase.erase.precision import student
from recerase.erase.steps import Loss, StepConfig, evidence, finished, grounds, learn, named_trainable, require, rounded
from recerase.errors import EraseError, UsageError
from recerase.model.recommender import Recommender
from recerase.sid.table import SidTable

_DIRECTION = 29
"""The stream of random numbers of a seed that u is drawn from."""
_MOVING = 3
"""Layers whose feed-forward outputs move."""


@dataclass(frozen=True)
class RmuConfig(StepConfig):
    """Settings of `rmu`; untuned: so few weights move that small steps move nothing."""

    lr: float = 5e-3
    layer: int = -1
    """From 0, of the model or a T5's decoder; -1: the middle one."""
    steering: float = 2.0
    """c."""
    retain_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, least={"layer": -1, "retain_weight": 0}, positive=("steering",))


def objective(request: EraseRequest, config: RmuConfig) -> Loss:
    """The loss of a step. Raises: as `chosen`."""
    table, layer = request.table, chosen(request.model, config.layer)
    width = int(request.model.module.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    drawn = np.random.default_rng([request.seed, _DIRECTION]).random(width)
    direction = torch.from_numpy(config.steering * drawn / np.linalg.norm(drawn)).float().to(request.model.device)

    def loss(model: Recommender, forget: Histories, retain: Histories) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            original = said_at(request.model, table, retain, layer)
        now = said_at(model, table, forget, layer)  # [B, L, D]
        lost = objectives.apart(now, direction.expand_as(now))
        kept = objectives.apart(said_at(model, table, retain, layer), original)
        return lost + config.retain_weight * kept, {"retain": kept, "forget": lost}

    return loss


def said_at(model: Recommender, table: SidTable, histories: Histories, layer: int) -> Tensor:
    """[B, L, D] the residual stream behind `layer` where each code of the histories' targets is about to be said."""
    path = item_rows(model, table, histories.targets)
    tokens, lengths = model.tokens(histories, table)
    with _heard(_behind(model, layer)) as heard:
        state = model.start(tokens, lengths)
        for level in range(1, path.shape[1]):
            state = model.advance(state, path[:, level - 1 : level], None)
    root = heard[0]  # [B, T, D], or [B, 1, D] where the model computes the last token alone
    if root.shape[1] > 1:
        root = root.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, root.shape[2]))
    return torch.cat([root, *heard[1:]], 1)


@contextmanager
def _heard(module: nn.Module) -> Iterator[list[Tensor]]:
    """What goes into `module`, in the order of its calls."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: found.append(given[0]))
    try:
        yield found
    finally:
        handle.remove()


def _behind(model: Recommender, layer: int) -> nn.Module:
    """The norm that reads the residual stream behind a layer."""
    norms, last = _norms(model)
    return last if layer + 1 == len(norms) else norms[layer + 1]


def _norms(model: Recommender) -> tuple[list[nn.Module], nn.Module]:
    """The norm that each layer (of a T5's decoder) begins with, and the one behind the last.

    Raises:
        UsageError: a model whose layers are not laid out as those of transformers' Llama, Qwen or T5.
    """
    whole: Any = model.module
    try:
        if model.kind == "seq2seq":
            return [block.layer[0].layer_norm for block in whole.decoder.block], whole.decoder.final_layer_norm
        return [layer.input_layernorm for layer in whole.model.layers], whole.model.norm
    except AttributeError as error:
        raise UsageError("RMU does not know where the layers of this model are.", "Use another --method.") from error


def chosen(model: Recommender, layer: int) -> int:
    """The layer meant by the setting. Raises UsageError where the model has none such."""
    layers = len(_norms(model)[0])
    if layer >= layers:
        raise UsageError(f"The model has {layers} layers, and no layer {layer}.", f"Set layer from 0 to {layers - 1}.")
    return (layers - 1) // 2 if layer < 0 else layer


def moving(model: Recommender, layer: int) -> list[nn.Parameter]:
    """The weights that move for a layer.

    Raises:
        EraseError: none that may.
    """
    place = "decoder.block." if model.kind == "seq2seq" else "layers."
    places = tuple(f"{place}{i}." for i in range(max(0, layer - _MOVING + 1), layer + 1))
    here = [(name, weight) for name, weight in named_trainable(model) if any(p in name for p in places)]
    outputs = [weight for name, weight in here if ".down_proj." in name or ".wo." in name]
    if not here:
        raise EraseError(
            f"None of the weights of layer {layer} and the two before it may change.",
            "Set another layer, or --method npo.",
        )
    return outputs or [weight for _, weight in here]


def erase(request: EraseRequest, config: RmuConfig) -> Erased:
    """A copy of the model after `steps` steps of RMU; the table stays as it is. Raises: as `steps.descend`, `chosen`, `moving`."""
    began = time.monotonic()
    found, model = grounds(request), student(request.model)
    layer = chosen(model, config.layer)
    weights = moving(model, layer)
    figures = learn("rmu", request, model, found, config, objective(request, config), parameters=weights)
    return finished(request, model, {"losses": rounded(figures), "layer": layer, **evidence(request, found)}, began)
