"""In what a method computes: half precision is trained in float32 and rounded once, when the method is done.

The one decision: of a model in float16 or bfloat16 a method gets a copy in float32, as teacher and as student, because a step of AdamW
is smaller than the distance between two numbers of half precision and would be rounded away. What comes back has each tensor in the
dtype it is stored in, so that a tensor nobody changed has the bits it had. Frozen tensors (the base under an adapter) are shared, not
copied: nobody writes to them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from recerase.model.recommender import Recommender

_HALF = (torch.float16, torch.bfloat16)


def student(model: Recommender) -> Recommender:
    """A copy to be trained; tensors that take no gradient are the original's own, and rows that are to stay get none."""
    frozen = [p for p in model.module.parameters() if not p.requires_grad]
    made = model.around(copy.deepcopy(model.module, {id(p): p for p in frozen}))
    rows: Tensor = made.module.get_input_embeddings().weight  # type: ignore[operator]
    if made.prompt is not None and made.prompt.still and rows.requires_grad:
        still = torch.tensor(made.prompt.still, device=rows.device)
        rows.register_hook(lambda gradient: gradient.index_fill(0, still, 0.0))
    return made


def in_single(model: Recommender) -> Recommender:
    """The same model in float32; itself where nothing in it is of half precision. What is not is shared with it."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    if not any(tensor.dtype in _HALF for tensor in tensors):
        return model
    return model.around(copy.deepcopy(model.module, {id(tensor): _single(tensor) for tensor in tensors}))


def _single(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _HALF:
        return tensor
    wide = tensor.detach().float()
    return nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else wide


def as_stored(model: Recommender, original: Recommender) -> Recommender:
    """`model`, changed in place: every tensor rounded to the dtype that the original's of its name has."""
    kinds = {name: tensor.dtype for name, tensor in original.module.state_dict().items()}
    module = model.module
    named = [*module.named_parameters(), *module.named_buffers()]
    with torch.no_grad():
        for name, tensor in named:
            if name in kinds and tensor.dtype != kinds[name]:
                tensor.data = tensor.data.to(kinds[name])
    return model
