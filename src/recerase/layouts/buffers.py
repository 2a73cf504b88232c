"""What older transformers saved beside the weights: the angles of rotary embeddings, which a config gives too.

The one decision: such a buffer is accepted where it is what the config gives, and its bytes stay; any other would say that the model
turns otherwise than we compute, and is refused. Old LLaMA checkpoints have one a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_ENDING = "rotary_emb.inv_freq"
_ROUNDINGS = 4
"""How many roundings of its dtype a power may differ by from one machine to another."""


def take_angles(tensors: dict[str, Any], stored: Mapping[str, dict[str, str]]) -> dict[str, torch.Tensor]:
    """The angles among `tensors`, taken out of these and of the names of each file that are part of the model."""
    found = {name: tensors.pop(name) for name in list(tensors) if name.endswith(_ENDING)}
    for names in stored.values():
        for name in found:
            names.pop(name, None)
    return found


def check_angles(path: Path, module: Any, angles: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
    """Raises CheckpointError unless the stored angles are those that the module has from its config.

    Args:
        dtype: in which the weights were asked for; None: as stored.
    """
    import torch

    if not angles:
        return
    known = module.model.rotary_emb.inv_freq.float()
    for name, held in angles.items():
        eps = torch.finfo(held.dtype if dtype is None else torch.bfloat16).eps
        same = held.shape == known.shape and bool(
            ((held.float() - known).abs() <= _ROUNDINGS * eps * known.abs()).all()
        )
        if not same:
            raise CheckpointError(
                f"{path} stores {name}, which is not what its config gives.",
                "Restore config.json (rope_theta, rope_scaling) of the training, or save the model with a newer transformers.",
            )
