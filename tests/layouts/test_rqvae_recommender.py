"""RQ-VAE-Recommender: the buffer is the table, and what is published is its model again, scores, lists and unused tables too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.layouts import foreign_fixtures as fixtures
from tests.layouts import level_checks as checks
from tests.layouts import level_fixtures as levels
from tests.layouts.level_checks import opened, written

from recerase.__main__ import run
from recerase.errors import CheckpointError, PickleError, TableError, UsageError
from recerase.layouts.describe import describe
from recerase.layouts.registry import named_layout, open_checkpoint

CKPT = "checkpoint_99.pt"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return levels.rqvae(tmp_path_factory.mktemp("rqvae") / "ckpt")


@pytest.mark.parametrize(
    ("users", "sep", "prefix", "user"),
    [(None, True, "_orig_mod.", None), (5, True, "", 4), (5, False, "module._orig_mod.", 0)],
)
def test_scores_and_lists_are_its_own(
    tmp_path: Path, users: int | None, sep: bool, prefix: str, user: int | None
) -> None:
    path = levels.rqvae(tmp_path / "ckpt", users=users, sep=sep, prefix=prefix)
    checks.speaks_as_its_tool(path, user)


def test_nothing_changed_is_written_back_but_for_the_moments(place: Path, tmp_path: Path) -> None:
    out = written(opened(place), tmp_path / "out")
    checks.only_what_changed(place / CKPT, out / CKPT, "optimizer", set())
    sids = levels.plain_codes()
    assert torch.equal(*(checks.logits(x, checks.HISTORIES, sids) for x in (place, out)))
    state = torch.load(out / CKPT, weights_only=True)
    assert (state["iter"], state["scheduler"]) == (99, {"last_epoch": 100})
    torch.optim.AdamW(levels.loaded(out).parameters()).load_state_dict(state["optimizer"])
    assert opened(out).digest == named_layout("rqvae-recommender").digest(out)
    assert {file.name for file in out.iterdir()} == {CKPT, "recerase.json"}


def test_changed_rows_and_the_buffer_go_where_they_came_from(place: Path, tmp_path: Path) -> None:
    source = open_checkpoint(place, item_ids=[str(i) for i in reversed(range(fixtures.N))], trust_pickle=True)
    with torch.no_grad():
        source.recommender.module.shared.weight[3 * levels.SIZE + 1] += 1  # the separator
        source.recommender.module.lm_head.weight[-1] += 1  # below the heads: nobody's
    table = source.table.replace(np.array([0]), np.array([[8, 7, 6]]))
    out = written(source, tmp_path / "out", table)
    changed = {("model", "_orig_mod.sep_token"), ("model", "_orig_mod.codebooks")}
    checks.only_what_changed(place / CKPT, out / CKPT, "optimizer", changed)
    wanted = levels.plain_codes()
    wanted[fixtures.N - 1] = [8, 7, 6]
    assert levels.table_of(out).tolist() == wanted.tolist()
    assert "encoder.shared.weight" in {
        name.removeprefix("_orig_mod.") for _, name in list(checks.tensors(out / CKPT))[:5]
    }


@pytest.mark.parametrize("method", checks.METHODS)
def test_what_a_method_made_is_what_it_loads(place: Path, tmp_path: Path, method: str) -> None:
    made, table, concept = checks.erased(opened(place), method)
    out = written(made, tmp_path / "out", table)
    moved = (levels.table_of(place) != levels.table_of(out)).any(1)
    assert moved.any() <= (method in ("tracer", "paper"))
    assert moved.any() >= (method == "tracer")
    assert not (moved & ~concept).any()
    unused = ("model", "_orig_mod.encoder.shared.weight")
    assert torch.equal(checks.tensors(place / CKPT)[unused], checks.tensors(out / CKPT)[unused])
    checks.speaks_as_its_tool(out, None)


def test_recommend_reads_it(place: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    fixtures.data(tmp_path / "data")
    given = ["recommend", str(place), "--data", str(tmp_path / "data"), "--top", "3", "--trust-pickle", "-q"]
    assert run([*given, "--layout-set", "window=4", "--out", str(tmp_path / "recs.parquet"), "--threads=1"]) == 0
    assert pq.read_table(tmp_path / "recs.parquet").num_rows == 3 * 40


def test_what_does_not_fit_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(PickleError):
        open_checkpoint(place)
    with pytest.raises(UsageError, match="window"):
        opened(place, window="none")
    path = levels.rqvae(tmp_path / "ckpt", users=3)
    with pytest.raises(UsageError, match="user=3 is no bucket of 3"):
        opened(path, user="3")
    state = torch.load(path / CKPT, weights_only=True)
    torch.save(state, path / "checkpoint_100.pt")
    with pytest.raises(CheckpointError, match="holds 2 checkpoints") as many:
        opened(path)
    assert "weights=FILE" in many.value.remedy
    assert opened(path, weights=CKPT).table.codes.tolist() == levels.plain_codes().tolist()
    (path / "checkpoint_100.pt").unlink()
    state["model"]["_orig_mod.codebooks"][5, 1] = levels.SIZE
    torch.save(state, path / CKPT)
    with pytest.raises(TableError, match="codes below 9"):
        opened(path)
    del state["model"]["_orig_mod.bos_token"]
    torch.save(state, path / CKPT)
    with pytest.raises(CheckpointError, match=r"holds no tensor _orig_mod\.bos_token"):
        opened(path)


def test_inspect_tells_the_traps(place: Path) -> None:
    found = describe(place, trust_pickle=True)
    assert found.facts["layout"] == "rqvae-recommender"
    assert found.facts["items sharing their SID"] >= 2
    told = " ".join(what for what, _ in found.traps)
    assert "computed anew" in told
    assert "moments" in told
