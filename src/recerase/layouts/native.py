"""The native checkpoint directory: a plain transformers directory, plus its SID table, codebooks and manifest.

    config.json             the transformers config, plus `recerase.window` (history items a prompt holds)
    model.safetensors       every tensor once; an embedding and a head stored apart are untied
    sids.parquet            item_id, codes, listed, resolved
    sid_schema.json         levels, codes a level, code -> vocabulary row, special tokens
    codebooks.safetensors   codewords, their recipe, and the item embeddings they quantise
    recerase.json           digests of all of these, provenance (written by store.publish)

The deciding choice is that the bytes that are used are the bytes that were compared with the manifest; what the manifest does not
name is refused. How tensors are read is in tensors.py, how they become a model in weights.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recerase.catalog.files import read_verified, reading_verified
from recerase.errors import ArtefactError, CheckpointError, PickleError, TableError
from recerase.layouts.growth import Room
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.tensors import numpy_memory, read_safetensors
from recerase.layouts.weights import CONFIG, load_module, read_tensors, weight_bytes
from recerase.sid.codebooks import Codebooks
from recerase.sid.table import SidTable
from recerase.sid.table_files import schema_of, table_of, table_to_arrow
from recerase.store import (
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
    """sha256 over the digests of every file that was read; what reports call this checkpoint."""
    layout: str = "native"
    """Name of the layout it was read with, and is written back in."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What that layout needs to write it back, and what it noted for people."""


def is_native(path: Path) -> bool:
    """Whether the directory holds what only a native checkpoint holds: a config and a SID schema side by side."""
    return (path / CONFIG).is_file() and (path / SCHEMA).is_file()


def _detect(path: Path) -> str | None:
    return f"{CONFIG} and {SCHEMA} side by side" if is_native(path) else None


def _load(path: Path, request: LoadRequest) -> Checkpoint:
    return load_checkpoint(
        path,
        item_ids=request.item_ids,
        device=request.device,
        dtype=request.dtype,
        trust_pickle=request.trust_pickle,
    )


def _room(checkpoint: Checkpoint) -> Room:
    return Room(checkpoint.table.schema.vocabulary)


def _write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    save_checkpoint(staging, recommender, table, source.codebooks, source.embeddings)


LAYOUTS = (
    Layout(
        name="native",
        users="transformers directory with sids.parquet, sid_schema.json and recerase.json",
        marks=(CONFIG, SCHEMA),
        detect=_detect,
        load=_load,
        write_back=_write_back,
        digest=lambda path, options=NO_OPTIONS: checkpoint_digest(path),
        room=_room,
    ),
)


def load_checkpoint(
    path: str | Path,
    *,
    item_ids: ItemIds | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    trust_pickle: bool = False,
) -> Checkpoint:
    """Read a native checkpoint; `item_ids` puts table and embeddings in the catalogue's order.

    `dtype` None keeps the stored one. No tensor is held twice on the way, but one at a time while it changes its dtype or its
    device. Raises ArtefactError when a file is not what the manifest says, PickleError
    when the weights are a pickle (unless trusted), CheckpointError when they cannot be read, TableError when the
    table does not belong to the model or to `item_ids`.
    """
    from recerase.model.recommender import wrap

    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a directory.", "Give a checkpoint directory.")
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} has no {CONFIG}.", "Give a directory made by recerase train or erase.")
    weights = [file.name for file in _weight_files(path, trust_pickle)]
    manifest = read_manifest(path)
    names = [CONFIG, *weights, *_sid_files(path)]
    verify_manifest(path, needed=names)
    content = read_verified(path, [CONFIG, SIDS, SCHEMA], manifest)
    digest = _digest_of({name: manifest["files"][name]["sha256"] for name in names})
    tensors = read_tensors(path, weights, manifest, dtype)
    table, codebooks, embeddings = _sids(path, content, manifest, item_ids)
    module, window = load_module(path, content[CONFIG], tensors)
    del tensors
    rows = int(module.get_input_embeddings().weight.shape[0])
    if table.schema.vocabulary > rows:
        raise TableError(
            f"{path / SCHEMA} speaks of {table.schema.vocabulary} vocabulary rows, the model has {rows}.",
            "Table and model are of different runs: give the directory they were published in.",
        )
    module.eval().to(device=device)
    return Checkpoint(
        path=path,
        recommender=wrap(module, table.schema, window),
        table=table,
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest,
    )


def checkpoint_digest(path: Path) -> str:
    """sha256 over the digests of config, weights, SIDs, schema and codebooks; provenance has no part in it."""
    names = [CONFIG, *(file.name for file in _weight_files(path, trust_pickle=True)), *_sid_files(path)]
    return _digest_of({name: sha256_file(path / name) for name in names})


def _digest_of(files: Mapping[str, str]) -> str:
    return sha256_bytes(canonical_json(dict(files)))


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
    Raises CheckpointError for a model that it could not load, or would take for another.
    """
    module: Any = recommender.module
    if recommender.per_level or not hasattr(module.config, "to_json_string"):
        raise CheckpointError(
            "recerase's own layout has no words for a softmax a level, or for a model that transformers does not know.",
            "Write the checkpoint back in the layout it was read in.",
        )
    config = json.loads(module.config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)
    config["architectures"] = [type(module).__name__]
    config["dtype"] = str(next(module.parameters()).dtype).removeprefix("torch.")
    config["recerase"] = {**(extra or {}), "window": recommender.window}
    write_bytes(staging / CONFIG, pretty_json(config))
    write_bytes(staging / WEIGHTS, weight_bytes(module))
    save_sids(staging, table, codebooks, embeddings)


def load_sids(
    directory: str | Path, *, item_ids: ItemIds | None = None
) -> tuple[SidTable, Codebooks | None, FloatArray | None]:
    """Table, codebooks and item embeddings [N, D] of a directory made by tokenize, train or erase.

    Raises TableError when the table is malformed or does not cover exactly `item_ids`, ArtefactError when there is no
    manifest, or a file is not what it says. (A table without a manifest is read as a file: `sid.read_table`.)
    """
    directory = Path(directory)
    if not (directory / SIDS).is_file():
        raise TableError(f"{directory} has no {SIDS}.", "Give a directory made by recerase tokenize.")
    manifest = read_manifest(directory)
    verify_manifest(directory, needed=_sid_files(directory))
    return _sids(directory, read_verified(directory, [SIDS, SCHEMA], manifest), manifest, item_ids)


def _sid_files(directory: Path) -> list[str]:
    """The SID files to be read: table and schema, and codebooks where there are any."""
    return [SIDS, SCHEMA, *([CODEBOOKS] if os.path.lexists(directory / CODEBOOKS) else [])]


def _sids(
    directory: Path, content: Mapping[str, bytes], manifest: Mapping[str, Any], item_ids: ItemIds | None
) -> tuple[SidTable, Codebooks | None, FloatArray | None]:
    table = table_of(content[SIDS], schema_of(content[SCHEMA], directory / SCHEMA), directory / SIDS)
    codebooks, embeddings = None, None
    if os.path.lexists(directory / CODEBOOKS):
        codebooks, embeddings = _load_codebooks(directory, manifest, len(table.item_ids))
    if item_ids is not None:
        aligned = table.aligned(item_ids)
        if embeddings is not None and not np.array_equal(aligned.item_ids, table.item_ids):
            place = {item: row for row, item in enumerate(table.item_ids)}
            embeddings = embeddings[np.fromiter((place[item] for item in aligned.item_ids), np.int64, len(place))]
        table = aligned
    return table, codebooks, embeddings


def save_sids(staging: Path, table: SidTable, codebooks: Codebooks | None, embeddings: FloatArray | None) -> None:
    """Write sids.parquet, sid_schema.json and, when there is something to keep, codebooks.safetensors."""
    write_bytes(staging / SIDS, parquet_bytes(table_to_arrow(table)))
    write_bytes(staging / SCHEMA, pretty_json(table.schema.to_json()))
    save_codebooks(staging, codebooks, embeddings)


def save_codebooks(staging: Path, codebooks: Codebooks | None, embeddings: FloatArray | None) -> None:
    """Write codebooks.safetensors when there is something to keep."""
    from safetensors.numpy import save

    tensors: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    if codebooks is not None:
        tensors.update(codebooks.to_tensors())
        metadata = {"recerase": canonical_json(codebooks.metadata()).decode()}
    if embeddings is not None:
        tensors["embeddings"] = np.ascontiguousarray(embeddings, dtype=np.float32)
    if tensors:
        write_bytes(staging / CODEBOOKS, save(tensors, metadata=metadata))


def _load_codebooks(
    directory: Path, manifest: Mapping[str, Any], n_items: int
) -> tuple[Codebooks | None, FloatArray | None]:
    path = directory / CODEBOOKS
    try:
        with reading_verified(directory, CODEBOOKS, manifest) as file:
            tensors, header = read_safetensors(file, numpy_memory)
        metadata = json.loads(header.get("recerase", "{}"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}.", "Restore it, or tokenize again.") from error
    if not tensors:
        raise ArtefactError(f"{path} holds nothing.", "Restore it, or tokenize again.")
    embeddings = tensors.pop("embeddings", None)
    if embeddings is not None and (
        embeddings.ndim != 2 or len(embeddings) != n_items or embeddings.dtype != np.float32
    ):
        raise TableError(
            f"{path} holds embeddings of {embeddings.dtype} {list(embeddings.shape)} for {n_items} items.",
            "Tokenize again.",
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
