"""The weights of a T5 of another tool: which names are one tensor, and which are not, read off the tensors themselves.

transformers ties every T5 it loads, whatever its config says, and would put one of two different matrices in the place of the other.
Here tensors are tied that are equal bit for bit, and only those.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError
from recerase.layouts.adapters import Fit
from recerase.layouts.foreign import without_aliases
from recerase.layouts.shards import check_shards
from recerase.layouts.weights import load_module, read_tensors

if TYPE_CHECKING:
    import torch

HEAD, SHARED = "lm_head.weight", "shared.weight"


def load_t5(
    path: Path,
    weights: Sequence[str],
    manifest: Mapping[str, Any],
    dtype: torch.dtype | None,
    config: bytes | None,
    describe: Any = None,
    prefix: str = "",
    fit: Fit | None = None,
) -> tuple[Any, int, dict[str, dict[str, str]], dict[str, str]]:
    """A T5 from weight files whose names begin with `prefix`.

    Args:
        config: content of a config.json; None: `describe(tensors, tied)` makes it.
        fit: what happens to config and tensors before they are a module.
    Returns:
        the module, its window, for each file the name of each stored tensor in the module, and which of these are copies of which.
    """
    tensors: dict[str, torch.Tensor] = {}
    stored: dict[str, dict[str, str]] = {}
    for name in weights:
        found = read_tensors(path, [name], manifest, dtype)
        if twice := sorted(tensors.keys() & {key.removeprefix(prefix) for key in found}):
            raise CheckpointError(f"{path} stores {twice[0]} in two files.", "Keep one set of weights.")
        stored[name] = {key: key.removeprefix(prefix) for key in found}
        tensors |= {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    check_shards(path, stored)
    tied = _says_tied(config) if config is not None else _equal(tensors)
    tensors, aliases = without_aliases(tensors, head_too=tied)
    config = describe(tensors, tied) if config is None else config
    config, tensors = fit(config, tensors) if fit is not None else (config, tensors)
    module, window = load_module(path, config, tensors)
    return module, window, stored, aliases


def _says_tied(config: bytes) -> bool:
    """Whether a config.json ties embedding and head; one that is none is told when the module is made from it."""
    try:
        return json.loads(config).get("tie_word_embeddings") is not False
    except (ValueError, AttributeError, RecursionError):
        return True


def _equal(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether embedding and head hold the same numbers, or there is no head of its own."""
    import torch

    head, shared = tensors.get(HEAD), tensors.get(SHARED)
    return head is None or shared is None or (head.shape == shared.shape and torch.equal(head, shared))
