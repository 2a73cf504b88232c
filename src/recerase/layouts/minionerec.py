"""MiniOneRec: a Qwen2.5 directory, `*.index.json`, item lists in `info/` and interactions in `train/`, `valid/`, `test/`.

The prompt is that of EvalSidDataset in data.py of AkaliKong/MiniOneRec, with which evaluate.py there asks the model: two texts that
are tokenized one by one, SIDs joined by ", ", an answer that goes on with a line end; SIDs of several tokens stand without a gap
(convert_dataset.py). What may be recommended is read there from the item list, so an item that must not be is taken off that list.

The one decision: every file that carries SIDs is rewritten, or none: index, item lists and interactions are compared with each
other when they are read, and a directory in which they differ is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, EraseError, TableError
from recerase.layouts.adapters import ADAPTER, over_unknown
from recerase.layouts.adapters import remarks as adapter_remarks
from recerase.layouts.causal_dir import OPTIONS, Kind, has_tokens, index_files, kind_of, read_causal
from recerase.layouts.causal_files import (
    DATA,
    Side,
    data_directory,
    digest_of_causal,
    held_content,
    nearest,
    spelled_sids,
    write_causal,
)
from recerase.layouts.foreign import index_option, require_no_filter
from recerase.layouts.grown_files import token_room
from recerase.layouts.index_json import read_index, rewritten
from recerase.layouts.letter import remarks as token_remarks
from recerase.layouts.native import Checkpoint
from recerase.layouts.prompts import Template
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.sidecars import decoded, interactions, listed_items, rewritten_list, sid_columns
from recerase.layouts.spelling import PLAIN
from recerase.layouts.weights import CONFIG
from recerase.sid.table import SidTable

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
    kind, unknown = kind_of(path), over_unknown(path)
    if (kind not in _FAMILIES and not unknown) or not has_tokens(path):
        return None
    try:
        beside = lists_of(path) or csvs_of(path)
    except (OSError, ArtefactError):
        return None
    if beside or kind != "llama":  # a Llama without them is LC-Rec's
        what = f"an {ADAPTER} over a base that lies elsewhere" if unknown else f"a {kind} {CONFIG}"
        return f"{what}, tokens like <a_60>, and {beside[0] if beside else 'no files with SIDs beside it'}"
    return None


def _beside(path: Path, options: Mapping[str, str]) -> tuple[Path, Side]:
    """The SID table, and the item lists and CSV files: those of the directory, else those where `data` says.

    Of a data directory of several shops, as the one MiniOneRec comes with, files are taken whose names begin with that of the
    table, as its evaluate.sh takes them, and with no longer one of another table.
    """
    home = data_directory(path, options)
    own, others = index_files(path, FOLDERS), index_files(home, FOLDERS)
    table = index_option(path if own else home, LoadRequest(options=options), own or others, "*.index.json of <a_60>")
    there = [*lists_of(home), *csvs_of(home)]
    if len(others) > 1:
        shops = {file.name.removesuffix(".index.json") for file in (table, *others)}
        there = [name for name in there if f"{_shop(name, shops)}.index.json" == table.name]
    return table, Side(home, nearest(path, home, there if home == path else [*lists_of(path), *csvs_of(path), *there]))


def _shop(name: str, shops: Collection[str]) -> str:
    """The longest of `shops` with which a file's name begins, or nothing."""
    return max((shop for shop in shops if Path(name).name.startswith(shop)), key=len, default="")


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a MiniOneRec directory; see `Layout.load`."""
    table, side = _beside(path, request.options)
    index = read_index(table)
    spelled = {item: PLAIN.text(codes) for item, codes in zip(index.items, index.codes.tolist(), strict=True)}
    held, places = side.read(), side.places
    texts = {name: decoded(data, places[name]) for name, data in held.items()}
    lists = [name for name in texts if name.endswith(".txt")]
    named = [listed_items(texts[name], places[name], spelled) for name in lists]
    if any(other != named[0] for other in named[1:]):
        raise TableError(f"{places[lists[0]]} and {lists[1]} name other items.", "Keep the item list that is in use.")
    listed = np.fromiter((item in named[0] for item in index.items), bool, len(index.items)) if named else None
    lengths = [interactions(text, places[name], spelled)[1] for name, text in texts.items() if name not in lists]
    kind = replace(KIND, window=max(lengths, default=0) or KIND.window)
    return read_causal(path, request, kind, index, side, held, listed)


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    return digest_of_causal(path, options, PROMPT, *_beside(path, options))


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging`; see `Layout.write_back`.

    Raises EraseError when items must not be recommended any more and there is no item list to take them off, ArtefactError when
    a file of the source has changed since it was read.
    """
    require_no_filter(source.layout, table)
    write_causal(source, recommender, table, staging, _with_sids)


def _with_sids(source: Checkpoint, table: SidTable) -> Mapping[str, bytes]:
    """Everything that carries SIDs, as it is now to be."""
    extra, path, before = source.extra, source.path, source.table
    old, new = (spelled_sids(one, PLAIN.text) for one in (before, table))
    new = {item: sid for item, sid in new.items() if old[item] != sid}
    dropped = {str(item) for item in table.item_ids[before.listed & ~table.listed]}
    lists = [name for name in extra["side"] if name.endswith(".txt")]
    if dropped and not lists:
        raise EraseError(
            f"{path} has no item list in info/ from which items could be taken, and this method needs that.",
            "Use --method tracer, renormalise or npo, and hide the items where recommendations are served.",
        )
    name, index = extra["index_name"], extra["index"]
    made = {name: rewritten(index, held_content(source, name), before, table)}
    for name in extra["side"]:
        text = decoded(held_content(source, name), extra["places"][name])
        if name in lists:
            text = rewritten_list(text, new, dropped)
        elif new:
            text = interactions(text, extra["places"][name], old, new)[0]
        made[name] = text.encode()
    return made


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    told = [*token_remarks(checkpoint), *adapter_remarks(checkpoint)]
    if checkpoint.table.ragged:
        told.append(("SIDs differ in length.", "Methods tracer, renormalise and npo need one length; filter works."))
    unlisted = int((checkpoint.table.present & ~checkpoint.table.listed).sum())
    if unlisted:
        told.append((f"{unlisted} items are not on the item list.", "They are never recommended, and audited as such."))
    if not checkpoint.extra["side"]:
        told.append(
            (
                "There are no item lists and no interactions beside it.",
                "Name the directory that holds info/ and the CSV files with --layout-set data=DIR: they carry SIDs too.",
            )
        )
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
        digest=digest,
        room=token_room,
        options=OPTIONS | DATA,
    ),
)
