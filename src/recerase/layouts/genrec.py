"""phonism/genrec's TIGER: a .pt with `model`, `optimizer` and `scheduler` (trainers/tiger_trainer.py, `save_checkpoint`), no table.

Code k of level l is row l * K + k, behind them one row for padding (modules/embedding.py). Every size can be read off the tensors:
heads off the relative positions, the window off `pos_embedding`, which has a row a code of it. Its datasets compute SIDs with an
RQ-VAE each time (data/amazon.py, `sem_ids_list`) and keep no file of them, so the table is one that its user exports.

The one decision: the file is patched, with one exception. The optimizer's moments hold gradients of what is erased, so they are
zeros in what is written, and its steps too: it loads, and begins anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import CheckpointError, TableError
from recerase.layouts.foreign import (
    copied_files,
    digest_from,
    digest_over,
    further_weights,
    index_option,
    manifest_of,
    number_option,
    one_user,
    require_trust,
    says,
    stored_codebooks,
    write_foreign,
)
from recerase.layouts.index_json import IndexFile, looks_like_index, read_index, rewritten
from recerase.layouts.native import CODEBOOKS, Checkpoint
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.sid_parquet import column_names, with_codes
from recerase.layouts.torch_zip import Contents, exchanged, read_torch_zip
from recerase.layouts.weights import apart, fill_exactly, read_torch_file
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import read_table
from recerase.store import MANIFEST, sha256_file

if TYPE_CHECKING:
    import torch

    from recerase.model.genrec import TigerConfig

NAME = "genrec"
_MODEL, _OPTIMIZER = "model", "optimizer"
_MARKS = ("sem_id_embedding.emb.weight", "decoder_pos_embedding.weight", "output_head.weight")
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)*")
"""What accelerate and torch.compile put before every name."""
_LEVELS = 3
"""`pad_collate` of its trainer numbers the codes of a history 0, 1, 2, 0, ... whatever the levels are."""
_EXPORT = (
    "Export it from genrec's dataset, json.dump({item: list(map(int, sid)) for item, sid in zip(ids, dataset.sem_ids_list)}, file), "
    "and name it with --layout-set sids=FILE."
)


def _found(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*.pt") if says(file, *_MARKS))


def _detect(path: Path) -> str | None:
    return f"a .pt that names {_MARKS[0]} and {_MARKS[1]}" if _found(path) else None


def _weights(path: Path, request: LoadRequest) -> str:
    """The name of the .pt. Raises CheckpointError unless there is one, or one is named; PickleError unless it is trusted."""
    found, named = _found(path), request.options.get("weights")
    if named is not None and named not in found:
        raise CheckpointError(
            f"{path} has no {named!s:.100} of a Tiger; it has {', '.join(found[:4]) or 'none'}.", "Name one of these."
        )
    if named is None and len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} .pt files of a Tiger ({', '.join(found[:4])}).",
            "Say which with --layout-set weights=FILE.",
        )
    name = named or found[0]
    require_trust(path / name, request.trust_pickle)
    return name


def _index_path(path: Path, request: LoadRequest) -> Path:
    """The table beside the weights, or the one given. Raises CheckpointError, saying how to make one."""
    found = [
        file for file in sorted(path.glob("*.json")) if any(looks_like_index(file, kind) for kind in (False, True))
    ]
    found += [file for file in sorted(path.glob("*.parquet")) if {"item_id", "codes"} <= set(column_names(file))]
    try:
        return index_option(path, request, found, 'SID table {"item": [227, 111, 51], ...}; genrec keeps none')
    except CheckpointError as error:
        if found or "sids" in request.options:
            raise
        raise CheckpointError(error.message, _EXPORT) from error


def _read_table(path: Path) -> IndexFile:
    """The table, in what `sid.read_table` reads: JSON of numbers or tokens, parquet with item_id and codes. Raises TableError."""
    if path.suffix == ".json":
        return read_index(path)
    if path.suffix != ".parquet":
        raise TableError(
            f"{path} is no SID table of genrec's: JSON, or parquet with item_id and codes, was looked for.",
            f"Write it as one: `recerase export sids {path} --as integers --out FILE.json`.",
        )
    table = read_table(path)
    if table.ragged or not (table.present & table.listed).all():
        raise TableError(
            f"In {path} SIDs differ in length, or items have none or are not to be recommended.",
            "Give the table that the model was trained with.",
        )
    kept = np.empty((0, table.levels), np.int32)
    return IndexFile(path, sha256_file(path), tuple(map(str, table.item_ids)), table.codes, tokens=False, kept=kept)


def _parquet_rewritten(index: IndexFile, data: bytes, before: SidTable, after: SidTable) -> bytes:
    """The parquet with the SIDs of moved items exchanged, in its own order."""
    place = {str(item): row for row, item in enumerate(after.item_ids.tolist())}
    return with_codes(data, after.codes[[place[item] for item in index.items]], "codes")


def _config(tensors: Mapping[str, torch.Tensor], where: Path, user: int) -> TigerConfig:
    """The shape of a Tiger, off its tensors. Raises CheckpointError when they are not those of one."""
    from recerase.model.genrec import BUCKETS, TigerConfig

    def layers(side: str) -> int:
        numbers = re.compile(rf"^transformer\.{side}\.layers\.(\d+)\.")
        return len({match[1] for match in map(numbers.match, tensors) if match})

    try:
        first = "transformer.encoder.layers.0."
        rows, width = tensors[_MARKS[0]].shape
        levels = len(tensors[_MARKS[1]])
        (heads, rest), (codes, odd) = (
            divmod(len(tensors[f"{first}self_attn.attn.rel_bias.weight"]), BUCKETS),
            divmod(rows - 1, levels),
        )
        inner = len(tensors["in_proj.weight"])
        if rest or odd or not heads or not codes or inner % heads:
            raise ValueError
        users = len(tensors["user_id_embedding.emb.weight"])
        return TigerConfig(
            width=width,
            inner=inner,
            feed_forward=len(tensors[f"{first}ff.wi.weight"]),
            heads=heads,
            encoder_layers=layers("encoder"),
            decoder_layers=layers("decoder"),
            levels=levels,
            codes=codes,
            users=users,
            positions=len(tensors["pos_embedding.weight"]),
            user=user % users,
        )
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"The weights in {where} are not those of a genrec Tiger with a layer on either side.",
            "Give a checkpoint of trainers/tiger_trainer.py.",
        ) from error


def _named(contents: Contents, where: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Name in the module -> name in the file and tensor, of `model`. Raises CheckpointError."""
    tree = contents.tree.get(_MODEL) if isinstance(contents.tree, dict) else None
    stored = {path[1]: tensor for path, tensor in contents.tensors.items() if path[:1] == (_MODEL,) and len(path) == 2}
    named = {_WRAPPED.sub("", name): (name, tensor) for name, tensor in stored.items()}
    if not isinstance(tree, dict) or tree.keys() != stored.keys() or len(named) != len(stored):
        raise CheckpointError(
            f"{where} holds no state dict of tensors by name under {_MODEL!r}.",
            "Give a checkpoint of trainers/tiger_trainer.py.",
        )
    return named


def _module(named: Mapping[str, tuple[str, torch.Tensor]], where: Path, user: int, request: LoadRequest) -> Any:
    """The Tiger, holding exactly these tensors. Raises CheckpointError."""
    import torch

    from recerase.model.genrec import Tiger

    try:
        tensors = apart({name: tensor for name, (_, tensor) in named.items()}, request.dtype)
    except ValueError as error:
        raise CheckpointError(f"{where} cannot be read: {error}.", "Restore it from where it was made.") from error
    config = _config(tensors, where, user)
    if config.levels != _LEVELS:
        raise CheckpointError(
            f"{where} has {config.levels} levels, and genrec's trainer numbers the codes of a history for {_LEVELS}: what a history "
            "means to it depends on where its items stand.",
            "Train it with sem_id_dim=3 and add_disambiguation=False, as its config does.",
        )
    with torch.device("meta"):
        module = Tiger(config)
    fill_exactly(module, tensors, where)
    return module.eval().to(device=request.device)


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a directory of genrec; see `Layout.load`."""
    from recerase.model.recommender import wrap

    user, weights = number_option(request, "user", 0), _weights(path, request)
    index = _read_table(_index_path(path, request))
    inside = index.path.parent.resolve() == path.resolve()
    names = [weights, *([index.path.name] if inside else [])]
    names += [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []
    copied, left = copied_files(path, {weights, index.path.name})
    manifest = manifest_of(path, [*names, *(name for name in copied if name not in names)])
    contents = read_torch_file(path, weights, manifest)
    named = _named(contents, path / weights)
    module = _module(named, path / weights, user, request)
    config = module.config
    codes = index.codes
    if codes.shape[1] != config.levels or codes.min() < 0 or codes.max() >= config.codes:
        raise TableError(
            f"{index.path} does not hold {config.levels} codes below {config.codes} for every item, as {path / weights} has them.",
            "Give the table that the model was trained with, with --layout-set sids=FILE.",
        )
    schema = _schema(index, config.levels, config.codes)
    table = SidTable.build(index.items, codes, schema)
    codebooks, embeddings = stored_codebooks(path, manifest, index.items, request.item_ids)
    if request.item_ids is not None:
        table = table.aligned(request.item_ids)
    return Checkpoint(
        path=path,
        recommender=wrap(module, schema, max(1, config.positions // config.levels)),
        table=table,
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest_over(manifest, names, None if inside else {index.path.name: index.sha256}),
        layout=NAME,
        extra={
            "index": index,
            "weights": [weights],
            "stored": {weights: {name: inner for inner, (name, _) in named.items()}},
            "aliases": {},
            "patch": _patched,
            "further": further_weights(contents, _MODEL, _OPTIMIZER),
            "rewrite": rewritten if index.path.suffix == ".json" else _parquet_rewritten,
            "limits": one_user(config.user, config.users),
            "copied": copied,
            "left": left,
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
        },
    )


def _schema(index: IndexFile, levels: int, size: int) -> SidSchema:
    unique = len(np.unique(index.codes, axis=0)) == len(index.codes)
    return SidSchema(
        codes=(size,) * levels,
        rows=tuple(level * size + np.arange(size, dtype=np.int64) for level in range(levels)),
        vocabulary=levels * size + 1,
        pad=levels * size,
        bos=-1,
        eos=-1,
        collisions="unique" if unique else "allowed",
    )


def _patched(data: bytes, wanted: Mapping[str, torch.Tensor]) -> bytes:
    """The file with other weights, and an optimizer that has seen nothing."""
    import torch

    stored = read_torch_zip(data).tensors
    new = {(_MODEL, name): tensor.detach().to(stored[_MODEL, name].dtype) for name, tensor in wanted.items()}
    moments = {path: torch.zeros_like(tensor) for path, tensor in stored.items() if path[:2] == (_OPTIMIZER, "state")}
    return exchanged(data, new | moments)


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout, each with its remedy."""
    module: Any = checkpoint.recommender.module
    config = module.config
    return (
        (
            f"Every history begins with the row of a user, hash(id) % 10000 in genrec's data/amazon.py, which differs from one Python "
            f"process to the next; recerase reads all as row {config.user} of {config.users}, and changes none.",
            "Try another with --layout-set user=N, and compare.",
        ),
        (
            "genrec's generate divides logits by a temperature of 0.2 among the codes that continue a SID, and samples its beams; "
            "recerase ranks by the exact probability over the whole head, as it was trained, so lists differ.",
            "Compare probabilities, or lists of generate(temperature=1) over several runs.",
        ),
        (
            "genrec computes SIDs with its RQ-VAE whenever it starts, and knows nothing of items that were moved.",
            "Set dataset.sem_ids_list from the table that recerase writes beside the weights.",
        ),
        (
            "The optimizer's moments hold gradients of the concept: they and their steps are zeros in what is written.",
            "Train on from it as from a fresh optimizer.",
        ),
    )


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    request = LoadRequest(options=options, trust_pickle=True)
    ours = [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []
    return digest_from(path, [_weights(path, request), *ours], _index_path(path, request))


LAYOUTS = (
    Layout(
        name=NAME,
        users="phonism/genrec: a .pt of its Tiger with optimizer and scheduler, and a table of SIDs exported from its dataset",
        marks=("*.pt of a Tiger",),
        detect=_detect,
        load=load,
        write_back=write_foreign,
        digest=digest,
        remarks=remarks,
        options={
            "sids": "the SID table, where the directory holds none or several",
            "weights": "which .pt, where there are several",
            "user": "the user whose row begins every history (0)",
        },
    ),
)
