"""The numbers of the README: every method, on real data, beside a model that never saw the concept (`make results`).

Everything made on the way is kept under runs/ and found again, so a run may be stopped and repeated at any time;
RESULTS.md and results.json are written anew after every finished cell. Needs the data folder (RECERASE_DATA, or
shared/data beside the repository) and says so where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import measures
import torch
from tables import results_markdown
from worlds import (
    GROUPS,
    METHODS,
    MODELS,
    Group,
    Model,
    NotTrainedError,
    Setup,
    Space,
    concept_of,
    erase_code,
    erased,
    open_space,
    original,
    reference,
)

from recerase.catalog import Concept
from recerase.errors import RecEraseError
from recerase.runtime import environment
from recerase.store import pretty_json, write_bytes

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SCHEMA = "recerase.results/1"


class Lines:
    """An observer that writes a line to stderr when a task ends."""

    def __init__(self) -> None:
        self.cell, self.began = "", 0.0

    def start(self, task: str, total: int | None) -> None:
        self.began = time.monotonic()

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None: ...

    def finish(self, task: str) -> None:
        self.note(f"{task}, {time.monotonic() - self.began:.1f} s")

    def note(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.cell}: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options, find the data, run the cells."""
    given = _parser().parse_args(arguments)
    data = Path(os.environ.get("RECERASE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not data.is_dir():
        print(f"No data sets at {data}: set RECERASE_DATA to a folder that holds them. Nothing was measured.")
        return 0
    groups = [group for group in GROUPS if not given.only or group.name in given.only]
    methods = [m for m in METHODS if not given.methods or m in given.methods]
    unknown = {*given.only} - {g.name for g in GROUPS} | {*given.methods} - {*MODELS}
    if unknown:
        known = ", ".join([*(g.name for g in GROUPS), *MODELS])
        print(f"Unknown: {', '.join(sorted(unknown))}. There are: {known}.", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("RECERASE_THREADS") or 1))
    try:
        setup = Setup(data, Path(given.runs), may_train=not given.no_train)
        if given.max_users:
            setup = replace(setup, audit=replace(setup.audit, max_users=given.max_users))
        sampled = setup.runs / f"results-{given.max_users}" if given.max_users else HERE
        run(groups, methods, setup, Path(given.out or sampled))
    finally:
        torch.set_num_threads(before)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="such as ind-json-filament")
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--no-train", action="store_true", help="leave out what is not trained yet")
    parser.add_argument("--max-users", type=int, help="test users whose lists are read (default: all)")
    parser.add_argument("--runs", default=str(REPOSITORY / "runs"), help="where models and evaluations are kept")
    parser.add_argument("--out", help="where RESULTS.md and results.json go (default: here; runs/ with --max-users)")
    return parser


def run(groups: Sequence[Group], methods: Sequence[str], setup: Setup, out: Path) -> dict[str, Any]:
    """Fill the cells of `groups` one after another, writing the results after each; returns them."""
    observer = Lines()
    out.mkdir(parents=True, exist_ok=True)
    results = _opened(out / "results.json", setup)
    space_name, space, lists = "", None, {}
    for group in groups:
        observer.cell = group.name
        if space is None or space_name != group.space:
            space, space_name, lists = open_space(group, setup, observer), group.space, {}
        concept = concept_of(group, space)
        entry = results["groups"].setdefault(group.name, {"models": {}})
        entry |= _facts(group, space, concept)
        for name, row in _cells(group, space, concept, methods, setup, observer, lists):
            entry["models"][name] = row | {"date": time.strftime("%Y-%m-%d")}
            _write(results, out)
            observer.note("written")
    return results


def _cells(
    group: Group,
    space: Space,
    concept: Concept,
    methods: Sequence[str],
    setup: Setup,
    observer: Lines,
    lists: dict[Any, Any],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, row) of each model of a group; `lists` carries the original's lists from one concept to the next."""
    world = measures.world_of(space, concept, setup)
    cache = dict(lists)

    def read(role: Any, model: Model) -> dict[str, Any]:
        return measures.evaluated(role, model, space, world, setup, cache, observer)

    try:
        observer.cell = f"{group.name} original"
        before = original(group, space, setup, observer)
        base = read("original", before)
        lists.update({k: v for k, v in cache.items() if k[:1] + k[2:3] == ("lists", "natural")})
        yield "original", _row(before, base, base, before)
        observer.cell = f"{group.name} reference"
        clean = reference(group, space, concept, setup, observer)
        yield "reference", _row(clean, read("reference", clean), base, before)
    except NotTrainedError as missing:
        observer.note(str(missing))
        if observer.cell.endswith("original"):
            return
    for method in methods:
        observer.cell = f"{group.name} {method}"
        try:
            after = erased(method, before, space, concept, setup, observer)
            row = _row(after, read("subject", after), base, before)
        except RecEraseError as error:
            observer.note(str(error))
            row = {"failed": str(error).splitlines()[0]}
        yield method, row | {"erase_code": erase_code()}


def _row(model: Model, found: dict[str, Any], base: dict[str, Any], before: Model) -> dict[str, Any]:
    """One model's figures, its cost, and its loss of utility against the original."""
    facts, training = dict(model.facts), before.facts["wall_seconds"]
    spent = facts["wall_seconds"] if facts["cpu_seconds"] is None else facts["cpu_seconds"]
    figures = dict(found["figures"])
    if found is not base:
        figures["retain.drop"] = measures.drop(found, base)
    share = spent / training if training else None
    return {"figures": figures, "facts": facts, "share_of_training": share, "weights": model.digest}


def _facts(group: Group, space: Space, concept: Concept) -> dict[str, Any]:
    interactions = space.catalogue.interactions
    return {
        "data": group.data,
        "sids": group.sids,
        "levels": space.table.levels,
        "spec": group.spec,
        "items": len(space.catalogue.items),
        "users": interactions.n_users,
        "concept_items": int(concept.members.sum()),
        "concept_interactions": float(concept.members[interactions.items].mean()),
    }


def _opened(path: Path, setup: Setup) -> dict[str, Any]:
    """Results on disk where they were made with the same settings, so that a part can be run anew; else none."""
    fresh: dict[str, Any] = {
        "schema": SCHEMA,
        "settings": {
            "model": asdict(setup.model),
            "training": asdict(setup.training),
            "audit": asdict(setup.audit) | {"k": list(setup.audit.k)},
            "saturated_mass": setup.saturated_mass,
            "nearest_users": setup.nearest_users,
            "overrides": {name: list(pairs) for name, pairs in setup.overrides.items()},
            "seed": setup.seed,
            "measures": measures.VERSION,
        },
        "groups": {},
    }
    if path.is_file():
        known = json.loads(path.read_bytes())
        if known.get("schema") == SCHEMA and known.get("settings") == fresh["settings"]:
            fresh["groups"] = known["groups"]
    return fresh


def _write(results: dict[str, Any], out: Path) -> None:
    threads = torch.get_num_threads()
    command = shlex.join(["python", "benchmarks/results_erasure.py", *sys.argv[1:]])
    results |= {
        "environment": asdict(environment(results["settings"]["seed"], threads)),
        "date": time.strftime("%Y-%m-%d"),
        "command": command if Path(sys.argv[0]).name == Path(__file__).name else "make results",
        "erase_code": erase_code(),
    }
    write_bytes(out / "results.json", pretty_json(results))
    write_bytes(out / "RESULTS.md", results_markdown(results).encode())


if __name__ == "__main__":
    sys.exit(main())
