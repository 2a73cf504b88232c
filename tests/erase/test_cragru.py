"""CRAGRU: the filter drops items from every history that is read, lies in the checkpoint, and hides nothing from the replay."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.erase.conftest import N
from tests.erase.test_conformance_files import MEMBERS, WHERE, Shop, checkpoint, shop  # noqa: F401
from tests.layouts.causal_checks import EASY
from tests.layouts.causal_fixtures import make_world, minionerec
from transformers import AutoModelForCausalLM

from recerase import api
from recerase.audit import probes
from recerase.audit.readings import _spelling
from recerase.catalog.interactions import Histories
from recerase.erase import cragru
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.errors import ArtefactError, EraseError, TableError, UsageError
from recerase.layouts.native import FILTER, load_checkpoint, save_checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.layouts.tables import FORMATS, written
from recerase.model.decode import length_batches, recommend
from recerase.sid.table import SidTable
from recerase.store import publish
from recerase.types import Report


def filtered(request: EraseRequest) -> SidTable:
    return cragru.erase(request, cragru.CragruConfig()).table


def test_histories_are_read_as_if_the_items_were_not_there(
    kind: str, batch: Histories, ask: Callable[..., EraseRequest]
) -> None:
    request = ask(kind)
    table, model = filtered(request), request.model
    without = batch.without(request.concept)
    for mine, wanted in zip(model.tokens(batch, table), model.tokens(without, request.table), strict=True):
        assert torch.equal(mine, wanted)
    assert not torch.equal(model.tokens(batch, request.table)[1], model.tokens(batch, table)[1])
    items, scores = (
        recommend(model, table, batch, k=5),
        recommend(model, request.table.unlisted(request.concept), without, k=5),
    )
    assert (items.items == scores.items).all()
    assert items.scores == pytest.approx(scores.scores)
    assert not request.concept[items.items[items.items >= 0]].any()
    together = [
        list(length_batches(model, t, h, 2))
        for t, h in ((table, batch), (request.table, without), (request.table, batch))
    ]
    assert [list(b) for b in together[0]] == [list(b) for b in together[1]]
    assert [list(b) for b in together[0]] != [list(b) for b in together[2]]


def test_the_filter_stays_with_the_table(ask: Callable[..., EraseRequest]) -> None:
    request = ask("causal")
    table = filtered(request)
    assert table.dropped is not None
    assert (table.dropped == request.concept).all()
    assert table.digest != request.table.unlisted(request.concept).digest
    assert _spelling(table) != _spelling(request.table)
    order = np.random.default_rng(0).permutation(N)
    assert (table.aligned(table.item_ids[order]).dropped == request.concept[order]).all()
    assert (table.replace(np.array([20]), table.codes[[20]]).dropped == request.concept).all()
    more = table.filtered(np.arange(N) == 30)
    assert (more.dropped == (request.concept | (np.arange(N) == 30))).all()
    assert table.unfiltered.dropped is None
    assert table.unfiltered.digest == request.table.unlisted(request.concept).digest
    method, _ = get_method("npo")
    again = method.run(dataclasses.replace(request, table=table), make_config(method, None, {"steps": "1"}))
    assert (again.table.dropped == request.concept).all()
    with pytest.raises(UsageError, match="no table can say"):
        written(table, FORMATS["parquet"], Path("x"), {})


@pytest.fixture
def erased(
    shop: Shop,  # noqa: F811
    checkpoint: Callable[[str], Path],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Path, Report]:
    """The original, the checkpoint with a filter, and the report of its erasing; made once, read only."""
    source, out = checkpoint("causal"), shop.home / "filtered"
    if not out.exists():
        monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=20))
        (shop.home / "easy.toml").write_text(EASY)
        api.erase(
            source, MEMBERS, shop.data, out, method="cragru", policy=shop.home / "easy.toml", max_users=40, run=WHERE,
            outputs=[shop.home / "cragru.json"],
        )  # fmt: skip
    from recerase.report.schema import read_report

    return source, out, read_report(shop.home / "cragru.json")


def test_the_checkpoint_carries_it_and_its_weights_are_the_originals(erased: tuple[Path, Path, Report]) -> None:
    source, out, report = erased
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    said = json.loads((out / FILTER).read_bytes())
    assert said == {"schema": "recerase.retrieval-filter/1", "drop_from_histories": [f"i{i:02d}" for i in range(9)]}
    assert (load_checkpoint(out).table.dropped == (np.arange(N) < 9)).all()
    assert load_checkpoint(source).table.dropped is None
    assert report.method["changes"]["tensors_changed"] == []
    assert report.method["changes"]["items_dropped_from_histories"] == 9
    AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    found = api.inspect(out)
    assert any(f"{FILTER} drops 9 items" in what for what, _ in found.traps)


def test_the_audit_reads_with_it_and_its_replay_is_the_original(erased: tuple[Path, Path, Report]) -> None:
    _, _, report = erased
    told = {(m.role, m.metric): m.value for m in report.measurements if m.kind == "value"}
    assert told["subject", "natural.exposure@10"] == 0
    assert told["subject", "replay.exposure@10"] == told["original", "natural.exposure@10"] > 0
    assert told["subject", "replay.mass.old"] == pytest.approx(told["original", "natural.mass.old"])
    assert told["subject", "natural.mass.old"] < told["original", "natural.mass.old"]


def test_without_the_original_the_replay_still_filters_nothing(
    erased: tuple[Path, Path, Report],
    shop: Shop,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, out, first = erased
    monkeypatch.setattr(probes, "AuditConfig", functools.partial(probes.AuditConfig, saturated_histories=20))
    report = api.audit(out, MEMBERS, shop.data, policy=shop.home / "easy.toml", max_users=40, run=WHERE)
    now, was = (
        {m.metric: m.value for m in r.measurements if m.role == "subject" and m.kind == "value"}
        for r in (report, first)
    )
    assert now["replay.mass.old"] == pytest.approx(was["replay.mass.old"])


def test_recommendations_are_made_with_it(
    erased: tuple[Path, Path, Report],
    shop: Shop,  # noqa: F811
    tmp_path: Path,
) -> None:
    import pyarrow.parquet as pq

    source, out, _ = erased
    lists = []
    for name, place in (("old", source), ("new", out)):
        api.recommend(place, shop.data, tmp_path / f"{name}.parquet", top=3, run=WHERE)
        lists.append(pq.read_table(tmp_path / f"{name}.parquet").to_pylist())
    members = {f"i{i:02d}" for i in range(9)}
    assert {row["item_id"] for row in lists[0]} & members
    assert not {row["item_id"] for row in lists[1]} & members


def test_a_filter_that_is_gone_or_wrong_is_seen(
    erased: tuple[Path, Path, Report], tmp_path: Path, ask: Callable[..., EraseRequest]
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(erased[1], gone)
    (gone / FILTER).unlink()
    with pytest.raises(ArtefactError, match="is missing"):
        load_checkpoint(gone)
    added = tmp_path / "added"
    shutil.copytree(erased[0], added)
    shutil.copy(erased[1] / FILTER, added)
    with pytest.raises(ArtefactError, match="not vouched for"):
        load_checkpoint(added)
    for number, items in enumerate((["nobody"], [], ["i01", "i01"], "i01")):
        request = ask("causal")
        with publish(tmp_path / str(number)) as made:
            save_checkpoint(made.directory, request.model, request.table, None, None)
            said = {"schema": "recerase.retrieval-filter/1", "drop_from_histories": items}
            (made.directory / FILTER).write_text(json.dumps(said))
            made.provenance = {"command": "test"}
        with pytest.raises(TableError):
            load_checkpoint(tmp_path / str(number))


def test_another_tools_files_cannot_carry_it(tmp_path: Path) -> None:
    source = minionerec(tmp_path / "theirs", make_world())
    opened = open_checkpoint(source)
    table = opened.table.filtered(np.arange(len(opened.table)) < 3)
    (tmp_path / "out").mkdir()
    with pytest.raises(EraseError, match="cannot carry a retrieval filter") as caught:
        named_layout(opened.layout).write_back(opened, opened.recommender, table, tmp_path / "out")
    assert caught.value.remedy
    assert not list((tmp_path / "out").iterdir())
