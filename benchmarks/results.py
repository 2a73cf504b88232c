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
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from results_tables import results_markdown, write_readme

from recerase import api
from recerase.comparing.asked import read_seeds
from recerase.errors import RecEraseError, UsageError
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig, environment
from recerase.sid.quantize import TokenizeConfig
from recerase.store import pretty_json, read_manifest, write_bytes

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SCHEMA = "recerase.results/2"


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
        "sids.json",
        14,
        {
            "opi": "brand=OPI",
            "fragrance": "category=Fragrance",
            "lightening": 'text~"whiten|lighten|bleach|hydroquinone|fade cream|brightening"',
        },
        1,
    ),
)


@dataclass(frozen=True)
class Setup:
    """Where things are, and what is compared how."""

    data: Path
    runs: Path
    compare: api.CompareConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(bf16=True))
    """`epochs` are the world's."""
    threads: int = 1


def sids_of(world: World, setup: Setup) -> Path:
    """The SIDs of a world; our own tokenization is made when it is not there."""
    if isinstance(world.sids, str):
        return setup.data / world.data / world.sids
    path = setup.runs / f"{world.name}-sids"
    if not path.is_dir():
        api.tokenize(setup.data / world.data, path, world.sids)
    return path


def trained(world: World, concept: str | None, seed: int, setup: Setup, train: bool = True) -> Path:
    """The original (`concept` None) or a reference, made when it is not there.

    Raises UsageError when there is one of another recipe or concept, or none and `train` is False.
    """
    path = setup.runs / f"{world.name}-{concept or 'orig'}-{seed}"
    recipe = asdict(setup.training) | {"epochs": world.epochs, "seed": seed}
    if not path.is_dir():
        if not train:
            raise UsageError(
                f"{path.name} is not trained.", "Without --no-train it is; what went wrong then is told above."
            )
        without = api.ConceptSpec((world.concepts[concept],)) if concept else None
        run = RunConfig(seed=seed, threads=setup.threads)
        sids = sids_of(world, setup)
        api.train(
            setup.data / world.data,
            sids,
            path,
            setup.model,
            TrainConfig(**recipe),
            without=without,
            run=run,
            observer=LINES,
        )
    told = read_manifest(path)["provenance"]
    left_out = None if concept is None else [world.concepts[concept]]
    if told["training"] != recipe or told["model"] != asdict(setup.model) or _without(told) != left_out:
        raise UsageError(f"{path} was trained by another recipe.", "Remove it to train it again.")
    return path


def _without(told: dict[str, Any]) -> list[str] | None:
    return None if told["without"] is None else list(told["without"]["spec"])


def models_of(world: World, concept: str, setup: Setup) -> list[Path]:
    """Where the original and the references of a concept are, or will be."""
    names = [f"{world.name}-orig-0", *(f"{world.name}-{concept}-{seed}" for seed in range(world.references))]
    return [setup.runs / name for name in names]


def compared(world: World, concept: str, setup: Setup, train: bool = True) -> dict[str, Any]:
    """The comparison of one concept, as RESULTS needs it; unfinished cells are made."""
    original = trained(world, None, 0, setup, train)
    references = [trained(world, concept, seed, setup, train) for seed in range(world.references)]
    spec = world.concepts[concept]
    out = setup.runs / "compared" / f"{world.name}-{concept}"
    api.compare(
        original,
        api.ConceptSpec((spec,), name=concept),
        setup.data / world.data,
        out,
        setup.compare,
        references=references,
        force=True,
        run=RunConfig(threads=setup.threads),
        observer=LINES,
    )
    logs = [read_manifest(path)["provenance"]["log"] for path in (original, *references)]
    found: dict[str, Any] = json.loads((out / "comparison.json").read_bytes())
    validation = [log["validation"] for log in logs]
    return {
        "world": world.name,
        "data": world.data,
        "spec": spec,
        "validation": validation,
        "recipe": recipe_of(setup),
        "asked": _plain(asdict(setup.compare)),
        "comparison": found,
    }


def recipe_of(setup: Setup) -> dict[str, Any]:
    """How the models of all worlds are trained, but for their epochs."""
    return dict(_plain({"model": asdict(setup.model), "training": asdict(setup.training)}))


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


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
    """Parse the options, find the data, and make what is not there: first the models, then the comparisons."""
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
    chosen = {name: group for name, group in groups.items() if not given.only or name in given.only}
    try:
        setup = Setup(data, Path(given.runs), compare_config(given))
        if given.step:
            return _step(given.step, list(chosen.values()), setup)
        if given.write:
            write(list(chosen), setup, Path(given.out), words, any_asked=True)
            return 0
        failed, codes = _made(chosen, given, setup, words)
    except RecEraseError as error:
        LINES.note(str(error))
        return error.exit_code
    write([name for name in groups if name not in failed], setup, Path(given.out), words)
    wrong = [code for code in codes if code]
    return 0 if not wrong else wrong[0] if wrong[0] > 0 else 3  # below 0: a signal ended it


def _made(
    chosen: Mapping[str, tuple[World, str]], given: argparse.Namespace, setup: Setup, words: Sequence[str]
) -> tuple[set[str], list[int]]:
    """Train and compare; the groups whose comparison could not be made, and the exit codes of all steps."""
    worlds = {world.name: world for world, _ in chosen.values()}
    codes: list[int] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        if not given.no_train:
            for world in worlds.values():
                sids_of(world, setup)
            models = [f"train:{name}:{seed}" for name, (w, _) in chosen.items() for seed in range(w.references)]
            codes += _run(pool, [*(f"train:{name}:orig" for name in worlds), *models], words)
        there = [name for name, group in chosen.items() if all(path.is_dir() for path in models_of(*group, setup))]
        for name in chosen.keys() - there:
            LINES.note(f"{name} is left out: not all of its models are trained")
        found = _run(pool, [f"compare:{name}" for name in there], words)
    failed = {*chosen} - {name for name, code in zip(there, found, strict=True) if code == 0}
    return failed, codes + found


def compare_config(given: argparse.Namespace) -> api.CompareConfig:
    """What every group is compared by."""
    own = {"methods": tuple(given.methods.split(",")), "seeds": read_seeds(given.seeds), "overrides": tuple(given.set)}
    more: dict[str, Any] = {}
    for name, _, value in (item.partition("=") for item in given.compare):
        if name in own or name not in {f.name for f in fields(api.CompareConfig)}:
            raise UsageError(f"--compare cannot set {name!r}.", "Name another field of CompareConfig.")
        try:
            more[name] = json.loads(value)
        except ValueError as error:
            raise UsageError(f"{name} is not given as JSON: {value!r}.", "For example: scope='\"both\"'.") from error
    return api.CompareConfig(**own, **more)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="such as ind-filament")
    parser.add_argument("--methods", default="all", metavar="A,B", help="as in `recerase compare`")
    parser.add_argument("--seeds", default="0,1,2", metavar="0,1", help="of the methods")
    parser.add_argument("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE")
    parser.add_argument("--compare", nargs="+", default=[], metavar="FIELD=JSON", help="other fields of CompareConfig")
    parser.add_argument("--no-train", action="store_true", help="leave out what is not trained yet")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", default=str(REPOSITORY / "runs"), help="where models and cells are kept")
    parser.add_argument("--out", default=str(HERE), help="where RESULTS.md and results.json go")
    parser.add_argument("--write", action="store_true", help="write the tables of what is there, and make nothing")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    return parser


def _run(pool: ThreadPoolExecutor, steps: Sequence[str], words: Sequence[str]) -> list[int]:
    """Every step in a process of its own, given the same `words`; the exit codes."""

    def one(step: str) -> int:
        return subprocess.run([sys.executable, __file__, *words, "--step", step], check=False).returncode

    return list(pool.map(one, steps))


def _step(step: str, chosen: Sequence[tuple[World, str]], setup: Setup) -> int:
    """One model, or the comparison of one group."""
    kind, name, *rest = step.split(":")
    LINES.cell = f"{name}{''.join(f' {x}' for x in rest)}"
    for world, concept in chosen:
        if kind == "train" and rest == ["orig"] and name == world.name:
            trained(world, None, 0, setup)
            return 0
        if name == f"{world.name}-{concept}":
            if kind == "train":
                trained(world, concept, int(rest[0]), setup)
            else:
                found = compared(world, concept, setup, train=False)
                write_bytes(_part(name, setup), pretty_json(found))
            return 0
    raise SystemExit(f"There is no step {step}.")


def _part(name: str, setup: Setup) -> Path:
    return setup.runs / "compared" / f"{name}.json"


def write(names: Sequence[str], setup: Setup, out: Path, words: Sequence[str], any_asked: bool = False) -> None:
    """RESULTS.md, results.json and the README's table, from those of the groups `names` that are finished.

    One that was made by another recipe, or asked something else (unless `any_asked`), is left out and named.
    """
    groups: dict[str, Any] = {}
    for name in names:
        found = json.loads(_part(name, setup).read_bytes()) if _part(name, setup).is_file() else {}
        asked = any_asked or found.get("asked") == _plain(asdict(setup.compare))
        if found and found.get("recipe") == recipe_of(setup) and asked:
            groups[name] = found
        elif found:
            LINES.note(f"{name} is left out: its tables are of another recipe, or of other options")
    results = {
        "schema": SCHEMA,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "benchmarks/results.py", *words]),
        "model": asdict(setup.model),
        "training": asdict(setup.training),
        "environment": asdict(environment(0, setup.threads)),
        "groups": groups,
    }
    write_bytes(out / "results.json", pretty_json(results))
    write_bytes(out / "RESULTS.md", results_markdown(results).encode())
    if out == HERE:
        write_readme(results, REPOSITORY / "README.md")


if __name__ == "__main__":
    sys.exit(main())
