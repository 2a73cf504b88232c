"""The compare command: methods x seeds on one checkpoint, cell by cell, into one table.

The one decision: reports are written when every cell is there, and cells as they are finished. A method that refuses or
diverges is a row with its sentence; what is wrong with the inputs or the disk ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recerase.assembly import RUN, ConceptSpec, concept_facts, data_digest, given_paths
from recerase.comparing.asked import Contender, Setting
from recerase.comparing.notes import notes_of
from recerase.comparing.outputs import check_comparison_outputs, claim, finish
from recerase.comparing.reading import Part
from recerase.comparing.rows import front_text, ranked
from recerase.comparing.session import (
    TASK,
    CompareConfig,
    Session,
    ahead_of,
    cells_of,
    chosen_setting,
    opened_session,
    rows_of,
    searched,
)
from recerase.report.compared import EARLIER, Comparison, Row, Search
from recerase.runtime import RunConfig, choose_device, code_digest, environment
from recerase.store import canonical_json, read_run, sha256_bytes
from recerase.types import SILENT, Observer, Scope

__all__ = ["CompareConfig", "PlannedCell", "compare", "plan_compare"]


@dataclass(frozen=True)
class PlannedCell:
    """One cell of a plan."""

    method: str
    scope: Scope
    seed: int
    part: Part
    settings: Mapping[str, Any]
    """What differs from the method's own; what is not known before the search is {}."""
    state: Literal["done", "to do", "after the search"]


def compare(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    config: CompareConfig,
    *,
    references: Sequence[str | Path] = (),
    earlier: Sequence[ConceptSpec] = (),
    outputs: Sequence[str | Path] = (),
    force: bool = False,
    fresh: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Comparison:
    """Erase with every method and seed, read every model like an audit, and write one table to `out` and `outputs`.

    `out` keeps the cells: a run that was killed continues there, and one that asks for more makes what is new (`fresh`: all anew).
    It is never one of the inputs; a comparison of something else is replaced with `force` alone. A method that refuses is a row.
    `earlier` are concepts that were erased before, besides those the checkpoint remembers: no method keeps their items or gives
    out their SIDs, and they count as retained nowhere; others make other cells.
    Raises UsageError before any work for a method, setting or output that cannot be.
    """
    began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    out = Path(out)
    inputs = given_paths(checkpoint, data, concept, *earlier, run, *references)
    check_comparison_outputs(outputs, out, inputs)
    session = opened_session(checkpoint, concept, data, out, config, references, earlier, fresh, run, observer)
    with claim(out, _subject(session), inputs, force) as place:
        session = replace(session, ahead=ahead_of(session))
        observer.start(TASK, cells_of(session))
        search, taken = searched(session)
        rows: list[Row] = []
        costs: dict[str, Any] = {}
        for scope in config.scopes:
            found, costs[scope] = rows_of(session, scope, taken)
            rows += ranked(found)
        observer.finish(TASK)
        volatile = {
            "started": started,
            "seconds": round(time.monotonic() - began, 3),
            "environment": asdict(environment(run.seed, session.bench.run.threads, choose_device(run.device))),
            **_costs(costs, _training(session)),
        }
        made = replace(_comparison(session, tuple(rows), search), run=volatile)
        finish(place, made, outputs)
    return made


def _training(session: Session) -> tuple[float | None, float | None]:
    """Seconds and processor seconds of the original's training: as told by the user, else as its checkpoint has them."""
    if session.config.training_seconds is not None:
        return session.config.training_seconds, None
    before = session.bench.before
    if before.layout != "native" or before.manifest.get("provenance", {}).get("command") != "train":
        return None, None
    told = read_run(before.path)
    wall, busy = (told.get(name) for name in ("seconds", "cpu_seconds"))
    return (float(wall) if wall else None), (float(busy) if busy else None)


def _costs(costs: dict[str, Any], training: tuple[float | None, float | None]) -> dict[str, Any]:
    """Seconds of each row, and their shares of what a training takes; where that is not known, of how long `retrain` took here.

    `share` is of wall time, `cpu_share` of processor time, which other work beside does not lengthen.
    """
    if training == (None, None):
        again: dict[str, float] = next((by["retrain"] for by in costs.values() if "retrain" in by), {})
        training = (again.get("seconds"), again.get("cpu_seconds"))
    wall, busy = training
    told = {
        scope: {
            name: {
                **row,
                "share": row["seconds"] / wall if wall else None,
                "cpu_share": row["cpu_seconds"] / busy if busy and "cpu_seconds" in row else None,
            }
            for name, row in by.items()
        }
        for scope, by in costs.items()
    }
    return {"cost": told, "training_seconds": wall, "training_cpu_seconds": busy}


def plan_compare(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    config: CompareConfig,
    *,
    references: Sequence[str | Path] = (),
    earlier: Sequence[ConceptSpec] = (),
    fresh: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> tuple[PlannedCell, ...]:
    """The cells of a comparison and which of them are done; inputs are opened, nothing is made and nothing written."""
    session = opened_session(checkpoint, concept, data, Path(out), config, references, earlier, fresh, run, observer)
    cells: list[PlannedCell] = []
    for entrant, scope in session.pairs:
        tried = session.tried[entrant.name, scope]
        setting: Setting | None = tried[0]
        if config.search:
            trials = [_planned(session, entrant, x, scope, config.seeds[0], "valid") for x in tried]
            cells += trials
            bench = session.bench
            held = [bench.reading_key(bench.before.digest, "original", "valid")]
            held += [bench.reading_key(x.digest, "reference", "valid") for x in session.references]
            ready = all(map(bench.has_read, held)) and all(cell.state == "done" for cell in trials)
            setting = chosen_setting(session, entrant, scope)[1] if ready else None
        cells += [_planned(session, entrant, setting, scope, seed, "test") for seed in config.seeds]
    return tuple(cells)


def _planned(
    session: Session, entrant: Contender, setting: Setting | None, scope: Scope, seed: int, part: Part
) -> PlannedCell:
    """A cell as a plan tells it; without a setting it waits for the search."""
    if setting is None:
        return PlannedCell(entrant.name, scope, seed, part, {}, "after the search")
    done = session.bench.has(entrant, setting, scope, seed, part)
    return PlannedCell(entrant.name, scope, seed, part, setting.changed, "done" if done else "to do")


def _subject(session: Session) -> dict[str, str]:
    """What a comparison is of: another one must not replace it unasked."""
    bench = session.bench
    of = {"checkpoint": bench.before.digest, "data": data_digest(bench.catalogue), "concept": bench.concept.digest}
    return {**of, EARLIER: bench.gone.digest} if bench.gone.concepts else of


def _comparison(session: Session, rows: tuple[Row, ...], search: Search | None) -> Comparison:
    bench, config = session.bench, session.config
    digests = _subject(session) | {"code": code_digest(), "settings": sha256_bytes(canonical_json(asdict(bench.audit)))}
    digests |= {f"reference {i + 1}": gold.digest for i, gold in enumerate(session.references)}
    return Comparison(
        concept=concept_facts(bench.concept, bench.catalogue),
        inputs=digests,
        methods=tuple(entrant.name for entrant in session.entrants),
        seeds=config.seeds,
        scopes=config.scopes,
        rows=rows,
        confidence=bench.audit.confidence,
        search=search,
        front=front_text(rows),
        notes=notes_of(session),
    )
