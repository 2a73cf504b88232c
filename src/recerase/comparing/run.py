"""The compare command: methods x seeds on one checkpoint, cell by cell, into one table.

The one decision: reports are written when every cell is there, and cells as they are finished. A method that refuses or
diverges is a row with its sentence; what is wrong with the inputs or the disk ends the run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recerase.assembly import (
    RUN,
    ConceptSpec,
    choose_concept,
    concept_facts,
    data_digest,
    given_paths,
    open_checkpoint_for,
    with_codebooks,
)
from recerase.catalog import load_catalogue
from recerase.comparing.asked import SCOPES, Contender, Setting, check_seeds, contenders, settings
from recerase.comparing.cells import Bench, Made, Part, Reading
from recerase.comparing.front import RULE
from recerase.comparing.outputs import check_comparison_outputs, claim, finish
from recerase.comparing.rows import FRONT, Base, figures, ranked
from recerase.comparing.search import choose, criterion, marked, trial
from recerase.errors import UsageError
from recerase.report.compared import Comparison, Row, Search, Trial
from recerase.runtime import RunConfig, available_threads, choose_device, code_digest, environment, only_as_stored
from recerase.store import canonical_json, sha256_bytes
from recerase.types import SILENT, Observer, Scope

ScopeChoice = Literal["output", "influence", "both"]
TASK = "comparison"


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and how settings are chosen."""

    methods: tuple[str, ...]
    """Names, or `name/preset`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    overrides: tuple[str, ...] = ()
    """`METHOD.KEY=VALUE`."""
    scope: ScopeChoice = "output"
    search: int = 0
    """Settings tried a method; 0: its own, untuned."""
    max_drop: float = 0.02
    """Largest relative drop of NDCG@10 on validation users that a setting may cost."""
    max_users: int | None = None
    training_seconds: float | None = None
    """How long the original's training took, where the checkpoint does not say."""

    def __post_init__(self) -> None:
        """Raises UsageError for what no comparison can be made of."""
        check_seeds(self.seeds)
        if self.search < 0:
            raise UsageError("A search cannot try fewer than 0 settings.", "Leave --search out for the methods' own.")
        if not 0 <= self.max_drop <= 1:
            raise UsageError(f"A drop of {self.max_drop} cannot be a limit.", "Give a share from 0 to 1.")
        if self.training_seconds is not None and not self.training_seconds > 0:
            raise UsageError("A training takes more than 0 seconds.", "Leave --training-seconds out.")
        if self.scope not in (*SCOPES, "both"):
            raise UsageError(f"There is no scope {self.scope!r:.40}.", "It is output, influence or both.")

    @property
    def scopes(self) -> tuple[Scope, ...]:
        return SCOPES if self.scope == "both" else (self.scope,)


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


@dataclass(frozen=True, eq=False)
class _Session:
    """One comparison under way."""

    bench: Bench
    config: CompareConfig
    entrants: tuple[Contender, ...]
    references: tuple[Any, ...]
    tried: dict[tuple[str, Scope], tuple[Setting, ...]]
    controls: dict[Part, dict[str, Reading]] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)
    """Seconds of the cells made in this run."""
    ahead: int = 0
    """Cells that were not there when it began."""

    @property
    def pairs(self) -> list[tuple[Contender, Scope]]:
        return [(entrant, scope) for scope in self.config.scopes for entrant in self.entrants]


@contextlib.contextmanager
def _session(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: Path,
    config: CompareConfig,
    references: Sequence[str | Path],
    fresh: bool,
    run: RunConfig,
    observer: Observer,
) -> Iterator[_Session]:
    from recerase.audit.probes import AuditConfig

    only_as_stored(run, "compare")
    entrants = contenders(config.methods, config.overrides)
    run = replace(run, threads=run.threads or available_threads())
    catalogue = load_catalogue(data)
    opened = open_checkpoint_for(checkpoint, catalogue, run)
    before = with_codebooks(opened, catalogue.items, observer, run.embeddings)
    gold = tuple(open_checkpoint_for(path, catalogue, run) for path in references)
    chosen = choose_concept(concept, catalogue, before.embeddings)
    audit = AuditConfig(max_users=config.max_users, seed=run.seed)
    bench = Bench(catalogue, chosen, before, audit, run, out, fresh, observer)
    tried = {
        (entrant.name, scope): settings(entrant, config.search, run.seed)
        for scope in config.scopes
        for entrant in entrants
    }
    yield _Session(bench, config, entrants, gold, tried)


def compare(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    config: CompareConfig,
    *,
    references: Sequence[str | Path] = (),
    outputs: Sequence[str | Path] = (),
    force: bool = False,
    fresh: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> Comparison:
    """Erase with every method and seed, read every model like an audit, and write one table to `out` and `outputs`.

    `out` keeps the cells: a run that was killed continues there, and one that asks for more makes what is new (`fresh`: all anew).
    It is never one of the inputs; a comparison of something else is replaced with `force` alone. A method that refuses is a row.
    Raises UsageError before any work for a method, setting or output that cannot be.
    """
    began, started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    out = Path(out)
    inputs = given_paths(checkpoint, data, concept, run.embeddings, *references)
    check_comparison_outputs(outputs, out, inputs)
    with (
        _session(checkpoint, concept, data, out, config, references, fresh, run, observer) as session,
        claim(out, _subject(session), inputs, force) as place,
    ):
        session = replace(session, ahead=_ahead(session))
        observer.start(TASK, _cells(session))
        search, taken = _searched(session)
        rows, costs = [], {}
        for scope in config.scopes:
            found, costs[scope] = _rows(session, scope, taken)
            rows += ranked(found)
        observer.finish(TASK)
        made = _comparison(session, tuple(rows), search)
        training = config.training_seconds
        if training is None:
            training = next((c["retrain"]["seconds"] for c in costs.values() if "retrain" in c), None)
        for row in (row for by in costs.values() for row in by.values()):
            row["share"] = row["seconds"] / training if training else None
        volatile = {
            "started": started,
            "seconds": round(time.monotonic() - began, 3),
            "environment": asdict(environment(run.seed, session.bench.run.threads, choose_device(run.device))),
            "cost": costs,
            "training_seconds": training,
        }
        made = replace(made, run=volatile)
        finish(place, made, outputs)
    return made


def plan_compare(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: str | Path,
    config: CompareConfig,
    *,
    references: Sequence[str | Path] = (),
    fresh: bool = False,
    run: RunConfig = RUN,
    observer: Observer = SILENT,
) -> tuple[PlannedCell, ...]:
    """The cells of a comparison and which of them are done; inputs are opened, nothing is made and nothing written."""
    with _session(checkpoint, concept, data, Path(out), config, references, fresh, run, observer) as session:
        bench = session.bench
        cells: list[PlannedCell] = []

        def state(
            entrant: Contender, setting: Setting, scope: Scope, seed: int, part: Part
        ) -> Literal["done", "to do"]:
            key = bench.made_key(entrant, setting, scope, seed)
            if not bench.has_made(key):
                return "to do"
            failed = (bench.place(key) / "failure.json").is_file()
            return "done" if failed or bench.has_read(bench.reading_key(key, "subject", part)) else "to do"

        for entrant, scope in session.pairs:
            setting: Setting | None = session.tried[entrant.name, scope][0]
            if config.search:
                tried = session.tried[entrant.name, scope]
                states = [state(entrant, x, scope, config.seeds[0], "valid") for x in tried]
                cells += [
                    PlannedCell(entrant.name, scope, config.seeds[0], "valid", x.changed, s)
                    for x, s in zip(tried, states, strict=True)
                ]
                ready = set(states) == {"done"} and bench.has_read(
                    bench.reading_key(bench.before.digest, "original", "valid")
                )
                setting = _chosen(session, entrant, scope)[1] if ready else None
            for seed in config.seeds:
                done = state(entrant, setting, scope, seed, "test") if setting is not None else "after the search"
                changed = setting.changed if setting is not None else {}
                cells.append(PlannedCell(entrant.name, scope, seed, "test", changed, done))
        return tuple(cells)


def _subject(session: _Session) -> dict[str, str]:
    """What a comparison is of: another one must not replace it unasked."""
    bench = session.bench
    return {"checkpoint": bench.before.digest, "data": data_digest(bench.catalogue), "concept": bench.concept.digest}


def _ahead(session: _Session) -> int:
    """Cells that are to be made; of what a search will choose, all."""
    bench, config, count = session.bench, session.config, 0
    for entrant, scope in session.pairs:
        tried = session.tried[entrant.name, scope]
        if config.search:
            count += sum(not bench.has(entrant, x, scope, config.seeds[0], "valid") for x in tried) + len(config.seeds)
        else:
            count += sum(not bench.has(entrant, tried[0], scope, seed, "test") for seed in config.seeds)
    return count


def _cells(session: _Session) -> int:
    trials = sum(map(len, session.tried.values())) if session.config.search else 0
    return trials + len(session.pairs) * len(session.config.seeds) + 2 + len(session.references)


def _control(session: _Session, part: Part) -> dict[str, Reading]:
    """The original and, for the test, the filter, read once."""
    if part not in session.controls:
        bench, cache = session.bench, {}
        names = ("original", "filter") if part == "test" else ("original",)
        session.controls[part] = {x: bench.read_checkpoint(x, bench.before, part, cache) for x in names}  # type: ignore[arg-type]
    return session.controls[part]


def _cell(
    session: _Session, entrant: Contender, setting: Setting, scope: Scope, seed: int, part: Part
) -> tuple[Made, Reading]:
    """Make and read one cell, and say how far the comparison is."""
    bench, observer = session.bench, session.bench.observer
    new = not bench.has(entrant, setting, scope, seed, part)
    began = time.monotonic()
    made = bench.made(entrant, setting, scope, seed)
    reading = bench.read_made(made, part)
    figures: dict[str, float | str] = {"method": entrant.name, "seed": str(seed)}
    if new:
        session.spent.append(time.monotonic() - began)
        what = f"{entrant.name}, seed {seed}, scope {scope}" + (", validation" if part == "valid" else "")
        left = max(0, session.ahead - len(session.spent))
        told = made.failure or reading.failure or f"erased in {made.seconds:.1f} s, cell in {session.spent[-1]:.1f} s"
        observer.note(f"{what}: {told}; {left} left" + (f", about {np.mean(session.spent) * left:,.0f} s" if left else ""))
    observer.advance(TASK, 1, **figures)
    return made, reading


def _chosen(session: _Session, entrant: Contender, scope: Scope) -> tuple[tuple[Trial, ...], Setting]:
    """What a search of one method tried, and the setting that it takes: the method's own when all failed."""
    tried, seed = session.tried[entrant.name, scope], session.config.seeds[0]
    original = _control(session, "valid")["original"]
    trials = [
        trial(entrant.name, scope, x.changed, _cell(session, entrant, x, scope, seed, "valid")[1], original)
        for x in tried
    ]
    best = choose(trials, session.config.max_drop)
    return marked(trials, best), tried[best or 0]


def _searched(session: _Session) -> tuple[Search | None, dict[tuple[str, Scope], Setting]]:
    """What the search found, and the setting of every method and scope."""
    config = session.config
    if not config.search:
        return None, {key: tried[0] for key, tried in session.tried.items()}
    taken, trials = {}, []
    for entrant, scope in session.pairs:
        found, taken[entrant.name, scope] = _chosen(session, entrant, scope)
        trials += found
    users = len(session.bench.worlds["valid"].histories)
    told = Search(config.search, config.seeds[0], config.max_drop, criterion(config.max_drop), users, tuple(trials))
    return told, taken


def _rows(
    session: _Session, scope: Scope, taken: Mapping[tuple[str, Scope], Setting]
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one scope, controls first, and what the methods cost."""
    bench, observer = session.bench, session.bench.observer
    control = _control(session, "test")
    gold = tuple(bench.read_checkpoint("reference", x, "test", {}) for x in session.references)
    if scope == session.config.scopes[0]:
        observer.advance(TASK, 2 + len(gold))
    base = Base(control["original"], gold)
    rows = [
        Row(name, "control", scope, figures([control[name]], base, bench.audit, own=name))
        for name in ("original", "filter")
    ]
    if gold:
        rows.append(Row("reference", "reference", scope, figures(gold, base, bench.audit, own="reference")))
    costs: dict[str, Any] = {}
    for entrant in session.entrants:
        setting = taken[entrant.name, scope]
        made = {seed: _cell(session, entrant, setting, scope, seed, "test") for seed in session.config.seeds}
        alive = {seed: cell for seed, cell in made.items() if not cell[1].failure}
        first = next((cell[0] for cell in alive.values()), None)
        searched = session.config.search and entrant.card.strength
        row = Row(
            entrant.name,
            "method",
            scope,
            figures([reading for _, reading in alive.values()], base, bench.audit),
            "searched" if searched else "given" if entrant.given else "untuned",
            asdict(setting.config),
            tuple(alive),
            first.steps if first else None,
            failures=tuple(f"seed {s}: {cell[1].failure}" for s, cell in made.items() if cell[1].failure),
        )
        rows.append(row)
        if alive:
            seconds = [cell[0].seconds for cell in alive.values()]
            costs[entrant.name] = {"seconds": float(np.mean(seconds)), "most": max(seconds)}
    return rows, costs


def _comparison(session: _Session, rows: tuple[Row, ...], search: Search | None) -> Comparison:
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
        front=f"{FRONT} {RULE}",
        notes=_notes(session),
    )


def _notes(session: _Session) -> tuple[str, ...]:
    """What the figures do not say, in sentences."""
    config, n = session.config, len(session.references)
    notes = ["Figures are read on test users, by the audit's own probes."]
    if not config.search:
        notes.append(
            "Untuned: every method runs with its own settings, or those given; --search N gives all an equal budget."
        )
    if n == 0:
        notes.append("There is no reference: likeness to a model that never saw the concept was not measured.")
    elif n == 1:
        notes.append("One reference: its spread from seed to seed is unknown.")
    if n:
        notes.append(
            "Masses are compared under the old SIDs with the mean of the references, which are read on histories without concept "
            "items. Far below it is over-forgetting, not a merit."
        )
    if len(config.seeds) == 1:
        notes.append("One seed: the spread from seed to seed is unknown.")
    if "influence" in config.scopes:
        notes.append("Scope influence: that concept items in a history move nothing else was not measured.")
    notes.append(
        "What could come back (relearning, probes, membership, precision) was not measured; audit the model you take."
    )
    return tuple(notes)
