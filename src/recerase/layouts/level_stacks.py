"""The tensors of a T5 with a head a level, as GRID and RQ-VAE-Recommender keep them, as transformers' T5 names and stacks them.

The one decision: sizes are read off the tensors, for these files hold no config; what no tensor tells is T5's own default, and a
model that its tensors leave open (gated layers) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.errors import CheckpointError
from recerase.layouts.foreign import Part
from recerase.layouts.torch_zip import Contents
from recerase.layouts.weights import _as, is_real
from recerase.store import pretty_json

if TYPE_CHECKING:
    import torch

Keys = tuple[str, ...]
"""Where a tensor is in a file of torch.save: keys from the outside in."""


USERS, SEPARATOR = "user_embedding.weight", "sep_token"
_EMBEDDING, _HEAD = "shared.weight", "lm_head.weight"
_UNUSED = "embed_tokens."
"""Tables that transformers makes for every stack, and that these models never look into."""
_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_DEEP = r"encoder\.block\.0\.layer\.1\.mlp\.model\.\d+\.weight"


@dataclass(frozen=True)
class Names:
    """What a tool calls the parts of its model."""

    model: str
    """Key of the state dict in the file."""
    moments: str
    """Key of the optimiser's state, or of a list of them."""
    encoder: tuple[str, ...]
    """What names of the encoder's tensors begin with; after the first, further names of the same tensors."""
    decoder: str
    table: str
    heads: str
    bos: str


@dataclass(frozen=True)
class Stacks:
    """A model of this kind, its tensors under the names of transformers."""

    tensors: Mapping[str, torch.Tensor]
    stored: Mapping[Keys, Part]
    levels: int
    size: int
    """K, codes a level."""
    users: int
    separated: bool
    deep: int
    """Layers that GRID's feed-forward has above the first; 0: it is T5's."""

    @property
    def vocabulary(self) -> int:
        return self.levels * self.size + 1 + self.separated + self.users


def stacks(contents: Contents, names: Names, path: Path, dtype: torch.dtype | None) -> Stacks:
    """The model in a file. Raises CheckpointError when it is not of this kind, or of a kind that its tensors leave open."""
    import torch

    prefix, inner, heads = _named(contents, names, path)
    pieces = [names.table, *(name for name in (names.bos, SEPARATOR, USERS) if name in inner)]
    size, width = inner[heads[0]].shape if inner[heads[0]].dim() == 2 else (0, 0)
    shapes = {names.table: len(heads) * size, **dict.fromkeys(heads, size), names.bos: 1, SEPARATOR: 1}
    for name in (*pieces, *heads):
        found = tuple(inner[name].shape)
        if len(found) != 2 or found[1] != width or found[0] != shapes.get(name, found[0]) or not inner[name].numel():
            raise CheckpointError(
                f"{path}: {prefix}{name} is {list(found)}, which does not fit {len(heads)} heads of {size} codes.",
                "Restore the checkpoint.",
            )
    stored: dict[Keys, Part] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in inner.items():
        begin, target = _stack(name, names)
        if target and not name.removeprefix(begin).startswith(_UNUSED):
            stored[names.model, prefix + name] = canonical = target + name.removeprefix(begin)
            if not torch.equal(tensors.setdefault(canonical, _as(tensor, dtype)), _as(tensor, dtype)):
                raise CheckpointError(
                    f"{path} holds {canonical} twice, with different values.", "Restore the checkpoint."
                )
    for where, of in ((_EMBEDDING, pieces), (_HEAD, heads)):
        at = 0
        for name in of:
            stored[names.model, prefix + name] = (where, at, at + len(inner[name]))
            at += len(inner[name])
    rows = torch.cat([_as(inner[name], dtype) for name in pieces])
    tensors[_EMBEDDING] = rows
    tensors[_HEAD] = rows.new_zeros(rows.shape)  # nothing reads what stands below the heads
    tensors[_HEAD][: len(heads) * size] = torch.cat([_as(inner[name], dtype) for name in heads])
    users = len(inner[USERS]) if USERS in inner else 0
    deep = sum(re.fullmatch(_DEEP, name) is not None for name in tensors)
    return Stacks(tensors, stored, len(heads), size, users, SEPARATOR in inner, max(0, deep - 1))


def _named(contents: Contents, names: Names, path: Path) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """What all names begin with, the state dict without it, and the names of its heads. Raises CheckpointError."""
    state = {keys[1]: tensor for keys, tensor in contents.tensors.items() if len(keys) == 2 and keys[0] == names.model}
    said = contents.tree.get(names.model) if isinstance(contents.tree, dict) else None
    strange = next((name for name in said if name not in state), None) if isinstance(said, dict) else None
    if strange is not None:
        raise CheckpointError(
            f"{path}: {strange!s:.100} is no tensor that can be read.", "Give a checkpoint of plain tensors."
        )
    ends = [name for name in state if name.endswith(names.table)]
    prefix = ends[0].removesuffix(names.table) if len(ends) == 1 else ""
    inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    levels = sum(re.fullmatch(re.escape(names.heads) + r"\d+\.weight", name) is not None for name in inner)
    heads = [f"{names.heads}{level}.weight" for level in range(max(1, levels))]
    wanted = [names.table, names.bos, *heads, names.encoder[0] + _BIAS, names.decoder + _BIAS]
    missing = [name for name in wanted if name not in inner]
    if missing:
        raise CheckpointError(f"{path} holds no tensor {prefix}{missing[0]}.", "Give a checkpoint of the whole model.")
    used = [name for name in inner if name in wanted or name in (SEPARATOR, USERS) or _stack(name, names)[1]]
    whole = next((name for name in used if not is_real(inner[name])), None)
    if whole is not None:
        raise CheckpointError(
            f"{path}: {prefix}{whole} holds no real numbers that a model computes with.", "Restore the checkpoint."
        )
    if any(".wi_0." in name for name in used):
        raise CheckpointError(
            f"{path} has gated feed-forward layers, and does not say with which function.",
            "Models with T5's plain feed-forward layers are read.",
        )
    return prefix, inner, heads


def _stack(name: str, names: Names) -> tuple[str, str]:
    """What a tensor's name begins with, and what it begins with in transformers; empty where it is in no stack."""
    for begin in names.encoder:
        if name.startswith(begin):
            return begin, "encoder."
    return (names.decoder, "decoder.") if name.startswith(names.decoder) else ("", "")


def config_of(found: Stacks, window: int, path: Path) -> bytes:
    """The config.json that these tools never write: sizes as the tensors have them, and the rest as T5 has it by default.

    Raises CheckpointError when the tensors that say the sizes are not there, or make no sense.
    """
    tensors, specials = found.tensors, found.levels * found.size
    first = "encoder.block.0.layer.1." + ("mlp.model.0.weight" if found.deep else "DenseReluDense.wi.weight")
    try:
        buckets, heads = tensors["encoder." + _BIAS].shape
        inside = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0]
        blocks = [
            len({name.split(".")[2] for name in tensors if name.startswith(f"{stack}.block.")})
            for stack in ("encoder", "decoder")
        ]
        sizes = {
            "d_model": tensors[_EMBEDDING].shape[1],
            "d_kv": inside // heads,
            "d_ff": tensors[first].shape[0],
            "num_heads": heads,
            "num_layers": blocks[0],
            "num_decoder_layers": blocks[1],
            "relative_attention_num_buckets": buckets,
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The tensors of {path} do not say the sizes of its layers ({error!s:.80}).", "Restore the checkpoint."
        ) from error
    return pretty_json(
        {
            "model_type": "t5",
            **sizes,
            "vocab_size": found.vocabulary,
            "is_encoder_decoder": True,
            "pad_token_id": specials,
            "eos_token_id": specials,
            "decoder_start_token_id": specials,
            "tie_word_embeddings": False,
            "scale_decoder_outputs": False,
            "recerase": {"window": window},
        }
    )
