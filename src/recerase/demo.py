"""`recerase demo`: the whole job, offline, on a catalogue of our own making.

It is the other commands in a row and nothing else: what it shows, a user gets with the same commands on her own data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recerase.api import ConceptSpec, audit, erase, tokenize, train
from recerase.assembly import RUN
from recerase.runtime import RunConfig
from recerase.store import publish
from recerase.types import SILENT, Observer, Report

REPORTS = ("report.html", "report.md", "report.json")


@dataclass(frozen=True)
class Demo:
    """What `demo` published under one directory."""

    path: Path
    before: Report
    """The audit of the untouched model; it must fail."""
    after: Report
    """The audit of the erased one."""
    seconds: float


def demo(out: str | Path, *, force: bool = False, run: RunConfig = RUN, observer: Observer = SILENT) -> Demo:
    """Make a catalogue, SIDs and a model, audit it, erase the concept, audit again; all of it stays below `out`."""
    from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
    from recerase.catalog.readers import write_catalogue
    from recerase.model.recommender import ModelConfig
    from recerase.model.training import TrainConfig
    from recerase.sid.quantize import TokenizeConfig

    began, concept = time.monotonic(), ConceptSpec((DEMO_CONCEPT,))
    with _all_or_nothing(), publish(out, force=force) as result:
        place = result.directory
        data, sids, model, erased = (place / name for name in ("data", "sids", "model", "erased"))
        with publish(data) as made:
            write_catalogue(made.directory, *demo_catalogue(run.seed))
            made.provenance = {"command": "demo", "seed": run.seed}
        tokenize(data, sids, TokenizeConfig(codes=64, seed=run.seed), dims=64, observer=observer)
        shape = ModelConfig(width=64, layers=2, heads=4, feed_forward=128)
        train(data, sids, model, shape, TrainConfig(epochs=10, seed=run.seed, dropout=0.0), run=run, observer=observer)
        before = audit(
            model,
            concept,
            data,
            outputs=[place / f"before.{name}" for name in ("html", "json")],
            run=run,
            observer=observer,
        )
        after = erase(
            model, concept, data, erased, outputs=[place / name for name in REPORTS], run=run, observer=observer
        )
        result.provenance = {"command": "demo", "verdict": after.decision.verdict.value}
    return Demo(Path(out), before, after, time.monotonic() - began)


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """What its commands keep of an interruption goes with the unfinished demo, so nobody is told to continue it."""
    try:
        yield
    except BaseException as error:
        vars(error).pop("__notes__", None)
        raise
