"""How well each metric of an audit tells models that were trained with the concept from models that were not (`make meta`).

The decision that shaped this file: a model of a pool is audited as any checkpoint is, in the role of the subject and with its
histories as they are, so that nothing tells it from the others but its weights. Pools are of small models on the catalogue of the
demo, each with a seed of its own; both have the same recipes, several sizes and lengths of training, so that no metric can win by
knowing how large a model is. A third pool has the weights of the first and lists no concept item: what only sees the shop window
takes it for clean. Every model, and every probe's reading of one, is kept under the digest of its cause, so that a run may be
stopped and repeated, and a new probe is all that is read when there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from meta_figures import Run, Values, figures, tables, write_power

from recerase import api
from recerase.assembly import RUN, data_digest, open_checkpoint_for, open_sids, run_key
from recerase.audit.cards import PROBES, load_probe, probes_of
from recerase.audit.probes import AuditConfig, AuditWorld, build_world
from recerase.audit.readings import Cache, Readings
from recerase.auditing import audit_model
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.layouts.native import Checkpoint
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig, choose_device, code_digest, environment, pinned, rooms_of
from recerase.sid.quantize import TokenizeConfig
from recerase.store import canonical_json, pretty_json, publish, sha256_bytes, write_bytes
from recerase.types import SILENT, Measurement, Role, Skipped

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
POOLS = ("with", "without", "filter")
_TRAINING = ("recerase.model.training", "recerase.model.recommender")
_ROOMS = ("audit/", "catalog/", "model/", "sid/", "stats.py")
"""Of all that a probe imports, what a number can depend on."""
_CARDS = "audit/card"
"""Files of words; which metrics a card names is in a reading's cause by itself."""


@dataclass(frozen=True)
class Recipe:
    """How a model of a pool is made, but for its seed."""

    width: int
    layers: int
    epochs: int
    dropout: float


RECIPES = (
    Recipe(64, 2, 8, 0.0),
    Recipe(48, 2, 10, 0.1),
    Recipe(64, 1, 9, 0.0),
    Recipe(48, 1, 10, 0.0),
    Recipe(56, 2, 7, 0.1),
)
"""The models of a pool have them in turn: both halves of a pool of ten have the same."""


@dataclass(frozen=True)
class Setup:
    """What the pools are made of, and how they are read."""

    runs: Path
    models: int = 10
    """In each pool."""
    items: int = 600
    users: int = 2000
    codes: int = 48
    recipes: tuple[Recipe, ...] = RECIPES
    audit: AuditConfig = field(
        default_factory=lambda: AuditConfig(
            max_users=500, mass_users=200, saturated_histories=200, depth_users=100, profile="standard"
        )
    )
    run: RunConfig = field(default_factory=lambda: replace(RUN, threads=1, device="cpu"))
    probes: tuple[str, ...] = ()
    """Those that are read; none: all of the profile."""


@dataclass(frozen=True)
class Member:
    """One model: `with` or `without` the concept, and its seed."""

    concept: bool
    seed: int

    @property
    def name(self) -> str:
        """As it is told, and as its directory begins."""
        return f"{'with' if self.concept else 'without'}-{self.seed}"


@dataclass(frozen=True, eq=False)
class Bench:
    """The catalogue with its SIDs, and the models and readings that are kept beside it."""

    setup: Setup

    @cached_property
    def data(self) -> Path:
        """The demo's catalogue, made when it is not there."""
        setup = self.setup
        cause = {"items": setup.items, "users": setup.users, "code": code_digest("catalog")}
        path = setup.runs / f"data-{_short(cause)}"
        if not path.is_dir():
            with publish(path) as made:
                write_catalogue(made.directory, *demo_catalogue(setup.run.seed, setup.items, setup.users))
                made.provenance = {"command": "meta", **cause}
        return path

    @cached_property
    def sids(self) -> Path:
        """The SIDs that all models speak."""
        config = TokenizeConfig(codes=self.setup.codes, seed=self.setup.run.seed)
        cause = {"config": asdict(config), "data": data_digest(self.catalogue), "code": code_digest("catalog", "sid")}
        path = self.setup.runs / f"sids-{_short(cause)}"
        if not path.is_dir():
            api.tokenize(self.data, path, config, dims=config.codes)
        return path

    @cached_property
    def catalogue(self) -> Any:
        """As loaded from its directory."""
        return load_catalogue(self.data)

    @cached_property
    def world(self) -> AuditWorld:
        """What every model is read on."""
        _, codebooks, points = open_sids(self.sids, self.catalogue.items, None, SILENT)
        concept = parse_concept([DEMO_CONCEPT], self.catalogue.items, embeddings=points, allow_large=True)
        return build_world(self.catalogue, concept, embeddings=points, codebooks=codebooks, config=self.setup.audit)

    def members(self, pool: str) -> tuple[Member, ...]:
        """Every model of a pool; no seed is in both, and the filters are those with the concept."""
        n = self.setup.models
        seeds = range(n) if pool != "without" else range(n, 2 * n)
        return tuple(Member(pool != "without", seed) for seed in seeds)

    @property
    def beside(self) -> dict[Role, Member]:
        """What a probe may hold a subject against: one further model of either kind, in no pool."""
        n = 2 * self.setup.models
        return {"original": Member(True, n), "reference": Member(False, n + 1)}

    def trained(self, member: Member) -> Path:
        """Where the model is; trained when it is not there."""
        recipe = self.setup.recipes[member.seed % self.setup.models % len(self.setup.recipes)]
        shape = ModelConfig(width=recipe.width, layers=recipe.layers, heads=4, feed_forward=2 * recipe.width)
        how = TrainConfig(epochs=recipe.epochs, dropout=recipe.dropout, seed=member.seed, validation_users=200)
        cause = {"model": asdict(shape), "training": asdict(how), "without": None if member.concept else DEMO_CONCEPT}
        cause |= {"seed": member.seed, "code": _code_of(*_TRAINING)}
        path = self.setup.runs / "models" / f"{member.name}-{_short({**self.causes, **cause})}"
        if not path.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            without = None if member.concept else api.ConceptSpec((DEMO_CONCEPT,), allow_large=True)
            began = time.monotonic()
            api.train(self.data, self.sids, path, shape, how, without=without, run=self.setup.run)
            note(f"{member.name}: trained in {time.monotonic() - began:.0f} s")
        return path

    @cached_property
    def table_digest(self) -> str:
        """Of the SID table in the catalogue's order."""
        return open_sids(self.sids, self.catalogue.items, None, SILENT)[0].digest

    def opened(self, member: Member) -> Checkpoint:
        """A model of a pool, or one beside them."""
        return open_checkpoint_for(self.trained(member), self.catalogue, self.setup.run)

    @cached_property
    def others(self) -> dict[Role, Readings]:
        """Readings of the models beside, kept while the run lasts: they are the same for every subject."""
        shared: Cache = {}
        opened = {role: self.opened(member) for role, member in self.beside.items()}
        models = {role: audit_model(role, found, found.table) for role, found in opened.items()}
        return {role: Readings(model, self.world, shared) for role, model in models.items()}

    def read(self, member: Member) -> dict[str, Values]:
        """What the probes of the profile say of a model: by `with` or `without`, and `filter` for one with the concept."""
        checkpoint, cache = self.opened(member), dict[Any, Any]()
        as_it_is = audit_model("subject", checkpoint, checkpoint.table)
        pools = {"with" if member.concept else "without": as_it_is}
        if member.concept:
            pools["filter"] = replace(as_it_is, listed=as_it_is.listed & self.world.retained)
        return {pool: self._read(f"{member.name}, {pool}", model, cache) for pool, model in pools.items()}

    def _read(self, name: str, model: Any, cache: Cache) -> Values:
        readings = Readings(model, self.world, cache, beside=(beside := {}))
        values: dict[str, Any] = {"measured": {}, "skipped": {}, "seconds": {}}
        for probe in self.setup.probes or probes_of(self.setup.audit.profile):
            path = self.setup.runs / "readings" / f"{probe}-{_short(self._cause(probe, model))}.json"
            if not path.is_file():
                beside |= {**self.others, "subject": readings}
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, pretty_json(told := _asked(probe, readings, self.setup.run)))
                note(f"{name}: {probe}, {told['seconds']:.1f} s")
            found = json.loads(path.read_bytes())
            values["seconds"][probe] = found["seconds"]
            for part in ("measured", "skipped"):
                values[part] |= found[part]
        return Values(**values)

    @cached_property
    def causes(self) -> dict[str, Any]:
        """What every model and every reading depends on."""
        key = run_key(self.setup.run, self.setup.run.seed, data_digest(self.catalogue), table=self.table_digest)
        return {name: value for name, value in key.items() if name != "code"}

    def _cause(self, probe: str, model: Any) -> dict[str, Any]:
        """All that a probe's reading of a model depends on, the other models of its audit among it."""
        card, world = PROBES[probe], self.world
        entries = {
            "probe": [card.name, card.function, sorted(spec.name for spec in card.metrics)],
            "model": [model.digest, sha256_bytes(model.listed.tobytes())],
            "beside": {role: str(self.trained(member).name) for role, member in self.beside.items()},
            "settings": {name: value for name, value in asdict(world.config).items() if name != "profile"},
            "concept": world.concept.digest,
        }
        return {**self.causes, **entries, "code": _code_of(f"recerase.audit.{card.function.split(':')[0]}")}


def _asked(probe: str, readings: Readings, run: RunConfig) -> dict[str, Any]:
    """A probe's numbers, what it skipped and why, and the seconds of processor time it took beyond what is shared."""
    began = time.process_time()
    with pinned(run.threads, run.seed):
        found = load_probe(probe)(readings)
    return {
        "measured": {x.metric: x.value for x in found if isinstance(x, Measurement)},
        "skipped": {x.metric: x.reason for x in found if isinstance(x, Skipped)},
        "seconds": round(time.process_time() - began, 3),
    }


@cache
def _code_of(*modules: str) -> str:
    """Digest of what a number of these modules depends on."""
    return code_digest(
        *(room for room in rooms_of(*modules) if room.startswith(_ROOMS) and not room.startswith(_CARDS))
    )


def _short(cause: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(cause))[:20]


def note(text: str) -> None:
    """A line on stderr, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def read_pools(bench: Bench) -> dict[str, list[Values]]:
    """[n] what was read off every model of every pool, the models in the order of their seeds."""
    found: dict[str, list[Values]] = {pool: [] for pool in POOLS}
    for member in _in_turn(bench):
        for pool, values in bench.read(member).items():
            found[pool].append(values)
    return found


def _in_turn(bench: Bench) -> Iterator[Member]:
    """One of either kind after the other, so that a run that was stopped has as many of both."""
    for pair in zip(bench.members("with"), bench.members("without"), strict=True):
        yield from pair


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=Setup.models, help="models in each pool")
    parser.add_argument("--profile", choices=("quick", "standard", "thorough"), default="standard")
    parser.add_argument("--probes", nargs="+", choices=tuple(PROBES), default=[], help="read these alone")
    parser.add_argument("--runs", default=str(REPOSITORY / "runs" / "meta"), help="where models and readings are kept")
    parser.add_argument("--out", default=str(HERE), help="where META.md goes")
    parser.add_argument("--power", metavar="FILE", help="the JSON that ships (default: that of the package)")
    parser.add_argument("--make", action="store_true", help="train and read what is not there, and write no table")
    return parser


def main(arguments: Sequence[str] | None = None, setup: Setup | None = None) -> int:
    """Parse the options, make what is not there, and write the table and the file that ships."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = _parser().parse_args(words)
    setup = setup or Setup(Path(given.runs), given.models)
    setup = replace(setup, audit=replace(setup.audit, profile=given.profile), probes=tuple(given.probes))
    bench = Bench(setup)
    for member in (*bench.beside.values(), *_in_turn(bench)):
        bench.trained(member)
    values = read_pools(bench)
    if given.make:
        return 0
    told = environment(setup.run.seed, setup.run.threads, choose_device(setup.run.device))
    run = Run(
        date=time.strftime("%Y-%m-%d"),
        command=" ".join(["python benchmarks/meta.py", *words]) if words else "make meta",
        recipes=tuple(asdict(recipe) for recipe in setup.recipes),
        catalogue={"items": setup.items, "users": setup.users, "concept": DEMO_CONCEPT},
        audit={name: value for name, value in asdict(setup.audit).items() if name != "k"},
        where=f"{told.threads} torch thread, {told.device}, torch {told.torch}, {told.platform}",
    )
    found = figures(values, setup.audit.k)
    write_bytes(Path(given.out) / "META.md", tables(found, values, run).encode())
    write_power(found, run, setup.models, Path(given.power) if given.power else None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
