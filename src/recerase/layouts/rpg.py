"""RPG: a SID table alone, `MODEL_OPQ32,IVF1,PQ32x8.sem_ids`, JSON {item: [one code a digit]}.

`RPGTokenizer._init_tokenizer` (genrec/models/RPG/tokenizer.py of facebookresearch/RPG_KDD2025) finds the file by this very name
and builds digit d of code c as vocabulary row 1 + d * K + c, 0 being the padding and the last row eos (`_sem_ids_to_tokens`,
`vocab_size`). Digits have no order there: an item enters the model as the mean of their rows, and each has a head of its own.

The one decision: digits and codes a digit are read from the name, where RPG itself has them, and never worked out from the codes
in use; a file of another name is one that RPG would not find, and is refused. As everywhere here digit d is level d + 1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recerase.errors import TableError, UsageError
from recerase.layouts.index_json import looks_like_index, read_index
from recerase.layouts.protocol import table_layout
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable

NAME = "rpg"
ENDING = ".sem_ids"
_SHAPE = re.compile(r"OPQ(\d{1,4}),IVF1,PQ(\d{1,4})x(\d{1,2})\.sem_ids$")
_MOST_BITS, _MOST_ROWS = 16, 1 << 22


def _files(path: Path) -> list[Path]:
    """The tables at a path: the file itself, or those in the directory."""
    found = sorted(path.glob(f"*{ENDING}")) if path.is_dir() else [path] if path.name.endswith(ENDING) else []
    return [file for file in found if file.is_file()]


def _detect(path: Path) -> str | None:
    found = _files(path)
    named = [file for file in found if _SHAPE.search(file.name) or looks_like_index(file, tokens=False)]
    return f"{named[0].name:.80}, a table of digits" if named else None


def shape_of(name: str) -> tuple[int, int]:
    """Digits and codes a digit, as the name of a table tells them. Raises TableError when it does not."""
    match = _SHAPE.search(name)
    digits, again, bits = (int(number) for number in match.groups()) if match else (0, 0, 0)
    if not digits or digits != again or bits > _MOST_BITS or digits << bits > _MOST_ROWS:
        raise TableError(
            f"The name {name!r:.80} does not tell digits and codes as RPG's do.",
            "Name it as RPG looks for it: MODEL_OPQ32,IVF1,PQ32x8.sem_ids has 32 digits of 2 ** 8 codes.",
        )
    return digits, 1 << bits


def read(path: Path) -> tuple[SidTable, Mapping[str, Any]]:
    """The table of a file, or of the only one in a directory; see `Layout.table`."""
    found = _files(path)
    if len(found) != 1:
        raise TableError(
            f"{path} holds {len(found)} files *{ENDING} ({', '.join(file.name for file in found[:3])}).",
            "Give the path of the file that is meant.",
        )
    file = found[0]
    digits, size = shape_of(file.name)
    index = read_index(file)
    if index.tokens or index.codes.shape[1] != digits or (index.codes < 0).any() or index.codes.max() >= size:
        raise TableError(
            f"{file} does not hold {digits} numbers below {size} for every item, as its name says.",
            "Restore the file, or the name that RPG gave it.",
        )
    table = SidTable.build(index.items, index.codes, _schema(digits, size, index.codes))
    return table, {"SID table": file.name, "order of digits": "none", "row of a code": f"1 + digit * {size} + code"}


def _schema(digits: int, size: int, codes: Any) -> SidSchema:
    rows = tuple(1 + digit * size + np.arange(size, dtype=np.int64) for digit in range(digits))
    unique = len(np.unique(codes, axis=0)) == len(codes)
    return SidSchema(
        (size,) * digits, rows, digits * size + 2, 0, -1, digits * size + 1, "unique" if unique else "allowed"
    )


def write(table: SidTable, out: Path, options: Mapping[str, str]) -> dict[str, bytes]:
    """The bytes of the file `out`, whose name must tell the table's digits; see `TableFormat.write`."""
    largest = int(table.codes.max())
    fitting = f"MODEL_OPQ{table.levels},IVF1,PQ{table.levels}x{max(largest.bit_length(), 1)}{ENDING}"
    match = _SHAPE.search(out.name)
    digits, size = shape_of(out.name) if match else (0, 0)
    if digits != table.levels or size <= largest:
        raise UsageError(
            f"RPG tells digits and codes by the name of the file, and {out.name!r:.80} does not tell {table.levels} digits "
            f"of codes up to {largest}.",
            f"Name it like {fitting}, MODEL being the name of the sentence model in RPG's config.",
        )
    said = dict(zip(map(str, table.item_ids), table.codes.tolist(), strict=True))
    return {"": json.dumps(said).encode()}


LAYOUTS = (
    table_layout(
        NAME,
        "RPG: a SID table alone, *.sem_ids, its digits without an order",
        ("*.sem_ids of numbers",),
        _detect,
        read,
    ),
)
