"""A tiny shop with a model and a reference, and comparisons of it that are small: 40 synthetic histories, a beam of 12."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recerase import api
from recerase.audit import probes, relearning
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.comparing.run import CompareConfig
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.report.compared import Comparison
from recerase.runtime import RunConfig
from recerase.sid.quantize import TokenizeConfig
from recerase.store import publish

RUN = RunConfig(threads=1, device="cpu")
CONCEPT = api.ConceptSpec((DEMO_CONCEPT,))
QUICK = ("npo.steps=2", "npo.batch=8", "ga.steps=2", "ga.batch=8")
Compare = Callable[..., Comparison]


@dataclass(frozen=True)
class Shop:
    """Where everything is; read only."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def gold(self) -> Path:
        return self.home / "gold"


@contextlib.contextmanager
def small() -> Iterator[None]:
    """Few histories, short lists and a narrow beam: a fixture that outlives a module asks for them itself."""
    fields: dict[str, Any] = {"k": (10,), "beam": 12, "saturated_histories": 20, "mass_users": 30}
    attack: dict[str, Any] = {"steps": (1, 2), "histories": 10, "batch": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relearning, "RelearnConfig", functools.partial(relearning.RelearnConfig, **attack))
        patch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, **fields))
        yield


@pytest.fixture(scope="module", autouse=True)
def small_audits() -> Iterator[None]:
    """Every reading of these tests is small."""
    with small():
        yield


@pytest.fixture(scope="package")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    home = tmp_path_factory.mktemp("shop")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=200, n_users=80))
    api.tokenize(home / "data", home / "sids", TokenizeConfig(levels=2, codes=20), dims=16)
    shape = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=5)
    recipe = TrainConfig(epochs=2, validation_users=20)
    api.train(home / "data", home / "sids", home / "model", shape, recipe, run=RUN)
    api.train(home / "data", home / "sids", home / "gold", shape, recipe, without=CONCEPT, run=RUN)
    return Shop(home)


@pytest.fixture(scope="package")
def compare(shop: Shop) -> Compare:
    """compare(out, ...): npo and ga with seed 0 unless other fields of CompareConfig are given; `more` of api.compare."""

    def make(out: Path, more: dict[str, Any] | None = None, **fields: Any) -> Comparison:
        config = CompareConfig(
            **({"methods": ("npo", "ga"), "seeds": (0,), "overrides": QUICK, "max_users": 25} | fields)
        )
        return api.compare(shop.model, CONCEPT, shop.data, out, config, run=RUN, **(more or {}))

    return make


@dataclass(frozen=True)
class Finished:
    """A comparison and where it lies."""

    comparison: Comparison
    out: Path
    model: Path


@pytest.fixture(scope="package")
def finished(shop: Shop, compare: Compare, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two methods and one that refuses, two seeds, one reference: read only."""
    out = tmp_path_factory.mktemp("compared") / "out"
    fields: dict[str, Any] = {
        "methods": ("npo", "tracer/paper", "ga"),
        "seeds": (0, 1),
        "overrides": (*QUICK, "tracer/paper.reassign_steps=1", "tracer/paper.min_moved=1", "tracer/paper.batch=4"),
    }
    with small():
        return Finished(
            compare(out, {"references": [shop.gold], "outputs": [out.parent / "also.md"]}, **fields), out, shop.model
        )
