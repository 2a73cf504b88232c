"""The results script on a tiny world: every cell is filled, a second run makes nothing anew, no data is said aloud."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recerase.audit.probes import AuditConfig
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield {name: importlib.import_module(name) for name in ("worlds", "measures", "tables", "results_erasure")}


@pytest.fixture(scope="module")
def made(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, Any]:
    place = tmp_path_factory.mktemp("results")
    write_catalogue(place / "data" / "demo", *demo_catalogue(0, n_items=250, n_users=120))
    group = scripts["worlds"].Group("demo", "demo", "own", "demo", 16, "vaping", DEMO_CONCEPT)
    steps = ("reassign_steps=2", "settle_steps=2", "batch=4", "pool=2", "min_moved=0")
    setup = scripts["worlds"].Setup(
        place / "data",
        place / "runs",
        ModelConfig(width=16, layers=1, heads=2, feed_forward=32, window=6),
        TrainConfig(epochs=1, validation_users=20),
        AuditConfig(k=(10,), beam=10, mass_users=20, saturated_histories=20, free_beam=4),
        saturated_mass=10,
        nearest_users=10,
        overrides={"npo": ("steps=2", "batch=4"), "tracer/paper": steps, "tracer/default": steps},
    )
    results = scripts["results_erasure"].run([group], scripts["worlds"].METHODS, setup, place)
    return group, setup, place, results


def test_every_model_has_every_measure(scripts: dict[str, ModuleType], made: tuple[Any, Any, Path, Any]) -> None:
    group, _, place, results = made
    models = results["groups"][group.name]["models"]
    assert list(models) == list(scripts["worlds"].MODELS)
    assert not [row["failed"] for row in models.values() if "failed" in row]
    wanted = {key for key, _, _ in scripts["tables"].LINES}
    for name, row in models.items():
        absent = {key for key in wanted if key not in row["figures"]}
        allowed = {"original": {"retain.drop"}, "reference": {k for k in wanted if k.endswith("mass.new")}}
        assert absent == allowed.get(name, set()), name
    text = (place / "RESULTS.md").read_text()
    assert all(f"| {title}" in text for _, title, _ in scripts["tables"].LINES)
    assert "make results" in text


def test_the_controls_stand_where_they_must(made: tuple[Any, Any, Path, Any]) -> None:
    group, _, _, results = made
    figures = {name: row["figures"] for name, row in results["groups"][group.name]["models"].items()}
    before, filtered = figures["original"], figures["filter"]
    assert filtered["natural.exposure@10"]["value"] == 0
    assert filtered["replay.exposure@10"] == before["replay.exposure@10"]
    assert filtered["concept_users.mass.new"] == before["concept_users.mass.new"]
    assert before["moved"]["value"] == filtered["moved"]["value"] == 0
    assert figures["reference"]["natural.mass.old"]["value"] != before["natural.mass.old"]["value"]


def test_a_second_run_computes_nothing_and_changed_code_only_erases_again(
    scripts: dict[str, ModuleType], made: tuple[Any, Any, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, setup, place, results = made
    before = json.loads(json.dumps(results["groups"]))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(scripts["measures"], "measure", refuse)
    erased = sorted((setup.runs / "erased").iterdir())
    again = scripts["results_erasure"].run([group], scripts["worlds"].METHODS, setup, place)
    assert again["groups"] == before
    assert sorted((setup.runs / "erased").iterdir()) == erased
    for name in ("worlds", "results_erasure"):
        monkeypatch.setattr(scripts[name], "erase_code", lambda: "other code")
    part = scripts["results_erasure"].run([group], ["filter"], setup, place)  # the same weights: nothing to measure
    models = part["groups"][group.name]["models"]
    assert set(models) == set(before[group.name]["models"])  # a part run anew leaves the rest as it was
    assert models["filter"]["erase_code"] == "other code"
    assert "| npo † |" in (place / "RESULTS.md").read_text()
    assert len(list((setup.runs / "erased").iterdir())) == len(erased) + 1


def test_an_untrained_group_is_left_out_when_training_is_not_allowed(
    scripts: dict[str, ModuleType], made: tuple[Any, Any, Path, Any], tmp_path: Path
) -> None:
    group, setup, _, _ = made
    setup = replace(setup, may_train=False)
    results = scripts["results_erasure"].run([replace(group, world="other")], [], setup, tmp_path)
    assert results["groups"][f"other-own-{group.concept}"]["models"] == {}
    assert not (setup.runs / "train" / "other-own-orig").exists()


def test_without_data_it_says_so_and_succeeds(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECERASE_DATA", str(tmp_path / "nowhere"))
    assert scripts["results_erasure"].main([]) == 0
    assert capsys.readouterr().out.count("\n") == 1
