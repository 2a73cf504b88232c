"""Files beside a checkpoint that carry SIDs as text: item lists (SID, title, id, by tabs) and interactions in CSV.

The one decision: which item a SID stands for is told by the item id in the same record, never by the SID, for items may share one.
Both kinds are rewritten in their own bytes: quotes, line ends and whatever else is in a record stay as they are.
"""

from __future__ import annotations

import ast
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from recerase.errors import TableError
from recerase.layouts.spelling import PLAIN

SID = PLAIN.sid
_FIELD = re.compile(r'("(?:[^"]|"")*"|(?:[^,"\r\n]|\r(?!\n))*)(,|\r?\n|\Z)')
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
CSV_COLUMNS = ("history_item_id", "item_id", "history_item_sid", "item_sid")
"""What the interactions of MiniOneRec's convert_dataset.py have, beside titles and users."""
_RESTORE = "Its SIDs are of another table: give files of one training."

Spell = Callable[[str], str]
"""Item id -> its SID as text."""


def decoded(data: bytes, path: Path) -> str:
    """The text of a side file. Raises TableError when it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is no text in UTF-8.", "Restore it.") from error


def list_records(text: str) -> Iterator[tuple[str, str | None]]:
    """The records of an item list as they stand, each with its item id; None for a line that is no record.

    A line that does not begin with a SID belongs to the title before it.
    """
    held, item = "", None
    for line in _LINE.findall(text):
        begins = SID.match(line)
        if begins and line[begins.end() : begins.end() + 1] == "\t":
            if held:
                yield held, item
            held, item = line, None
        else:
            held += line
        fields = held.rstrip("\r\n").split("\t")
        item = fields[-1] if len(fields) >= 3 else None
    if held:
        yield held, item


def listed_items(text: str, path: Path, spell: Mapping[str, str]) -> set[str]:
    """The items that an item list names. Raises TableError when it gives one a SID that the table does not."""
    found = set()
    for record, item in list_records(text):
        begins = SID.match(record)
        if item is None or begins is None:
            raise TableError(f"{path} has a line that is not SID, title, id: {record[:40]!r}.", "Restore it.")
        if spell.get(item) != begins[0]:
            raise TableError(
                f"{path} gives item {item!r:.40} the SID {begins[0]}, the table {spell.get(item)}.", _RESTORE
            )
        found.add(item)
    if not found:
        raise TableError(f"{path} names no items, so nothing could be recommended.", "Restore it, or remove the file.")
    return found


def rewritten_list(text: str, new: Mapping[str, str], dropped: set[str]) -> str:
    """An item list with the SIDs of `new` (item id -> SID) exchanged, and without the records of `dropped`."""
    out = []
    for record, item in list_records(text):
        if item in dropped:
            continue
        begins = SID.match(record)
        out.append(new[item] + record[begins.end() :] if begins and item is not None and item in new else record)
    return "".join(out)


def sid_columns(head: str) -> dict[str, int] | None:
    """Where CSV_COLUMNS stand in the header of a CSV file; None when it has them not all."""
    try:
        names = next(csv.reader(io.StringIO(head.removeprefix("\ufeff"))), [])  # as pandas reads it
    except csv.Error:
        return None
    return {name: names.index(name) for name in CSV_COLUMNS} if set(CSV_COLUMNS) <= set(names) else None


def interactions(
    text: str, path: Path, old: Mapping[str, str], new: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """Interactions in CSV with every SID of `new` (item id -> SID) exchanged, and the length of the longest history.

    `old` is the SID of every item. Raises TableError when a record does not say what `old` says, or cannot be read.
    """
    columns = sid_columns(text.partition("\n")[0])
    assert columns is not None
    out: list[str] = []
    longest = 0
    for number, fields in enumerate(_records(text)):
        if number and any(value for value, _ in fields):
            try:
                longest = max(longest, _exchange(fields, columns, old, new or {}))
            except (ValueError, TypeError, SyntaxError, IndexError, RecursionError, MemoryError) as error:
                raise TableError(f"{path}, record {number}: {error!s:.120}.", _RESTORE) from error
        out += [value + end for value, end in fields]
    return "".join(out), longest


def _records(text: str) -> Iterator[list[tuple[str, str]]]:
    """The records of a CSV text: for each field its text as it stands, quotes included, and what ends it."""
    fields: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        if match is None:
            raise TableError(f"A CSV record has a stray quote: {text[at : at + 40]!r}.", "Restore the file.")
        fields.append((match[1], match[2]))
        at = match.end()
        if match[2] != ",":
            yield fields
            fields = []
        elif at == len(text):
            fields.append(("", ""))
    if fields:
        yield fields


def _exchange(
    fields: list[tuple[str, str]], columns: Mapping[str, int], old: Mapping[str, str], new: Mapping[str, str]
) -> int:
    """Exchange the SIDs of one record in place; returns the length of its history. Raises ValueError."""
    history = ast.literal_eval(_plain(fields[columns["history_item_id"]][0]))
    items = [str(item) for item in history]
    items = [item for item in items if item in old]  # one without a SID has no place in the list of SIDs
    for name, owners in (("history_item_sid", items), ("item_sid", [_plain(fields[columns["item_id"]][0])])):
        value, end = fields[columns[name]]
        stood = SID.findall(value)
        meant = [old.get(item) for item in owners]
        if stood != meant:
            wrong = next(
                (pair for pair in zip(stood, meant, strict=False) if pair[0] != pair[1]), (len(stood), len(meant))
            )
            raise ValueError(f"{name} says {wrong[0]} where the table says {wrong[1]}")
        if any(item in new for item in owners):
            following = iter([new.get(item, sid) for item, sid in zip(owners, stood, strict=True)])
            fields[columns[name]] = (SID.sub(lambda match: next(following), value), end)  # noqa: B023 - used at once
    return len(items)


def _plain(value: str) -> str:
    """A CSV field without its quotes."""
    return value[1:-1].replace('""', '"') if value.startswith('"') else value
