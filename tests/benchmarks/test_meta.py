"""The meta-evaluation on tiny pools: AUCs against pairs counted one by one, and nothing that is there is made again."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.audit.cards import load_probe, metrics
from recerase.audit.probes import AuditConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROBES = ("natural", "aliasing", "earlier", "spill")
NUMBERS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf, -3.0]), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def figures() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("meta_figures")


@pytest.fixture(scope="module")
def script(figures: ModuleType) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("meta")


@dataclass
class Work:
    """What a run did."""

    trained: list[str]
    probed: list[str]


@pytest.fixture
def work(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts trainings and probes, which are run as they are."""
    done, train = Work([], []), script.api.train

    def counting(data: Path, sids: Path, out: Path, *more: Any, **words: Any) -> Any:
        done.trained.append(out.name.rpartition("-")[0])
        return train(data, sids, out, *more, **words)

    def loading(name: str) -> Any:
        done.probed.append(name)
        return load_probe(name)

    monkeypatch.setattr(script.api, "train", counting)
    monkeypatch.setattr(script, "load_probe", loading)
    return done


@pytest.fixture(scope="module")
def tiny(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A setup of two models a pool that are hardly trained, and read on hardly anybody."""
    config = AuditConfig(max_users=12, mass_users=6, saturated_histories=6, profile="standard")
    recipes = (script.Recipe(16, 1, 1, 0.0), script.Recipe(24, 1, 1, 0.0))
    runs = tmp_path_factory.mktemp("meta")
    return script.Setup(runs, models=2, items=200, users=60, codes=24, recipes=recipes, audit=config)


def outputs(place: Path, *more: str) -> list[str]:
    return ["--out", str(place), "--power", str(place / "power.json"), "--probes", *PROBES, *more]


@given(NUMBERS, NUMBERS)
def test_auc_counts_the_pairs(figures: ModuleType, worse: list[float], better: list[float]) -> None:
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in worse for b in better]
    assert figures.auc(np.array(worse), np.array(better)) == pytest.approx(sum(pairs) / len(pairs))
    assert figures.auc(np.array(worse), np.array(better)) == pytest.approx(1 - figures.auc(better, worse))


@pytest.mark.parametrize(("worse", "better"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_auc_of_nothing_is_refused(figures: ModuleType, worse: list[float], better: list[float]) -> None:
    with pytest.raises(ValueError, match="numbers on both sides"):
        figures.auc(worse, better)


@given(st.floats(0, 1), st.integers(2, 40), st.integers(2, 40))
def test_the_interval_holds_its_value_and_is_symmetric(figures: ModuleType, value: float, m: int, n: int) -> None:
    low, high = figures.newcombe(value, m, n)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.02  # not even where the pools do not overlap
    assert figures.newcombe(1 - value, m, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_ten_and_ten_without_a_mistake_say_four_fifths(figures: ModuleType) -> None:
    low, high = figures.newcombe(1.0, 10, 10)
    assert (round(low, 2), high) == (0.80, 1.0)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_interval_covers(figures: ModuleType, shift: float) -> None:
    """Of normal scores a `shift` apart the AUC is Phi(shift / sqrt 2); 95 % intervals of 10 + 10 hold it about as often."""
    rng = np.random.default_rng(int(shift))
    truth = 0.5 * (1 + math.erf(shift / 2))
    held = []
    for _ in range(400):
        low, high = figures.newcombe(figures.auc(rng.normal(shift, 1, 10), rng.normal(0, 1, 10)), 10, 10)
        held.append(low <= truth <= high)
    assert np.mean(held) > 0.92


def values(figures: ModuleType, numbers: dict[str, Any], name: str, probe: str) -> dict[str, list[Any]]:
    """Pools in which one metric has the given numbers [n]."""
    return {
        pool: [figures.Values({name: float(x)}, {}, {probe: 0.0}) for x in given] for pool, given in numbers.items()
    }


def figure_of(figures: ModuleType, numbers: dict[str, Any], name: str, probe: str) -> Any:
    found = {f.metric: f for f in figures.figures(values(figures, numbers, name, probe), (5, 10, 20))}
    return found[name]


def test_a_useless_metric_gets_about_half(figures: ModuleType) -> None:
    """Many small pools of a metric that knows nothing: .5 on average, and of ten and ten hardly one in a thousand may gate."""
    rng = np.random.default_rng(0)
    found, gating = [], 0
    for _ in range(300):
        same = rng.random(10)
        pools = {"with": same, "filter": same, "without": rng.random(10)}
        figure = figure_of(figures, pools, "natural.mass.old", "natural")
        found.append(figure.apart["filter"].value)
        gating += figure.gates
    assert np.mean(found) == pytest.approx(0.5, abs=0.03)  # four standard errors
    assert gating <= 2


def test_a_constant_gets_half_and_may_not_gate(figures: ModuleType) -> None:
    pools = dict.fromkeys(("with", "filter", "without"), np.ones(10))
    figure = figure_of(figures, pools, "natural.mass.old", "natural")
    assert figure.apart["with"].value == figure.halves["with"] == 0.5
    assert not figure.gates


@pytest.mark.parametrize(
    ("metric", "probe", "gates"),
    [("natural.mass.old", "natural", False), ("natural.exposure@10", "natural", True)],
)
def test_what_sees_only_the_window_gates_only_on_the_window(
    figures: ModuleType, metric: str, probe: str, gates: bool
) -> None:
    pools = {"with": np.ones(10), "filter": np.zeros(10), "without": np.zeros(10)}
    figure = figure_of(figures, pools, metric, probe)
    assert (figure.apart["with"].value, figure.apart["filter"].value) == (1.0, 0.5)
    assert figure.gates is gates


@pytest.mark.parametrize(
    ("metric", "probe", "auc"),
    [("depth.first_rank.old", "depth", 0.0), ("natural.mass.old", "natural", 1.0)],
)
def test_the_direction_is_the_cards(figures: ModuleType, metric: str, probe: str, auc: float) -> None:
    pools = {"with": np.ones(10), "filter": np.ones(10), "without": np.zeros(10)}
    found = figure_of(figures, pools, metric, probe).apart["filter"]
    assert (found.value, found.two_sided) == (auc, 1.0)


@pytest.mark.parametrize(("metric", "probe"), [("utility.ndcg@10", "utility"), ("influence.history", "influence")])
def test_utility_and_what_is_better_neither_way_never_gate(figures: ModuleType, metric: str, probe: str) -> None:
    pools = {"with": np.zeros(10), "filter": np.zeros(10), "without": np.ones(10)}
    figure = figure_of(figures, pools, metric, probe)
    assert figure.apart["with"].two_sided == 1.0
    assert not figure.gates


def test_a_run_makes_tables_and_a_second_makes_nothing(
    script: ModuleType, work: Work, tiny: Any, tmp_path: Path
) -> None:
    assert script.main(outputs(tmp_path), tiny) == 0
    assert sorted(work.trained) == ["with-0", "with-1", "with-4", "without-2", "without-3", "without-5"]
    assert sorted(work.probed) == sorted(PROBES * 6)  # two of each pool, and the filters
    told = json.loads((tmp_path / "power.json").read_text())
    assert told["n"] == [2, 2]
    assert set(told["metrics"]) | set(told["no_figure"]) <= set(metrics())
    assert {"natural.mass.old", "natural.exposure@10", "aliasing.shared_sid"} <= set(told["metrics"])
    assert told["metrics"]["natural.exposure@10"]["pool"] == "with"
    assert told["metrics"]["natural.mass.old"]["pool"] == "filter"
    assert told["metrics"]["aliasing.shared_sid"]["auc"] == 0.5
    assert told["no_figure"]["earlier.mass.old"] == "its probe has nothing to say of these pools"
    assert told["no_figure"]["spill.held_out.mass"].startswith("no items are known")
    text = (tmp_path / "META.md").read_text()
    assert all(f"`{name}`" in text for name in [*told["metrics"], *told["no_figure"]])
    assert "Probes that were not read: `saturated`, " in text
    first = (tmp_path / "power.json").read_bytes()

    work.trained.clear(), work.probed.clear()
    (again := tmp_path / "again").mkdir()
    assert script.main(outputs(again), tiny) == 0
    assert work == Work([], [])
    assert (again / "power.json").read_bytes() == first


def test_a_stopped_run_goes_on_where_it_was(
    script: ModuleType, work: Work, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the fifth reading: four are kept, and of the models only those that were not there are trained."""
    stopped, counted = replace(tiny, runs=tmp_path / "runs"), script.load_probe

    def failing(name: str) -> Any:
        if len(work.probed) == 4:
            raise KeyboardInterrupt
        return counted(name)

    monkeypatch.setattr(script, "load_probe", failing)
    with pytest.raises(KeyboardInterrupt):
        script.main(outputs(tmp_path), stopped)
    assert not (tmp_path / "META.md").exists()
    assert len(list((tmp_path / "runs" / "readings").iterdir())) == 4
    lost = next(path for path in (tmp_path / "runs" / "models").iterdir() if path.name.startswith("without-3-"))
    lost.rename(tmp_path / "elsewhere")
    work.trained.clear(), work.probed.clear()
    monkeypatch.setattr(script, "load_probe", counted)
    assert script.main(outputs(tmp_path), stopped) == 0
    assert work.trained == ["without-3"]
    assert len(work.probed) == 6 * len(PROBES) - 4


def test_other_settings_are_other_readings_of_the_same_models(
    script: ModuleType, work: Work, tiny: Any, tmp_path: Path
) -> None:
    """Run after the others on the same directory, or alone: then the models are made here."""
    script.main(outputs(tmp_path), tiny)
    work.trained.clear(), work.probed.clear()
    fewer = replace(tiny, audit=replace(tiny.audit, mass_users=5))
    assert script.main(outputs(tmp_path, "--make"), fewer) == 0
    assert work.trained == []
    assert len(work.probed) == 6 * len(PROBES)


def test_pools_are_made_alike_and_share_no_seed(script: ModuleType, tmp_path: Path) -> None:
    bench = script.Bench(script.Setup(tmp_path))
    seeds = {pool: [member.seed for member in bench.members(pool)] for pool in script.POOLS}
    assert seeds["with"] == seeds["filter"] == list(range(10))
    assert not set(seeds["with"]) & set(seeds["without"])
    assert not {member.seed for member in bench.beside.values()} & {*seeds["with"], *seeds["without"]}
    assert len(script.RECIPES) * 2 == script.Setup.models  # so that both halves have each recipe once
