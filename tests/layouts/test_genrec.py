"""genrec's checkpoint is read as its own class computes it, and comes back loadable there, with an optimizer that forgot."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import genrec_twin as twin

from recerase import api
from recerase.__main__ import run
from recerase.catalog import Histories, load_catalogue
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.erase.target import Teacher
from recerase.errors import CheckpointError, PickleError, TableError, UsageError
from recerase.layouts.describe import describe
from recerase.layouts.native import Checkpoint
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.model.mass import concept_mass
from recerase.report.schema import read_report
from recerase.store import publish

WEIGHTS, INDEX = "checkpoint_final.pt", "sids.json"
POLICY = """schema = "recerase.policy/1"
[audit]
min_users = 5
[[rule]]
id = "exposure"
metric = "natural.exposure@10"
max = 1.0
"""
HISTORIES = [[3, 4, 5], [8], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("genrec")
    fixtures.data(place / "data")
    twin.genrec(place / "ckpt")
    (place / "policy.toml").write_text(POLICY)
    return place


@pytest.fixture(scope="module")
def place(home: Path) -> Path:
    return home / "ckpt"


def opened(path: Path, **options: str) -> Checkpoint:
    return open_checkpoint(path, trust_pickle=True, options=options)


def written(source: Checkpoint, out: Path, table: Any = None) -> Path:
    with publish(out) as result:
        named_layout("genrec").write_back(source, source.recommender, table or source.table, result.directory)
    return out


def theirs(path: Path, **shape: Any) -> tuple[twin.Tiger, dict[str, Any]]:
    """Their class with what is in the file, and the file."""
    saved = torch.load(path / WEIGHTS, weights_only=False)
    model = twin.Tiger(**shape)
    model.load_state_dict(saved["model"], strict=True)
    return model.eval(), saved


def logits(model: twin.Tiger, user: int = 0) -> torch.Tensor:
    rows = twin.sids().tolist()
    ids, types, mask = twin.collated([[rows[item] for item in items[-twin.WINDOW :]] for items in HISTORIES])
    with torch.inference_mode():
        return model(torch.full((3,), user), ids, types, mask, torch.tensor([[1, 3]] * 3))


def test_it_is_detected_unread_and_read_only_when_trusted(place: Path) -> None:
    assert detect_layout(place).name == "genrec"
    with pytest.raises(PickleError, match=r"\.pt is a pickle") as refused:
        open_checkpoint(place)
    assert "--trust-pickle" in refused.value.remedy


@pytest.mark.parametrize("user", ["0", "5", str(twin.USERS + 5)])
def test_it_computes_what_their_class_computes(place: Path, user: str) -> None:
    found = opened(place, user=user)
    model = found.recommender
    with torch.inference_mode():
        state = model.start(*model.tokens(Histories.from_lists(HISTORIES), found.table))
        steps = [state.logits]
        for row in (1, twin.K + 3):
            state = model.advance(state, torch.tensor([row]), None if state.depth == 0 else torch.tensor([0]))
            steps.append(state.logits[:, 0])
    truth = logits(theirs(place)[0], int(user))
    torch.testing.assert_close(torch.stack(steps, 1), truth, atol=2e-5, rtol=0)
    assert int(user) % twin.USERS == model.module.config.user


def test_inspect_tells_shape_and_traps(place: Path) -> None:
    found = describe(place, trust_pickle=True)
    assert found.facts["layout"] == "genrec"
    assert found.facts["vocabulary rows"] == 3 * twin.K + 1
    assert found.facts["window (history items)"] == twin.WINDOW
    assert found.facts["copied"] == ["tiger.gin"]
    assert not found.broken
    told = " ".join(what for what, _ in found.traps)
    for word in ("row 0 of 7", "temperature of 0.2", "RQ-VAE", "moments"):
        assert word in told


def test_nothing_changed_is_theirs_bit_for_bit_but_for_the_optimizer(place: Path, tmp_path: Path) -> None:
    source = opened(place)
    out = written(source, tmp_path / "out")
    assert {file.name for file in out.iterdir()} == {WEIGHTS, INDEX, "tiger.gin", "recerase.json"}
    assert (out / INDEX).read_bytes() == (place / INDEX).read_bytes()
    assert opened(out).digest == named_layout("genrec").digest(out) != source.digest  # the optimizer is another
    assert named_layout("genrec").digest(place) == source.digest
    (before, old), (after, new) = theirs(place), theirs(out)
    assert torch.equal(logits(before), logits(after))
    assert (new["epoch"], new["scheduler"]) == (old["epoch"], old["scheduler"])
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    assert old["optimizer"]["state"].keys() == new["optimizer"]["state"].keys()
    moments = [tensor for state in new["optimizer"]["state"].values() for tensor in state.values()]
    assert len(moments) > 100
    assert not any(tensor.any() for tensor in moments)
    assert any(tensor.any() for state in old["optimizer"]["state"].values() for tensor in state.values())
    optimizer = torch.optim.AdamW(after.parameters())
    optimizer.load_state_dict(new["optimizer"])
    after.bos_embedding.grad = torch.ones_like(after.bos_embedding)
    optimizer.step()
    assert bool(after.bos_embedding.isfinite().all())


def test_changed_tensors_alone_change(place: Path, tmp_path: Path) -> None:
    source = opened(place)
    with torch.no_grad():
        source.recommender.module.output_head.weight[7] += 1
    table = source.table.replace(np.array([0]), np.array([[31, 30, 29]]))
    out = written(source, tmp_path / "out", table)
    before, after = (torch.load(x / WEIGHTS, weights_only=False)["model"] for x in (place, out))
    assert list(before) == list(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["output_head.weight"]
    records = []
    for path in (place, out):
        with zipfile.ZipFile(io.BytesIO((path / WEIGHTS).read_bytes())) as archive:
            assert archive.testzip() is None
            records.append({name: archive.read(name) for name in archive.namelist()})
    assert records[0].keys() == records[1].keys()
    assert all(records[0][name] == records[1][name] for name in records[0] if "/data/" not in name)
    old, new = (json.loads((x / INDEX).read_text()) for x in (place, out))
    assert list(old) == list(new)
    assert {key: new[key] for key in old if old[key] != new[key]} == {"0": [31, 30, 29]}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_that_accelerate_or_compile_wrapped_stay_wrapped(place: Path, tmp_path: Path, prefix: str) -> None:
    source = opened(twin.genrec(tmp_path / "ckpt", wrapped=prefix))
    plain = opened(place).recommender.module.state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in source.recommender.module.state_dict().items())
    saved = torch.load(written(source, tmp_path / "out") / WEIGHTS, weights_only=False)["model"]
    assert set(saved) == {prefix + name for name in plain}


def test_the_table_may_lie_elsewhere(place: Path, tmp_path: Path) -> None:
    path = twin.genrec(tmp_path / "ckpt", table=False)
    with pytest.raises(CheckpointError, match="genrec keeps none") as refused:
        opened(path)
    assert "dataset.sem_ids_list" in refused.value.remedy
    assert "sids=FILE" in refused.value.remedy
    source = opened(path, sids=str(place / INDEX))
    assert source.table.digest == opened(place).table.digest
    out = written(source, tmp_path / "out")
    assert (out / INDEX).read_bytes() == (place / INDEX).read_bytes()
    assert opened(out).table.digest == source.table.digest


def test_what_cannot_be_told_is_refused(place: Path, tmp_path: Path) -> None:
    for user in ("x", "-1", "9" * 40):
        with pytest.raises(UsageError, match="user="):
            opened(place, user=user)
    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    shutil.copy2(path / WEIGHTS, path / "checkpoint_epoch_49.pt")
    with pytest.raises(CheckpointError, match=r"2 \.pt files") as refused:
        opened(path)
    assert "weights=FILE" in refused.value.remedy
    assert opened(path, weights=WEIGHTS).digest == opened(place).digest
    with pytest.raises(CheckpointError, match=r"no sids\.json among its \.pt files of a Tiger"):
        opened(path, weights=INDEX)
    for table in ('{"0": [1, 2, 32]}', '{"0": [1, 2]}', '{"0": ["<a_1>", "<b_1>", "<c_32>"]}'):
        (path / INDEX).write_text(table)
        with pytest.raises(TableError, match="3 codes below 32"):
            opened(path, weights=WEIGHTS, sids=str(path / INDEX))


def test_levels_that_its_trainer_mixes_up_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    torch.save({"model": twin.tiger(levels=4).state_dict()}, path / WEIGHTS)
    (path / INDEX).write_text('{"0": [1, 2, 3, 4]}')
    with pytest.raises(CheckpointError, match="4 levels") as refused:
        opened(path)
    assert "add_disambiguation=False" in refused.value.remedy


@pytest.mark.parametrize("change", ["lost", "more", "shape", "rows", "nan", "empty"])
def test_another_model_is_refused(place: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "ckpt"
    shutil.copytree(place, path)
    saved = torch.load(path / WEIGHTS, weights_only=False)
    model = saved["model"]
    if change == "lost":
        del model["transformer.decoder.layers.1.norm_cross.weight"]
    elif change == "more":
        model["transformer.extra.weight"] = torch.ones(2)
    elif change == "shape":
        model["in_proj.weight"] = torch.ones(16, 24)
    elif change == "rows":
        model["sem_id_embedding.emb.weight"] = torch.ones(98, 16)
    elif change == "nan":
        model["output_head.weight"][3, 4] = float("nan")
    else:
        saved["note"], saved["model"] = list(model), {}
    torch.save(saved, path / WEIGHTS)
    with pytest.raises(CheckpointError):
        opened(path)


@pytest.mark.slow
def test_erase_publishes_what_their_class_loads(home: Path, tmp_path: Path) -> None:
    """The whole command, audit and all, with tiny steps."""
    source, out = home / "ckpt", tmp_path / "erased"
    before = (source / WEIGHTS).read_bytes()
    given = ["erase", str(source), f"--out={out}", f"--data={home}/data", f"--policy={home}/policy.toml", "--threads=1"]
    given += ["--concept=brand=brand2", "--device=cpu", "--trust-pickle", "--max-users=6"]
    given += [f"--set={key}" for key in ("reassign_steps=2", "settle_steps=2", "pool=1", "min_moved=0")]
    assert run(given) in (0, 5)
    assert (source / WEIGHTS).read_bytes() == before
    ours = opened(out)
    model, saved = theirs(out)
    state = ours.recommender.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved["model"].items())
    assert not torch.equal(logits(model), logits(theirs(source)[0]))
    report = read_report(out / "report.json")
    old, new = (json.loads((x / INDEX).read_text()) for x in (source, out))
    moved = {key for key in old if old[key] != new[key]}
    assert moved == {move.item_id for move in report.moves}
    assert moved
    assert moved <= {str(item) for item in range(fixtures.N) if item % fixtures.TASTES == 2}
    assert api.verify_report(out / "report.json", subject=out, original=source) == ()
    assert pickle.dumps(ours)  # so that it can be told to other processes


@pytest.mark.parametrize(("method", "steps"), [("npo", "steps=4"), ("renormalise", "settle_steps=4")])
def test_methods_move_the_concept_and_leave_users_alone(home: Path, tmp_path: Path, method: str, steps: str) -> None:
    catalogue = load_catalogue(home / "data")
    source = open_checkpoint(home / "ckpt", item_ids=catalogue.items.item_ids, trust_pickle=True)
    members = np.arange(fixtures.N) % fixtures.TASTES == 2
    request = EraseRequest(
        model=source.recommender,
        table=source.table,
        interactions=catalogue.interactions,
        concept=members,
        embeddings=None,
        codebooks=None,
        training={},
        seed=0,
    )
    eraser, preset = get_method(method)
    erased = eraser.run(request, make_config(eraser, preset, dict([steps.split("=")])))
    histories = Histories.from_lists(HISTORIES)
    before, after = (
        concept_mass(model, source.table, members, histories).mass for model in (source.recommender, erased.model)
    )
    if method == "npo":
        assert (after < before).all()
    else:  # a model that was never trained is at its target, and stays there
        wanted = Teacher(source.recommender, source.table, members, "output", 0).target(histories, np.full(3, -1))
        gap = np.log(after) - wanted.closed.logsumexp(1).numpy()
        assert (np.abs(gap) < np.log(1.5)).all()
    with publish(tmp_path / "out") as result:
        named_layout("genrec").write_back(source, erased.model, erased.table, result.directory)
    old, new = (theirs(path)[1]["model"] for path in (home / "ckpt", tmp_path / "out"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    unread = {"pos_embedding.weight", "decoder_pos_embedding.weight", "out_proj.weight"}
    assert changed == set(old) - unread - {"user_id_embedding.emb.weight"}
