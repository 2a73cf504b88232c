"""What the layouts of causal language models share: a transformers directory whose tokenizer has a token a code, asked in a prompt.

The one decision: whatever is spelled is spelled by the directory's own tokenizer, and only its ids go on from here. Of tensors,
equal embedding and head of a config that ties them are one tensor, as transformers makes them on loading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, CheckpointError, TableError, UsageError
from recerase.layouts.adapters import BASE_OPTION, Base, Fit, adapter_kind, base_of, is_adapter, read_adapter
from recerase.layouts.buffers import check_angles, take_angles
from recerase.layouts.causal_files import Side, copied_of, elsewhere, files_of
from recerase.layouts.foreign import digest_over, index_option, manifest_of, stored_codebooks
from recerase.layouts.index_json import IndexFile, looks_like_index, read_index
from recerase.layouts.naming import naming
from recerase.layouts.native import SCHEMA, Checkpoint
from recerase.layouts.patching import reread
from recerase.layouts.prompts import PROMPT_OPTION, Template, load_tokenizer, make_prompt, template_of
from recerase.layouts.protocol import LoadRequest
from recerase.layouts.shards import check_shards
from recerase.layouts.spelling import PLAIN, Spelling
from recerase.layouts.token_files import generation_of, schema_of, token_rows, weight_files
from recerase.layouts.weights import CONFIG, load_module, read_tensors
from recerase.model.prompt import Prompt
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import sha256_bytes
from recerase.types import BoolArray

if TYPE_CHECKING:
    import torch

OPTIONS = {
    "sids": "the SID table, where the directory holds none or several",
    "prompt": PROMPT_OPTION,
    "window": "how many items of a history a prompt holds",
    "base": BASE_OPTION,
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LARGEST_CONFIG = 1 << 20
_SAMPLES = 5


@dataclass(frozen=True)
class Kind:
    """What sets one layout of causal models apart from another."""

    name: str
    template: Template
    """As its users' own tool asks the model."""
    window: int
    """Items of a history, where neither files nor options say otherwise."""
    end: Callable[[Any, str], int]
    """Tokenizer and a SID as text -> the vocabulary row that ends a SID where SIDs differ in length."""
    spelling: Spelling = PLAIN


def kind_of(path: Path) -> str | None:
    """`model_type` in the config of a directory that is not native, or of an adapter's base; None where none is said. Never raises."""
    config = path / CONFIG
    try:
        if is_adapter(path) and not config.is_file():
            return adapter_kind(path)
        if not config.is_file() or config.stat().st_size > _LARGEST_CONFIG or (path / SCHEMA).is_file():
            return None
        kind = json.loads(config.read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


def has_tokens(path: Path, spelling: Spelling = PLAIN) -> bool:
    """Whether the tokenizer's files name tokens of codes. Never raises."""
    try:
        return bool(token_rows(path, spelling))
    except ArtefactError:
        return False


def index_files(path: Path, folders: Sequence[str] = ("",)) -> list[Path]:
    """SID tables `*.index.json` in some folders of a directory; transformers' index of shards is none."""
    found = sorted(file for folder in folders for file in (path / folder).glob("*.index.json") if file.is_file())
    return [file for file in found if looks_like_index(file, tokens=True)]


def read_causal(
    path: Path,
    request: LoadRequest,
    kind: Kind,
    index: IndexFile,
    side: Side | None = None,
    contents: Mapping[str, bytes] | None = None,
    listed: BoolArray | None = None,
) -> Checkpoint:
    """A causal directory, in the order that is asked for.

    Args:
        side: the files beside it that carry SIDs, and `contents`, what was read from them.
        listed: [N] which items of `index` may be recommended; None: all.
    """
    from recerase.model.recommender import wrap

    base = base_of(path, request, weight_files) if is_adapter(path) else None
    side = side or Side(path)
    held = files_of(path, index.path, side, request.trust_pickle)
    weights = held.weights
    said = {name: sha256_bytes(data) for name, data in (contents or {}).items()}
    said[held.table] = index.sha256
    copied, left = copied_of(path, {*weights, *(file for file in held.carrying if file in held.names)})
    manifest = manifest_of(path, [*held.names, *(file for file in copied if file not in held.names)])
    files = {file: entry["sha256"] for file, entry in manifest["files"].items()}
    for file, place in held.carrying.items():
        if files.setdefault(file, said[file]) != said[file]:
            raise TableError(f"{place} changed while it was read.", "Run again when nobody writes there.")
    rows = token_rows(path, kind.spelling)
    tokenizer = load_tokenizer(path)
    if base is None:
        module, stored, aliases = _module(path, weights, manifest, request.dtype)
    else:
        module, stored = read_adapter(
            path, weights, manifest, len(tokenizer), request.dtype, partial(_bare, base, request.dtype)
        )
        aliases = {}
    template = template_of(request.options, kind.template)
    window = _window(request.options, kind.window)
    schema, prompt = _spelled(path, index, rows, module, tokenizer, template, kind, window)
    table = SidTable.build(index.items, index.codes, schema, listed=listed)
    recommender = wrap(module, schema, window, prompt)
    module.to(device=request.device)
    codebooks, embeddings = stored_codebooks(path, manifest, index.items, request.item_ids)
    return Checkpoint(
        path=path,
        recommender=recommender,
        table=table if request.item_ids is None else table.aligned(request.item_ids),
        codebooks=codebooks,
        embeddings=embeddings,
        manifest=manifest,
        digest=digest_over(
            manifest,
            held.names,
            {**elsewhere(held, said, template, request.options), **(base.digests if base else {})},
        ),
        layout=kind.name,
        extra={
            "index": index,
            "index_name": held.table,
            "places": held.carrying,
            "weights": weights,
            "stored": stored,
            "aliases": aliases,
            "copied": copied,
            "left": left,
            "naming": naming(path, (name for name in copied if name not in held.names), kind.spelling),
            "files": files,
            "tokens": rows,
            "generation": generation_of(path),
            "prompt": template.to_json(),
            "side": tuple(side.places),
            "padded": max(0, schema.vocabulary - 1 - max(tokenizer.get_vocab().values())),
            "base": base.path if base else None,
            "spelling": kind.spelling,
        },
    )


def _window(options: Mapping[str, str], otherwise: int) -> int:
    said = options.get("window", str(otherwise))
    if not said.isdecimal() or not 0 < int(said) < 1 << 20:
        raise UsageError(
            f"A window of {said!r:.40} items cannot be.", "Give --layout-set window=20, or another number."
        )
    return int(said)


def _bare(base: Base, dtype: torch.dtype | None, fit: Fit) -> Any:
    """The module under an adapter."""
    return _module(base.path, base.weights, base.manifest, dtype, fit)[0]


def _module(
    path: Path, weights: Sequence[str], manifest: Mapping[str, Any], dtype: torch.dtype | None, fit: Fit | None = None
) -> tuple[Any, dict[str, dict[str, str]], dict[str, str]]:
    """The module, the name in it of each tensor of each file, and which names are copies of which.

    `fit` is what happens to config and tensors before they are a module.
    """
    import torch

    tensors: dict[str, Any] = {}
    stored: dict[str, dict[str, str]] = {}
    for file in weights:
        found = read_tensors(path, [file], manifest, dtype)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(f"{path} stores {twice[0]} in two files.", "Keep one set of weights.")
        stored[file] = {key: key for key in found}
        tensors |= found
    check_shards(path, stored)
    angles = take_angles(tensors, stored)
    config = reread(path / CONFIG, manifest["files"][CONFIG]["sha256"])
    aliases = {}
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if head is not None and embedding is not None and _tied(config):
        if head.dtype != embedding.dtype or not torch.equal(head, embedding):
            raise CheckpointError(
                f"{path / CONFIG} ties embedding and head, and the weights have two different ones.",
                "Set tie_word_embeddings to what the model was trained with.",
            )
        del tensors[_HEAD]
        aliases[_HEAD] = _EMBEDDING
    config, tensors = fit(config, tensors) if fit is not None else (config, tensors)
    module, _ = load_module(path, config, tensors)
    check_angles(path, module, angles, dtype)
    return module.eval(), stored, aliases


def _tied(config: bytes) -> bool:
    """Whether the model is tied as transformers reads its config, defaults of its kind included."""
    from transformers import AutoConfig

    try:
        return bool(AutoConfig.for_model(**json.loads(config)).tie_word_embeddings)
    except Exception:  # told, with its reason, when the module is made from it
        return False


def _spelled(
    path: Path,
    index: IndexFile,
    rows: Mapping[str, int],
    module: Any,
    tokenizer: Any,
    template: Template,
    kind: Kind,
    window: int,
) -> tuple[SidSchema, Prompt]:
    """Schema and prompt, as the tokenizer spells them."""
    full = np.flatnonzero(index.codes[:, -1] >= 0)
    some = full[np.unique(np.linspace(0, len(full) - 1, _SAMPLES).astype(np.int64))]
    texts = [kind.spelling.text(codes) for codes in index.codes[some].tolist()]
    pad = next((row for row in (tokenizer.pad_token_id, tokenizer.eos_token_id) if row is not None), 0)
    special = (int(pad), kind.end(tokenizer, texts[0]))
    schema = schema_of(path, index, rows, module, special, kind.spelling)
    spelled = np.stack([level[index.codes[some, at]] for at, level in enumerate(schema.rows)], 1)
    return schema, make_prompt(template, tokenizer, texts, spelled, window)


def index_path(path: Path, request: LoadRequest) -> Path:
    """The SID table of a directory, or the one that --layout-set sids=FILE names."""
    return index_option(path, request, index_files(path), "*.index.json with SIDs like <a_60>")


def index_of(path: Path, request: LoadRequest) -> IndexFile:
    """`index_path`, read."""
    return read_index(index_path(path, request))
