"""OneRec-Think: a Qwen3 directory, a JSON of items with their SIDs, and prompts in parquet that name SIDs.

The prompt is format_chat_prompt in test/test_model_hitrate.py of wangshy31/OneRec-Think around the "description" of
data/generate_sid_prediction_data.py; `<|sid_begin|>` ends it, which its trie alone allows there. Histories are not cut there.
Items are records with a "sid", as its data scripts read them, or SIDs alone. sequential_data_processed.txt names items, no SIDs.

The one decision: all that names SIDs is rewritten, or nothing is: prompts are found by content in the directory, or in that which
--layout-set data=DIR names, and a SID in them that no item has is refused when they are read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import TableError
from recerase.layouts.causal_dir import OPTIONS, Kind, read_causal
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
from recerase.layouts.foreign import OURS, index_option, require_listed
from recerase.layouts.grown_files import token_room
from recerase.layouts.index_json import IndexFile
from recerase.layouts.json_text import Dump, beginning, read_json
from recerase.layouts.naming import unescaped
from recerase.layouts.native import Checkpoint
from recerase.layouts.onerec import added, end_row
from recerase.layouts.onerec import remarks as shared_remarks
from recerase.layouts.prompts import Template
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.sid_parquet import replaced, texts_of
from recerase.layouts.sid_texts import Rewriter, read_users
from recerase.layouts.sidecars import decoded
from recerase.layouts.spelling import ONEREC
from recerase.layouts.token_files import TOKEN_FILES
from recerase.layouts.weights import CONFIG
from recerase.sid.table import SidTable
from recerase.store import read_bytes, sha256_bytes

if TYPE_CHECKING:
    from recerase.model.recommender import Recommender

NAME = "onerec-think"
SEQUENCES = "sequential_data_processed.txt"
_NO_PROMPTS = {CONFIG, SEQUENCES, *TOKEN_FILES, *OURS, "generation_config.json", "vocab.json", "merges.txt"}
PROMPT = Template(
    text=(
        "<|im_start|>system\nYou are a professional recommendation expert who needs to recommend the next possible purchase for "
        "users based on their purchase history. Please predict the most likely next product that the user will purchase based on "
        "the user's historical purchase information.<|im_end|>\n<|im_start|>user\nThe user has purchased the following items: "
        f"{{history}};<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n{ONEREC.begin}",
    ),
    separator="; ",
    begin=ONEREC.begin,
    end=ONEREC.end,
)
KIND = Kind(name=NAME, template=PROMPT, window=1024, end=end_row, spelling=ONEREC)


def _detect(path: Path) -> str | None:
    if added(path) != "begin first":
        return None
    return f"a qwen {CONFIG}, and {ONEREC.begin} before tokens like <s_a_60> in its tokenizer"


def _tables(path: Path) -> list[Path]:
    """JSON files that begin as a table does: an object whose first value is a SID, or a record with a "sid"."""
    files = [file for file in sorted(path.glob("*.json")) if file.name not in _NO_PROMPTS and file.is_file()]
    return [file for file in files if _begins_as_table(beginning(file))]


def _begins_as_table(head: str) -> bool:
    """Whether a text begins with {"item": followed by a SID or by a record with a "sid", whole or cut."""
    decoder = json.JSONDecoder()
    rest = head.lstrip()
    if not rest.startswith("{"):
        return False
    try:
        _, at = decoder.raw_decode(rest[1:].lstrip())
        value, _ = decoder.raw_decode(rest[1:].lstrip()[at:].lstrip().removeprefix(":").lstrip())
    except (ValueError, RecursionError):
        return False
    said = value.get("sid") if isinstance(value, dict) else value
    return isinstance(said, str) and ONEREC.sid.fullmatch(said) is not None


def _beside(path: Path, options: Mapping[str, str]) -> tuple[Path, Side]:
    """The SID table, and the prompts: those of the directory, else those where `data` says."""
    home = data_directory(path, options)
    own = _tables(path)
    table = index_option(
        path if own else home, LoadRequest(options=options), own or _tables(home), 'JSON of items with a "sid"'
    )
    return table, Side(home, nearest(path, home, {*_prompts(path), *_prompts(home)} - {table.name}))


def _prompts(home: Path) -> list[str]:
    """Names of the files of `home` that name SIDs."""
    kinds = (".parquet", ".json", ".jsonl", ".txt")
    files = [file for file in sorted(home.iterdir()) if file.suffix in kinds and file.is_file()]
    return [file.name for file in files if file.name not in _NO_PROMPTS and _names_sids(read_bytes(file), file)]


def _users(path: Path, home: Path) -> dict[str, list[str]]:
    """Items of each user, where a file says."""
    place = nearest(path, home, [SEQUENCES])[SEQUENCES]
    return read_users(decoded(read_bytes(place), place), place) if place.is_file() else {}


def _names_sids(data: bytes, file: Path) -> bool:
    """Whether a file names SIDs. Raises TableError when it does with escapes, for it could not be kept as it is."""
    if file.suffix != ".parquet":
        text = data.decode("utf-8", "replace")
        plain, meant = (len(ONEREC.sid.findall(one)) for one in (text, unescaped(text)))
        if plain != meant:
            raise TableError(
                f"{file} writes SIDs with \\u003c in place of <.", "Write it once with json.dump, and try again."
            )
        return plain > 0
    return any(_texts(values) for values in texts_of(data, file).values())


def _texts(values: Any) -> list[str]:
    """The texts in a column that name SIDs."""
    found: list[str] = []

    def look(text: str) -> str:
        if ONEREC.sid.search(text):
            found.append(text)
        return text

    replaced(values, look)
    return found


def _read_table(path: Path) -> IndexFile:
    """The SID table. Raises TableError when it is none; items without a SID have none, as its readers skip them."""
    data = read_bytes(path)
    content, _ = read_json(data, path)
    try:
        sids = {item: ONEREC.read(said) for item, said in _said(content).items()}
        if not sids:
            raise ValueError("no item has a SID")
    except (ValueError, TypeError, AttributeError) as error:
        raise TableError(
            f"{path} is not a SID table: {error!s:.160}.", f'Expected {{"1": {{"sid": "{ONEREC.whole((1, 2))}"}}}}.'
        ) from error
    codes = np.full((len(sids), max(map(len, sids.values()))), -1, np.int32)
    for row, sid in enumerate(sids.values()):
        codes[row, : len(sid)] = sid
    return IndexFile(path, sha256_bytes(data), tuple(sids), codes, True, np.empty((0, codes.shape[1]), np.int32))


def _said(content: Any) -> dict[str, str]:
    """Item -> SID as text, of those that have one."""
    said = {item: value.get("sid") if isinstance(value, dict) else value for item, value in content.items()}
    return {item: sid for item, sid in said.items() if sid}


def _retold(content: dict[str, Any], dump: Dump, new: Mapping[str, str]) -> bytes:
    """The SID table with the SIDs of `new` (item -> SID)."""
    made = {
        item: value if item not in new else {**value, "sid": new[item]} if isinstance(value, dict) else new[item]
        for item, value in content.items()
    }
    return dump(made)


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read a OneRec-Think directory; see `Layout.load`."""
    table, side = _beside(path, request.options)
    index = _read_table(table)
    spelled = {item: ONEREC.whole(codes) for item, codes in zip(index.items, index.codes.tolist(), strict=True)}
    reader, contents = Rewriter(ONEREC, spelled, spelled), side.read()
    for name, data in contents.items():
        place = side.places[name]
        texts = _texts(list(texts_of(data, place).values())) if place.suffix == ".parquet" else [decoded(data, place)]
        for text in texts:
            reader.check(text, place)
    made = read_causal(path, request, KIND, index, side, contents)
    return replace(made, extra={**made.extra, "users": _users(path, side.home)})


def write_back(source: Checkpoint, recommender: Recommender, table: SidTable, staging: Path) -> None:
    """Fill `staging`; see `Layout.write_back`.

    Raises EraseError when items must not be recommended any more, or a prompt names a SID that does not tell which item is meant.
    """
    require_listed(source, table)
    write_causal(source, recommender, table, staging, _with_sids)


def _with_sids(source: Checkpoint, table: SidTable) -> Mapping[str, bytes]:
    """SID table and prompts, as they are now to be."""
    extra = source.extra
    old, new = (spelled_sids(one, ONEREC.whole) for one in (source.table, table))
    moved = {item: sid for item, sid in new.items() if old[item] != sid}
    name = extra["index_name"]
    data = held_content(source, name)
    made = {name: _retold(*read_json(data, extra["places"][name]), moved) if moved else data}
    writer = Rewriter(ONEREC, old, new, extra["users"])
    for side in extra["side"]:
        data, place = held_content(source, side), extra["places"][side]
        if moved and place.suffix == ".parquet":
            data = writer.parquet(data, place)
        elif moved:
            data = writer.text(decoded(data, place), place).encode()
        made[side] = data
    return made


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    return digest_of_causal(path, options, PROMPT, *_beside(path, options))


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    told = list(shared_remarks(checkpoint))
    if not checkpoint.extra["side"]:
        told.append(
            ("There are no prompts beside it.", "Name the directory of the parquet files with --layout-set data=DIR.")
        )
    elif not checkpoint.extra["users"] and checkpoint.table.collision_rate > 0:
        told.append(
            (
                f"Some items share a SID, and without {SEQUENCES} prompts do not tell which of them is meant.",
                "Lay it beside the prompts: an erasure that moves only one of such items is refused otherwise.",
            )
        )
    told.append(
        (
            "The trie that test_model_hitrate.py decodes in is made from prompts and pickled, and allows SIDs of no item.",
            "It is left behind: make it again with precompute_global_trie.py.",
        )
    )
    return tuple(told)


LAYOUTS = (
    Layout(
        name=NAME,
        users='OneRec-Think: a Qwen3 directory with tokens like <s_a_60>, a JSON of items with a "sid", and prompts in parquet',
        marks=(f"a qwen3 {CONFIG}", "tokens like <s_a_60> behind <|sid_begin|>"),
        detect=_detect,
        load=load,
        write_back=write_back,
        remarks=remarks,
        digest=digest,
        room=token_room,
        options=OPTIONS | DATA,
    ),
)
