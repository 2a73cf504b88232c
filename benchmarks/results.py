"""The numbers of the README: every method on three data sets and three concepts each, beside references (`make results`).

The decision that shaped this file: it measures nothing. Models are trained by `recerase.api.train` and compared by
`recerase.api.compare`, as a user would, so that what stands in RESULTS.md can be had from the command line; everything made
on the way is kept under runs/ and found again, and a run may be stopped and repeated at any time. Needs the data folder
(RECERASE_DATA, or shared/data beside the repository) and says so where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from results_tables import results_markdown, write_readme

from recerase import api
from recerase.errors import RecEraseError, UsageError
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig, environment
from recerase.sid.quantize import TokenizeConfig
from recerase.store import canonical_json, pretty_json, read_manifest, read_run, write_bytes

METHODS = (
    "tracer", "renormalise", "npo", "simnpo", "ga", "graddiff", "undial", "rmu", "e2urec", "scif", "task-vector",
    "mmrecun", "u-can", "unlearnrec", "cragru",
)  # fmt: skip
CLOSE = ("tracer", "renormalise", "npo")
"""Those that are run with three seeds, and attacked by relearning."""
ABLATION: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("as in the paper", "tracer/paper", ("min_moved=0",)),
    ("+ AdamW, tau from .1 to .02, clipped", "tracer/paper", ("optimizer=adamw", "lr=5e-4", "phi_lr=5e-2", "tau_start=0.1",
        "tau_end=0.02", "clip=1", "reassign_steps=100", "min_moved=0")),
    ("+ bounded forgetting (NPO), neighbours by mass", "tracer/paper", ("optimizer=adamw", "lr=5e-4", "phi_lr=5e-2", "tau_start=0.1",
        "tau_end=0.02", "clip=1", "reassign_steps=100", "min_moved=0", "forget_loss=npo", "coherence=mass", "coherence_weight=0.02")),
    ("+ commit by assignment", "tracer/paper", ("optimizer=adamw", "lr=5e-4", "phi_lr=5e-2", "tau_start=0.1", "tau_end=0.02",
        "clip=1", "reassign_steps=100", "min_moved=0", "forget_loss=npo", "coherence=mass", "coherence_weight=0.02",
        "commit=assignment")),
    ("target distilled while reassigning, no settling", "tracer", ("settle_steps=0", "reassign_steps=60", "min_moved=0")),
    ("settling alone (renormalise, codes as they were)", "renormalise", ()),
    ("all of it (tracer)", "tracer", ()),
)  # fmt: skip
"""Label, method and settings: from the paper to ours, one change after the other. `tracer/paper` stands here alone, for it takes
longer than all other methods together."""
ABLATED = ("ind-hatchbox", "ml-horror")
INFLUENCE = ("tracer", "renormalise", "npo")
"""Those that are run in scope `influence` too: the two that press for it, and one that does not."""
INFLUENCED = (*ABLATED, "beauty-opi")
FIXED = ("cragru", "tracer", "renormalise")
"""Those whose settings are not searched: it has no strength, and they run as they are shipped, tuned by hand on validation users."""
HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SCRIPT = "benchmarks/results.py"
SCHEMA = "recerase.results/2"
SEARCH = 3
"""Settings a method, its own among them."""


@dataclass(frozen=True)
class World:
    """A data set with its SIDs, its concepts, and how long its models are trained."""

    name: str
    data: str
    """Directory below the data folder."""
    sids: str | TokenizeConfig
    """A table in the data directory that was made elsewhere, or how we tokenize."""
    epochs: int
    concepts: dict[str, str]
    references: int
    """How many, with seeds 0, 1, ...; the original has seed 0."""
    searched: bool = True
    """Whether settings are searched; where not, every method runs with its own."""
    dropout: float = TrainConfig.dropout
    users: int | None = None
    """How many test users are drawn whose lists are read, unless the command says; None: all."""


WORLDS = (
    World(
        "ind",
        "amazon_industrial",
        "sids.json",
        24,
        {
            "filament": 'category="3D Printing Filament"',
            "hatchbox": "brand=HATCHBOX",
            "needles": 'text~"syringe|needle"',
        },
        3,
    ),
    World(
        "ml",
        "ml-100k",
        TokenizeConfig(levels=3, codes=64),
        16,
        {"horror": "category=Horror", "childrens": 'category="Children\'s"', "war": "category=War"},
        3,
    ),
    World(
        "beauty",
        "amazon_beauty_2014",
        "sids_letter.json",
        20,
        {
            "opi": "brand=OPI",
            "fragrance": "category=Fragrance",
            "lightening": 'text~"whiten|lighten|bleach|hydroquinone|fade cream|brightening"',
        },
        1,
        searched=False,
        dropout=0.1,
        users=6000,
    ),
)


@dataclass(frozen=True)
class Setup:
    """Where things are, and what is compared how."""

    data: Path
    runs: Path
    passes: Mapping[str, api.CompareConfig]
    """Name -> what is compared: `methods`, all of them; `seeds`, those that a reader looks at most closely."""
    searched: api.CompareConfig
    """How settings are chosen, on the first concept of a data set."""
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(bf16=True))
    """`epochs` and `dropout` are the world's."""
    threads: int = 1


def sids_of(world: World, setup: Setup) -> Path:
    """The SIDs of a world; our own tokenization is made when it is not there."""
    if isinstance(world.sids, str):
        return setup.data / world.data / world.sids
    path = setup.runs / f"{world.name}-sids"
    if not path.is_dir():
        api.tokenize(setup.data / world.data, path, world.sids)
    return path


def _sids(world: World) -> str:
    """What is said of a world's SIDs."""
    if isinstance(world.sids, str):
        return f"`{world.sids}`"
    return f"our own, {world.sids.levels} x {world.sids.codes}"


def trained(world: World, concept: str | None, seed: int, setup: Setup, train: bool = True) -> Path:
    """The original (`concept` None) or a reference, made when it is not there.

    Raises UsageError when there is one of another recipe or concept, or none and `train` is False.
    """
    path = setup.runs / f"{world.name}-{concept or 'orig'}-{seed}"
    recipe = _training(world, setup) | {"seed": seed}
    if not path.is_dir():
        if not train:
            raise UsageError(f"{path.name} is not trained yet.", "Leave --no-train out.")
        spec = api.ConceptSpec((world.concepts[concept],)) if concept else None
        run = RunConfig(seed=seed, threads=setup.threads)
        sids = sids_of(world, setup)
        api.train(
            setup.data / world.data,
            sids,
            path,
            setup.model,
            TrainConfig(**recipe),
            without=spec,
            run=run,
            observer=LINES,
        )
    told = read_manifest(path)["provenance"]
    left_out = None if concept is None else [world.concepts[concept]]
    without = None if told["without"] is None else list(told["without"]["spec"])
    if told["training"] != recipe or told["model"] != asdict(setup.model) or without != left_out:
        raise UsageError(f"{path} was trained by another recipe.", "Remove it to train it again.")
    return path


def prepared(world: World, setup: Setup) -> Path:
    """What `unlearnrec` learned of a world's original, once for all its concepts; made when it is not there."""
    path = setup.runs / f"{world.name}-prepared"
    if not path.is_dir():
        original = trained(world, None, 0, setup, train=False)
        api.prepare(original, setup.data / world.data, path, run=RunConfig(threads=setup.threads), observer=LINES)
    return path


def chosen(world: World, setup: Setup) -> tuple[str, ...]:
    """`METHOD.KEY=VALUE` of every setting that a search on validation users of the first concept changed, for all concepts."""
    path = setup.runs / "compared" / f"{world.name}-settings.json"
    return tuple(json.loads(path.read_bytes())) if path.is_file() else ()


def search(world: World, setup: Setup, config: api.CompareConfig) -> None:
    """Give every method the same number of settings on the first concept, and keep what validation users chose."""
    concept = next(iter(world.concepts))
    out = setup.runs / "compared" / f"{world.name}-{concept}"
    found = _compare(world, concept, setup, config, out, world.references)
    trials = found.search.trials if found.search else ()
    pairs = [f"{t.method}.{key}={value}" for t in trials if t.chosen for key, value in t.settings.items()]
    write_bytes(setup.runs / "compared" / f"{world.name}-settings.json", pretty_json(pairs))


def compared(world: World, concept: str, setup: Setup, name: str) -> None:
    """One comparison of one concept, under the name it has in `setup.passes`; finished cells are found."""
    config = setup.passes[name]
    given = [pair for pair in chosen(world, setup) if pair.split(".", 1)[0] in config.methods]
    out = setup.runs / "compared" / f"{world.name}-{concept}"
    _compare(world, concept, setup, replace(config, overrides=(*config.overrides, *given)), out, world.references)
    made = json.loads((out / "comparison.json").read_bytes())
    asked = {"recipe": _recipe(world, setup), "asked": _plain(asdict(config)), "settings": given}
    write_bytes(_part(world, concept, name, setup), pretty_json({**asked, "comparison": made}))


def ablated(world: World, concept: str, setup: Setup) -> None:
    """The steps from the paper's settings to ours, on one group."""
    out = setup.runs / "compared" / f"{world.name}-{concept}"
    found = []
    for label, method, pairs in ABLATION:
        given = tuple(f"{method}.{pair}" for pair in pairs)
        config = replace(setup.passes["methods"], methods=(method,), overrides=given)
        _compare(world, concept, setup, config, out, world.references)
        found.append({"label": label, "comparison": json.loads((out / "comparison.json").read_bytes())})
    asked = {"recipe": _recipe(world, setup), "asked": [label for label, _, _ in ABLATION]}
    write_bytes(_part(world, concept, "ablation", setup), pretty_json({**asked, "steps": found}))


def _recipe(world: World, setup: Setup) -> Any:
    """How the models of a world are trained."""
    return _plain({"model": asdict(setup.model), "training": _training(world, setup)})


def _training(world: World, setup: Setup) -> dict[str, Any]:
    return asdict(setup.training) | {"epochs": world.epochs, "dropout": world.dropout}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def _compare(
    world: World, concept: str, setup: Setup, config: api.CompareConfig, out: Path, references: int
) -> api.Comparison:
    original = trained(world, None, 0, setup, train=False)
    paths = [trained(world, concept, seed, setup, train=False) for seed in range(references)]
    if "unlearnrec" in config.methods:
        ready = f"unlearnrec.prepared={prepared(world, setup)}"
        config = replace(config, overrides=(*config.overrides, ready))
    seconds = float(read_run(original).get("seconds", 0)) or None
    config = replace(config, max_users=config.max_users or world.users)
    return api.compare(
        original,
        api.ConceptSpec((world.concepts[concept],), name=concept),
        setup.data / world.data,
        out,
        replace(config, training_seconds=config.training_seconds or seconds),
        references=paths,
        force=True,
        run=RunConfig(threads=setup.threads),
        observer=LINES,
    )


class Lines:
    """An observer that writes a line to stderr for every note, and when a task of more than a minute ends."""

    def __init__(self) -> None:
        self.cell = ""
        self._began: dict[str, float] = {}

    def start(self, task: str, total: int | None) -> None:
        self._began[task] = time.monotonic()

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None: ...

    def finish(self, task: str) -> None:
        spent = time.monotonic() - self._began.get(task, time.monotonic())
        if spent > 60:
            self.note(f"{task}, {spent:.0f} s")

    def note(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.cell}: {text}", file=sys.stderr, flush=True)


LINES = Lines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, find the data, and make what is not there: models, settings, comparisons."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = _parser().parse_args(words)
    data = Path(os.environ.get("RECERASE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not data.is_dir():
        print(f"No data sets at {data}: set RECERASE_DATA to a folder that holds them. Nothing was measured.")
        return 0
    groups = {f"{world.name}-{concept}": (world, concept) for world in WORLDS for concept in world.concepts}
    unknown = sorted({*given.only} - {*groups})
    if unknown:
        print(f"Unknown: {', '.join(unknown)}. There are: {', '.join(groups)}.", file=sys.stderr)
        return 2
    setup = Setup(data, Path(given.runs), *configs(given))
    if given.step:
        return _step(given.step, groups, setup)
    wanted = {name: groups[name] for name in given.only or groups}
    if not given.write:
        codes = _made(wanted, given, setup, words)
        write(groups, setup, Path(given.out))
        wrong = [code for code in codes if code]
        return 0 if not wrong else wrong[0] if wrong[0] > 0 else 3  # below 0: a signal ended it
    write(groups, setup, Path(given.out))
    return 0


def _made(
    wanted: Mapping[str, tuple[World, str]], given: argparse.Namespace, setup: Setup, words: Sequence[str]
) -> list[int]:
    """Train, choose settings, compare; the exit codes of all steps."""
    worlds = {world.name: world for world, _ in wanted.values()}
    with ThreadPoolExecutor(given.jobs) as pool:
        for world in worlds.values():
            sids_of(world, setup)
        models = [f"train {name} {seed}" for name, (world, _) in wanted.items() for seed in range(world.references)]
        codes = _run(pool, [*(f"train {name}-orig 0" for name in worlds), *models], words)
        if "unlearnrec" in setup.passes["methods"].methods:
            codes += _run(pool, [f"prepare {name}" for name in worlds], words)
        if given.search > 1:
            codes += _run(pool, [f"search {name}" for name, world in worlds.items() if world.searched], words)
        for part in setup.passes:
            steps = [f"compare {name} {part}" for name in wanted if _belongs(name, part)]
            codes += _run(pool, steps, words)
        return codes + _run(pool, [f"ablation {name}" for name in wanted if name in ABLATED], words)


def _belongs(group: str, part: str) -> bool:
    """Whether a pass is made of a group: three of them are not made of all."""
    some = {"influence": group in INFLUENCED, "ahead": group in ABLATED, "ucan": group.startswith("ml-")}
    return some.get(part, True)


def configs(given: argparse.Namespace) -> tuple[dict[str, api.CompareConfig], api.CompareConfig]:
    """The passes and the search that the options ask for."""
    common: dict[str, Any] = {"max_users": given.max_users, "mass_users": given.mass_users}
    whole = api.CompareConfig(methods=METHODS, seeds=(0,), **common)
    close = api.CompareConfig(methods=CLOSE, seeds=(0, 1, 2), relearn=True, **common)
    tried = tuple(name for name in METHODS if name not in FIXED)
    few = {
        "search": given.search,
        "search_users": given.search_users,
        "max_users": given.search_users,
        "mass_users": 200,
    }
    figures = replace(whole, ucan=given.ucan)
    nought = api.CompareConfig(methods=INFLUENCE, seeds=(0,), scope="influence", **common)
    ahead = replace(close, methods=("tracer",), overrides=("tracer.look_ahead=3",))
    passes = {"methods": whole, "seeds": close, "influence": nought, "ahead": ahead, "ucan": figures}
    return passes, api.CompareConfig(methods=tried, seeds=(0,), **few)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="such as ind-filament")
    parser.add_argument("--search", type=int, default=SEARCH, help="settings tried a method and data set")
    parser.add_argument("--search-users", type=int, default=500, help="validation users that choose settings")
    parser.add_argument("--max-users", type=int, help="test users whose lists are read (default: all)")
    parser.add_argument("--mass-users", type=int, default=300, help="users whose exact mass is read")
    parser.add_argument("--ucan", type=int, default=300, help="training pairs of each kind behind U-CAN's figures")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", default=str(REPOSITORY / "runs"), help="where models and cells are kept")
    parser.add_argument("--out", default=str(HERE), help="where RESULTS.md and results.json go")
    parser.add_argument("--write", action="store_true", help="write the tables of what is there, and make nothing")
    parser.add_argument(
        "--step", help="one step alone: `train ind-orig 0`, `search ind`, `compare ind-filament methods`"
    )
    return parser


def _run(pool: ThreadPoolExecutor, steps: Sequence[str], words: Sequence[str]) -> list[int]:
    """Every step in a process of its own, given the same `words`; the exit codes."""

    def one(step: str) -> int:
        return subprocess.run([sys.executable, __file__, *words, "--step", step], check=False).returncode

    return list(pool.map(one, steps))


def _step(step: str, groups: Mapping[str, tuple[World, str]], setup: Setup) -> int:
    """Train a model, choose a world's settings, or compare one group in one pass."""
    LINES.cell = step
    kind, name, *rest = step.split()
    worlds = {world.name: world for world, _ in groups.values()}
    try:
        if kind == "prepare":
            prepared(worlds[name], setup)
        elif kind == "search":
            search(worlds[name], setup, setup.searched)
        elif kind == "compare":
            compared(*groups[name], setup, rest[0])
        elif kind == "ablation":
            ablated(*groups[name], setup)
        elif name.endswith("-orig"):
            trained(worlds[name.removesuffix("-orig")], None, int(rest[0]), setup)
        else:
            world, concept = groups[name]
            trained(world, concept, int(rest[0]), setup)
    except RecEraseError as error:
        LINES.note(str(error))
        return error.exit_code
    return 0


def _part(world: World, concept: str, name: str, setup: Setup) -> Path:
    return setup.runs / "compared" / f"{world.name}-{concept}-{name}.json"


def write(groups: Mapping[str, tuple[World, str]], setup: Setup, out: Path) -> None:
    """RESULTS.md, results.json and the README's table, from what is finished."""
    found: dict[str, Any] = {}
    for name, (world, concept) in groups.items():
        parts = {part: _finished(world, concept, part, setup) for part in (*setup.passes, "ablation")}
        told = _alike(name, {part: value for part, value in parts.items() if value})
        if not told:
            continue
        models = [f"{world.name}-orig-0", *(f"{world.name}-{concept}-{seed}" for seed in range(world.references))]
        found[name] = {
            "data": world.data,
            "spec": world.concepts[concept],
            "validation": [_validation(setup.runs / model) for model in models],
            "behind": [part for part, value in told.items() if _behind(world, setup, value)],
            "other_code": [part for part, value in told.items() if _codes(value) - _codes(told.get("methods", value))],
            "passes": {part: value for part, value in told.items() if part != "ablation"},
            **({"ablation": told["ablation"]["steps"]} if "ablation" in told else {}),
        }
    results = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "command": "make results"
        if setup.searched.search == SEARCH
        else f"python {SCRIPT} --search {setup.searched.search}",
        "model": asdict(setup.model),
        "training": asdict(setup.training),
        "epochs": {world.name: world.epochs for name, (world, _) in groups.items() if name in found},
        "sids": {world.name: _sids(world) for name, (world, _) in groups.items() if name in found},
        "dropout": {world.name: world.dropout for name, (world, _) in groups.items() if name in found},
        "searched": {
            "budget": setup.searched.search,
            "users": setup.searched.search_users,
            "without": sorted({world.data for world, _ in groups.values() if not world.searched}),
        },
        "environment": asdict(environment(0, setup.threads)),
        "groups": found,
    }
    write_bytes(out / "results.json", canonical_json(results) + b"\n")
    write_bytes(out / "RESULTS.md", results_markdown(results).encode())
    if out == HERE:
        write_readme(results, REPOSITORY / "README.md")


def _behind(world: World, setup: Setup, part: Any) -> bool:
    """Whether a part was made with other settings than the search has chosen since."""
    if "settings" not in part:
        return False
    return part["settings"] != [x for x in chosen(world, setup) if x.split(".", 1)[0] in part["asked"]["methods"]]


def _alike(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a group that were read as its first one was: of the same models, data, concept and users; others are said aloud.

    Steps from the paper's settings to ours are no group by themselves.
    """
    first = next(iter(told), "ablation")
    alike = {} if first == "ablation" else {part: x for part, x in told.items() if _read(x) == _read(told[first])}
    for part in [part for part in told if part not in alike]:
        LINES.note(f"{name}-{part} is left out: no table of {name} was made of the same models, data and users")
    return alike


def _read(part: Any) -> list[dict[str, str]]:
    """Digests of what a part was read from, and how; without the code."""
    found = [{key: value for key, value in made["inputs"].items() if key != "code"} for made in _comparisons(part)]
    return [inputs for i, inputs in enumerate(found) if inputs not in found[:i]]


def _codes(part: Any) -> set[str]:
    """Digests of the code that made a part."""
    return {found["inputs"]["code"] for found in _comparisons(part)}


def _comparisons(part: Any) -> list[Any]:
    return [step["comparison"] for step in part["steps"]] if "steps" in part else [part["comparison"]]


def _finished(world: World, concept: str, part: str, setup: Setup) -> Any:
    """What a step left; None, said aloud, when that was of another recipe or other options."""
    path = _part(world, concept, part, setup)
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())
    asked: Any = [label for label, _, _ in ABLATION]
    if part != "ablation":
        asked = _plain(asdict(setup.passes[part]))
    if found["recipe"] != _recipe(world, setup) or found["asked"] != asked:
        LINES.note(f"{path.stem} is left out: it is of another recipe, or of other options")
        return None
    return found


def _validation(path: Path) -> dict[str, float]:
    found: dict[str, float] = read_manifest(path)["provenance"]["log"]["validation"]
    return found


if __name__ == "__main__":
    sys.exit(main())
