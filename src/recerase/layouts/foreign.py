"""What all layouts of other tools share: files that are read as they are, and written back with nothing changed that need not.

The one decision: a file is patched, not made again. Of weights the bytes of changed tensors alone are exchanged, of a SID table in
JSON the codes of moved items alone, and every other file is copied from the source if it still is what was read. What may hold
other weights (optimiser states, older checkpoints) is left behind: it would bring the concept along.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, CheckpointError, EraseError, PickleError, UsageError
from recerase.layouts.grown_files import grown_safetensors, prove_tokens, regrown, token_growth
from recerase.layouts.index_json import IndexFile, rewritten
from recerase.layouts.native import CODEBOOKS, Checkpoint, _digest_of, _load_codebooks, save_codebooks
from recerase.layouts.patching import reread, write_patched
from recerase.layouts.torch_zip import is_torch_zip
from recerase.sid.schema import SidSchema
from recerase.store import MANIFEST, read_manifest, sha256_file, verify_manifest, write_bytes

if TYPE_CHECKING:
    import torch

    from recerase.layouts.growth import Growth
    from recerase.layouts.native import ItemIds
    from recerase.layouts.protocol import LoadRequest
    from recerase.layouts.torch_zip import Contents
    from recerase.model.recommender import Recommender
    from recerase.sid.codebooks import Codebooks
    from recerase.sid.table import SidTable
    from recerase.types import FloatArray, IntArray

Part = str | tuple[str, int, int]
"""What a stored tensor is in the module: a tensor by name, or of that name the rows from here to there."""
OURS = (MANIFEST, "report.json", "erased.json", CODEBOOKS)
"""What recerase adds to a directory of another tool."""
_COPIED = (".json", ".txt", ".model", ".md", ".jinja", ".yaml", ".yml", ".gin", ".tsv", ".csv")
"""Endings of files that are copied as they are; anything else may hold weights."""
_DIGITS = 18
"""Of a number in an option."""
_PICKLE_BEGIN = 1 << 22
"""Bytes of a file of torch.save in which its names are looked for; they stand before the tensors."""


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


def digest_from(path: Path, names: Sequence[str], table: Path, more: Mapping[str, str] | None = None) -> str:
    """`digest_over` of the files as they are now, `table` (a SID table, in the directory or elsewhere) among them."""
    inside = table.parent.resolve() == path.resolve()
    read = [*names, table.name] if inside else list(names)
    files = {"files": {name: {"sha256": sha256_file(path / name)} for name in read}}
    return digest_over(files, read, {**({} if inside else {table.name: sha256_file(table)}), **(more or {})})


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


def own_codebooks(path: Path) -> list[str]:
    """The file of codebooks, where recerase laid one into the directory."""
    return [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []


def chosen_weights(path: Path, found: Sequence[str], request: LoadRequest, what: str) -> str:
    """The weight file to be read, a pickle: the only one of `found`, else the one that the option `weights` names.

    Raises CheckpointError when there is none, or there are several (of `what` kind) and none is named; PickleError unless trusted.
    """
    named, listed = request.options.get("weights"), ", ".join(found[:4]) or "none"
    if named is not None and named not in found:
        raise CheckpointError(f"{path} has no {named!s:.100} among its {what}: {listed}.", "Name one of these.")
    if named is None and len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} {what} ({listed}).", "Say which with --layout-set weights=FILE."
        )
    name = named or found[0]
    require_trust(path / name, request.trust_pickle)
    return name


def block_schema(codes: IntArray, size: int, vocabulary: int, pad: int = -1, eos: int = -1) -> SidSchema:
    """The schema of codes [N, L] whose rows are a block of `size` a level, one behind the other from row 0."""
    levels = codes.shape[1]
    return SidSchema(
        codes=(size,) * levels,
        rows=tuple(level * size + np.arange(size, dtype=np.int64) for level in range(levels)),
        vocabulary=vocabulary,
        pad=pad,
        bos=-1,
        eos=eos,
        collisions="unique" if len(np.unique(codes, axis=0)) == len(codes) else "allowed",
    )


def moments_at_zero(
    stored: Mapping[tuple[Any, ...], torch.Tensor], section: Any
) -> dict[tuple[Any, ...], torch.Tensor]:
    """Zeros for what the optimiser under `section` has seen, its step counts too: moments hold gradients of the concept."""
    import torch

    return {
        keys: torch.zeros_like(tensor) for keys, tensor in stored.items() if keys[:1] == (section,) and "state" in keys
    }


def require_trust(path: Path, trusted: bool) -> None:
    """Raises PickleError unless a pickle may be read."""
    if not trusted:
        raise PickleError(
            f"{path} is a pickle, which can run code when it is read.",
            "Pass --trust-pickle, with which tensors alone are read from it.",
        )


def says(path: Path, *words: str) -> bool:
    """Whether a file of torch.save names all of `words` where its pickle stands, which is not read as one."""
    try:
        with open(path, "rb") as file:
            begin = file.read(_PICKLE_BEGIN)
    except OSError:
        return False
    return is_torch_zip(begin) and all(word.encode() in begin for word in words)


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
    require_listed(source, table)
    growth = token_growth(source, table)
    write_weights(source, recommender, staging, growth)
    index: IndexFile = extra["index"]
    change = extra.get("rewrite", rewritten)
    write_bytes(staging / index.path.name, change(index, reread(index.path, index.sha256), source.table, table))
    write_copies(source, staging, index.items, lambda name, data: regrown(name, data, growth, source, recommender))
    prove_tokens(source.path, staging, growth)


def write_weights(source: Checkpoint, recommender: Recommender, staging: Path, growth: Growth) -> None:
    """Write the weight files of `source` with the values of the new model, and the rows of a `growth`."""
    extra, state = source.extra, recommender.module.state_dict()
    for name, digest in ((name, extra["files"][name]) for name in extra["weights"]):
        wanted = parts_of(state, extra["stored"][name], extra["aliases"])
        change = extra.get("patch") or (grown_safetensors if growth.rows else None)
        if change is None:
            write_patched(staging / name, source.path / name, digest, wanted)
        else:
            write_bytes(staging / name, change(reread(source.path / name, digest), wanted))


def require_listed(source: Checkpoint, table: SidTable) -> None:
    """Raises EraseError when items are to be unlisted or dropped from histories, which files of other tools cannot say."""
    require_no_filter(source.layout, table)
    if (table.listed != source.table.listed).any():
        raise EraseError(
            f"Layout {source.layout} cannot say that an item is not to be recommended, and this method needs that.",
            "Use --method tracer, renormalise or npo, and hide the items where recommendations are served.",
        )


def require_no_filter(layout: str, table: SidTable) -> None:
    """Raises EraseError for a table with a retrieval filter, which only a native checkpoint carries."""
    if table.dropped is not None:
        raise EraseError(
            f"Layout {layout} cannot carry a retrieval filter, and this method is one.",
            "Filter histories where they are retrieved, or use --method npo.",
        )


def parts_of(
    state: Mapping[str, torch.Tensor], stored: Mapping[Any, Part], aliases: Mapping[str, str] | None = None
) -> dict[Any, torch.Tensor]:
    """The values of stored tensors, each all of a tensor of the module or some rows of one."""
    found = {}
    for key, part in stored.items():
        inner, rows = (part, slice(None)) if isinstance(part, str) else (part[0], slice(*part[1:]))
        found[key] = state[(aliases or {}).get(inner, inner)][rows]
    return found


def write_copies(
    source: Checkpoint,
    staging: Path,
    items: Sequence[str],
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
) -> None:
    """Write the copied files, each as `change` makes it of its name and content, and what `keep_codebooks` keeps."""
    for name in source.extra["copied"]:
        place = staging / name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(place, change(name, reread(source.path / name, source.extra["files"][name])))
    keep_codebooks(source, staging, items)


def keep_codebooks(source: Checkpoint, staging: Path, items: Sequence[str]) -> None:
    """Write codebooks and item embeddings, where there are any, rows in the order of `items`, the other tool's table's."""
    embeddings = source.embeddings
    if embeddings is not None:
        place = {str(item): row for row, item in enumerate(source.table.item_ids)}
        embeddings = embeddings[[place[item] for item in items]]
    save_codebooks(staging, source.codebooks, embeddings)


def index_option(path: Path, request: LoadRequest, found: Sequence[Path], what: str) -> Path:
    """The SID table: the only one in the directory, else the one that `sids` names, there before elsewhere.

    What was published with its table is so read with that table, whatever its source was read with.
    Raises CheckpointError, teaching the option, when there is none or several and none is named.
    """
    named = request.options.get("sids")
    if len(found) == 1:
        return found[0]
    if named is not None:
        given = Path(named)
        same = [place for place in found if place.resolve() == given.resolve()]
        alike = [place for place in found if place.name == given.name]
        for place in (*same, *(alike if len(alike) == 1 else ()), path / given.name, given):
            if place.is_file():
                return place
        raise CheckpointError(f"There is no SID table {named!s:.200}.", "Check --layout-set sids=FILE.")
    many = f"holds {len(found)} SID tables ({', '.join(p.name for p in found[:3])})" if found else f"holds no {what}"
    raise CheckpointError(f"{path} {many}.", "Name the SID table with --layout-set sids=FILE.")


def number_option(request: LoadRequest, name: str, otherwise: int) -> int:
    """A whole number that an option says. Raises UsageError when it says none."""
    said = request.options.get(name, str(otherwise))
    if not said.isdecimal() or len(said) > _DIGITS:
        raise UsageError(
            f"{name}={said!s:.40} is no whole number.", f"Give --layout-set {name}={otherwise}, or another."
        )
    return int(said)


def bucket(request: LoadRequest, users: int) -> int | None:
    """The bucket of hashed users that all histories are read as; None where the model has no users. Raises UsageError."""
    said = number_option(request, "user", 0)
    if said >= max(1, users):
        last = f"Give a whole number from 0 to {users - 1}." if users else "Leave the option out."
        raise UsageError(f"user={said} is no bucket of {users}.", last)
    return said if users else None


def one_user(user: int | None, users: int) -> tuple[str, ...]:
    """What a report says was not measured, where every history is read as that of one row of users."""
    if user is None or users < 2:
        return ()
    return (
        f"Every history was read as that of user row {user} of {users}; what the model says to users of others was not measured.",
    )


def further_weights(contents: Contents, model: str, moments: str) -> tuple[str, ...]:
    """Names of matrices in a file of torch.save that could be other weights of its model: averages of them, or those of another epoch.

    They have the shape of one of its matrices, and memory of their own. `model` and `moments` are the keys under which its weights and
    an optimiser's state are known to be.
    """
    known = {keys: tensor for keys, tensor in contents.tensors.items() if keys[:1] == (model,)}
    shapes = {tensor.shape for tensor in known.values() if tensor.dim() > 1 and tensor.is_floating_point()}
    memory = {tensor.untyped_storage().data_ptr() for tensor in known.values()}
    return tuple(
        ".".join(keys)
        for keys, tensor in contents.tensors.items()
        if keys not in known
        and not (keys[:1] == (moments,) and "state" in keys)
        and tensor.is_floating_point()
        and tensor.shape in shapes
        and tensor.untyped_storage().data_ptr() not in memory
    )
