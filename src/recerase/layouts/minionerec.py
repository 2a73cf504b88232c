"""MiniOneRec: a Qwen2.5 directory, `*.index.json`, item lists in `info/` and interactions in `train/`, `valid/`, `test/`.

The prompt is that of EvalSidDataset in data.py of AkaliKong/MiniOneRec, with which evaluate.py there asks the model: two texts that
are tokenized one by one, SIDs joined by ", ", an answer that goes on with a line end; SIDs of several tokens stand without a gap
(convert_dataset.py). What may be recommended is read there from the item list, so an item that must not be is taken off that list.

The one decision: every file that carries SIDs is rewritten, or none: index, item lists and interactions are compared with each
other when they are read, and a directory in which they differ is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, EraseError, TableError
from recerase.layouts.adapters import remarks as adapter_remarks
from recerase.layouts.causal_dir import OPTIONS, Kind, has_tokens, index_of, kind_of, read_causal, sid_text
from recerase.layouts.foreign import write_weights
from recerase.layouts.grown_files import prove_tokens, regrown, token_growth, token_room
from recerase.layouts.index_json import IndexFile, rewritten
from recerase.layouts.letter import remarks as token_remarks
from recerase.layouts.native import Checkpoint, save_codebooks
from recerase.layouts.patching import reread
from recerase.layouts.prompts import Template
from recerase.layouts.protocol import Layout, LoadRequest
from recerase.layouts.sidecars import decoded, interactions, listed_items, rewritten_list, sid_columns
from recerase.layouts.weights import CONFIG
from recerase.sid.table import SidTable
from recerase.store import read_bytes, sha256_bytes, write_bytes

if TYPE_CHECKING:
    from recerase.model.recommender import Recommender

NAME = "minionerec"
FOLDERS = ("", "index", "info", "train", "valid", "test")
"""Where SID table, item lists and interactions are looked for."""
_FAMILIES = ("qwen2", "qwen3", "llama")
PROMPT = Template(
    text=(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request. \n\n### Instruction:\n"
        "Can you predict the next possible item that the user may expect?\n\n",
        "### User Input: \nCan you predict the next possible item the user may expect, given the following chronological "
        "interaction history: {history}\n\n### Response:\n",
    ),
    separator=", ",
    bos="always",
)


def _end(tokenizer: Any, sid: str) -> int:
    """The row of the line end behind a SID."""
    alone, ended = (list(tokenizer.encode(text, add_special_tokens=False)) for text in (sid, f"{sid}\n"))
    return int(ended[len(alone)]) if len(ended) > len(alone) else -1


KIND = Kind(name=NAME, template=PROMPT, window=10, end=_end)


def lists_of(path: Path) -> list[str]:
    """Names of the item lists: text files in `info/`."""
    return sorted(file.relative_to(path).as_posix() for file in (path / "info").glob("*.txt") if file.is_file())


def csvs_of(path: Path) -> list[str]:
    """Names of the CSV files that carry SIDs, by their header. Raises ArtefactError when one cannot be read."""
    found = []
    for folder in FOLDERS:
        for file in sorted((path / folder).glob("*.csv")):
            try:
                with open(file, "rb") as opened:
                    head = opened.readline(1 << 16).decode("utf-8", "replace")
            except OSError as error:
                raise ArtefactError(f"Cannot read {file}: {error.strerror}.", "Check its permissions.") from error
            if sid_columns(head) is not None:
                found.append(file.relative_to(path).as_posix())
    return found


def _detect(path: Path) -> str | None:
    kind = kind_of(path)
    if kind not in _FAMILIES or not has_tokens(path):
        return None
    try:
        beside = lists_of(path) or csvs_of(path)
    except (OSError, ArtefactError):
        return None
    return f"a {kind} {CONFIG}, tokens like <a_60>, and {beside[0]}" if beside else None


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a MiniOneRec directory; see `Layout.load`."""
    index = index_of(path, request, FOLDERS)
    spelled = {item: sid_text(codes) for item, codes in zip(index.items, index.codes.tolist(), strict=True)}
    lists, csvs = lists_of(path), csvs_of(path)
    held = {name: read_bytes(path / name) for name in (*lists, *csvs)}
    texts = {name: decoded(data, path / name) for name, data in held.items()}
    named = [listed_items(texts[name], path / name, spelled) for name in lists]
    if any(other != named[0] for other in named[1:]):
        raise TableError(f"{path / lists[0]} and {lists[1]} name other items.", "Keep the item list that is in use.")
    listed = np.fromiter((item in named[0] for item in index.items), bool, len(index.items)) if named else None
    longest = max([interactions(texts[name], path / name, spelled)[1] for name in csvs], default=0)
    kind = Kind(NAME, PROMPT, longest or KIND.window, _end)
    digests = {name: sha256_bytes(data) for name, data in held.items()}
    return read_causal(path, request, kind, index, digests, listed)


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging`; see `Layout.write_back`.

    Raises EraseError when items must not be recommended any more and there is no item list to take them off, ArtefactError when
    a file of the source has changed since it was read.
    """
    extra, path = source.extra, source.path
    index: IndexFile = extra["index"]
    growth = token_growth(source.table, table)
    write_weights(source, recommender, staging, growth)
    for name in extra["copied"]:
        _put(staging / name, regrown(name, reread(path / name, extra["files"][name]), growth, source, recommender))
    prove_tokens(path, staging, growth)
    _write_sids(source, index, table, staging)
    embeddings = source.embeddings
    if embeddings is not None:
        place = {str(item): row for row, item in enumerate(source.table.item_ids)}
        embeddings = embeddings[[place[item] for item in index.items]]
    save_codebooks(staging, source.codebooks, embeddings)


def _write_sids(source: Checkpoint, index: IndexFile, table: SidTable, staging: Path) -> None:
    """Write everything that carries SIDs."""
    extra, path, before = source.extra, source.path, source.table
    old, new = (_spelled(one, np.ones(len(one), bool)) for one in (before, table))
    new = {item: sid for item, sid in new.items() if old[item] != sid}
    dropped = {str(item) for item in table.item_ids[before.listed & ~table.listed]}
    lists = [name for name in extra["side"] if name.endswith(".txt")]
    if dropped and not lists:
        raise EraseError(
            f"{path} has no item list in info/ from which items could be taken, and this method needs that.",
            "Use --method tracer, renormalise or npo, and hide the items where recommendations are served.",
        )
    data = rewritten(index, reread(index.path, index.sha256), before, table)
    _put(staging / extra["index_name"], data)
    for name in extra["side"]:
        text = decoded(reread(path / name, extra["files"][name]), path / name)
        if name in lists:
            text = rewritten_list(text, new, dropped)
        elif new:
            text = interactions(text, path / name, old, new)[0]
        _put(staging / name, text.encode())


def _put(place: Path, data: bytes) -> None:
    place.parent.mkdir(exist_ok=True)
    write_bytes(place, data)


def _spelled(table: SidTable, rows: Any) -> Mapping[str, str]:
    return {
        str(item): sid_text(codes) for item, codes in zip(table.item_ids[rows], table.codes[rows].tolist(), strict=True)
    }


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    told = [*token_remarks(checkpoint), *adapter_remarks(checkpoint)]
    if checkpoint.table.ragged:
        told.append(("SIDs differ in length.", "Methods tracer, renormalise and npo need one length; filter works."))
    unlisted = int((checkpoint.table.present & ~checkpoint.table.listed).sum())
    if unlisted:
        told.append((f"{unlisted} items are not on the item list.", "They are never recommended, and audited as such."))
    if not checkpoint.extra["side"]:
        told.append(("There are no item lists and no interactions beside it.", "Keep info/ and the CSV files with it."))
    return tuple(told)


LAYOUTS = (
    Layout(
        name=NAME,
        users="MiniOneRec: a Qwen (or Llama) directory with tokens like <a_60>, NAME.index.json, info/*.txt and CSV files",
        marks=(f"a qwen2, qwen3 or llama {CONFIG}", "tokens like <a_60>", "info/*.txt or CSV files with item_sid"),
        detect=_detect,
        load=load,
        write_back=write_back,
        remarks=remarks,
        options=OPTIONS,
        room=token_room,
    ),
)
