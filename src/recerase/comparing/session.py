"""One comparison under way: its inputs opened, its cells made one after another, its rows filled.

The one decision: the order of work is that of the table, settings first, and every cell is told as it is finished with how many
are left; what a search reads and what a row reads are never the same users.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recerase.assembly import ConceptSpec, choose_concept, open_checkpoint_for, open_references, with_codebooks
from recerase.catalog import load_catalogue
from recerase.comparing.asked import SCOPES, Contender, Setting, check_seeds, contenders, runnable, settings
from recerase.comparing.cells import Bench, Made
from recerase.comparing.extras import Extras, Model
from recerase.comparing.reading import Part, Reading
from recerase.comparing.rows import Base, figures
from recerase.comparing.search import choose, criterion, marked, trial
from recerase.earlier import gone_from, home_of
from recerase.errors import UsageError
from recerase.preparing import told_settings
from recerase.report.compared import Row, Search, Trial
from recerase.runtime import RunConfig, available_threads, only_as_stored
from recerase.types import Observer, Role, Scope

if TYPE_CHECKING:
    from recerase.audit.readings import Cache
    from recerase.layouts.native import Checkpoint

ScopeChoice = Literal["output", "influence", "both"]
TASK = "comparison"
PLACES = 10
"""Of a list that is read: every figure of a comparison is @10, and a longer list would need a wider beam."""


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
    search_users: int | None = None
    """Validation users that a search reads; None: as many as are tested on."""
    mass_users: int | None = None
    """Users, concept users and concept-only histories (each) at most, whose exact mass is read; None: as many as an audit does."""
    beam: int | None = None
    """Width of the beam that lists are read with; None: the decoder's own for ten places."""
    relearn: bool = False
    """Attack every model by relearning."""
    ucan: int = 0
    """Read U-CAN's figures on at most so many training pairs a kind; 0: not at all."""
    keep_tried: bool = False
    """Keep the models that a search tried and did not choose."""
    training_seconds: float | None = None
    """How long the original's training took, where the checkpoint does not say."""

    def __post_init__(self) -> None:
        """Raises UsageError for what no comparison can be made of."""
        check_seeds(self.seeds)
        if self.search < 0:
            raise UsageError("A search cannot try fewer than 0 settings.", "Leave --search out for the methods' own.")
        if self.ucan < 0 or (self.beam is not None and self.beam < PLACES):
            raise UsageError(
                f"A beam is at least {PLACES} wide, and pairs are not fewer than 0.", "Leave --beam and --ucan out."
            )
        if any(n is not None and n < 1 for n in (self.mass_users, self.search_users)):
            raise UsageError("Nothing can be read of fewer than 1 user.", "Leave --mass-users and --search-users out.")
        if not 0 <= self.max_drop <= 1:
            raise UsageError(f"A drop of {self.max_drop} cannot be a limit.", "Give a share from 0 to 1.")
        if self.training_seconds is not None and not self.training_seconds > 0:
            raise UsageError("A training takes more than 0 seconds.", "Leave --training-seconds out.")
        if self.scope not in (*SCOPES, "both"):
            raise UsageError(f"There is no scope {self.scope!r:.40}.", "It is output, influence or both.")

    @property
    def scopes(self) -> tuple[Scope, ...]:
        return SCOPES if self.scope == "both" else (self.scope,)


@dataclass(frozen=True, eq=False)
class Session:
    """One comparison under way."""

    bench: Bench
    config: CompareConfig
    entrants: tuple[Contender, ...]
    references: tuple[Checkpoint, ...]
    tried: dict[tuple[str, Scope], tuple[Setting, ...]]
    controls: dict[Part, dict[str, Reading]] = field(default_factory=dict)
    spent: list[float] = field(default_factory=list)
    """Seconds of the cells made in this run."""
    models: dict[tuple[str, Scope], list[str]] = field(default_factory=dict)
    """Digests of the models of each row."""
    ahead: int = 0
    """Cells that were not there when it began."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Methods that `all` stands for and that cannot run on this checkpoint, and why."""

    @cached_property
    def extras(self) -> Extras:
        """Further readings, where they were asked for."""
        return Extras(self.bench, self.references, self.config.relearn, self.config.ucan, self.config.beam)

    @property
    def pairs(self) -> list[tuple[Contender, Scope]]:
        return [(entrant, scope) for scope in self.config.scopes for entrant in self.entrants]


def opened_session(
    checkpoint: str | Path,
    concept: ConceptSpec,
    data: str | Path,
    out: Path,
    config: CompareConfig,
    references: Sequence[str | Path],
    earlier: Sequence[ConceptSpec],
    fresh: bool,
    run: RunConfig,
    observer: Observer,
) -> Session:
    """Open the inputs of a comparison; `earlier` are concepts that were erased before, besides those the checkpoint remembers.

    Raises UsageError for methods and settings that there are not, before that; and as `earlier.gone_from`.
    """
    from recerase.audit.probes import AuditConfig

    only_as_stored(run, "compare")
    entrants = contenders(config.methods, config.overrides)
    run = replace(run, threads=run.threads or available_threads())
    catalogue = load_catalogue(data)
    opened = open_checkpoint_for(checkpoint, catalogue, run)
    before = with_codebooks(opened, catalogue.items, observer, run.embeddings)
    gold = open_references([Path(path) for path in references], catalogue, run)
    chosen = choose_concept(concept, catalogue, before.embeddings)
    gone = gone_from([home_of(before)], earlier, catalogue, before.table, before.embeddings)
    if gone.besides(chosen.members).any():
        observer.note(f"erased before: {gone.told}")
    audit = AuditConfig(k=(PLACES,), max_users=config.max_users, seed=run.seed)
    if config.beam is not None:
        audit = replace(audit, beam=config.beam)
    if config.mass_users is not None:
        audit = replace(audit, mass_users=config.mass_users, saturated_histories=config.mass_users)
    entrants, left_out = runnable(entrants, before)
    bench = Bench(catalogue, chosen, before, gone, audit, run, out, config.search_users, fresh, observer)
    for entrant in entrants:
        bench.prepared(entrant, entrant.config)  # what does not belong here is refused before anything is written
    tried = {
        (entrant.name, scope): settings(entrant, config.search, run.seed)
        for scope in config.scopes
        for entrant in entrants
    }
    return Session(bench, config, entrants, gold, tried, left_out=left_out)


def ahead_of(session: Session) -> int:
    """Cells that are to be made; of what a search will choose, all."""
    bench, config, count = session.bench, session.config, 0
    for entrant, scope in session.pairs:
        tried = session.tried[entrant.name, scope]
        if config.search:
            count += sum(not bench.has(entrant, x, scope, config.seeds[0], "valid") for x in tried) + len(config.seeds)
        else:
            count += sum(not bench.has(entrant, tried[0], scope, seed, "test") for seed in config.seeds)
    return count


def cells_of(session: Session) -> int:
    trials = sum(map(len, session.tried.values())) if session.config.search else 0
    return trials + len(session.pairs) * len(session.config.seeds) + 2 + len(session.references)


def controls_of(session: Session, part: Part) -> dict[str, Reading]:
    """The original and, for the test, the filter, read once."""
    if part not in session.controls:
        cache: Cache = {}
        names: tuple[Role, ...] = ("original", "filter") if part == "test" else ("original",)
        read, before = session.bench.read_checkpoint, session.bench.before
        session.controls[part] = {name: read(name, before, part, cache) for name in names}
    return session.controls[part]


def cell_of(
    session: Session, entrant: Contender, setting: Setting, scope: Scope, seed: int, part: Part
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
        observer.note(
            f"{what}: {told}; {left} left" + (f", about {np.mean(session.spent) * left:,.0f} s" if left else "")
        )
    observer.advance(TASK, 1, **figures)
    return made, reading


def tried_reading(session: Session, entrant: Contender, setting: Setting, scope: Scope) -> Reading:
    """What validation users say of one setting; its model need not be there any more."""
    bench, seed = session.bench, session.config.seeds[0]
    found = bench.found(entrant, setting, scope, seed, "valid")
    if found is None:
        return cell_of(session, entrant, setting, scope, seed, "valid")[1]
    bench.observer.advance(TASK, 1, method=entrant.name, seed=str(seed))
    return found


def chosen_setting(session: Session, entrant: Contender, scope: Scope) -> tuple[tuple[Trial, ...], Setting]:
    """What a search of one method tried, and the setting that it takes: the method's own when all failed."""
    tried = session.tried[entrant.name, scope]
    original = controls_of(session, "valid")["original"]
    gold = [session.bench.read_checkpoint("reference", x, "valid", {}) for x in session.references]
    told = original, gold, session.bench.audit_of("valid")
    trials = [trial(entrant.name, scope, x.changed, tried_reading(session, entrant, x, scope), *told) for x in tried]
    best = choose(trials, session.config.max_drop)
    return marked(trials, best), tried[best or 0]


def searched(session: Session) -> tuple[Search | None, dict[tuple[str, Scope], Setting]]:
    """What the search found, and the setting of every method and scope."""
    config = session.config
    if not config.search:
        return None, {key: tried[0] for key, tried in session.tried.items()}
    taken: dict[tuple[str, Scope], Setting] = {}
    trials: list[Trial] = []
    for entrant, scope in session.pairs:
        found, chosen = chosen_setting(session, entrant, scope)
        trials += found
        taken[entrant.name, scope] = chosen
        for x in session.tried[entrant.name, scope] if not config.keep_tried else ():
            if x is not chosen:
                session.bench.prune(entrant, x, scope, config.seeds[0])
    users = len(session.bench.worlds["valid"].histories)
    told = Search(
        config.search,
        config.seeds[0],
        config.max_drop,
        criterion(config.max_drop, bool(session.references)),
        users,
        tuple(trials),
    )
    return told, taken


def rows_of(
    session: Session, scope: Scope, taken: Mapping[tuple[str, Scope], Setting]
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of one scope, controls first, and what the methods cost."""
    bench, extras = session.bench, session.extras
    control = controls_of(session, "test")
    gold = tuple(bench.read_checkpoint("reference", x, "test", {}) for x in session.references)
    if scope == session.config.scopes[0]:
        bench.observer.advance(TASK, 2 + len(gold))
    base = Base(control["original"], gold)
    own = {name: figures([control[name]], base, bench.audit, name, scope) for name in ("original", "filter")}
    rows = [
        Row("original", "control", scope, own["original"] | extras.original()),
        Row("filter", "control", scope, own["filter"]),
    ]
    if gold:
        read = figures(gold, base, bench.audit, "reference", scope)
        rows.append(Row("reference", "reference", scope, read | extras.figures(extras.gold, whole=False)))
    costs: dict[str, Any] = {}
    for entrant in session.entrants:
        made = {
            seed: cell_of(session, entrant, taken[entrant.name, scope], scope, seed, "test")
            for seed in session.config.seeds
        }
        session.models[entrant.name, scope] = [cell[0].digest for cell in made.values()]
        rows.append(_method_row(session, entrant, taken[entrant.name, scope], scope, made, base))
        alive = [cell[0] for cell in made.values() if not cell[1].failure]
        if alive:
            seconds, busy = [x.seconds for x in alive], [x.cpu_seconds for x in alive if x.cpu_seconds is not None]
            costs[entrant.name] = {"seconds": float(np.mean(seconds)), "most": max(seconds)}
            costs[entrant.name] |= {"cpu_seconds": float(np.mean(busy))} if busy else {}
    return rows, costs


def _method_row(
    session: Session,
    entrant: Contender,
    setting: Setting,
    scope: Scope,
    made: Mapping[int, tuple[Made, Reading]],
    base: Base,
) -> Row:
    """One method's row, from its cells by seed."""
    bench = session.bench
    alive = {seed: cell for seed, cell in made.items() if not cell[1].failure}
    models: list[Model] = [(x.key, "subject", partial(bench.opened, x)) for x, _ in alive.values()]
    found = figures([reading for _, reading in alive.values()], base, bench.audit, scope=scope)
    searched = len(session.tried[entrant.name, scope]) > 1
    return Row(
        entrant.name,
        "method",
        scope,
        found | session.extras.figures(models),
        "searched" if searched else "given" if entrant.given else "untuned",
        told_settings(setting.config, bench.prepared(entrant, setting.config)),
        tuple(alive),
        next((x.steps for x, _ in alive.values()), None),
        failures=tuple(f"seed {s}: {cell[1].failure}" for s, cell in made.items() if cell[1].failure),
    )
