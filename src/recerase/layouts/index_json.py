"""SID tables in JSON as other tools keep them: {"0": ["<a_60>", "<b_159>"]} or {"0": [60, 159]}.

The one decision: writing back is surgery on the text. Keys, their order, white space and everything about items that did not move
stay as they are, byte for byte; what comes out is parsed again and compared with what was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recerase.errors import ArtefactError, TableError
from recerase.layouts.spelling import MOST_CODE, PLAIN
from recerase.sid.table_files import TOMBSTONE
from recerase.store import read_bytes, sha256_bytes
from recerase.types import IntArray

if TYPE_CHECKING:
    from recerase.sid.table import SidTable

_ENTRY = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:\s*\[)([^\[\]]*)\]')
_VALUE = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+')
_BEGIN = re.compile(rf'\s*\{{\s*"(?:[^"\\]|\\.)*"\s*:\s*\[\s*({_VALUE.pattern})\s*[,\]]')


@dataclass(frozen=True, eq=False)
class IndexFile:
    """One SID table, read."""

    path: Path
    sha256: str
    items: tuple[str, ...]
    """Keys in the order of the file, tombstones left out."""
    codes: IntArray
    """int32 [N, L], -1 behind the last code of a shorter SID."""
    tokens: bool
    """Whether codes are spelled as tokens; else they are plain numbers."""
    kept: IntArray
    """int32 [n, L] the entries that keep tokens alone."""


def read_index(path: Path) -> IndexFile:
    """Read a SID table. Raises TableError when it is none."""
    data = read_bytes(path)
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(found, dict) or not found:
            raise ValueError("it is no object with items")
        kinds = {type(value) for sid in found.values() for value in sid}
        if kinds not in ({str}, {int}):
            raise ValueError("its SIDs are neither all tokens like <a_60> nor all whole numbers")
        sids = {key: [_code(value, level) for level, value in enumerate(sid)] for key, sid in found.items()}
        if not all(sids.values()):
            raise ValueError("a SID is empty")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise TableError(
            f"{path} is not a SID table: {error!s:.120}.",
            'Expected {"0": ["<a_60>", "<b_159>", ...]} or {"0": [60, 159, ...]}.',
        ) from error
    items = tuple(key for key in sids if not key.startswith(TOMBSTONE))
    if not items:
        raise TableError(f"{path} holds no items.", "Give the SID table that the model was trained with.")
    levels = max(len(sid) for sid in sids.values())
    kept = _filled([sid for key, sid in sids.items() if key.startswith(TOMBSTONE)], levels)
    return IndexFile(
        path, sha256_bytes(data), items, _filled([sids[key] for key in items], levels), kinds == {str}, kept
    )


def looks_like_index(path: Path, tokens: bool) -> bool:
    """Whether the beginning of a JSON file is that of a SID table of tokens, or of numbers."""
    try:
        with open(path, "rb") as file:
            begin = _BEGIN.match(file.read(4096).decode("utf-8", "replace"))
        value = json.loads(begin[1]) if begin is not None else None
    except (OSError, ValueError):
        return False
    return (
        PLAIN.codes.fullmatch(value) is not None
        if isinstance(value, str) and tokens
        else type(value) is int and not tokens
    )


def rewritten(index: IndexFile, data: bytes, before: SidTable, after: SidTable) -> bytes:
    """The bytes of the table with the SIDs of moved items exchanged, and a tombstone entry for tokens that lost their last item.

    A tombstone is made for tokens only, where some tools rebuild the vocabulary from this file: without the entry every token id
    behind a lost one would be another. `before` and `after` hold the same items in one order, whatever that of the file.
    """
    moved = np.flatnonzero(before.moved(after))
    changed = {str(after.item_ids[row]): [int(c) for c in after.codes[row] if c >= 0] for row in moved}
    spell = PLAIN.token if index.tokens else (lambda level, code: code)
    text = data.decode("utf-8")

    def entry(match: re.Match[str]) -> str:
        sid = changed.get(json.loads(match[1]))
        if sid is None:
            return match[0]
        return f"{match[1]}{match[2]}{_respelled(match[3], [spell(level, code) for level, code in enumerate(sid)])}]"

    new = _ENTRY.sub(entry, text)
    lost = tombstones(index, before, after) if index.tokens else []
    wanted = {key: changed.get(key) for key in index.items}
    new = _with_entries(new, [[PLAIN.token(level, code) for level, code in enumerate(sid)] for sid in lost])
    _check(index, new, wanted, lost, spell)
    return new.encode("utf-8")


def tombstones(index: IndexFile, before: SidTable, after: SidTable) -> list[list[int]]:
    """SIDs of nobody, now or before, that hold every code which an item or tombstone had and no item has any more."""
    levels = index.codes.shape[1]
    had = [np.union1d(index.codes[:, level], index.kept[:, level]) for level in range(levels)]
    has = [np.union1d(after.codes[:, level], index.kept[:, level]) for level in range(levels)]
    lost = [np.setdiff1d(had[level][had[level] >= 0], has[level]) for level in range(levels)]
    taken = {tuple(sid) for codes in (before.codes, after.codes) for sid in codes.tolist()}
    used = [np.unique(after.codes[after.present, level]) for level in range(levels)]
    made = []
    for row in range(max(len(codes) for codes in lost)):
        sid = [int(codes[row]) if row < len(codes) else int(used[level][-1]) for level, codes in enumerate(lost)]
        free = next((level for level, codes in enumerate(lost) if row >= len(codes)), None)
        for code in used[free].tolist() if free is not None else ():
            if tuple(sid) not in taken:
                break
            sid[free] = code  # type: ignore[index]
        made.append(sid)
    return made


def _with_entries(text: str, sids: Sequence[Sequence[str]]) -> str:
    """The text with tombstones after its last entry, laid out as that one is."""
    if not sids:
        return text
    entries = list(_ENTRY.finditer(text))
    last = entries[-1]
    gap = text[entries[-2].end() : last.start()] if len(entries) > 1 else ", "
    known = sum(json.loads(match[1]).startswith(TOMBSTONE) for match in entries)
    added = "".join(
        f'{gap}"{TOMBSTONE}{known + number}"{last[2]}{_respelled(last[3], list(sid))}]'
        for number, sid in enumerate(sids)
    )
    return text[: last.end()] + added + text[last.end() :]


def _respelled(inner: str, values: Sequence[Any]) -> str:
    """The inside of a JSON list with other values, white space as it was; a list of another length repeats its first gap."""
    old = list(_VALUE.finditer(inner))
    new = [json.dumps(value) for value in values]
    if len(old) != len(new):
        gap = inner[old[0].end() : old[1].start()] if len(old) > 1 else ", "
        return inner[: old[0].start()] + gap.join(new) + inner[old[-1].end() :]
    following = iter(new)
    return _VALUE.sub(lambda match: next(following), inner)


def _check(
    index: IndexFile,
    text: str,
    wanted: Mapping[str, list[int] | None],
    lost: Sequence[Sequence[int]],
    spell: Callable[[int, int], Any],
) -> None:
    """Raises ArtefactError unless the text says, in the order of the file, what was meant."""
    found = json.loads(text)
    stored = {key: [int(c) for c in index.codes[row] if c >= 0] for row, key in enumerate(index.items)}
    meant = {key: [spell(level, code) for level, code in enumerate(sid or stored[key])] for key, sid in wanted.items()}
    items = {key: sid for key, sid in found.items() if not key.startswith(TOMBSTONE)}
    if list(items.items()) != list(meant.items()) or len(found) - len(items) != len(index.kept) + len(lost):
        raise ArtefactError(f"{index.path} could not be rewritten as it is laid out.", "Report this: it is a bug.")


def _filled(sids: Sequence[Sequence[int]], levels: int) -> IntArray:
    codes = np.full((len(sids), levels), -1, np.int32)
    for row, sid in enumerate(sids):
        codes[row, : len(sid)] = sid
    return codes


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an item is there twice")
    return found


def _code(value: str | int, level: int) -> int:
    if isinstance(value, str):
        place = PLAIN.place(value)
        if place is None or place[0] != level:
            raise ValueError(f"{value!r:.40} is no token of level {level + 1}")
        value = place[1]
    if isinstance(value, bool) or not 0 <= value < MOST_CODE:
        raise ValueError(f"{value!r:.40} is no code")
    return value
