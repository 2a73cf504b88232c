"""What all layouts of other tools share: files that are read as they are, and written back with nothing changed that need not.

The one decision: a file is patched, not made again. Of weights the bytes of changed tensors alone are exchanged, of a SID table in
JSON the codes of moved items alone, and every other file is copied from the source if it still is what was read. What may hold
other weights (optimiser states, older checkpoints) is left behind: it would bring the concept along.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, CheckpointError, EraseError, PickleError
from recerase.layouts.index_json import IndexFile, rewritten
from recerase.layouts.native import CODEBOOKS, Checkpoint, _digest_of, _load_codebooks, save_codebooks
from recerase.store import MANIFEST, read_bytes, read_manifest, sha256_bytes, sha256_file, verify_manifest, write_bytes

if TYPE_CHECKING:
    import torch

    from recerase.layouts.native import ItemIds
    from recerase.layouts.protocol import LoadRequest
    from recerase.model.recommender import Recommender
    from recerase.sid.codebooks import Codebooks
    from recerase.sid.table import SidTable
    from recerase.types import FloatArray

OURS = (MANIFEST, "report.json", CODEBOOKS)
"""What recerase adds to a directory of another tool."""
_COPIED = (".json", ".txt", ".model", ".md", ".jinja", ".yaml", ".yml", ".tsv", ".csv")
"""Endings of files that are copied as they are; anything else may hold weights."""


def manifest_of(path: Path, names: Iterable[str]) -> Mapping[str, Any]:
    """The digests by which `names` are read: those of recerase.json where it is there, else those the files have now.

    Raises ArtefactError when a file is missing, or not what recerase.json says.
    """
    names = list(names)
    if os.path.lexists(path / MANIFEST):
        verify_manifest(path, needed=names)
        return read_manifest(path)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path} has no {missing[0]}.", "Restore it from where it was made.")
    try:
        files = {name: {"bytes": (path / name).stat().st_size, "sha256": sha256_file(path / name)} for name in names}
    except OSError as error:
        raise ArtefactError(f"Cannot read {error.filename}: {error.strerror}.", "Check its permissions.") from error
    return {"files": files, "provenance": {}}


def digest_over(manifest: Mapping[str, Any], names: Iterable[str], more: Mapping[str, str] | None = None) -> str:
    """sha256 over the digests of `names`, and of files elsewhere (`more`)."""
    return _digest_of({name: manifest["files"][name]["sha256"] for name in names} | dict(more or {}))


def copied_files(path: Path, rewritten_names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Names of the files that are copied when the directory is written back, and of all that is left behind."""
    kept: list[str] = []
    left: list[str] = []
    known = {*rewritten_names, *OURS}
    for entry in sorted(path.iterdir()):
        if entry.name in known:
            continue
        plain = entry.is_file() and entry.suffix in _COPIED and not entry.name.startswith(".")
        (kept if plain else left).append(entry.name)
    return kept, left


def stored_codebooks(
    path: Path, manifest: Mapping[str, Any], file_ids: Sequence[str], item_ids: ItemIds | None
) -> tuple[Codebooks | None, FloatArray | None]:
    """Codebooks and item embeddings that recerase laid into the directory, rows in the order of `item_ids`."""
    if CODEBOOKS not in manifest["files"] or not (path / MANIFEST).is_file():
        return None, None
    codebooks, embeddings = _load_codebooks(path, manifest, len(file_ids))
    if embeddings is not None and item_ids is not None:
        place = {item: row for row, item in enumerate(file_ids)}
        embeddings = embeddings[np.fromiter((place[str(item)] for item in item_ids), np.int64, len(place))]
    return codebooks, embeddings


def require_trust(path: Path, trusted: bool) -> None:
    """Raises PickleError unless a pickle may be read."""
    if not trusted:
        raise PickleError(
            f"{path} is a pickle, which can run code when it is read.",
            "Pass --trust-pickle, with which tensors alone are read from it.",
        )


def without_aliases(
    tensors: Mapping[str, torch.Tensor], head_too: bool
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A T5's tensors without second copies of `shared.weight`, and which name was a copy of which.

    Older transformers, and plain state dicts, write the embedding under up to four names. `head_too`: an equal head is a copy.
    """
    import torch

    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", *(["lm_head.weight"] if head_too else []))
    shared = tensors.get("shared.weight")
    same = {
        name: "shared.weight"
        for name in copies
        if shared is not None
        and name in tensors
        and tensors[name].dtype == shared.dtype
        and torch.equal(tensors[name], shared)
    }
    return {name: tensor for name, tensor in tensors.items() if name not in same}, same


def write_foreign(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging` with the source's files, its weights and SID table patched; `extra` says which are which.

    Raises EraseError for what the layout cannot say, ArtefactError when a file of the source has changed since it was read.
    """
    extra = source.extra
    refuse_unlisted(source, table)
    state = recommender.module.state_dict()
    for name in extra["weights"]:
        wanted = {stored: state[extra["aliases"].get(inner, inner)] for stored, inner in extra["stored"][name].items()}
        data = reread(source.path / name, extra["files"][name])
        patch = patched_safetensors if name.endswith(".safetensors") else patched_pickle
        write_bytes(staging / name, patch(data, wanted))
    index: IndexFile = extra["index"]
    write_bytes(staging / index.path.name, rewritten(index, reread(index.path, index.sha256), source.table, table))
    for name in extra["copied"]:
        write_bytes(staging / name, reread(source.path / name, extra["files"][name]))
    keep_codebooks(source, staging)


def refuse_unlisted(source: Checkpoint, table: SidTable) -> None:
    """Raises EraseError when items must not be recommended any more: for layouts that cannot say so."""
    if (table.listed != source.table.listed).any():
        raise EraseError(
            f"Layout {source.layout} cannot say that an item is not to be recommended, and this method needs that.",
            "Use --method tracer, renormalise or npo, and hide the items where recommendations are served.",
        )


def keep_codebooks(source: Checkpoint, staging: Path) -> None:
    """Write codebooks and item embeddings, rows in the order of the source's SID table, where there are any."""
    embeddings = source.embeddings
    if embeddings is not None:
        place = {str(item): row for row, item in enumerate(source.table.item_ids)}
        embeddings = embeddings[[place[item] for item in source.extra["index"].items]]
    save_codebooks(staging, source.codebooks, embeddings)


def reread(path: Path, digest: str) -> bytes:
    """A file's content if it still is what was read before. Raises ArtefactError."""
    data = read_bytes(path)
    if sha256_bytes(data) != digest:
        raise ArtefactError(f"{path} was changed while it was in use.", "Run again when nobody writes there.")
    return data


def patched_safetensors(data: bytes, wanted: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file (of known good form) with the bytes of tensors exchanged whose values differ from `wanted`."""
    import json

    import torch

    from recerase.layouts.tensors import DTYPES

    begin = 8 + int.from_bytes(data[:8], "little")
    out = bytearray(data)
    for name, entry in json.loads(data[8:begin]).items():
        if name == "__metadata__":
            continue
        first, last = (begin + at for at in entry["data_offsets"])
        kind = getattr(torch, DTYPES[entry["dtype"]][0])
        new = wanted[name].detach().cpu().to(kind).contiguous().flatten()
        if first < last and not torch.equal(torch.frombuffer(bytearray(data[first:last]), dtype=kind), new):
            out[first:last] = new.view(torch.uint8).numpy().tobytes()
    return bytes(out)


def patched_pickle(data: bytes, wanted: Mapping[str, torch.Tensor]) -> bytes:
    """A trusted state dict with the values of `wanted` put into its own tensors: names, order, sharing and dtypes stay.

    Written anew only where a value differs.
    """
    import io

    import torch

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    changed = False
    for name, tensor in state.items():
        new = wanted[name].detach().cpu().to(tensor.dtype)
        if not torch.equal(new, tensor):
            changed = True
            tensor.data.copy_(new)
    if not changed:
        return data
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def index_option(path: Path, request: LoadRequest, found: Sequence[Path], what: str) -> Path:
    """The SID table: the only one in the directory, else the one that `sids` names, there before elsewhere.

    What was published with its table is so read with that table, whatever its source was read with.
    Raises CheckpointError, teaching the option, when there is none or several and none is named.
    """
    named = request.options.get("sids")
    if len(found) == 1:
        return found[0]
    if named is not None:
        for place in (path / Path(named).name, Path(named)):
            if place.is_file():
                return place
        raise CheckpointError(f"There is no SID table {named!s:.200}.", "Check --layout-set sids=FILE.")
    many = f"holds {len(found)} SID tables ({', '.join(p.name for p in found[:3])})" if found else f"holds no {what}"
    raise CheckpointError(f"{path} {many}.", "Name the SID table with --layout-set sids=FILE.")
