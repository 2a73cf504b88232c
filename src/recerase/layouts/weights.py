"""Weights and config of a native checkpoint as a model, and back, without running or believing any of it.

The deciding choice is how a model gets its weights: it is built without memory, takes over the memory of the tensors that were
read, and is compared with them afterwards. transformers ties T5 whatever the config says, and a load that ties would replace
one of two different matrices in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.catalog.files import reading_verified
from recerase.errors import CheckpointError, RecEraseError, UsageError
from recerase.layouts.tensors import read_safetensors, torch_memory
from recerase.layouts.torch_zip import Contents, read_torch_zip

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
ARCHITECTURES = ("llama", "qwen2", "qwen3", "t5")
_FOREIGN_CODE = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "custom_pipelines")
"""Keys of a config with which transformers would fetch or run code that came with the model."""
DEFAULT_WINDOW = 20
_REAL = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that a model computes in; smaller floats are stored with scales that stand somewhere else."""


def read_tensors(
    path: Path, names: Sequence[str], manifest: Mapping[str, Any], dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """Every tensor of the weight files `names`, as stored or as `dtype`; a name may be there once.

    Once they are returned, the files have been what `manifest` says, byte for byte as these tensors were made from them.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        try:
            found = _safetensors(path, name, manifest, dtype) if name.endswith(".safetensors") else None
            found = _pickle(path, name, manifest, dtype) if found is None else found
        except RecEraseError:
            raise
        except Exception as error:  # what a hostile file makes a parser raise has no common class
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path / name} cannot be read: {reason}.", "Restore it from where it was made."
            ) from error
        if not found or tensors.keys() & found.keys():
            raise CheckpointError(
                f"{path / name} holds something else than tensors of its own.", "Keep one set of weights."
            )
        tensors |= found
    return tensors


def _safetensors(
    path: Path, name: str, manifest: Mapping[str, Any], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    with reading_verified(path, name, manifest) as file:
        found, _ = read_safetensors(file, torch_memory, lambda tensor: _as(tensor, dtype))
    return found


def _pickle(path: Path, name: str, manifest: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """A trusted pickle's tensors."""
    found = read_torch_file(path, name, manifest)
    if not isinstance(found.tree, dict) or found.tree.keys() != {key for (key, *more) in found.tensors if not more}:
        raise ValueError("it holds something else than tensors by name")
    return apart(found.tree, dtype)


def read_torch_file(path: Path, name: str, manifest: Mapping[str, Any]) -> Contents:
    """What a trusted file of torch.save holds; for a moment it takes twice its size. Raises CheckpointError."""
    with reading_verified(path, name, manifest) as file:
        return read_torch_zip(file.read(file.size), str(path / name))


def apart(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Tensors of a pickle as `dtype` (None: as stored), each alone in its memory: there, several may look at one.

    Raises ValueError for one that holds no real numbers, UsageError when they are too large for `dtype`.
    """
    import torch

    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage()
        alone = tensor.is_contiguous() and place.nbytes() == tensor.nbytes and place.data_ptr() not in seen
        own = tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)
        found[name] = _as(own, dtype)
        seen.add(place.data_ptr())
    return found


def is_real(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers that a model computes with as they are."""
    return str(tensor.dtype).removeprefix("torch.") in _REAL


def _as(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """A tensor as `dtype`, or as it is stored.

    Raises ValueError for one that holds no real numbers, UsageError when they are too large for `dtype`.
    """
    if not is_real(tensor):
        raise ValueError(f"it holds {tensor.dtype}".replace("torch.", ""))
    if dtype is None or dtype == tensor.dtype or not tensor.numel():
        return tensor if dtype is None else tensor.to(dtype)
    made = tensor.to(dtype)
    if any(
        bool(new.isinf()) and not bool(old.isinf()) for new, old in zip(made.aminmax(), tensor.aminmax(), strict=True)
    ):
        raise UsageError(
            f"A weight does not fit into {dtype}.".replace("torch.", ""), "Use --dtype bfloat16, or leave it out."
        )
    return made


def _read_config(data: bytes, path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[Any, int]:
    """The transformers config, and the window, in the content of a config.json.

    Raises CheckpointError: it is of an architecture we do not know, wants code, or is larger than the weights.
    """
    from transformers import AutoConfig

    try:
        said = json.loads(data)
        kind = said["model_type"]
        if kind not in ARCHITECTURES:
            raise ValueError(f"a model of type {kind!r:.40} is not supported, {', '.join(ARCHITECTURES)} are")
        wanting = [key for key in _FOREIGN_CODE if said.get(key) not in (None, "eager", "sdpa")]
        if wanting:
            raise ValueError(f"it asks for code of its own ({wanting[0]}), which is never run")
        layers = [said[key] for key in ("num_hidden_layers", "num_layers", "num_decoder_layers") if key in said]
        if not all(isinstance(n, int) and 0 < n <= len(tensors) for n in layers if n is not None):
            raise ValueError(f"its layers ({layers[0]!r:.40}) are more than the {len(tensors)} tensors there are")
        window = said.get("recerase", {}).get("window", DEFAULT_WINDOW)
        if type(window) is not int or not 0 < window < 1 << 20:
            raise ValueError(f"its window is {window!r:.40}")
        return AutoConfig.for_model(**said), window
    except Exception as error:  # transformers answers a wrong value with whatever it meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path / CONFIG} cannot be used: {reason}.", "Restore the config.") from error


def load_module(
    path: Path, data: bytes, tensors: Mapping[str, torch.Tensor], adapt: Callable[[Any], None] | None = None
) -> tuple[Any, int]:
    """Build the module that the config describes around exactly `tensors`, without a copy of them.

    `adapt` changes what transformers has no config for, before there are weights.
    It is built without memory, and stays so but for what no file holds: a config may claim sizes that nothing has.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config, window = _read_config(data, path, tensors)
    family: Any = AutoModelForSeq2SeqLM if config.model_type == "t5" else AutoModelForCausalLM
    try:
        with torch.random.fork_rng():
            with torch.device("meta"):
                module = family.from_config(config, trust_remote_code=False)
                if adapt is not None:
                    adapt(module)
            claimed, held = module.num_parameters(), sum(tensor.numel() for tensor in tensors.values())
            if claimed > 4 * held:  # tied tensors, up to four in T5, are stored once
                raise ValueError(f"it claims {claimed:,} parameters, the weights have {held:,}")
            _compute_buffers(module)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path / CONFIG} cannot be used: {reason}.", "Restore the config.") from error
    for target in _stored_apart(module, tensors):
        _untie(module, target)
    fill_exactly(module, tensors, path)
    return module, window


def _compute_buffers(module: Any) -> None:
    """Make for real what no file holds: the angles of rotary embeddings, in float32 whatever the weights are."""
    stored = module.state_dict().keys()
    owners = {name.rpartition(".")[0] for name, _ in module.named_buffers() if name not in stored}
    for owner in sorted(owners):
        old = module.get_submodule(owner)
        parent, _, leaf = owner.rpartition(".")
        setattr(module.get_submodule(parent), leaf, type(old)(config=module.config))


def fill_exactly(module: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Give `module` the memory of `tensors` and prove it: every name used, every parameter filled, every bit as stored.

    All get the widest dtype among them; ties stay ties. Raises CheckpointError naming the tensors that are missing, left over, of
    another shape, NaN, or changed.
    """
    import torch

    state, stored = module.state_dict(), _aliases(module)
    missing = [name for name in state if name not in tensors and stored.get(name, name) not in tensors]
    unexpected = [name for name in tensors if name not in state]
    if missing or unexpected:
        raise CheckpointError(
            f"{path}: weights missing {sorted(missing)[:3]}, left over {sorted(unexpected)[:3]}.",
            "Weights and config do not match: restore the directory.",
        )
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape or not is_real(tensor):
            raise CheckpointError(
                f"{path}: {name} is {list(tensor.shape)} of {tensor.dtype}, the config wants {list(state[name].shape)}.",
                "Weights and config do not match: restore the directory.",
            )
        if tensor.numel() and bool(tensor.min().isnan()):
            raise CheckpointError(f"{path}: {name} holds NaN.", "Restore the weights, or train again.")
    trained = {name: p.requires_grad for name, p in module.named_parameters(remove_duplicate=False)}
    made: dict[str, torch.Tensor] = {}
    for name in state:
        source = stored.get(name, name)
        if source not in made:
            held = tensors[source].to(dtype)
            made[source] = torch.nn.Parameter(held, trained[name]) if name in trained else held
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, made[source])
    state = module.state_dict()
    changed = [name for name, tensor in tensors.items() if not _same(state[name], tensor)]
    if changed:
        raise CheckpointError(f"{path}: {changed[0]} did not load as it is stored.", "Report this: it is a bug.")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one memory, or hold the same numbers."""
    import torch

    shared = one.data_ptr() == other.data_ptr() and one.dtype == other.dtype and one.stride() == other.stride()
    return shared or torch.equal(one, other)


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
