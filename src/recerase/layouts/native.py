"""The native checkpoint directory: a plain transformers directory, plus its SID table, codebooks and manifest.

    config.json             the transformers config, plus `recerase.window` (history items a prompt holds)
    model.safetensors       every tensor once; an embedding and a head stored apart are untied
    sids.parquet            item_id, codes, listed, resolved
    sid_schema.json         levels, codes a level, code -> vocabulary row, special tokens
    codebooks.safetensors   codewords, their recipe, and the item embeddings they quantise
    recerase.json           digests of all of these, provenance (written by store.publish)

The deciding choice is how weights are read: tensor by tensor, and compared bit for bit afterwards. transformers ties
T5 whatever the config says, and a load that ties would replace one of two different matrices in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recerase.errors import ArtefactError, CheckpointError, PickleError, TableError
from recerase.sid.codebooks import Codebooks
from recerase.sid.table import SidTable, read_table, table_to_arrow
from recerase.store import (
    MANIFEST,
    canonical_json,
    parquet_bytes,
    pretty_json,
    read_manifest,
    sha256_bytes,
    sha256_file,
    verify_manifest,
    write_bytes,
)
from recerase.types import FloatArray

if TYPE_CHECKING:
    import torch

    from recerase.model.recommender import Recommender

WEIGHTS = "model.safetensors"
SIDS = "sids.parquet"
SCHEMA = "sid_schema.json"
CODEBOOKS = "codebooks.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DEFAULT_WINDOW = 20

ItemIds = Sequence[str] | NDArray[Any]


@dataclass(frozen=True)
class Checkpoint:
    """A recommender with the SID table it speaks."""

    path: Path
    recommender: Recommender
    table: SidTable
    codebooks: Codebooks | None
    embeddings: FloatArray | None
    """[N, D] item embeddings, rows as in `table`; None when the checkpoint does not carry them."""
    manifest: Mapping[str, Any]
    digest: str
    """sha256 over the digests of weights, SIDs and schema; what reports call this checkpoint."""


def is_native(path: Path) -> bool:
    """Whether the directory holds what only a native checkpoint holds: a config and a SID schema side by side."""
    return (path / "config.json").is_file() and (path / SCHEMA).is_file()


def load_checkpoint(
    path: str | Path,
    *,
    item_ids: ItemIds | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """Read a native checkpoint; `item_ids` puts table and embeddings in the catalogue's order.

    `dtype` None keeps the stored one. Raises ArtefactError when a file is not what the manifest says, PickleError
    when the weights are a pickle (unless trusted), CheckpointError when they cannot be read, TableError when the
    table does not belong to the model or to `item_ids`.
    """
    from recerase.model.recommender import wrap

    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory.", "Give a checkpoint directory.")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json.", "Give a directory made by recerase train or erase.")
    weights = _weight_files(path, trust_pickle)
    verify_manifest(path)
    table, codebooks, embeddings = load_sids(path, item_ids=item_ids)
    module, window = _load_module(path, weights, trust_pickle)
    rows = int(module.get_input_embeddings().weight.shape[0])
    if table.schema.vocabulary > rows:
        raise TableError(
            f"{path / SCHEMA} speaks of {table.schema.vocabulary} vocabulary rows, the model has {rows}.",
            "Table and model are of different runs: give the directory they were published in.",
        )
    module.eval().to(device=device, dtype=dtype)
    return Checkpoint(
        path=path,
        recommender=wrap(module, table.schema, window),
        table=table,
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=read_manifest(path),
        digest=checkpoint_digest(path),
    )


def checkpoint_digest(path: Path) -> str:
    """sha256 over the digests of the weights, the SIDs and their schema; provenance has no part in it."""
    names = sorted({file.name for file in path.glob("*.safetensors")} - {CODEBOOKS} | {SIDS, SCHEMA})
    return sha256_bytes(canonical_json({name: sha256_file(path / name) for name in names}))


def save_checkpoint(
    staging: Path,
    recommender: Recommender,
    table: SidTable,
    codebooks: Codebooks | None,
    embeddings: FloatArray | None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write everything but the manifest into `staging` (a `store.publish` directory).

    `extra` is kept under `recerase` in config.json, beside the window. Plain transformers loads the result.
    """
    module: Any = recommender.module
    config = json.loads(module.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    config["architectures"] = [type(module).__name__]
    config["dtype"] = str(next(module.parameters()).dtype).removeprefix("torch.")
    config["recerase"] = {**(extra or {}), "window": recommender.window}
    write_bytes(staging / "config.json", pretty_json(config))
    write_bytes(staging / WEIGHTS, _weight_bytes(module))
    save_sids(staging, table, codebooks, embeddings)


def load_sids(
    directory: str | Path, *, item_ids: ItemIds | None = None
) -> tuple[SidTable, Codebooks | None, FloatArray | None]:
    """Table, codebooks and item embeddings [N, D] of a directory made by tokenize, train or erase.

    Raises TableError when the table is malformed or does not cover exactly `item_ids`, ArtefactError when a file
    is not what the manifest says.
    """
    directory = Path(directory)
    if not (directory / SIDS).is_file():
        raise TableError(f"{directory} has no {SIDS}.", "Give a directory made by recerase tokenize.")
    if (directory / MANIFEST).is_file():
        verify_manifest(directory)
    table = read_table(directory)
    codebooks, embeddings = _load_codebooks(directory / CODEBOOKS, len(table.item_ids))
    if item_ids is not None:
        aligned = table.aligned(item_ids)
        if embeddings is not None:
            place = {item: row for row, item in enumerate(table.item_ids)}
            embeddings = embeddings[np.fromiter((place[item] for item in aligned.item_ids), np.int64, len(place))]
        table = aligned
    return table, codebooks, embeddings


def save_sids(staging: Path, table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None) -> None:
    """Write sids.parquet, sid_schema.json and, when there is something to keep, codebooks.safetensors."""
    from safetensors.numpy import save

    write_bytes(staging / SIDS, parquet_bytes(table_to_arrow(table)))
    write_bytes(staging / SCHEMA, pretty_json(table.schema.to_json()))
    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    if codebooks is not None:
        tensors.update(codebooks.to_tensors())
        metadata = {"recerase": canonical_json(codebooks.metadata()).decode()}
    if embeddings is not None:
        tensors["embeddings"] = np.ascontiguousarray(embeddings, dtype=np.float32)
    if tensors:
        write_bytes(staging / CODEBOOKS, save(tensors, metadata=metadata))


def _load_codebooks(path: Path, n_items: int) -> tuple[Codebooks | None, FloatArray | None]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None, None
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = json.loads((file.metadata() or {}).get("recerase", "{}"))
    except (SafetensorError, ValueError, OSError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.", "Restore it, or tokenize again.") from error
    embeddings = tensors.pop("embeddings", None)
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) != n_items):
        raise TableError(
            f"{path} holds embeddings of shape {list(embeddings.shape)} for {n_items} items.", "Tokenize again."
        )
    return (Codebooks.from_tensors(tensors, metadata) if tensors else None), embeddings


def _weight_files(path: Path, trust_pickle: bool) -> list[Path]:
    files = sorted(file for file in path.glob("*.safetensors") if file.name != CODEBOOKS)
    if files:
        return files
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if not pickles:
        raise CheckpointError(f"{path} has no {WEIGHTS}.", "Give a directory that holds the weights.")
    if not trust_pickle:
        raise PickleError(
            f"{pickles[0]} is a pickle, which can run code when it is read.",
            "Save it as safetensors, or pass --trust-pickle.",
        )
    return pickles


def _read_tensors(files: Sequence[Path], trust_pickle: bool) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                found = load_file(file)
            elif trust_pickle:
                found = torch.load(file, map_location="cpu", weights_only=True)
            else:
                raise PickleError(f"{file} is a pickle.", "Save it as safetensors.")
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.", "Restore it from where it was made.") from error
        tensors.update(found)
    return tensors


def _load_module(path: Path, files: Sequence[Path], trust_pickle: bool) -> tuple[Any, int]:
    """Build the module from config.json and fill it with exactly the tensors of the files."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.random.fork_rng():
            module = family.from_config(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'config.json'} cannot be used: {error}.", "Restore the config.") from error
    tensors = _read_tensors(files, trust_pickle)
    for target in _stored_apart(module, tensors):
        _untie(module, target)
    module.to(dtype=next(iter(tensors.values())).dtype)
    fill_exactly(module, tensors, path)
    return module, int((getattr(config, "recerase", None) or {}).get("window", _DEFAULT_WINDOW))


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


def _weight_bytes(module: Any) -> bytes:
    """Every tensor of the module once, in name order, under the name transformers looks for."""
    from safetensors.torch import save

    stored = _aliases(module)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(module.state_dict().items())
        if stored.get(name, name) == name
    }
    return bytes(save(tensors, metadata={"format": "pt"}))
