"""tiger-cf: a bare T5 state dict in a .pth, the training config in JSON, and `index_*.json` with plain numbers.

Code k of level l is row l * K + k. Behind these rows come those of hashed users, one of which ends every history, and ten more, of
which the last three are pad, eos and the decoder's start. The file says nothing about tying: the tensors do.

The one decision: users are hashed by the other tool from ids that recerase does not have, so every history ends in the row of one
bucket, which is an option and is told wherever the checkpoint is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import CheckpointError, EraseError, TableError
from recerase.layouts.foreign import (
    bucket,
    copied_files,
    digest_from,
    digest_over,
    index_option,
    manifest_of,
    one_user,
    require_trust,
    stored_codebooks,
    write_foreign,
)
from recerase.layouts.growth import Room
from recerase.layouts.index_json import IndexFile, looks_like_index, read_index
from recerase.layouts.native import CODEBOOKS, Checkpoint
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.t5 import load_t5
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import MANIFEST, pretty_json

NAME = "tiger-cf"
_SPECIAL = 10
"""Rows behind those of codes and users."""
_LARGEST_CONFIG = 1 << 20
_SHAPE = {
    "embedding_dim": "d_model",
    "d_kv": "d_kv",
    "dim_feedforward": "d_ff",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
}
_DEFAULTS = {"d_kv": 64}


def _configs(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The training configs of a directory."""
    found = []
    for file in sorted(path.glob("*.json")):
        if not file.is_file() or file.stat().st_size > _LARGEST_CONFIG:
            continue
        try:
            said = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        model = said.get("model") if isinstance(said, dict) else None
        if isinstance(model, dict) and {"codebook_size", "user_ids_count", *_SHAPE} - _DEFAULTS.keys() <= model.keys():
            found.append((file, said))
    return found


def _detect(path: Path) -> str | None:
    if not any(path.glob("*.pth")):
        return None
    return "a .pth state dict, and a training config with codebook_size and user_ids_count" if _configs(path) else None


def _config(path: Path) -> tuple[str, dict[str, Any], int, int]:
    """Name and content of the training config, levels and codes a level. Raises CheckpointError when it cannot be used."""
    found = _configs(path)
    if len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} training configs with codebook_size and user_ids_count.",
            "Lay the one of this training beside the weights, and no other.",
        )
    file, said = found[0]
    dataset = said.get("dataset")
    numbers = [
        dataset.get("num_codebooks") if isinstance(dataset, dict) else None,
        *(said["model"].get(key, _DEFAULTS.get(key)) for key in ("codebook_size", "user_ids_count", *_SHAPE)),
    ]
    if not all(type(number) is int and 0 < number < 1 << 20 for number in numbers):
        raise CheckpointError(
            f"{file} does not say its levels, codes and sizes in whole numbers.", "Restore the config."
        )
    return file.name, said, numbers[0], numbers[1]


def _weights(path: Path, request: LoadRequest) -> str:
    found = sorted(file.name for file in path.glob("*.pth"))
    named = request.options.get("weights")
    if named is not None and named not in found:
        raise CheckpointError(f"{path} has no {named!s:.100}; it has {', '.join(found)}.", "Name one of these.")
    if named is None and len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} .pth files ({', '.join(found[:4])}).",
            "Say which with --layout-set weights=FILE.",
        )
    name = named or found[0]
    require_trust(path / name, request.trust_pickle)
    return name


def _index_path(path: Path, said: Mapping[str, Any], request: LoadRequest) -> Path:
    """The table that the config names, if it lies in the directory; else the only one there, or the one given."""
    named = str((said.get("dataset") or {}).get("index_json_path", "")).rpartition("/")[2]
    if named and (path / named).is_file():
        return path / named
    found = [file for file in sorted(path.glob("*.json")) if looks_like_index(file, tokens=False)]
    found = [file for file in found if "index" in file.name]
    return index_option(path, request, found, "index_*.json with SIDs like [227, 111, 51, 106]")


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a tiger-cf directory; see `Layout.load`."""
    from recerase.model.prompt import Prompt
    from recerase.model.recommender import wrap

    config, said, levels, size = _config(path)
    users = said["model"]["user_ids_count"]
    user = bucket(request, users)
    assert user is not None
    weights = _weights(path, request)
    index = read_index(_index_path(path, said, request))
    if index.tokens or index.codes.shape[1] != levels or (index.codes < 0).any() or index.codes.max() >= size:
        raise TableError(
            f"{index.path} does not hold {levels} numbers below {size} for every item, as {path / config} says.",
            "Give the table that the model was trained with, with --layout-set sids=FILE.",
        )
    names = [config, weights]
    inside = index.path.parent.resolve() == path.resolve()
    names += [index.path.name] if inside else []
    names += [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []
    copied, left = copied_files(path, {weights, index.path.name})
    manifest = manifest_of(path, [*names, *(name for name in copied if name not in names)])
    base = levels * size
    schema = _schema(index, levels, size, base + users + _SPECIAL)

    def describe(tensors: Mapping[str, Any], tied: bool) -> bytes:
        return _t5_config(said, schema.vocabulary, tied)

    module, window, stored, aliases = load_t5(path, [weights], manifest, request.dtype, None, describe, prefix="model.")
    table = SidTable.build(index.items, index.codes, schema)
    codebooks, embeddings = stored_codebooks(path, manifest, index.items, request.item_ids)
    if request.item_ids is not None:
        table = table.aligned(request.item_ids)
    module.eval().to(device=request.device)
    row = base + user
    return Checkpoint(
        path=path,
        recommender=wrap(module, schema, window, Prompt((), (), (row,), (row,), still=(row,))),
        table=table,
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest_over(manifest, names, None if inside else {index.path.name: index.sha256}),
        layout=NAME,
        extra={
            "index": index,
            "weights": [weights],
            "stored": stored,
            "aliases": aliases,
            "copied": copied,
            "left": left,
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
            "bucket": (user, users),
            "limits": one_user(user, users),
            "tied": "lm_head.weight" in aliases,
        },
    )


def _schema(index: IndexFile, levels: int, size: int, vocabulary: int) -> SidSchema:
    unique = len(np.unique(index.codes, axis=0)) == len(index.codes)
    return SidSchema(
        codes=(size,) * levels,
        rows=tuple(level * size + np.arange(size, dtype=np.int64) for level in range(levels)),
        vocabulary=vocabulary,
        pad=vocabulary - 1,
        bos=-1,
        eos=vocabulary - 2,
        collisions="unique" if unique else "allowed",
    )


def _t5_config(said: Mapping[str, Any], vocabulary: int, tied: bool) -> bytes:
    """The config.json that this tool never writes, from its training config."""
    model = said["model"]
    length = said["dataset"].get("max_sequence_length", 20)
    shape = {name: model.get(key, _DEFAULTS.get(key)) for key, name in _SHAPE.items()}
    return pretty_json(
        {
            "model_type": "t5",
            **shape,
            "vocab_size": vocabulary,
            "dropout_rate": model.get("dropout", 0.1),
            "layer_norm_epsilon": model.get("layer_norm_eps", 1e-6),
            "feed_forward_proj": model.get("activation", "relu"),
            "is_encoder_decoder": True,
            "pad_token_id": vocabulary - 1,
            "eos_token_id": vocabulary - 2,
            "decoder_start_token_id": vocabulary - 3,
            "tie_word_embeddings": tied,
            "recerase": {"window": max(1, length - 1)},  # the last of a sequence is its target
        }
    )


def room(checkpoint: Checkpoint) -> Room:
    """None: codes fill their rows without a gap, and the rows behind have a meaning of their own."""
    size = checkpoint.table.schema.codes[0]
    raise EraseError(
        f"Every one of tiger-cf's {size} codes a level has its row, and the rows behind them are those of users.",
        "Leave --grow-vocabulary out, or train with a larger codebook_size.",
    )


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    user, users = checkpoint.extra["bucket"]
    told = [
        (
            f"Every history ends in the row of a hashed user; recerase reads all as bucket {user} of {users}.",
            "Try another with --layout-set user=N, and compare.",
        )
    ]
    if not checkpoint.extra["tied"]:
        told.append(
            (
                "Embedding and head differ, and transformers 5 puts one in the place of the other when it loads a T5.",
                "Load it with transformers 4, or untie before load_state_dict; recerase does.",
            )
        )
    return tuple(told)


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of the checkpoint in a directory is, its table in it; see `Layout.digest`."""
    request = LoadRequest(trust_pickle=True, options=options)
    config, said, _, _ = _config(path)
    ours = [CODEBOOKS] if (path / MANIFEST).is_file() and (path / CODEBOOKS).is_file() else []
    return digest_from(path, [config, _weights(path, request), *ours], _index_path(path, said, request))


LAYOUTS = (
    Layout(
        name=NAME,
        users="tiger-cf: a .pth state dict of a T5, its training config, and index_*.json with plain numbers",
        marks=("*.pth", "a training config (JSON) with codebook_size and user_ids_count", "index_*.json"),
        detect=_detect,
        load=load,
        write_back=write_foreign,
        digest=digest,
        remarks=remarks,
        room=room,
        options={
            "sids": "the SID table, where the directory holds none or several",
            "weights": "which .pth, where there are several",
            "user": "the bucket of hashed users that ends every history (0)",
        },
    ),
)
