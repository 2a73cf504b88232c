"""What the layouts of torch files refuse, and what follows from options: keys of a resumed run, reports, exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import genrec_twin as twin
from tests.layouts import level_fixtures as levels
from tests.layouts.level_checks import POLICY, opened

from recerase.__main__ import run
from recerase.assembly import checkpoint_facts
from recerase.catalog import load_catalogue
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.errors import CheckpointError, TableError, UsageError
from recerase.layouts.native import save_checkpoint
from recerase.report.schema import read_report

CKPT, PLAIN, WEIGHTS = "checkpoint_003_000040.ckpt", "checkpoint_99.pt", "checkpoint_final.pt"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("torch")
    fixtures.data(place / "data")
    levels.grid(place / "grid", users=3)
    levels.rqvae(place / "rqvae-recommender", users=3)
    fixtures.tiger_cf(place / "tiger-cf")
    twin.genrec(place / "genrec")
    (place / "policy.toml").write_text(POLICY)
    return place


@pytest.mark.parametrize("layout", ["grid", "rqvae-recommender", "tiger-cf", "genrec"])
def test_a_run_for_another_user_is_not_continued(home: Path, layout: str) -> None:
    one, two, same = (checkpoint_facts("model", opened(home / layout, user=user)) for user in ("0", "2", "0"))
    assert one == same
    assert one != two
    assert any("user row 2 of" in told for told in opened(home / layout, user="2").extra["limits"])


def test_a_report_says_that_one_user_was_read(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr("recerase.audit.run.probes_of", lambda profile: ("free",))
    given = [f"--data={home}/data", f"--policy={home}/policy.toml", "--concept=brand=brand2", "--trust-pickle", "-q"]
    more = ["--max-users=5", "--layout-set=user=2", "--device=cpu", "--threads=1", "-o", f"{tmp_path}/report.json"]
    assert run(["audit", str(home / "grid"), *given, *more]) in (0, 5)
    assert any("user row 2 of 3" in limit for limit in read_report(tmp_path / "report.json").limits)


@pytest.mark.parametrize("layout", ["grid", "rqvae-recommender", "tiger-cf", "genrec"])
def test_a_number_of_thousands_of_digits_is_refused(home: Path, layout: str) -> None:
    with pytest.raises(UsageError, match="user=999"):
        opened(home / layout, user="9" * 5000)
    if layout in ("grid", "rqvae-recommender"):
        with pytest.raises(UsageError, match="window=999"):
            opened(home / layout, window="9" * 5000)


def spoiled(place: Path, out: Path, file: str, part: str, change: Any) -> Path:
    """A copy of a directory, one part of its file changed by `change`."""
    out.mkdir()
    for other in place.iterdir():
        (out / other.name).write_bytes(other.read_bytes())
    whole = torch.load(out / file, weights_only=False)
    whole[part] = change(dict(whole[part]))
    torch.save(whole, out / file)
    return out


@pytest.mark.parametrize(
    ("layout", "file", "part"),
    [("grid", CKPT, "state_dict"), ("rqvae-recommender", PLAIN, "model"), ("genrec", WEIGHTS, "model")],
)
@pytest.mark.parametrize("which", ["embedding_table", "q.weight", "sem_id_embedding"])
def test_eighths_of_floats_are_refused_in_a_sentence(
    home: Path, tmp_path: Path, layout: str, file: str, part: str, which: str
) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {name: t.to(torch.float8_e4m3fn) if which in name else t for name, t in state.items()}

    path = spoiled(home / layout, tmp_path / "x", file, part, change)
    if any(which in name for name in torch.load(path / file, weights_only=False)[part]):
        with pytest.raises(CheckpointError):
            opened(path)


def test_a_second_copy_of_weights_that_cannot_be_written_is_refused(home: Path, tmp_path: Path) -> None:
    """GRID has its encoder twice, and loads either: a copy that stayed what it was would bring everything back."""
    name = "model.encoder.block.0.layer.0.SelfAttention.q.weight"
    path = spoiled(
        home / "grid", tmp_path / "x", CKPT, "state_dict", lambda state: state | {name: state[name].to_sparse()}
    )
    with pytest.raises(CheckpointError, match="is no tensor that can be read"):
        opened(path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float32])
def test_a_table_of_no_numbers_is_refused(home: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {name: t.to(dtype) if name.endswith("codebooks") else t for name, t in state.items()}

    with pytest.raises(TableError, match="no buffer codebooks"):
        opened(spoiled(home / "rqvae-recommender", tmp_path / "r", PLAIN, "model", change))
    with pytest.raises(TableError, match="not the table among the hyperparameters"):
        opened(
            spoiled(
                home / "grid", tmp_path / "g", CKPT, "hyper_parameters",
                lambda hyper: hyper | {"codebooks": (hyper["codebooks"] + 1).to(dtype)},
            )
        )  # fmt: skip


def test_small_whole_numbers_are_a_table(home: Path, tmp_path: Path) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        return {name: t.to(torch.uint16) if name.endswith("codebooks") else t for name, t in state.items()}

    found = opened(spoiled(home / "rqvae-recommender", tmp_path / "r", PLAIN, "model", change))
    assert found.table.codes.tolist() == opened(home / "rqvae-recommender").table.codes.tolist()


@pytest.mark.parametrize("layout", ["grid", "genrec", "tiger-cf"])
def test_what_our_own_layout_cannot_say_is_never_lost(home: Path, tmp_path: Path, layout: str) -> None:
    source = opened(home / layout)
    if layout != "tiger-cf":
        with pytest.raises(CheckpointError, match="no words for a softmax a level"):
            save_checkpoint(tmp_path, source.recommender, source.table, None, None)
        assert not list(tmp_path.iterdir())
    catalogue = load_catalogue(home / "data")
    recipe = {"model": {"kind": "seq2seq", "width": 16, "layers": 1, "heads": 2}, "training": {"epochs": 1}}
    concept = np.arange(fixtures.N) % fixtures.TASTES == 2
    request = EraseRequest(source.recommender, source.table, catalogue.interactions, concept, training=recipe)
    method, preset = get_method("retrain")
    with pytest.raises(UsageError, match="of another tool"):
        method.run(request, make_config(method, preset, {}))


@pytest.mark.parametrize("layout", ["grid", "genrec"])
def test_prefixes_and_blocklists_are_exported(home: Path, tmp_path: Path, layout: str) -> None:
    source = opened(home / layout)
    given = [str(home / layout), f"--data={home}/data", "--trust-pickle", "-q", "--concept=brand=brand2"]
    assert run(["export", "prefixes", *given, f"--out={tmp_path}/prefixes.json"]) == 0
    assert run(["export", "blocklist", *given, f"--out={tmp_path}/blocked.json"]) == 0
    said = json.loads((tmp_path / "prefixes.json").read_text())
    assert said["begin"] == []  # their decoders begin with a vector that is no row of a vocabulary
    kept = source.table.rows()[np.arange(fixtures.N) % fixtures.TASTES != 2]
    assert said["allowed"][""] == sorted(set(kept[:, 0].tolist()))
    assert len(json.loads((tmp_path / "blocked.json").read_text())["blocked"]) == fixtures.N // fixtures.TASTES


def test_a_model_around_other_weights_keeps_its_softmax(home: Path) -> None:
    source = opened(home / "grid")
    model = source.recommender
    assert replace(source, recommender=model.around(model.module)).recommender.per_level


@pytest.mark.parametrize(
    ("layout", "file", "part"), [("grid", CKPT, "state_dict"), ("rqvae-recommender", PLAIN, "model"), ("genrec", WEIGHTS, "model")]
)  # fmt: skip
def test_other_weights_in_the_file_are_refused_before_anything_is_learned(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, file: str, part: str
) -> None:
    """An average of the weights would be published as it was, concept and all."""
    path = tmp_path / "x"
    path.mkdir()
    for other in (home / layout).iterdir():
        (path / other.name).write_bytes(other.read_bytes())
    whole = torch.load(path / file, weights_only=False)
    torch.save({**whole, "same": dict(whole[part])}, path / file)
    assert not opened(path).extra["further"]  # the same memory is written with the model
    average = {name: tensor.clone() for name, tensor in whole[part].items() if tensor.dim() > 1}
    torch.save({**whole, "callbacks": {"EMA": average}}, path / file)
    assert any(name.startswith("callbacks.EMA.") for name in opened(path).extra["further"])
    given = [str(path), f"--data={home}/data", "--trust-pickle", "-q", "--concept=brand=brand2", "--method=npo"]
    assert run(["erase", *given, f"--out={tmp_path}/out", "--device=cpu", "--threads=1"]) == 3
    assert "may remember the concept" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["grid", "rqvae-recommender", "tiger-cf", "genrec"])
@pytest.mark.parametrize("method", ["npo", "scif", "task-vector"])
def test_the_row_of_the_one_user_that_is_read_stays(home: Path, layout: str, method: str) -> None:
    """What were learned there would be learned for that user alone, and every other would still be told of the concept."""
    catalogue = load_catalogue(home / "data")
    source = opened(home / layout, user="2")
    concept = np.arange(fixtures.N) % fixtures.TASTES == 2
    request = EraseRequest(source.recommender, source.table, catalogue.interactions, concept)
    card, preset = get_method(method)
    few = {
        "npo": {"steps": "2"},
        "scif": {"iterations": "2", "pairs": "8", "curvature": "4"},
        "task-vector": {"steps": "2"},
    }
    made = card.run(request, make_config(card, preset, few[method]))
    module: Any = source.recommender.module
    prompt = source.recommender.prompt
    assert prompt is not None
    before, after = (m.get_input_embeddings().weight for m in (module, made.model.module))
    same = (before == after).all(1)
    assert not same[source.table.rows().reshape(-1)].all()
    if layout == "genrec":
        users = "user_id_embedding.emb.weight"
        assert torch.equal(module.state_dict()[users], made.model.module.state_dict()[users])
    else:
        assert len(prompt.still) == 1
        assert same[list(prompt.still)].all()
