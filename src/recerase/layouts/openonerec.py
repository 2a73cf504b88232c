"""OpenOneRec: a Qwen3 directory, a SID table in parquet (`pid`, and `codes` or `sid`), and the map from SIDs back to pids in JSON.

The prompt is that of video_rec.py in data/onerec_data/sft, with the first of its system and of its user prompts (it draws one of
five each), inside qwen3_soft_switch.jinja2 of the benchmarks with thinking off, and with the prompt_token of
recommendation/config.py there behind it; SIDs follow each other without a gap. Keys of the map are c0 * 8192**2 + c1 * 8192 + c2
(encode_sid in utils_by_pid.py), and the pids of a key are sorted by "count", largest first.

The one decision: many items on one SID are meant here, so an item is known by its pid alone. It leaves the list of its old SID in
the map and enters that of its new one where its count puts it; table and map are compared when they are read.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import CheckpointError, TableError
from recerase.layouts.causal_dir import OPTIONS, Kind, read_causal
from recerase.layouts.causal_files import Side, digest_of_causal, held_content, write_causal
from recerase.layouts.foreign import index_option, require_listed
from recerase.layouts.grown_files import token_room
from recerase.layouts.growth import Room
from recerase.layouts.json_text import beginning, read_json
from recerase.layouts.native import Checkpoint
from recerase.layouts.onerec import added, end_row
from recerase.layouts.onerec import remarks as shared_remarks
from recerase.layouts.prompts import Template
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.sid_parquet import read_sid_parquet, table_names, with_codes
from recerase.layouts.spelling import ONEREC
from recerase.layouts.weights import CONFIG
from recerase.sid.table import SidTable
from recerase.types import IntArray

if TYPE_CHECKING:
    from recerase.model.recommender import Recommender

NAME = "openonerec"
_BASE = 8192
"""What a code counts in a key of the map, whatever the size of a level."""
_MAP = re.compile(r'\s*\{\s*"\d+"\s*:\s*\[\s*[\]{].*"[pi]id"\s*:', re.DOTALL)
_KEY = re.compile(r"0|[1-9]\d{0,17}")
PROMPT = Template(
    text=(
        "<|im_start|>system\n你是一个智能推荐助手，能够根据用户的浏览历史预测用户可能感兴趣的下一个内容。<|im_end|>\n"
        "<|im_start|>user\n根据以下用户浏览记录，请预测用户接下来可能观看的内容：\n{history}/no_think<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\n\n</think>\n\n{ONEREC.begin}",
    ),
    begin=ONEREC.begin,
    end=ONEREC.end,
)
KIND = Kind(name=NAME, template=PROMPT, window=512, end=end_row, spelling=ONEREC)
"""HIST_MAX_LEN of video_rec.py is 512."""


def _detect(path: Path) -> str | None:
    if added(path) != "codes first":
        return None
    return f"a qwen {CONFIG}, and {ONEREC.begin} behind tokens like <s_a_60> in its tokenizer"


def _maps(path: Path) -> list[Path]:
    """Maps from SIDs to pids, by how a JSON file begins."""
    return [file for file in sorted(path.glob("*.json")) if file.is_file() and _MAP.match(beginning(file))]


def _beside(path: Path, options: Mapping[str, str]) -> tuple[Path, Side]:
    """The SID table, and the map where there is one: in the directory, else where the options say."""
    tables = [path / name for name in table_names(path)]
    table = index_option(path, LoadRequest(options=options), tables, "parquet with pid and codes")
    maps, named = _maps(path), options.get("reverse")
    if len(maps) > 1 and named is None:
        raise CheckpointError(
            f"{path} holds {len(maps)} maps from SIDs to pids ({', '.join(file.name for file in maps[:3])}).",
            "Name the one of this SID table with --layout-set reverse=FILE.",
        )
    if len(maps) != 1 and named is not None:
        maps = [place for place in (path / Path(named).name, Path(named)) if place.is_file()][:1]
        if not maps:
            raise CheckpointError(f"There is no map {named!s:.200}.", "Check --layout-set reverse=FILE.")
    return table, Side(path, {place.name: place for place in maps})


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read an OpenOneRec directory; see `Layout.load`."""
    place, side = _beside(path, request.options)
    index = read_sid_parquet(place)
    contents = side.read()
    for name, data in contents.items():
        _compare(side.places[name], data, dict(zip(index.items, keys_of(index.codes, place), strict=True)))
    return read_causal(path, request, KIND, index, side, contents)


def keys_of(codes: IntArray, path: Path) -> list[int]:
    """Keys of the map for codes [N, 3]. Raises TableError for SIDs that have none."""
    if codes.shape[1] != 3 or int(codes.max()) >= _BASE:
        raise TableError(
            f"{path} has {codes.shape[1]} levels with codes up to {codes.max()}, and a map of OpenOneRec holds three below {_BASE}.",
            "Leave the map out.",
        )
    keys: list[int] = (codes.astype(np.int64) @ np.array([_BASE * _BASE, _BASE, 1])).tolist()
    return keys


def _entries(data: bytes, path: Path) -> tuple[dict[str, list[dict[str, Any]]], Any]:
    """The content of a map, and what writes one as it is laid out. Raises TableError."""
    found, dump = read_json(data, path)
    if not isinstance(found, dict) or not all(map(_is_entry, found, found.values())):
        raise TableError(
            f"{path} does not map SIDs to lists of pids, each with a count where it has one.",
            'Expected {"key": [{"pid": 1, "count": 2}]}.',
        )
    return found, dump


def _is_entry(key: str, row: Any) -> bool:
    """Whether a key is a number in plain digits, and its row holds records of a pid and a count."""
    return (
        _KEY.fullmatch(key) is not None
        and isinstance(row, list)
        and all(
            isinstance(one, dict)
            and type(one.get("pid", one.get("iid"))) in (int, str)
            and type(one.get("count", 0)) in (int, float)
            and isfinite(one.get("count", 0))
            for one in row
        )
    )


def _pid(entry: Mapping[str, Any]) -> str:
    """The item of an entry; the map of products calls it iid."""
    return str(entry.get("pid", entry.get("iid", "")))


def _compare(path: Path, data: bytes, keys: Mapping[str, int]) -> None:
    """Raises TableError when the map gives an item another SID than the table does."""
    for key, row in _entries(data, path)[0].items():
        for entry in row:
            if keys.get(_pid(entry), int(key)) != int(key):
                raise TableError(
                    f"{path} has item {_pid(entry)} under {key}, the SID table has it under {keys[_pid(entry)]}.",
                    "Give table and map of one tokenizer.",
                )


def remapped(data: bytes, path: Path, moved: Mapping[str, int]) -> bytes:
    """The map with the items of `moved` (item -> new key) in the lists of their new keys; keys without items go.

    New keys stand where they belong if the keys are sorted as numbers, else behind all others.
    """
    found, dump = _entries(data, path)
    order = [int(key) for key in found]
    ordered = order == sorted(order)
    taken: list[tuple[int, dict[str, Any]]] = []
    for key, row in list(found.items()):
        gone = [entry for entry in row if _pid(entry) in moved]
        if gone:
            taken += [(moved[_pid(entry)], entry) for entry in gone]
            found[key] = [entry for entry in row if _pid(entry) not in moved]
    for number, entry in taken:
        row = found.setdefault(str(number), [])
        bisect.insort_right(row, entry, key=lambda one: -one.get("count", 0))
    rows = [(key, row) for key, row in found.items() if row]
    return bytes(dump(dict(sorted(rows, key=lambda pair: int(pair[0])) if ordered else rows))) if taken else data


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging`; see `Layout.write_back`. Raises EraseError when items must not be recommended any more."""
    require_listed(source, table)
    write_causal(source, recommender, table, staging, _with_sids)


def _with_sids(source: Checkpoint, table: SidTable) -> Mapping[str, bytes]:
    """SID table and map, as they are now to be."""
    extra = source.extra
    name, index = extra["index_name"], extra["index"]
    ordered = table.aligned(index.items)
    made = {name: with_codes(held_content(source, name), ordered.codes)}
    changed = np.flatnonzero((ordered.codes != index.codes).any(1))
    for side in extra["side"]:
        place = extra["places"][side]
        keys = keys_of(ordered.codes[changed], place) if len(changed) else []
        moved = dict(zip([index.items[row] for row in changed], keys, strict=True))
        made[side] = remapped(held_content(source, side), place, moved)
    return made


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    return digest_of_causal(path, options, PROMPT, *_beside(path, options))


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    told = list(shared_remarks(checkpoint))
    if not checkpoint.extra["side"]:
        told.append(
            ("There is no map from SIDs to pids.", "Name sid2pid.json with --layout-set reverse=FILE: it names SIDs.")
        )
    told.append(
        (
            "Training and benchmark parquet name SIDs in their texts, and are not rewritten.",
            "Make them again from the new SID table, with data/onerec_data of OpenOneRec.",
        )
    )
    return tuple(told)


def room(checkpoint: Checkpoint) -> Room:
    """Behind all tokens, for codes below `_BASE`: of a larger one the key, by which its evaluation finds pids, is another SID's."""
    hint = f"SIDs of OpenOneRec have codes below {_BASE}, and several items may share one: leave --grow-vocabulary out."
    return replace(token_room(checkpoint), most=_BASE, hint=hint)


LAYOUTS = (
    Layout(
        name=NAME,
        users="OpenOneRec: a Qwen3 directory with tokens like <s_a_60>, a parquet of pid and codes, and sid2pid.json",
        marks=(f"a qwen3 {CONFIG}", "tokens like <s_a_60> before <|sid_begin|>"),
        detect=_detect,
        load=load,
        write_back=write_back,
        remarks=remarks,
        digest=digest,
        room=room,
        options=OPTIONS | {"reverse": "the map from SIDs to pids, where the directory holds none or several"},
    ),
)
