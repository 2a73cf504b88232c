"""The results script on a tiny world: models and comparisons are made once, and nothing of another question is in the tables."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from recerase import api
from recerase.catalog.demo import DEMO_CONCEPT, demo_catalogue
from recerase.catalog.readers import write_catalogue
from recerase.comparing.cells import Bench
from recerase.errors import UsageError
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.report.compared import Comparison, Figure, Row
from recerase.sid.quantize import TokenizeConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = ["--search", "0", "--mass-users", "10", "--max-users", "20", "--jobs", "1"]
STEPS = [
    "train toy-orig 0",
    "train toy-vaping 0",
    "train toy-vaping 1",
    "compare toy-vaping methods",
    "compare toy-vaping seeds",
]


@dataclass(frozen=True)
class Bed:
    """The script with one world of its own, whose steps run in this process."""

    script: ModuleType
    place: Path

    def run(self, *more: str, out: str = "out") -> int:
        (self.place / out).mkdir(exist_ok=True)
        words = [*OPTIONS, "--runs", str(self.place / "runs"), "--out", str(self.place / out), *more]
        return int(self.script.main(words))

    def results(self, out: str = "out") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.place / out / "results.json").read_text())
        return found

    def setup(self, **fields: Any) -> Any:
        """As the run's, but for `fields`."""
        given = self.script._parser().parse_args(OPTIONS)
        whole = self.script.Setup(self.place / "data", self.place / "runs", *self.script.configs(given))
        return replace(whole, **fields)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    place = tmp_path_factory.mktemp("results")
    write_catalogue(place / "data" / "demo", *demo_catalogue(0, n_items=200, n_users=80))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        script = importlib.import_module("results")
        sids = TokenizeConfig(levels=2, codes=20)
        patch.setattr(script, "WORLDS", (script.World("toy", "demo", sids, 1, {"vaping": DEMO_CONCEPT}, 2),))
        small = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=5)
        patch.setattr(script, "Setup", partial(script.Setup, model=small, training=TrainConfig(validation_users=20)))

        real, few = script.configs, {"methods": ("npo",), "beam": 10, "overrides": ("npo.steps=2", "npo.batch=4")}

        def configs(given: Any) -> Any:
            passes, searched = real(given)
            close = replace(passes["seeds"], seeds=(0, 1), relearn=False, **few)
            return {"methods": replace(passes["methods"], **few), "seeds": close}, replace(searched, **few)

        patch.setattr(script, "configs", configs)

        def here(words: Sequence[str], check: bool) -> SimpleNamespace:
            return SimpleNamespace(returncode=script.main(list(words)[2:]))

        patch.setattr(script, "subprocess", SimpleNamespace(run=here))
        patch.setenv("RECERASE_DATA", str(place / "data"))
        bed = Bed(script, place)
        assert bed.run() == 0
        yield bed


def test_models_are_trained_and_compared_as_asked(bed: Bed) -> None:
    group = bed.results()["groups"]["toy-vaping"]
    rows = {row["name"]: row for row in group["passes"]["methods"]["comparison"]["rows"]}
    assert list(rows) == ["original", "filter", "reference", "npo"]
    assert rows["npo"]["seeds"] == [0]
    assert rows["reference"]["figures"]["utility.ndcg@10"]["seeds"] == 2
    assert rows["npo"]["figures"]["natural.exposure@10"]["n"] == 20
    assert group["passes"]["seeds"]["comparison"]["seeds"] == [0, 1]
    assert len(group["validation"]) == 3
    names = sorted(path.name for path in (bed.place / "runs").iterdir() if not path.name.startswith("."))
    assert names == ["compared", "toy-orig-0", "toy-sids", "toy-vaping-0", "toy-vaping-1"]
    text = (bed.place / "out" / "RESULTS.md").read_text()
    assert "Untuned" in text
    assert "three seeds" in text
    assert "| npo |" in text


def test_a_second_run_makes_nothing(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bed.results()["groups"]["toy-vaping"]["passes"]
    for whole, name in ((api, "train"), (api, "tokenize"), (Bench, "_make"), (Bench, "_measured")):
        monkeypatch.setattr(whole, name, lambda *given, name=name, **more: pytest.fail(f"{name} was called again"))
    assert bed.run(out="again") == 0
    after = bed.results("again")["groups"]["toy-vaping"]["passes"]
    assert after["methods"]["comparison"]["rows"] == before["methods"]["comparison"]["rows"]


def test_a_search_settles_the_settings_of_every_concept(bed: Bed) -> None:
    (world,) = bed.script.WORLDS
    setup = bed.setup(runs=bed.place / "searched")
    (bed.place / "searched").symlink_to(bed.place / "runs")
    searched = replace(setup.searched, search=3, overrides=("npo.batch=4",))
    try:
        bed.script.search(world, setup, searched)
        pairs = bed.script.chosen(world, setup)
        assert all(pair.startswith("npo.") for pair in pairs)
        bed.script.write_bytes(setup.runs / "compared" / "toy-settings.json", b'["npo.lr=0.002", "ga.lr=1"]')
        bed.script.compared(world, "vaping", replace(setup, passes={"methods": setup.passes["methods"]}), "methods")
        told = json.loads((setup.runs / "compared" / "toy-vaping-methods.json").read_bytes())
        assert told["settings"] == ["npo.lr=0.002"]
        (row,) = [row for row in told["comparison"]["rows"] if row["name"] == "npo"]
        assert row["settings"]["lr"] == 0.002
    finally:
        (setup.runs / "compared" / "toy-settings.json").unlink()
        bed.script.compared(world, "vaping", bed.setup(), "methods")


def test_a_model_of_another_recipe_or_concept_is_refused(bed: Bed) -> None:
    (world,) = bed.script.WORLDS
    trained = bed.script.trained
    assert trained(world, "vaping", 0, bed.setup(), train=False).name == "toy-vaping-0"
    wrong = [
        (world, bed.setup(training=TrainConfig(validation_users=20, lr=1e-5))),
        (world, bed.setup(model=ModelConfig(width=32, layers=1, heads=2, feed_forward=16, window=5))),
        (replace(world, epochs=2), bed.setup()),
        (replace(world, concepts={"vaping": 'title~"e"'}), bed.setup()),
    ]
    for other, setup in wrong:
        with pytest.raises(UsageError, match="another recipe"):
            trained(other, "vaping", 0, setup)
    with pytest.raises(UsageError, match="not trained"):
        trained(world, "vaping", 7, bed.setup(), train=False)
    assert not (bed.place / "runs" / "toy-vaping-7").exists()


def test_tables_of_another_recipe_or_question_are_left_out(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    assert bed.run("--write", out="written") == 0
    whole = bed.results("written")["groups"]["toy-vaping"]["passes"]
    assert list(whole) == ["methods", "seeds"]
    assert bed.run("--write", "--max-users", "21", out="written") == 0
    assert bed.results("written")["groups"] == {}
    assert "toy-vaping-methods is left out" in capsys.readouterr().err
    passes = {name: replace(asked, overrides=("npo.steps=3",)) for name, asked in bed.setup().passes.items()}
    for setup in (bed.setup(training=TrainConfig(lr=1.0)), bed.setup(passes=passes)):
        bed.script.write({"toy-vaping": (bed.script.WORLDS[0], "vaping")}, setup, bed.place / "written")
        assert bed.results("written")["groups"] == {}


def test_parts_of_other_users_or_models_do_not_stand_beside_one_another(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps from the paper's settings to ours do not say which options they were made with, so what they were read from must."""
    made = json.loads((bed.place / "runs" / "compared" / "toy-vaping-methods.json").read_bytes())
    labels = [label for label, _, _ in bed.script.ABLATION]
    steps = {"recipe": made["recipe"], "asked": labels, "steps": [{"label": "x", "comparison": made["comparison"]}]}
    path = bed.place / "runs" / "compared" / "toy-vaping-ablation.json"
    try:
        path.write_text(json.dumps(steps))
        assert bed.run("--write", out="beside") == 0
        assert "ablation" in bed.results("beside")["groups"]["toy-vaping"]
        assert bed.run("--write", "--max-users", "21", out="beside") == 0
        assert bed.results("beside")["groups"] == {}  # all tables are of other users
        for name in ("settings", "checkpoint", "reference 2"):
            inputs = made["comparison"]["inputs"] | {name: "0"}
            steps["steps"][0]["comparison"] = made["comparison"] | {"inputs": inputs}
            path.write_text(json.dumps(steps))
            capsys.readouterr()
            assert bed.run("--write", out="beside") == 0
            group = bed.results("beside")["groups"]["toy-vaping"]
            assert (list(group["passes"]), "ablation" in group) == (["methods", "seeds"], False)
            assert "toy-vaping-ablation is left out" in capsys.readouterr().err
    finally:
        path.unlink()


def test_what_other_code_made_is_told(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed.run("--write", out="same")
    assert bed.results("same")["groups"]["toy-vaping"]["other_code"] == []
    told = (bed.place / "same" / "RESULTS.md").read_text()
    assert "SIDs: our own, 2 x 20 (toy)" in told
    assert "other code" not in told
    real = bed.script._codes
    monkeypatch.setattr(
        bed.script, "_codes", lambda part: {"0" * 64} if part["asked"]["seeds"] == [0, 1] else real(part)
    )
    bed.run("--write", out="other")
    assert bed.results("other")["groups"]["toy-vaping"]["other_code"] == ["seeds"]
    told = (bed.place / "other" / "RESULTS.md").read_text()
    assert "Made with other code than the table of all methods: three seeds" in told


def test_a_step_that_was_killed_or_failed_is_no_success(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ended(words: Sequence[str], check: bool, code: int) -> SimpleNamespace:
        asked.append(words[-1])
        return SimpleNamespace(returncode=code)

    for code, told in ((-9, 3), (2, 2)):
        asked.clear()
        monkeypatch.setattr(bed.script, "subprocess", SimpleNamespace(run=partial(ended, code=code)))
        assert bed.run(out="killed") == told
        assert asked == STEPS


def test_a_group_that_there_is_not_is_told(bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    assert bed.run("--only", "toy-nothing", out="wrong") == 2
    assert "toy-vaping" in capsys.readouterr().err
    assert not list((bed.place / "wrong").iterdir())


def test_without_data_it_says_so_and_succeeds(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECERASE_DATA", str(bed.place / "nowhere"))
    assert bed.run(out="nothing") == 0
    assert capsys.readouterr().out.count("\n") == 1
    assert not list((bed.place / "nothing").iterdir())


def ours(comparison: Comparison, standing: Any) -> Comparison:
    """With a row of the flagship that stands there."""
    figures = {"utility.ndcg@10 drop/reference": Figure(0.014, 9, 1), "apart": Figure(0.3, 9, 1)}
    row = Row("tracer", "method", "output", figures, seeds=(0,), standing=standing)
    cost = {"output": {"tracer": {"seconds": 9.0, "share": 0.09, "cpu_share": 0.04}}}
    return replace(comparison, rows=(row,), run={"cost": cost})


@pytest.mark.parametrize(
    ("standing", "told"), [("alone", "**alone**"), ("front", "front"), ("remembers", "does not forget")]
)
def test_the_flagship_is_told_as_it_stands(bed: Bed, standing: Any, told: str) -> None:
    tables = importlib.import_module("results_tables")
    comparison = tables._comparison(bed.results()["groups"]["toy-vaping"]["passes"]["methods"]["comparison"])
    groups = {"toy-vaping": ours(comparison, standing)}
    lines = tables._flagship(groups).splitlines()
    assert "| NDCG@10: drop against the references | at most .01 | 0.014 |" in lines
    assert lines[-1] == "| cost, share of training | at most .05 | 0.040 |"
    assert tables._standings(groups).splitlines()[-1] == f"| tracer | {told} |"
    failed = replace(comparison, rows=(Row("npo", "method", "output"),))
    assert tables._standings({"a": failed}).splitlines()[-1] == "| npo | failed |"


def test_the_readme_has_the_summary_between_its_marks(bed: Bed, tmp_path: Path) -> None:
    tables = importlib.import_module("results_tables")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    tables.write_readme(bed.results(), readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->\n")
    assert text.endswith("<!-- /results -->\nafter\n")
    assert "| npo |" in text
    assert "old\n" not in text
