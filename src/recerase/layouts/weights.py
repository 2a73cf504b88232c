"""Weights and config of a native checkpoint as a model, and back, without running or believing any of it.

The deciding choice is how weights are read: tensor by tensor, and compared bit for bit afterwards. transformers ties
T5 whatever the config says, and a load that ties would replace one of two different matrices in silence.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
ARCHITECTURES = ("llama", "t5")
_FOREIGN_CODE = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "custom_pipelines")
"""Keys of a config with which transformers would fetch or run code that came with the model."""
_DEFAULT_WINDOW = 20


def read_tensors(path: Path, files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files, whose bytes are let go one after the other; a name may be there once."""
    import torch
    from safetensors.torch import load

    tensors: dict[str, torch.Tensor] = {}
    for name in list(files):
        data = files.pop(name)
        try:
            safe = name.endswith(".safetensors")
            found = load(data) if safe else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # what a hostile file makes a parser raise has no common class
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path / name} cannot be read: {reason}.", "Restore it from where it was made."
            ) from error
        whole = isinstance(found, dict) and all(
            isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
        )
        if not whole or not found or tensors.keys() & found.keys():
            raise CheckpointError(
                f"{path / name} holds something else than tensors of its own.", "Keep one set of weights."
            )
        tensors |= found
    return tensors


def _read_config(data: bytes, path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, int]:
    """The transformers config, and the window, in the content of a config.json.

    Raises CheckpointError: it is of an architecture we do not know, wants code, or is larger than the weights.
    """
    from transformers import AutoConfig

    try:
        said = json.loads(data)
        kind = said["model_type"]
        if kind not in ARCHITECTURES:
            raise ValueError(f"a model of type {kind!r:.40} is not supported, {' and '.join(ARCHITECTURES)} are")
        wanting = [key for key in _FOREIGN_CODE if said.get(key) not in (None, "eager", "sdpa")]
        if wanting:
            raise ValueError(f"it asks for code of its own ({wanting[0]}), which is never run")
        layers = [said[key] for key in ("num_hidden_layers", "num_layers", "num_decoder_layers") if key in said]
        if not all(isinstance(n, int) and 0 <= n <= len(tensors) for n in layers if n is not None):
            raise ValueError(f"its layers ({layers[0]!r:.40}) are more than the {len(tensors)} tensors there are")
        window = said.get("recerase", {}).get("window", _DEFAULT_WINDOW)
        if type(window) is not int or not 0 < window < 1 << 20:
            raise ValueError(f"its window is {window!r:.40}")
        return AutoConfig.for_model(**said), window
    except Exception as error:  # transformers answers a wrong value with whatever it meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path / CONFIG} cannot be used: {reason}.", "Restore the config.") from error


def load_module(path: Path, data: bytes, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, int]:
    """Build the module that the config describes and fill it with exactly `tensors`.

    It is built without memory first: a config may claim sizes that nothing holds.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config, window = _read_config(data, path, tensors)
    family: Any = AutoModelForSeq2SeqLM if config.model_type == "t5" else AutoModelForCausalLM
    try:
        with torch.random.fork_rng():
            with torch.device("meta"):
                claimed = family.from_config(config, trust_remote_code=False).num_parameters()
            held = sum(tensor.numel() for tensor in tensors.values())
            if claimed > 4 * held:  # tied tensors, up to four in T5, are stored once
                raise ValueError(f"it claims {claimed:,} parameters, the weights have {held:,}")
            module = family.from_config(config, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path / CONFIG} cannot be used: {reason}.", "Restore the config.") from error
    for target in _stored_apart(module, tensors):
        _untie(module, target)
    module.to(dtype=next(iter(tensors.values())).dtype)
    fill_exactly(module, tensors, path)
    return module, window


def fill_exactly(module: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copy `tensors` into `module` and prove it: every name used, every parameter filled, every bit as stored.

    Raises CheckpointError naming the tensors that are missing, left over, of another shape, or changed.
    """
    import torch

    try:
        missing, unexpected = module.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {error}".replace("\n", " "), "Weights and config do not match.") from error
    tied = _aliases(module)
    missing = [name for name in missing if tied.get(name) not in tensors]
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: weights missing {sorted(missing)[:3]}, left over {sorted(unexpected)[:3]}.",
            "Weights and config do not match: restore the directory.",
        )
    state = module.state_dict()
    changed = [name for name, tensor in tensors.items() if not torch.equal(state[name], tensor)]
    if changed:
        raise CheckpointError(f"{path}: {changed[0]} did not load as it is stored.", "Report this: it is a bug.")


def _aliases(module: Any) -> dict[str, str]:
    """Parameter name -> the name under which the same tensor is stored."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    targets = set(getattr(module, "all_tied_weights_keys", {}))
    stored = {}
    for names in groups.values():
        first = min(names, key=lambda name: (name in targets, names.index(name)))
        stored.update({name: first for name in names})
    return stored


def _stored_apart(module: Any, tensors: Mapping[str, Any]) -> Iterator[str]:
    """Names of tied parameters that the file keeps as tensors of their own."""
    for target, source in dict(getattr(module, "all_tied_weights_keys", {})).items():
        if target in tensors and source in tensors:
            yield target


def _untie(module: Any, name: str) -> None:
    import torch

    parent, _, leaf = name.rpartition(".")
    parameter = module.get_parameter(name)
    setattr(module.get_submodule(parent), leaf, torch.nn.Parameter(parameter.detach().clone()))
    module.all_tied_weights_keys.pop(name, None)


def weight_bytes(module: Any) -> bytes:
    """Every tensor of the module once, in name order, under the name transformers looks for."""
    from safetensors.torch import save

    stored = _aliases(module)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(module.state_dict().items())
        if stored.get(name, name) == name
    }
    return bytes(save(tensors, metadata={"format": "pt"}))
