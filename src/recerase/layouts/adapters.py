"""LoRA adapters of peft over a base model that lies elsewhere: read with peft's own classes, and kept as adapters.

LC-Rec's lora_finetune.py saves tokenizer and config, resizes the base to `len(tokenizer)` and trains LoRA factors with
`modules_to_save` embed_tokens and lm_head; its test.py resizes a fresh base the same way and calls PeftModel.from_pretrained.
LETTER-LC-Rec does the same. Here the base is read from its files, which are never written to.

The one decision: a tensor of the model can change if, and only if, the adapter's file holds it. So nothing but the file says what is
trained, and writing back exchanges values in that file alone. Rows that resizing adds to the base are random in those tools; a model
that would read such a row is refused, so none is ever drawn here.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import CheckpointError
from recerase.layouts.foreign import manifest_of, require_trust
from recerase.layouts.patching import reread
from recerase.layouts.weights import CONFIG, read_tensors

if TYPE_CHECKING:
    import torch

    from recerase.layouts.native import Checkpoint
    from recerase.layouts.protocol import LoadRequest

ADAPTER = "adapter_config.json"
BASE_OPTION = "the directory of the base model, for a LoRA adapter"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_PREFIX = "base_model.model."
_NAME = "default"
_ROWS = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)
"""Tensors with a row a token, by their names in a causal model and in a T5."""
_ENDS = (
    "embed_tokens.weight",
    "lm_head.weight",
    "shared.weight",
    "embed_tokens.base_layer.weight",
    "lm_head.base_layer.weight",
)
"""What peft saves beside the adapter when the vocabulary was resized (save_embedding_layers)."""
_LARGEST = 1 << 20
_STEADY_INITS = (True, False, "gaussian", "orthogonal")
"""Values of init_lora_weights that leave the base's own weights alone."""
_REFUSED = (
    "megatron_config",
    "trainable_token_indices",
    "eva_config",
    "corda_config",
    "loftq_config",
    "lora_ga_config",
    "velora_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "use_qalora",
    "layer_replication",
    "target_parameters",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
)
"""Settings of a LoraConfig under which the model is more, or other, than a base and factors beside its layers."""

Fit = Callable[[bytes, dict[str, Any]], tuple[bytes, dict[str, Any]]]
"""Changes a base's config and tensors before they become a module."""


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter's config. Never raises."""
    return (path / ADAPTER).is_file()


def described_in(path: Path) -> str:
    """Name of the file in a directory that says what its weights are."""
    return ADAPTER if is_adapter(path) else CONFIG


def adapter_kind(path: Path) -> str | None:
    """`model_type` of the base that an adapter names, where it lies there; t5 for a seq2seq task; else None. Never raises."""
    said = _json(path / ADAPTER)
    base = _json(Path(str(said.get("base_model_name_or_path") or "")) / CONFIG)
    kind = base.get("model_type") or {"SEQ_2_SEQ_LM": "t5"}.get(str(said.get("task_type")))
    return kind if isinstance(kind, str) else None


def over_unknown(path: Path) -> bool:
    """Whether a directory holds an adapter alone, and its base is not where it says: its kind is not known. Never raises."""
    return is_adapter(path) and not (path / CONFIG).is_file() and adapter_kind(path) is None


def _json(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        said = json.loads(path.read_bytes()) if path.is_file() and path.stat().st_size <= _LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def adapter_weights(path: Path, trust_pickle: bool) -> list[str]:
    """The file of an adapter's tensors. Raises CheckpointError when there is none, or the weights of a whole model too."""
    whole = [name for name in _WHOLE if (path / name).is_file() or (path / f"{name}.index.json").is_file()]
    found = [name for name in WEIGHTS if (path / name).is_file()]
    if not found:
        beside = f", and {whole[0]} beside it" if whole else ""
        raise CheckpointError(
            f"{path} holds {ADAPTER} without {' or '.join(WEIGHTS)}{beside}.",
            f"Restore the adapter's weights, or take {ADAPTER} away from a model that is merged.",
        )
    if whole:
        raise CheckpointError(
            f"{path} holds an adapter ({found[0]}) and the weights of a whole model ({whole[0]}).",
            "Keep the adapter in a directory of its own.",
        )
    if found[0].endswith(".bin"):
        require_trust(path / found[0], trust_pickle)
    return found[:1]


@dataclass(frozen=True)
class Base:
    """The model under an adapter."""

    path: Path
    weights: Sequence[str]
    manifest: Mapping[str, Any]

    @property
    def digests(self) -> dict[str, str]:
        """What identifies it: name -> sha256 of config and weights."""
        return {f"base/{name}": self.manifest["files"][name]["sha256"] for name in (CONFIG, *self.weights)}


def base_of(path: Path, request: LoadRequest, weights: Callable[[Path, bool], list[str]]) -> Base:
    """The base of an adapter: --layout-set base=DIR, else the directory that adapter_config.json names. Nothing is downloaded."""
    named, said = request.options.get("base"), _json(path / ADAPTER).get("base_model_name_or_path")
    place = Path(str(named or said or ""))
    if not (named or said) or not (place / CONFIG).is_file():
        if named is not None:
            raise CheckpointError(
                f"{place!s:.200} holds no base model: it has no {CONFIG}.", "Check --layout-set base=DIR."
            )
        raise CheckpointError(
            f"{path} holds a LoRA adapter over {said or 'a model it does not name'!s:.80}, which is no directory here; "
            "base=DIR has to name it.",
            "Name the base model's directory with --layout-set base=DIR; nothing is downloaded.",
        )
    if is_adapter(place):
        raise CheckpointError(
            f"The base {place!s:.200} is an adapter too.", "Give a whole model with --layout-set base=DIR."
        )
    if _json(place / CONFIG).get("quantization_config"):
        raise CheckpointError(
            f"The base {place!s:.200} is quantised, and what it computes is not what its files say.",
            "Give the base as it was before with --layout-set base=DIR.",
        )
    names = weights(place, request.trust_pickle)
    return Base(place, names, manifest_of(place, [CONFIG, *names]))


def read_adapter(
    path: Path, weights: Sequence[str], manifest: Mapping[str, Any], tokens: int, dtype: torch.dtype | None,
    load: Callable[[Fit], Any],
) -> tuple[Any, dict[str, dict[str, str]]]:  # fmt: skip
    """The base with the adapter in it, and for the adapter's file the name in the module of each tensor it stores.

    Args:
        tokens: length of the adapter's tokenizer, to which those tools resize the base.
        load: makes the base's module, given what is to be done to its config and tensors before.
    Raises:
        CheckpointError: a kind of adapter that is not supported, tensors that do not fit, or rows that would be random.
    """
    import torch
    from peft import PeftModel

    config = _lora(path, reread(path / ADAPTER, manifest["files"][ADAPTER]["sha256"]))
    stored = read_tensors(path, weights, manifest, dtype)
    kinds = {tensor.dtype for name, tensor in stored.items() if "lora_" not in name}
    saved = {len(stored[_PREFIX + name]) for name in _ROWS if _PREFIX + name in stored}
    if len(saved) > 1:
        raise CheckpointError(
            f"{path / weights[0]} saves embeddings of {min(saved)} and {max(saved)} rows.", "Restore it."
        )
    grown: list[bool] = []

    def fit(said: bytes, tensors: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        said, tensors, more = _resized(said, tensors, saved.pop() if saved else tokens)
        grown.append(more)
        widest = reduce(torch.promote_types, kinds, next(iter(tensors.values())).dtype)
        return said, tensors | {name: tensor.to(widest) for name, tensor in list(tensors.items())[:1]}

    base = load(fit)
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = PeftModel(base, config, adapter_name=_NAME)
            names = _filled(whole, stored)
    except Exception as error:  # peft answers what does not fit with whatever it meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"The adapter in {path} does not fit its base: {reason}.",
            "Give the base it was trained on with --layout-set base=DIR.",
        ) from error
    module = whole.get_base_model()
    inner = {key: name.removeprefix(_PREFIX) for key, name in names.items()}
    module.requires_grad_(False)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in set(inner.values()):
            parameter.requires_grad_(True)
    if any(grown) and (bare := next(_unheld(module), None)):
        raise CheckpointError(
            f"{path} has more tokens than its base has rows, and its {weights[0]} does not hold {bare}: the rows of new tokens would "
            "be random.",
            "Give the base with the rows it was trained with (--layout-set base=DIR), or an adapter with modules_to_save.",
        )
    return module.eval(), {weights[0]: inner}


def _lora(path: Path, data: bytes) -> Any:
    """The LoraConfig in the content of adapter_config.json. Raises CheckpointError for one that is not supported."""
    from peft import LoraConfig

    try:
        said = json.loads(data)
        kind = said.pop("peft_type")
        known = {field.name for field in dataclasses.fields(LoraConfig)}
        said.pop("auto_mapping", None)  # which class peft would make the base of
        other = [key for key, value in said.items() if (key not in known or key in _REFUSED) and value]
        if kind != "LORA":
            raise ValueError(f"it is of peft_type {kind!r:.40}, and only LORA is")
        if said.get("init_lora_weights", True) not in _STEADY_INITS:
            raise ValueError(
                f"init_lora_weights {said['init_lora_weights']!r:.40} changes the base; convert it to a plain LoRA"
            )
        if other:
            raise ValueError(f"its {other[0]!r:.40} is set")
        return LoraConfig(**{key: value for key, value in said.items() if key in known and key not in _REFUSED})
    except Exception as error:  # a wrong value makes peft raise whatever it meets
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path / ADAPTER} is no adapter that is supported: {reason}.",
            "Merge it with peft (merge_and_unload, save_pretrained) and give the merged directory with its tokenizer.",
        ) from error


def _resized(data: bytes, tensors: dict[str, Any], rows: int) -> tuple[bytes, dict[str, Any], bool]:
    """A base's config and tensors with `rows` tokens, as resize_token_embeddings leaves them, and whether some are new.

    New rows are zeros here: they are only made where something else is read in their place.
    """
    import torch

    said, grown = json.loads(data), False
    tensors = dict(tensors)
    for name in (name for name in _ROWS if name in tensors):
        held = tensors[name]
        grown |= rows > len(held)
        more = held.new_zeros(max(0, rows - len(held)), *held.shape[1:])
        tensors[name] = torch.cat([held, more]) if len(more) else held[:rows].clone() if rows < len(held) else held
    return json.dumps({**said, "vocab_size": rows}).encode(), tensors, grown


def _filled(whole: Any, stored: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Put the stored tensors into a PeftModel; the name in it of each. Raises ValueError when they are not its own, one and all."""
    import torch
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    set_peft_model_state_dict(whole, dict(stored), adapter_name=_NAME)
    state = whole.state_dict()
    place = {(tensor.data_ptr(), tensor.shape): name for name, tensor in state.items()}
    held = get_peft_model_state_dict(whole, adapter_name=_NAME, save_embedding_layers=False)
    names = {key: place[tensor.data_ptr(), tensor.shape] for key, tensor in held.items()}
    names |= {
        key: key for key in stored if key not in names and key in state and key.removeprefix(_PREFIX).endswith(_ENDS)
    }
    missing, left = sorted(names.keys() - stored.keys()), sorted(stored.keys() - names.keys())
    if missing or left:
        raise ValueError(f"tensors missing {missing[:3]}, left over {left[:3]}")
    for key, tensor in stored.items():
        if not torch.equal(state[names[key]], tensor.to(state[names[key]].dtype)):
            raise ValueError(f"{key} holds NaN, or did not load as it is stored")
    return names


def _unheld(module: Any) -> Iterator[str]:
    """Names of the embeddings and heads in use whose weight the adapter does not hold."""
    if hasattr(module, "encoder"):
        used = {
            "encoder.embed_tokens": module.encoder.embed_tokens,
            "decoder.embed_tokens": module.decoder.embed_tokens,
        }
    else:
        used = {"embed_tokens": module.get_input_embeddings()}
    yield from (name for name, part in {**used, "lm_head": module.lm_head}.items() if not part.weight.requires_grad)


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """For inspect: what of an adapter cannot change, with its remedy; nothing for whole models."""
    if checkpoint.extra.get("base") is None:
        return ()
    fixed = list(_unheld(checkpoint.recommender.module))
    told = [
        (
            f"It is an adapter over {checkpoint.extra['base']}: erasing changes what the adapter holds, and never the base.",
            "Keep the base where it is, or name it with --layout-set base=DIR; merge with peft where one model is wanted.",
        )
    ]
    if fixed:
        told.append(
            (
                f"The adapter does not hold {' and '.join(fixed)}, so these cannot change: only LoRA factors can.",
                "Items still move to codes that have a row; where erasing stops short, train with modules_to_save.",
            )
        )
    return tuple(told)
