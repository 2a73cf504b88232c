"""What GRID and RQ-VAE-Recommender share: T5 stacks over one table of codes, with a bos, a separator, users, and a head a level.

The one decision: their model is read as an untied T5 of transformers whose rows are [codes level by level | bos | separator |
users]; a stored tensor is some rows of its embedding or its head, or a tensor of its stacks under another name. What follows from
having a head a level, a softmax over one level's codes, is told to the recommender (`per_level`) and to nobody else.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import CheckpointError, EraseError, UsageError
from recerase.layouts.foreign import (
    bucket,
    copied_files,
    digest_from,
    digest_over,
    further_weights,
    manifest_of,
    number_option,
    one_user,
    parts_of,
    require_listed,
    require_trust,
    reread,
    says,
    stored_codebooks,
    write_copies,
)
from recerase.layouts.level_stacks import Keys, Names, Stacks, config_of, stacks
from recerase.layouts.native import CODEBOOKS, Checkpoint
from recerase.layouts.protocol import LoadRequest
from recerase.layouts.torch_zip import Contents, exchanged, read_torch_zip
from recerase.layouts.weights import load_module, read_torch_file
from recerase.layouts.zip_records import records
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import MANIFEST, sha256_file, write_bytes
from recerase.types import IntArray

if TYPE_CHECKING:
    import torch

    from recerase.model.recommender import Recommender

OPTIONS = {
    "weights": "which checkpoint, where there are several",
    "user": "the bucket of hashed users whose row begins every history (0)",
    "window": "how many items of a history are read",
}


@dataclass(frozen=True, eq=False)
class Codes:
    """A SID table as a tensor in files of torch.save."""

    values: IntArray
    """int32 [N, L]; the item of a row is its number."""
    places: tuple[tuple[Path, Keys], ...]
    """Every file and keys where the tensor stands."""
    across: bool
    """Whether it is stored as [L, N]."""

    @property
    def items(self) -> tuple[str, ...]:
        return tuple(np.arange(len(self.values)).astype(str).tolist())


def whole_numbers(tensor: torch.Tensor | None) -> IntArray | None:
    """int64 the content of a matrix of whole numbers; None for anything else, and for an empty one."""
    import torch

    if tensor is None or tensor.dim() != 2 or not tensor.numel() or tensor.dtype == torch.bool:
        return None
    return None if tensor.is_floating_point() or tensor.is_complex() else tensor.to(torch.int64).numpy()


def holding(path: Path, pattern: str, *names: str) -> list[str]:
    """The files of torch.save in a directory that name all of `names`."""
    return sorted(file.name for file in path.glob(pattern) if says(file, *names))


def chosen(path: Path, names: Sequence[str], request: LoadRequest) -> str:
    """The checkpoint to be read. Raises CheckpointError when there are several and none is named, PickleError unless trusted."""
    named = request.options.get("weights")
    if named is not None and named not in names:
        raise CheckpointError(
            f"{path} has no checkpoint {named!s:.100}; it has {', '.join(names[:4])}.", "Name one of these."
        )
    if named is None and len(names) != 1:
        raise CheckpointError(
            f"{path} holds {len(names)} checkpoints ({', '.join(names[:4])}).",
            "Say which with --layout-set weights=FILE.",
        )
    name = named or names[0]
    require_trust(path / name, request.trust_pickle)
    return name


def window_of(request: LoadRequest, otherwise: int) -> int:
    """How many items of a history are read. Raises UsageError."""
    said = number_option(request, "window", otherwise)
    if not 0 < said < 1 << 20:
        raise UsageError(f"A window of {said} items cannot be.", "Give --layout-set window=20, or another number.")
    return said


def load(
    path: Path, request: LoadRequest, layout: str, names: Names, weights: str, window: Callable[[int], int],
    table_of: Callable[[Contents, Stacks], Codes], beside: Path | None = None,
) -> Checkpoint:  # fmt: skip
    """A checkpoint of this kind.

    Args:
        weights: its file in `path`.
        window: of the number of levels, how many items are read where no option says it.
        table_of: the SID table, given what the file holds and the model in it.
        beside: a file with the table, in the directory or elsewhere.
    """
    from recerase.model.feed_forward import deepen
    from recerase.model.recommender import wrap

    inside = beside is not None and beside.parent.resolve() == path.resolve()
    used = {weights} | ({beside.name} if beside is not None else set())
    copied, left = copied_files(path, used)
    read = [weights, *([beside.name] if beside is not None and inside else []), *_ours(path)]
    manifest = manifest_of(path, [*read, *copied])
    contents = read_torch_file(path, weights, manifest)
    found = stacks(contents, names, path / weights, request.dtype)
    codes = table_of(contents, found)
    elsewhere = {} if beside is None or inside else {beside.name: sha256_file(beside)}
    config = config_of(found, window_of(request, window(found.levels)), path / weights)
    module, held = load_module(
        path, config, found.tensors, (lambda module: deepen(module, found.deep)) if found.deep else None
    )
    user = bucket(request, found.users)
    table = SidTable.build(codes.items, codes.values, _schema(found, codes.values))
    codebooks, embeddings = stored_codebooks(path, manifest, codes.items, request.item_ids)
    module.eval().to(device=request.device)
    moments = sum(keys[0] == names.moments and "state" in keys for keys in contents.tensors)
    return Checkpoint(
        path=path,
        recommender=wrap(module, table.schema, held, _prompt(found, user), per_level=True),
        table=table if request.item_ids is None else table.aligned(request.item_ids),
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest_over(manifest, read, elsewhere),
        layout=layout,
        extra={
            "names": names,
            "weights": weights,
            "stored": dict(found.stored),
            "codes": codes,
            "table": " and ".join(f"{'.'.join(keys) or 'the tensor'} in {file.name}" for file, keys in codes.places),
            "moments": moments,
            "further": further_weights(contents, names.model, names.moments),
            "users": (user, found.users),
            "limits": one_user(user, found.users),
            "deep": found.deep,
            "copied": copied,
            "left": left,
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()} | elsewhere,
        },
    )


def _ours(path: Path) -> list[str]:
    return [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []


def digest(path: Path, names: Sequence[str], table: Path) -> str:
    """What the digest of the checkpoint in a directory is, of the file with its SID table among others."""
    return digest_from(path, [*names, *_ours(path)], table)


def _schema(found: Stacks, codes: IntArray) -> SidSchema:
    size = found.size
    return SidSchema(
        codes=(size,) * found.levels,
        rows=tuple(level * size + np.arange(size, dtype=np.int64) for level in range(found.levels)),
        vocabulary=found.levels * size,
        pad=-1,
        bos=-1,
        eos=-1,
        collisions="unique" if len(np.unique(codes, axis=0)) == len(codes) else "allowed",
    )


def _prompt(found: Stacks, user: int | None) -> Any:
    """A user in front, and the separator after every item; a history of nothing is the separator, or the bos where there is none."""
    from recerase.model.prompt import Prompt

    bos = found.levels * found.size
    before = () if user is None else (bos + 1 + found.separated + user,)
    after = (bos + 1,) if found.separated else ()
    return Prompt(before, after, after, before + after or (bos,), still=before)


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging`: the checkpoint with its tensors, its table and the optimiser's moments exchanged, and what lies beside it.

    Moments are zero afterwards, and their step counts: they remember the concept. Copies of the table that are kept inside objects
    (GRID's datamodule, for one) go with it. Whatever else is in the files stays, byte for byte.
    """
    import torch

    require_listed(source, table)
    extra = source.extra
    names: Names = extra["names"]
    codes: Codes = extra["codes"]
    rows = table.codes[np.argsort(table.item_ids.astype(np.int64))]
    tensors: dict[Keys, torch.Tensor] = parts_of(recommender.module.state_dict(), extra["stored"])
    pairs = [(old.tobytes(), new.tobytes()) for old, new in zip(_laid_out(codes.values), _laid_out(rows), strict=True)]
    for file in dict.fromkeys([source.path / extra["weights"], *(file for file, _ in codes.places)]):
        data = reread(file, extra["files"][file.name])
        held = read_torch_zip(data, str(file)).tensors
        wanted: dict[Keys, torch.Tensor] = {}
        if file == source.path / extra["weights"]:
            wanted = {
                keys: torch.zeros_like(tensor)
                for keys, tensor in held.items()
                if keys[0] == names.moments and "state" in keys
            }
            wanted |= {keys: tensor.detach().cpu().to(held[keys].dtype) for keys, tensor in tensors.items()}
        for place, keys in codes.places:
            if place == file:
                wanted[keys] = torch.from_numpy(rows.T if codes.across else rows).to(held[keys].dtype)
        changed = exchanged(data, wanted, str(file))
        write_bytes(staging / file.name, _copies_too(changed, pairs) if (rows != codes.values).any() else changed)
    write_copies(source, staging, codes.items)


def _copies_too(data: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A file of torch.save with the second of a pair (of equal length) in every storage that holds just the first.

    For a tensor that is there once more, inside an object whose class is not known.
    """
    out, new = bytearray(data), dict(pairs)
    for name, record in records(data).items():
        found = new.get(data[record.begin : record.end]) if "/data/" in name else None
        if found is not None:
            out[record.begin : record.end] = found
            for at in record.sums:
                out[at : at + 4] = zlib.crc32(found).to_bytes(4, "little")
    return bytes(out)


def _laid_out(codes: IntArray) -> list[IntArray]:
    """A table [N, L] in every way that its memory may be laid out."""
    return [np.ascontiguousarray(way, kind) for way in (codes, codes.T) for kind in ("<i8", "<i4")]


def require_largest(source: Checkpoint, table: SidTable) -> None:
    """Raises EraseError when the table's largest code is another: shapes of the other tool's model follow from it."""
    if table.codes.max() != source.table.codes.max():
        raise EraseError(
            f"The table's largest code would fall from {source.table.codes.max()} to {table.codes.max()}, and "
            f"{source.layout} takes the shape of its model from it.",
            "Use --method renormalise or npo, which move no item, or another --seed.",
        )


def moment_remark(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """What becomes of the optimiser's state, where there is any."""
    if not checkpoint.extra["moments"]:
        return ()
    return (
        (
            "The file holds an optimiser's moments, which remember the concept; in what is published they are zero, at step 0.",
            "Train on from there with a warm-up.",
        ),
    )


def user_remark(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """That all histories are read as one user's, where there are users."""
    user, users = checkpoint.extra["users"]
    if user is None:
        return ()
    return (
        (
            f"Every history begins with the row of a hashed user; recerase reads all as bucket {user} of {users}.",
            "Try another with --layout-set user=N, and compare.",
        ),
    )
