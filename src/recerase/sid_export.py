"""The export of a SID table: what a path has for one is written as another tool reads it, whole or not at all.

The one decision: a format is asked for all of its bytes before the first of them is written, so that a refusal leaves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recerase.assembly import given_paths
from recerase.errors import UsageError
from recerase.runtime import RunConfig
from recerase.store import check_file_output, publish, write_bytes
from recerase.types import SILENT, Observer

RUN = RunConfig()


@dataclass(frozen=True)
class Exported:
    """A table that was written."""

    path: Path
    items: int
    levels: int
    notes: tuple[str, ...]
    """What the format leaves unsaid."""


def export_sids(
    source: str | Path,
    form: str,
    out: str | Path,
    options: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Exported:
    """Write the SID table of `source` (SIDs alone, or any checkpoint) at `out` in the format of that name.

    `options` are the format's own. A directory gets recerase.json beside what the format has. Raises UsageError for what the format
    cannot say, OutputError when `out` is there already.
    """
    from recerase.layouts.tables import FORMATS, source_table, written

    if form not in FORMATS:
        raise UsageError(
            f"There is no format {form!r:.40}.",
            "; ".join(f"{name}: {known.what}" for name, known in FORMATS.items()) + ".",
        )
    chosen, place, inputs = FORMATS[form], Path(out), given_paths(source, run)
    if not chosen.directory:
        check_file_output(place, inputs=inputs, force=force)
    observer.note(f"reading {source}")
    table = source_table(source, layout=run.layout, options=dict(run.layout_options), trust_pickle=run.trust_pickle)
    observer.note(f"writing {len(table):,} items at {place}")
    files, notes = written(table, chosen, place, options)
    if not chosen.directory:
        write_bytes(place, files[""])
        return Exported(place, len(table), table.levels, notes)
    with publish(place, inputs=inputs, force=force) as result:
        for name, data in files.items():
            (result.directory / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(result.directory / name, data)
        result.provenance = {"command": "export sids", "format": form, "table": table.digest}
    return Exported(place, len(table), table.levels, notes)
