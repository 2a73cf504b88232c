"""GRID: its scores and lists are those of its own forward pass, and what is published loads there with the table it was made with."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import level_checks as checks
from tests.layouts import level_fixtures as levels
from tests.layouts.level_checks import opened, written

from recerase.__main__ import run
from recerase.errors import CheckpointError, EraseError, PickleError, TableError, UsageError
from recerase.layouts.describe import describe
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.report.schema import read_report

CKPT, TABLE = "checkpoint_003_000040.ckpt", "merged_predictions_tensor.pt"
HYPER = ("hyper_parameters", "codebooks")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return levels.grid(tmp_path_factory.mktemp("grid") / "ckpt")


@pytest.mark.parametrize(
    ("deep", "users", "sep", "user"),
    [(2, None, True, None), (None, 7, True, 3), (1, 7, False, 0), (None, None, False, None)],
)
def test_scores_and_lists_are_grids(
    tmp_path: Path, deep: int | None, users: int | None, sep: bool, user: int | None
) -> None:
    checks.speaks_as_its_tool(levels.grid(tmp_path / "ckpt", deep=deep, users=users, sep=sep), user)


def test_nothing_changed_is_written_back_but_for_the_moments(place: Path, tmp_path: Path) -> None:
    source = opened(place)
    out = written(source, tmp_path / "out")
    assert (out / TABLE).read_bytes() == (place / TABLE).read_bytes()
    checks.only_what_changed(place / CKPT, out / CKPT, "optimizer_states", set())
    sids = levels.table_of(place)
    same = (checks.logits(x, checks.HISTORIES, sids) for x in (place, out))
    assert torch.equal(*same)
    model = levels.loaded(out)
    state = torch.load(out / CKPT, weights_only=False)
    torch.optim.Adam(model.parameters()).load_state_dict(state["optimizer_states"][0])
    assert state["hyper_parameters"]["optimizer"].keywords == {"lr": 0.001}
    assert opened(out).digest == named_layout("grid").digest(out)
    assert {file.name for file in out.iterdir()} == {CKPT, TABLE, "recerase.json"}


def test_changed_rows_go_where_they_came_from(place: Path, tmp_path: Path) -> None:
    """A code's row, a head's row, a stack's tensor under both of its names, and the table in both of its places."""
    source = opened(place)
    module = source.recommender.module
    size = levels.SIZE
    with torch.no_grad():
        module.shared.weight[size + 2] += 1
        module.shared.weight[4 * size] += 1  # bos
        module.lm_head.weight[2 * size + 5] += 1
        module.encoder.block[1].layer[0].SelfAttention.q.weight[0] += 1
    table = source.table.replace(np.array([2]), np.array([[8, 7, 6, 2]]))
    out = written(source, tmp_path / "out", table)
    names = [
        "item_sid_embedding_table_encoder.weight",
        "decoder.bos_token",
        "decoder.decoder_mlp.2.weight",
        "encoder.encoder.encoder.block.1.layer.0.SelfAttention.q.weight",
        "model.encoder.block.1.layer.0.SelfAttention.q.weight",
    ]
    changed = {("state_dict", name) for name in names}
    checks.only_what_changed(place / CKPT, out / CKPT, "optimizer_states", {*changed, HYPER})
    old, new = (checks.tensors(x / CKPT) for x in (place, out))
    moved = (old["state_dict", names[2]] != new["state_dict", names[2]]).any(1).nonzero().flatten()
    assert moved.tolist() == [5]
    wanted = levels.grid_codes()
    wanted[2] = [8, 7, 6, 2]
    assert levels.table_of(out).tolist() == wanted.tolist() == new[HYPER].t().tolist()
    whole = torch.load(out / CKPT, weights_only=False)
    assert whole["datamodule_hyper_parameters"]["config"].semantic_id_map.t().tolist() == wanted.tolist()
    assert checks.pickle_of(out / TABLE) == checks.pickle_of(place / TABLE)  # strides too
    checks.speaks_as_its_tool(out, None)


def test_the_largest_code_stays_in_the_table(tmp_path: Path) -> None:
    """GRID would build a smaller model from a table whose largest code has gone, and could not load the weights."""
    sids = levels.grid_codes()
    sids[sids == 8] = 7
    sids[:, 3] = 0
    sids[4, 2] = 8
    source = opened(levels.grid(tmp_path / "ckpt", sids))
    lower = source.table.replace(np.array([4]), np.array([[3, 3, 3, 3]]))
    with pytest.raises(EraseError, match="largest code would fall from 8 to 7"):
        written(source, tmp_path / "out", lower)
    assert not (tmp_path / "out").exists()
    whole = torch.load(tmp_path / "ckpt" / CKPT, weights_only=False)
    smaller = torch.from_numpy(np.where(sids == 8, 7, sids)).t()
    whole["hyper_parameters"]["codebooks"] = smaller
    (tmp_path / "given").mkdir()
    torch.save(whole, tmp_path / "given" / CKPT)
    torch.save(smaller, tmp_path / "given" / TABLE)
    given = opened(tmp_path / "given")  # nine codes a level though the table has eight: its config gives the number
    assert not any("largest code" in what for what, _ in named_layout("grid").remarks(given))
    written(given, tmp_path / "free", given.table.replace(np.flatnonzero((sids == 8).any(1)), np.array([[3, 3, 3, 3]])))
    aligned = open_checkpoint(
        tmp_path / "ckpt", item_ids=[str(i) for i in reversed(range(len(sids)))], trust_pickle=True
    )
    other = aligned.table.replace(np.array([len(sids) - 5]), np.array([[3, 3, 8, 3]]))
    out = written(aligned, tmp_path / "other", other)
    assert levels.table_of(out)[4].tolist() == [3, 3, 8, 3]
    assert (np.delete(levels.table_of(out), 4, 0) == np.delete(sids, 4, 0)).all()


@pytest.mark.parametrize("method", checks.METHODS)
def test_what_a_method_made_is_what_grid_loads(place: Path, tmp_path: Path, method: str) -> None:
    source = opened(place)
    made, table, concept = checks.erased(source, method, "influence" if method == "renormalise" else "output")
    out = written(made, tmp_path / "out", table)
    old, new = levels.table_of(place), levels.table_of(out)
    moved = (old != new).any(1)
    assert moved.any() <= (method in ("tracer", "paper"))  # the paper's rates move nothing in two steps
    assert moved.any() >= (method == "tracer")
    assert not (moved & ~concept).any()
    assert new.max() == old.max()
    if method == "tracer":
        assert new[:, 3].max() <= old[:, 3].max()  # a last digit that nobody had has a row, but means nothing
    checks.speaks_as_its_tool(out, None)


@pytest.mark.slow
def test_the_commands_publish_what_they_read(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("natural", "free", "utility")
    monkeypatch.setattr(
        "recerase.audit.run.probes_of", lambda profile: few
    )  # what is tested is the files, and there is little time
    out = tmp_path / "erased"
    fixtures.data(tmp_path / "data")
    (tmp_path / "policy.toml").write_text(checks.POLICY)
    common = [
        f"--data={tmp_path}/data", f"--policy={tmp_path}/policy.toml", "--concept=brand=brand2", "--threads=1",
        "--device=cpu", "--trust-pickle", "--max-users=5", "-q",
    ]  # fmt: skip
    before = {file.name: file.read_bytes() for file in place.iterdir()}
    settings = [f"--set={name}={value}" for name, value in checks.SMALL.items()]
    assert run(["erase", str(place), "--out", str(out), *settings, *common]) in (0, 5)
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    old, new = levels.table_of(place), levels.table_of(out)
    moved = np.flatnonzero((old != new).any(1))
    assert len(moved)
    assert {move.item_id for move in read_report(out / "report.json").moves} == {str(item) for item in moved}
    assert opened(out).codebooks is not None
    assert run(["erase", str(place), "--out", str(tmp_path / "no"), "-m", "filter", *common]) in (2, 3)
    assert not (tmp_path / "no").exists()


def test_what_does_not_belong_together_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(PickleError):
        open_checkpoint(place)
    with pytest.raises(UsageError, match="user=1 is no bucket of 0"):
        opened(place, user="1")
    assert opened(place, window="4").recommender.window == 4
    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    sids = torch.from_numpy(levels.grid_codes()).t()
    torch.save(sids.roll(1, 1), path / TABLE)
    with pytest.raises(TableError, match="not the table among the hyperparameters"):
        opened(path)
    torch.save(sids[:3], path / TABLE)
    with pytest.raises(TableError, match="holds 3 codes"):
        opened(path)
    torch.save(sids, path / "second.pt")
    with pytest.raises(CheckpointError, match="holds 2 SID tables") as many:
        opened(path)
    assert "sids=FILE" in many.value.remedy
    (path / TABLE).unlink()
    assert opened(path).table.codes.tolist() == opened(place).table.codes.tolist()
    shutil.move(path / "second.pt", tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match=r"holds no \.pt"):
        opened(path)
    source = opened(path, sids=str(tmp_path / "elsewhere.pt"))
    out = written(source, tmp_path / "out")
    assert (out / "elsewhere.pt").read_bytes() == (tmp_path / "elsewhere.pt").read_bytes()
    (path / CKPT).write_bytes((path / CKPT).read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="cannot be read"):
        opened(path, sids=str(tmp_path / "elsewhere.pt"))


def test_a_damaged_checkpoint_is_refused_in_a_sentence(place: Path, tmp_path: Path) -> None:
    assert pickle.dumps(opened(place))  # so that it can be told to other processes
    whole = torch.load(place / CKPT, weights_only=False)
    spoiled = {
        "twice, with different values": {"model.encoder.final_layer_norm.weight": torch.zeros(levels.WIDTH)},
        "no real numbers": {"sep_token": torch.zeros(1, levels.WIDTH, dtype=torch.int64)},
        "do not say the sizes": {
            "decoder.decoder.block.x": torch.zeros(1),
            "gone": "encoder.encoder.encoder.block.0.layer.0.SelfAttention.q",
        },
        "does not fit 4 heads of 9": {"decoder.decoder_mlp.1.weight": torch.zeros(8, levels.WIDTH)},
        "holds no tensor decoder.decoder_mlp.0.weight": {"gone": "decoder.decoder_mlp"},
        "gated": {"decoder.decoder.block.0.layer.2.DenseReluDense.wi_0.weight": torch.zeros(2, 2)},
        "weights missing": {"gone": "decoder.decoder.block.1.layer.0.SelfAttention.k"},
        "holds NaN": {"decoder.bos_token": torch.full((1, levels.WIDTH), float("nan"))},
    }
    for number, (said, changes) in enumerate(spoiled.items()):
        path = tmp_path / str(number)
        path.mkdir()
        shutil.copy2(place / TABLE, path)
        gone = str(changes.pop("gone", "nothing"))
        state = {
            name: tensor
            for name, tensor in whole["state_dict"].items()
            if not name.startswith((gone, gone.replace("encoder.encoder.encoder.", "model.encoder.")))
        }
        torch.save({**whole, "state_dict": {**state, **changes}}, path / CKPT)
        with pytest.raises(CheckpointError, match=said):
            opened(path)


def test_inspect_tells_the_traps_and_reads_a_table_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = describe(place, trust_pickle=True)
    assert found.facts["layout"] == "grid"
    assert found.facts["codes in use"] == [6, 5, 9, 3]
    assert TABLE in found.facts["SID table"]
    assert CKPT in found.facts["SID table"]
    told = " ".join(what for what, _ in found.traps)
    assert "largest code in the table, 8" in told
    assert "moments" in told
    assert run(["inspect", str(place / TABLE), "--trust-pickle", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["facts"]["items"] == fixtures.N
    assert said["facts"]["levels"] == 4
    assert run(["inspect", str(place / TABLE)]) == 4


def test_a_megatron_checkpoint_of_sid_gr_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ckpt" / "dynamicemb_module").mkdir(parents=True)
    (tmp_path / "ckpt" / "torch_module").mkdir()
    torch.save({"model_state_dict": {}}, tmp_path / "ckpt" / "torch_module" / "model.0.pth")
    with pytest.raises(CheckpointError, match="sid_gr, a Megatron model") as refused:
        opened(tmp_path / "ckpt")
    assert "inspect" in refused.value.remedy
