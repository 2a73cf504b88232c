"""LETTER-TIGER: a T5 directory whose tokenizer has one added token a code, and the SID table `*.index.json` beside it.

finetune.py leaves a tokenizer, but test.py does not read it: it takes t5-small's and adds `get_new_tokens()` (data.py), the tokens of
the SID table sorted as text.

The one decision: ids are those of the directory's own files (`token_files`). Where that vocabulary gives the same, a new token must
sort behind all of them, or every id behind it would be another; `tokenizer=directory` says that the directory's own tokenizer is
loaded, and any may be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, TableError, UsageError
from recerase.layouts.adapters import (
    BASE_OPTION,
    Base,
    Fit,
    adapter_kind,
    base_of,
    described_in,
    is_adapter,
    read_adapter,
)
from recerase.layouts.adapters import remarks as adapter_remarks
from recerase.layouts.foreign import (
    copied_files,
    digest_from,
    digest_over,
    index_option,
    manifest_of,
    own_codebooks,
    stored_codebooks,
    write_foreign,
)
from recerase.layouts.grown_files import token_room
from recerase.layouts.growth import Room
from recerase.layouts.index_json import looks_like_index, read_index
from recerase.layouts.naming import naming
from recerase.layouts.native import SCHEMA, Checkpoint
from recerase.layouts.patching import reread
from recerase.layouts.prompts import load_tokenizer
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.spelling import PLAIN
from recerase.layouts.t5 import load_t5
from recerase.layouts.token_files import TOKEN_FILES, generation_of, limits, schema_of, token_rows, weight_files
from recerase.layouts.weights import CONFIG, DEFAULT_WINDOW
from recerase.sid.table import SidTable
from recerase.store import read_bytes

if TYPE_CHECKING:
    import torch

NAME = "letter-tiger"
_LARGEST_CONFIG = 1 << 20


def _detect(path: Path) -> str | None:
    config, adapter = path / CONFIG, is_adapter(path)
    if not (config.is_file() or adapter) or (path / SCHEMA).is_file():
        return None
    try:
        if config.is_file() and config.stat().st_size > _LARGEST_CONFIG:
            return None
        kind = json.loads(config.read_bytes()).get("model_type") if config.is_file() else adapter_kind(path)
        tokens = token_rows(path) if kind == "t5" else {}
    except (OSError, ValueError, AttributeError, RecursionError, ArtefactError):
        return None
    return f"a T5 {described_in(path)}, and {len(tokens)} tokens like <a_60> in its tokenizer" if tokens else None


def _names(path: Path, trust_pickle: bool) -> tuple[list[str], list[str]]:
    """The weight files, and all files that are read."""
    weights = weight_files(path, trust_pickle)
    tokens = [name for name in TOKEN_FILES if (path / name).is_file()]
    return weights, [described_in(path), *weights, *tokens, *own_codebooks(path)]


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a LETTER-TIGER directory; see `Layout.load`."""
    from recerase.model.recommender import wrap

    base = base_of(path, request, weight_files) if is_adapter(path) else None
    weights, names = _names(path, request.trust_pickle)
    index = read_index(_index_path(path, request))
    inside = index.path.parent.resolve() == path.resolve()
    if inside:
        names.append(index.path.name)
    copied, left = copied_files(path, {*weights, index.path.name})
    manifest = manifest_of(path, [*names, *(name for name in copied if name not in names)])
    if inside and manifest["files"][index.path.name]["sha256"] != index.sha256:
        raise TableError(f"{index.path} changed while it was read.", "Run again when nobody writes there.")
    tokens = token_rows(path)
    if base is None:
        module, window, stored, aliases = load_t5(path, weights, manifest, request.dtype, read_bytes(path / CONFIG))
    else:
        length = len(load_tokenizer(path))
        module, stored = read_adapter(
            path, weights, manifest, length, request.dtype, partial(_bare, base, request.dtype)
        )
        window, aliases = DEFAULT_WINDOW, {}
    schema = schema_of(path, index, tokens, module)
    table = SidTable.build(index.items, index.codes, schema)
    codebooks, embeddings = stored_codebooks(path, manifest, index.items, request.item_ids)
    if request.item_ids is not None:
        table = table.aligned(request.item_ids)
    module.eval().to(device=request.device)
    return Checkpoint(
        path=path,
        recommender=wrap(module, schema, window),
        table=table,
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest_over(
            manifest, names, {**({} if inside else {index.path.name: index.sha256}), **(base.digests if base else {})}
        ),
        layout=NAME,
        extra={
            "index": index,
            "weights": weights,
            "stored": stored,
            "aliases": aliases,
            "copied": copied,
            "left": left,
            "naming": naming(path, (name for name in copied if name not in names), PLAIN),
            "files": {name: entry["sha256"] for name, entry in manifest["files"].items()},
            "tokens": tokens,
            "generation": generation_of(path),
            "own tokenizer": _own_tokenizer(request),
            "base": base.path if base else None,
        },
    )


def _own_tokenizer(request: LoadRequest) -> bool:
    """Whether the user's tool loads the tokenizer that lies in the directory."""
    said = request.options.get("tokenizer", "index")
    if said not in ("index", "directory"):
        raise UsageError(
            f"tokenizer={said!s:.40} is neither index nor directory.", "Say where your tool has its tokens from."
        )
    return said == "directory"


def made_again(checkpoint: Checkpoint) -> bool:
    """Whether a vocabulary made again from the SID table, sorted, gives the ids that the directory has."""
    tokens, index, table = checkpoint.extra["tokens"], checkpoint.extra["index"], checkpoint.table
    ordered = [tokens[token] for token in sorted(tokens)]
    named = [
        len(np.setdiff1d(np.union1d(table.codes[:, level], index.kept[:, level]), [-1]))
        for level in range(table.levels)
    ]
    return ordered == sorted(ordered) and sum(named) == len(tokens)


def room(checkpoint: Checkpoint) -> Room:
    """Behind all tokens; and sorting behind them, where they are made again from the SID table."""
    if checkpoint.extra["own tokenizer"] or not made_again(checkpoint):
        return token_room(checkpoint)
    return token_room(
        checkpoint,
        behind=max(checkpoint.extra["tokens"]),
        hint="LETTER's test.py makes the vocabulary again from the SID table, sorted, and only tokens that sort last keep all ids: "
        "load the directory's tokenizer there (T5Tokenizer.from_pretrained(args.ckpt_path)) and pass "
        "--layout-set tokenizer=directory.",
    )


def _bare(base: Base, dtype: torch.dtype | None, fit: Fit) -> Any:
    """The T5 under an adapter."""
    config = reread(base.path / CONFIG, base.manifest["files"][CONFIG]["sha256"])
    return load_t5(base.path, base.weights, base.manifest, dtype, config, fit=fit)[0]


def _index_path(path: Path, request: LoadRequest) -> Path:
    found = sorted(file for file in path.glob("*.json") if file.name.endswith(".index.json"))
    found = [file for file in found if looks_like_index(file, tokens=True)]
    return index_option(path, request, found, "*.index.json with SIDs like <a_60>")


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    schema, table = checkpoint.table.schema, checkpoint.table
    told = []
    spelled = sum(int((rows >= 0).sum()) for rows in schema.rows)
    possible = sum(schema.codes)
    if spelled < possible:
        told.append(
            (
                f"Only {spelled} of {possible} codes have a vocabulary row; any other is read as unknown.",
                "Items are moved to codes with a row only; `recerase erase --grow-vocabulary auto` adds rows.",
            )
        )
    alone = sum(int((table.usage(level) == 1).sum()) for level in range(table.levels))
    told.append(
        (
            f"The vocabulary is made again from the SID table; {alone} codes have a single item, and losing one shifts the ids.",
            "A code that loses its last item keeps its token by a tombstone entry in the table.",
        )
    )
    if not made_again(checkpoint):
        told.append(
            (
                "A vocabulary made again from the SID table would not be the one the model was trained with.",
                "Load the tokenizer that lies in the directory.",
            )
        )
    return (*told, *limits(checkpoint))


def _remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    return (*remarks(checkpoint), *adapter_remarks(checkpoint))


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    _, names = _names(path, trust_pickle=True)
    request = LoadRequest(options=options, trust_pickle=True)
    base = base_of(path, request, weight_files).digests if is_adapter(path) else {}
    return digest_from(path, names, _index_path(path, request), base)


LAYOUTS = (
    Layout(
        name=NAME,
        users="LETTER and LC-Rec on T5: a transformers directory with tokens like <a_60>, and NAME.index.json",
        marks=(f"a T5 {CONFIG}", f"tokens like <a_60> in {' or '.join(TOKEN_FILES)}", "*.index.json"),
        detect=_detect,
        load=load,
        write_back=write_foreign,
        digest=digest,
        remarks=_remarks,
        room=room,
        options={
            "sids": "the SID table, where the directory holds none or several",
            "tokenizer": "directory, where your tool loads the tokenizer from it and not from the SID table",
            "base": BASE_OPTION,
        },
    ),
)
