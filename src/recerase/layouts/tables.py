"""Where a SID table is taken from, and the formats it is written in: one place for `train --sids`, `tokenize --extend` and export.

The one decision: a format says a table whole or refuses it. What it has no words for (an item without a SID, one that is not to be
recommended, SIDs of different lengths) is an error before a byte is written, and what is only noted (that a last code was changed to
keep SIDs apart) is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.errors import TableError, UsageError
from recerase.layouts import rpg, torcheasyrec
from recerase.layouts.native import SIDS, load_sids
from recerase.layouts.registry import detect_layout, open_checkpoint, recognised
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import TOMBSTONE, read_table, table_to_arrow
from recerase.store import parquet_bytes

if TYPE_CHECKING:
    from recerase.layouts.native import ItemIds
    from recerase.sid.codebooks import Codebooks
    from recerase.types import FloatArray


@dataclass(frozen=True)
class TableFormat:
    """One way to write a SID table."""

    name: str
    what: str
    write: Callable[[SidTable, Path, Mapping[str, str]], dict[str, bytes]]
    """The table, where it will lie, options -> the files in the order to be written, by name in a directory; "": one file."""
    directory: bool = False
    ragged: bool = False
    """Whether SIDs may differ in length."""
    flags: bool = False
    """Whether items may lack a SID, or be unlisted; and which SIDs were changed to keep them apart."""
    sizes: bool = False
    """Whether it says how many codes a level has."""
    options: Mapping[str, str] = field(default_factory=dict)


def _letter(table: SidTable, out: Path, options: Mapping[str, str]) -> dict[str, bytes]:
    if table.levels > 26:
        raise UsageError(
            f"Tokens like <a_60> have letters for 26 levels, and the SIDs have {table.levels}.", "Use --as integers."
        )
    return _json(table, lambda level, code: f"<{chr(ord('a') + level)}_{code}>")


def _integers(table: SidTable, out: Path, options: Mapping[str, str]) -> dict[str, bytes]:
    return _json(table, lambda level, code: code)


def _json(table: SidTable, spell: Callable[[int, int], object]) -> dict[str, bytes]:
    said = {
        str(item): [spell(level, code) for level, code in enumerate(sid) if code >= 0]
        for item, sid in zip(table.item_ids, table.codes.tolist(), strict=True)
    }
    return {"": json.dumps(said).encode()}


def _parquet(table: SidTable, out: Path, options: Mapping[str, str]) -> dict[str, bytes]:
    return {"": parquet_bytes(table_to_arrow(table))}


_TER = {"capacity": "items that a SID may have at most (default: as many as one has)", "item_id": "string or int64"}
FORMATS = {
    form.name: form
    for form in (
        TableFormat("letter", 'JSON {"item": ["<a_60>", ...]}: LETTER, LC-Rec, MiniOneRec', _letter, ragged=True),
        TableFormat("integers", 'JSON {"item": [60, ...]}: tiger-cf', _integers, ragged=True),
        TableFormat(
            "parquet", "item_id, codes, listed, resolved, as recerase's own", _parquet, ragged=True, flags=True
        ),
        TableFormat("rpg", "JSON *.sem_ids, whose name tells digits and codes: RPG", rpg.write, sizes=True),
        TableFormat(
            "torcheasyrec",
            "a new generation directory: TorchEasyRec",
            torcheasyrec.write,
            True,
            sizes=True,
            options=_TER,
        ),
    )
}


def written(
    table: SidTable, form: TableFormat, out: Path, options: Mapping[str, str] | None = None
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files of a table in a format, and what the format leaves unsaid, one sentence each.

    Raises UsageError for what the format cannot say, before anything is written.
    """
    unknown = sorted((options or {}).keys() - form.options.keys())
    if unknown:
        listed = "; ".join(f"{key} ({what})" for key, what in form.options.items()) or "none"
        raise UsageError(f"{form.name} has no option {unknown[0]!r:.40}.", f"Its options: {listed}.")
    hidden, absent = int((table.present & ~table.listed).sum()), int((~table.present).sum())
    if not form.flags and (hidden or absent):
        what = f"{absent} items have no SID" if absent else f"{hidden} items are not to be recommended"
        raise UsageError(f"{what}, which {form.name} cannot say.", "Use --as parquet.")
    if table.ragged and not form.ragged:
        table.require_one_length(f"The format {form.name}", "Use --as letter, integers or parquet.")
    if any(str(item).startswith(TOMBSTONE) for item in table.item_ids):
        raise UsageError(f"An item id begins with {TOMBSTONE}, which marks what is no item.", "Give it another id.")
    if not table.present.any():
        raise UsageError("No item of the table has a SID.", "Give a table with SIDs.")
    changed, notes = int(table.resolved.sum()), []
    if changed and not form.flags:
        notes.append(f"{changed} SIDs were changed to keep them apart; {form.name} does not say which.")
    if not form.sizes:
        notes.append(f"{form.name} does not say how many codes a level has: {list(table.schema.codes)}.")
    return form.write(table, out, options or {}), tuple(notes)


def read_sids(
    path: str | Path, item_ids: ItemIds | None = None
) -> tuple[SidTable, Codebooks | None, FloatArray | None]:
    """Table, codebooks and item embeddings [N, D] of what a command may be given as SIDs.

    A directory made by tokenize, train or erase; or a table made elsewhere, in JSON, parquet or a layout of tables, which has neither
    and is spelled anew in rows of our own. Raises TableError for what is none, ArtefactError for damaged files.
    """
    path = Path(path)
    if (path / SIDS).is_file():
        return load_sids(path, item_ids=item_ids)
    table = _elsewhere(path)
    if table is None and not path.is_file():
        found = recognised(path)
        if found:
            raise TableError(
                f"{path} is a checkpoint of another tool ({found[0][0].name}), not SIDs alone.",
                f"Write its table to a file: `recerase export sids {path} --as letter --out FILE`.",
            )
        return load_sids(path, item_ids=item_ids)
    table = read_table(path) if table is None else _respelled(table)
    return (table if item_ids is None else table.aligned(item_ids)), None, None


def _elsewhere(path: Path) -> SidTable | None:
    """The table of a layout of tables, as that layout spells it; None where the path is none."""
    found = [layout for layout, _ in recognised(path)]
    if len(found) > 1:
        detect_layout(path)  # says so
    return found[0].table(path)[0] if found and found[0].table is not None else None


def _respelled(table: SidTable) -> SidTable:
    """The table in rows of our own, where no other tool's model reads it."""
    schema = SidSchema.native(table.schema.codes, table.schema.collisions)
    return SidTable.build(table.item_ids, table.codes, schema, table.listed, table.resolved)


def source_table(
    path: str | Path,
    *,
    layout: str | None = None,
    options: Mapping[str, str] | None = None,
    trust_pickle: bool = False,
) -> SidTable:
    """The table of anything that has one, in the order of its files: SIDs alone (`read_sids`), or any checkpoint."""
    path = Path(path)
    if not path.exists():
        raise TableError(f"{path} does not exist.", "Check the path.")
    if (path / SIDS).is_file() or (layout is None and not recognised(path)):
        return read_sids(path)[0]
    known = detect_layout(path, layout)
    if known.table is not None:
        return _respelled(known.table(path)[0])
    return open_checkpoint(path, layout=known.name, options=options, trust_pickle=trust_pickle).table
