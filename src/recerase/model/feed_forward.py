"""A T5 whose feed-forward layers are deeper than T5's: what GRID calls `mlp_layers` (T5MultiLayerFF, with its mlp.py).

The one decision: names of parameters are GRID's below the layer, so a checkpoint's tensors go in and come out as they are called.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5LayerNorm


class DeepFeedForward(nn.Module):
    """In the place of a T5LayerFF: norm, linear, then `layers` times relu, linear (with biases) and dropout, added to what came in."""

    def __init__(self, config: Any, layers: int) -> None:
        super().__init__()
        sizes = [*[config.d_ff] * layers, config.d_model]
        parts: list[nn.Module] = [nn.Linear(config.d_model, sizes[0])]
        for before, after in pairwise(sizes):
            parts += [nn.ReLU(), nn.Linear(before, after), nn.Dropout(config.dropout_rate)]
        self.mlp = nn.ModuleDict({"model": nn.Sequential(*parts)})
        self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        changed: Tensor = self.dropout(self.mlp["model"](self.layer_norm(hidden)))
        return hidden + changed


def deepen(module: Any, layers: int) -> None:
    """Put a DeepFeedForward into every block of encoder and decoder of a T5ForConditionalGeneration."""
    for block in [*module.encoder.block, *module.decoder.block]:
        block.layer[-1] = DeepFeedForward(module.config, layers)
