"""JSON files of other tools that are rewritten: they stay as they were laid out, byte for byte.

The one decision: a file is dumped anew only in the style that gives its own bytes back for its own content; indents, separators,
escapes and the end of the file are so found out, and proved, before anything is exchanged. What no style gives back is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recerase.errors import TableError

Dump = Callable[[Any], bytes]
_BEGINNING = 1 << 16


def beginning(path: Path) -> str:
    """How a text file begins; nothing where it cannot be read, which whoever reads it tells."""
    try:
        with open(path, "rb") as file:
            return file.read(_BEGINNING).decode("utf-8", "replace")
    except OSError:
        return ""


def read_json(data: bytes, path: Path) -> tuple[Any, Dump]:
    """The content of a JSON file, and what writes content as that file is laid out.

    Raises TableError: it is no JSON, an object has a key twice, or it is laid out in no known style.
    """
    try:
        text = data.decode("utf-8")
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path} is no JSON: {error!s:.120}.", "Restore it.") from error
    ending = text[len(text.rstrip()) :]
    indents = (None, 2, 4, 1, 3, "\t")
    lines = text.count("\n") > ending.count("\n")
    for ascii_only in (True, False):
        for indent in indents[1:] if lines else indents[:1]:
            for separators in ((",", ": "),) if lines else ((", ", ": "), (",", ":")):
                dump = _dumper(ascii_only, indent, separators, ending)
                if dump(content) == data:
                    return content, dump
    raise TableError(
        f"{path} is laid out as json.dump lays out nothing, so it could not be kept as it is.",
        "Write it once with json.dump, and try again.",
    )


def _dumper(ascii_only: bool, indent: int | str | None, separators: tuple[str, str], ending: str) -> Dump:
    return lambda content: (
        json.dumps(content, ensure_ascii=ascii_only, indent=indent, separators=separators) + ending
    ).encode("utf-8", "surrogatepass")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found
