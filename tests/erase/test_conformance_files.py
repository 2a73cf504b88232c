"""What every method must do at the edges: settings come in as text, results go out as files, and a stopped run leaves no half."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.erase.cases import QUICK, Kept, Listening, bits, brief, settings_of
from tests.erase.conftest import RECIPE, N, small, the_world

from recerase import api
from recerase.catalog.readers import write_catalogue
from recerase.erase.methods import get_method, make_config
from recerase.errors import UsageError
from recerase.layouts.native import load_checkpoint, save_checkpoint
from recerase.model.recommender import Recommender
from recerase.planning import key_values
from recerase.resume import state_directory
from recerase.runtime import RunConfig
from recerase.store import canonical_json, publish
from recerase.types import SILENT

WHERE = RunConfig(threads=1, device="cpu")
MEMBERS = api.ConceptSpec(("item:" + ",".join(f"i{i:02d}" for i in range(9)),))


@dataclass(frozen=True)
class Shop:
    """A data directory and a checkpoint of each kind on the disk."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "data"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    home, world = tmp_path_factory.mktemp("shop"), the_world()
    ids = [str(i) for i in world.table.item_ids]
    items = pa.table(
        {"item_id": ids, "title": ids, "description": [""] * N, "categories": [["all"]] * N, "brand": ["b"] * N}
    )
    items = items.append_column("price", pa.nulls(N, pa.float64()))
    walked = world.interactions
    owners = [str(u) for u, n in zip(walked.user_ids, walked.lengths, strict=True) for _ in range(int(n))]
    told = pa.table({"user_id": owners, "item_id": [ids[i] for i in walked.items], "timestamp": walked.timestamps})
    told = told.append_column("rating", pa.nulls(told.num_rows, pa.float64()))
    with publish(home / "data") as made:
        write_catalogue(made.directory, items, told)
        made.provenance = {"command": "test"}
    return Shop(home)


@pytest.fixture
def checkpoint(shop: Shop, trained: Callable[[str], Recommender]) -> Callable[[str], Path]:
    """checkpoint(kind): the trained recommender's directory."""

    def put(kind: str) -> Path:
        path, world = shop.home / kind, the_world()
        if not path.exists():
            recipe = {"model": dataclasses.asdict(small(kind)), "training": dataclasses.asdict(RECIPE)}
            with publish(path) as made:
                save_checkpoint(made.directory, trained(kind), world.table, world.codebooks, world.embeddings)
                made.provenance = {"command": "train", **brief(recipe)}
        return path

    return put


def overrides(case: str) -> list[str]:
    """QUICK settings as --set says them."""
    return [f"{k}={v}" for k, v in QUICK.get(case, QUICK.get(case.partition("/")[0], {})).items()]


def code_of(line: list[str]) -> int:
    """The exit code of a command."""
    from recerase.__main__ import run

    return run(line)  # `main` would leave this process deaf to signals


class Stopped(Listening):
    """Interrupts the run at its n-th word of progress."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None:
        super().advance(task, step, **figures)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_result_is_saved_and_read_back_bit_for_bit(done: Any, world: Any, tmp_path: Path) -> None:
    _, erased, _ = done
    with publish(tmp_path / "out") as made:
        save_checkpoint(made.directory, erased.model, erased.table, world.codebooks, world.embeddings)
        made.provenance = {"command": "erase"}
    read = load_checkpoint(tmp_path / "out", item_ids=erased.table.item_ids)
    assert bits(read.recommender) == bits(erased.model)
    assert read.table.digest == erased.table.digest
    assert read.recommender.kind == erased.model.kind


def test_settings_come_through_toml_and_set_as_they_are(case: str) -> None:
    method, preset = get_method(case)
    config = settings_of(case)
    values = dataclasses.asdict(config)
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    read: Mapping[str, Any] = tomllib.loads("\n".join(lines))
    assert make_config(method, preset, {key: str(value) for key, value in read.items()}) == config
    assert make_config(method, None, key_values([f"{key}={value}" for key, value in values.items()])) == config
    canonical_json(values)


def _toml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def test_the_plan_says_the_whole_card_and_the_settings(
    case: str, shop: Shop, checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint("causal")
    plan = api.plan_erase(path, MEMBERS, shop.data, method=case, overrides=overrides(case))
    method, _ = get_method(case)
    assert plan.method is method
    assert plan.settings == dataclasses.asdict(settings_of(case))
    told = ["erase", str(path), "--concept", MEMBERS.specs[0], "--data", str(shop.data), "-m", case, "--plan"]
    assert code_of(told) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(fact.split()) in said for fact in (method.changes, method.cost, method.defaults))
    assert all(f.name in said for f in dataclasses.fields(method.config_class()))
    assert not (shop.home / "erased").exists()


def test_the_list_says_the_whole_card(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["list", "methods", "--json"]) == 0
    method, _ = get_method(case)
    card = json.loads(capsys.readouterr().out)["methods"][method.name]
    kept = ("changes", "cost", "source", "departs", "defaults")
    assert {name: card[name] for name in kept} == {name: getattr(method, name) for name in kept}
    assert card["gradients"] == ("yes" if method.gradients else "no")


def test_an_interrupted_command_leaves_no_half(
    case: str, shop: Shop, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if not get_method(case)[0].gradients:
        pytest.skip("this method takes no steps")
    path, out = checkpoint("causal"), tmp_path / "out"
    before = {f.name: f.read_bytes() for f in path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        api.erase(path, MEMBERS, shop.data, out, method=case, overrides=overrides(case), run=WHERE, observer=Stopped(2))
    assert not out.exists()
    left = set(tmp_path.iterdir()) - {state_directory(out)}
    assert not left
    assert {f.name: f.read_bytes() for f in path.iterdir()} == before


def test_what_a_stopped_run_kept_is_gone_on_from_to_the_same_bits(done: Any, case: str) -> None:
    request, erased, around = done
    if not around["pieces"]:
        pytest.skip("this method keeps nothing: it begins again, to the same bits")
    method, broken = get_method(case)[0], Kept()
    words = sum(around["observer"].steps.values())
    with pytest.raises(KeyboardInterrupt):
        method.run(dataclasses.replace(request, observer=Stopped(words - 4), state=broken), settings_of(case))
    assert broken
    again = method.run(dataclasses.replace(request, observer=SILENT, state=broken), settings_of(case))
    assert bits(again.model) == bits(erased.model)


def test_sids_of_many_lengths_are_refused_before_a_model_is_loaded(case: str, world: Any) -> None:
    """By `check`, which the plan calls, in the words of the run."""
    method, _ = get_method(case)
    if not method.refuses:
        pytest.skip("this method takes SIDs of any length")

    class Ragged:
        def require_one_length(self, what: str, remedy: str) -> None:
            raise UsageError(what, remedy)

    with pytest.raises(UsageError, match="This method"):
        method.check(Ragged(), world.codebooks, world.embeddings, settings_of(case))  # type: ignore[arg-type]
