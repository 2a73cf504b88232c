"""A second erasure, an audit of both, and an erasure taken back: what a user says, and what the checkpoint remembers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.patches.fixtures import files

from recerase import api
from recerase.catalog import load_catalogue
from recerase.catalog.demo import demo_catalogue
from recerase.catalog.items import items_from_table
from recerase.catalog.readers import write_catalogue
from recerase.earlier import Earlier, grown_by
from recerase.errors import ArtefactError
from recerase.layouts.native import load_checkpoint
from recerase.model.recommender import ModelConfig
from recerase.model.training import TrainConfig
from recerase.runtime import RunConfig
from recerase.sid.quantize import TokenizeConfig
from recerase.store import publish, read_manifest, write_manifest

RUN = RunConfig(threads=1, device="cpu")
FIRST, SECOND = "category=Vaping", "brand=Emberly"
"""They overlap: Emberly makes some of what is vaped."""
LAX = """schema = "recerase.policy/1"
[audit]
min_users = 1
[[rule]]
id = "utility"
metric = "utility.ndcg@10"
max_drop = 1.0
max_drop_vs = "original"
"""
LOOSE = f"""{LAX}[[rule]]
id = "whatever"
metric = "earlier.exposure@10"
max = 1.0
"""
"""Says in its own words what is asked of earlier concepts: nothing. So small a model forgets nothing."""
QUICK = ("reassign_steps=2", "settle_steps=3", "pool=1", "batch=12", "sequences=4", "min_moved=0")


def code_of(line: list[str]) -> int:
    from recerase.__main__ import run

    return run(line)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, model, once (the first concept erased), twice (both), and a policy that lets anything through; read only."""
    home = tmp_path_factory.mktemp("continual")
    with publish(home / "data") as made:
        write_catalogue(made.directory, *demo_catalogue(0, n_items=200, n_users=80))
        made.provenance = {"command": "test"}
    api.tokenize(home / "data", home / "sids", TokenizeConfig(levels=2, codes=24), dims=16)
    shape = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=5)
    api.train(home / "data", home / "sids", home / "model", shape, TrainConfig(epochs=2, validation_users=20), run=RUN)
    (home / "lax.toml").write_text(LAX)
    (home / "loose.toml").write_text(LOOSE)
    erase(home, "model", FIRST, "once")
    erase(home, "once", SECOND, "twice")
    return home


def erase(home: Path, source: str, concept: str, out: str, **more: Any) -> Any:
    given: dict[str, Any] = {"method": "tracer", "overrides": QUICK, "policy": home / "loose.toml", "max_users": 20}
    return api.erase(
        home / source, api.ConceptSpec((concept,)), home / "data", home / out, run=RUN, **{**given, **more}
    )


def members(home: Path, concept: str) -> set[str]:
    chosen, _, catalogue = api.concept_preview(home / "data", api.ConceptSpec((concept,)))
    return {str(item) for item in catalogue.items.item_ids[chosen.members]}


def test_what_was_erased_is_remembered_with_the_words_the_items_and_their_old_sids(shop: Path) -> None:
    said = json.loads((shop / "twice" / "erased.json").read_text())
    assert [(c["name"], c["spec"], c["method"]) for c in said["concepts"]] == [
        (FIRST, [FIRST], "tracer"),
        (SECOND, [SECOND], "tracer"),
    ]
    for concept, spec, before in zip(said["concepts"], (FIRST, SECOND), ("model", "once"), strict=True):
        table = load_checkpoint(shop / before).table
        old = {str(item): [int(c) for c in codes] for item, codes in zip(table.item_ids, table.codes, strict=True)}
        assert concept["items"] == {item: old[item] for item in members(shop, spec)}
    told = read_manifest(shop / "twice")["provenance"]["erased"]
    assert [(c["name"], c["items"]) for c in told] == [(c["name"], len(c["items"])) for c in said["concepts"]]
    assert read_manifest(shop / "model")["provenance"].get("erased") is None


def test_the_second_erasure_moves_its_own_items_alone_and_gives_out_no_sid_that_was_left(shop: Path) -> None:
    model, once, twice = (load_checkpoint(shop / name).table for name in ("model", "once", "twice"))
    first, second = (members(shop, spec) for spec in (FIRST, SECOND))
    assert first & second
    assert first - second
    assert {str(i) for i in once.item_ids[once.moved(model)]} == first
    assert {str(i) for i in twice.item_ids[twice.moved(once)]} == second
    left = {tuple(c) for c in model.codes[model.moved(once)].tolist()}
    assert not left & {tuple(c) for c in twice.codes[twice.moved(once)].tolist()}


def test_an_audit_counts_earlier_items_as_retained_nowhere_and_holds_them_to_staying_out(shop: Path) -> None:
    given: dict[str, Any] = {"policy": shop / "lax.toml", "original": shop / "once", "run": RUN}
    report = api.audit(shop / "twice", api.ConceptSpec((SECOND,)), shop / "data", **given)
    rules = {finding.rule.id for finding in report.decision.findings}
    assert {"earlier-exposure", "earlier-mass-old", "earlier-mass-new", "utility"} == rules
    first, second = members(shop, FIRST), members(shop, SECOND)
    assert any(f"{len(first - second)} items of theirs are not in this concept" in limit for limit in report.limits)
    catalogue = load_catalogue(shop / "data")
    targets = [str(catalogue.items.item_ids[t]) for t in catalogue.interactions.split().test.targets]
    assert any(t in first - second for t in targets)
    users = {m.metric: m.n for m in report.measurements if m.role == "subject" and m.kind == "value"}
    assert users["utility.ndcg@10"] == sum(t not in first | second for t in targets)
    both = api.audit(shop / "twice", api.ConceptSpec((SECOND, FIRST)), shop / "data", **given)
    assert not [m for m in both.measurements if m.metric.startswith("earlier.")]
    assert both.concept["items"] == len(first | second)
    assert {f.rule.id for f in both.decision.findings} == {"utility"}


def test_the_command_line_says_what_the_checkpoint_does_not_remember(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "audit",
        str(shop / "model"),
        "--concept",
        SECOND,
        "--data",
        str(shop / "data"),
        "--max-users",
        "20",
        "--json",
    ]
    code_of(line)
    assert "earlier.exposure@10" not in capsys.readouterr().out
    code_of([*line, "--already-erased", FIRST])
    assert "earlier.exposure@10" in capsys.readouterr().out


def test_a_report_on_earlier_concepts_is_verified_beside_the_policy_that_was_given(shop: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "report.json", (shop / "twice", api.ConceptSpec((SECOND,)), shop / "data")
    api.audit(*given, policy=shop / "lax.toml", original=shop / "once", max_users=20, outputs=[out], run=RUN)
    assert api.verify_report(out, policy=shop / "lax.toml", original=shop / "once") == ()
    assert any("policy" in p for p in api.verify_report(out, policy=shop / "loose.toml"))


def test_what_a_checkpoint_does_not_remember_is_said(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--already-erased stands in for a lost erased.json, which alone is refused; and is remembered from then on."""
    bare, patch = tmp_path / "bare", tmp_path / "a.patch"
    api.make_patch(shop / "model", shop / "once", patch, one_way=True, leave=["erased.json", "report.json"], run=RUN)
    api.apply_patch(shop / "model", patch, bare)
    assert read_manifest(bare)["provenance"]["erased"]
    line = ["erase", str(bare), "--concept", SECOND, "--data", str(shop / "data"), "--plan"]
    assert code_of(line) == ArtefactError.exit_code
    assert "--already-erased" in capsys.readouterr().err
    assert code_of([*line, "--already-erased", FIRST, "--json"]) == 0
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["erased"]] == [FIRST]
    compared = ["compare", str(bare), "--concept", SECOND, "--data", str(shop / "data"), "-m", "npo", "--plan", "-q"]
    quick = [f"--set={pair}" for pair in ("prepare_steps=1", "hops=1", "batch=4")]
    prepared = ["prepare", str(bare), "--data", str(shop / "data"), *quick, "--threads", "1", "-q"]
    for words in (compared, prepared):
        words += ["--out", str(tmp_path / words[0])]
        assert code_of(words) == ArtefactError.exit_code
        assert "--already-erased" in capsys.readouterr().err
        assert not (tmp_path / words[0]).exists()
        assert code_of([*words, "--already-erased", FIRST]) == 0
    capsys.readouterr()
    grown = ["tokenize", str(shop / "data"), "--extend", str(bare), "--out", str(tmp_path / "grown")]
    assert code_of(grown) == ArtefactError.exit_code  # nobody knows the SIDs that a new item must not get
    assert "Take the checkpoint with it" in " ".join(capsys.readouterr().err.split())
    report = erase(
        shop,
        "model",
        SECOND,
        str(tmp_path / "out"),
        earlier=[api.ConceptSpec((FIRST,))],
        method="npo",
        overrides=["steps=1"],
    )
    assert any(m.metric == "earlier.exposure@10" for m in report.measurements)
    said = json.loads((tmp_path / "out" / "erased.json").read_text())["concepts"]
    assert [(c["name"], c["method"]) for c in said] == [(FIRST, ""), (SECOND, "npo")]
    assert set(said[0]["items"]) == members(shop, FIRST)


def test_inspect_says_what_was_erased(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["inspect", str(shop / "twice"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert f"{FIRST} ({len(members(shop, FIRST))} items), {SECOND}" in json.dumps(told)


def test_an_erasure_that_brings_an_earlier_concept_back_is_not_published(shop: Path, tmp_path: Path) -> None:
    """A second erasure from a model that was never erased of the first, though it is said to be: the first is plainly there."""
    report = erase(
        shop,
        "model",
        SECOND,
        str(tmp_path / "out"),
        earlier=[api.ConceptSpec((FIRST,))],
        method="filter",
        overrides=(),
        policy=shop / "lax.toml",
    )
    failed = {f.rule.id for f in report.decision.findings if f.result.value == "fail"}
    assert "earlier-mass-new" in failed
    assert report.decision.verdict.value == "fail"
    assert not (tmp_path / "out").exists()


def test_new_items_of_what_was_erased_get_no_sid_and_others_none_that_was_left(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three new items of the first concept and three others, copies of old ones: as like them as can be."""
    items, told = demo_catalogue(0, n_items=200, n_users=80)
    ids = items["item_id"].to_pylist()
    first = sorted(members(shop, FIRST) - members(shop, SECOND))[:3]
    others = sorted(set(ids) - members(shop, FIRST) - members(shop, SECOND))[:3]
    copies = items.take([ids.index(item) for item in (*first, *others)])
    copies = copies.set_column(0, "item_id", pa.array([f"new{i}" for i in range(6)]))
    with publish(tmp_path / "data") as made:
        write_catalogue(made.directory, pa.concat_tables([items, copies.cast(items.schema)]), told)
        made.provenance = {"command": "test"}
    grown = tmp_path / "grown"
    line = ["tokenize", str(tmp_path / "data"), "--extend", str(shop / "twice"), "--out", str(grown)]
    assert code_of(line) == 0
    assert "3 new items are of what was erased" in " ".join(capsys.readouterr().err.split())
    before, after = load_checkpoint(shop / "twice"), load_checkpoint(grown)
    assert (grown / "model.safetensors").read_bytes() == (shop / "twice" / "model.safetensors").read_bytes()
    assert (after.table.codes[:200] == before.table.codes).all()
    assert (after.table.listed[:200] == before.table.listed).all()
    assert after.table.present[200:].tolist() == after.table.listed[200:].tolist() == [False] * 3 + [True] * 3
    had = {tuple(codes) for name in ("model", "once") for codes in load_checkpoint(shop / name).table.codes.tolist()}
    left = had - {tuple(codes) for codes in before.table.codes.tolist()}
    assert not left & {tuple(codes) for codes in after.table.codes[203:].tolist()}
    said = json.loads((grown / "erased.json").read_text())["concepts"]
    assert {"new0", "new1", "new2"} <= set(said[0]["items"])
    assert not any(item in concept["items"] for concept in said for item in ("new3", "new4", "new5"))
    report = api.audit(
        grown,
        api.ConceptSpec((FIRST,)),
        tmp_path / "data",
        original=None,
        max_users=20,
        policy=shop / "loose.toml",
        run=RUN,
    )
    assert report.concept["items"] == len(members(shop, FIRST)) + 3


def test_the_last_erasure_is_taken_back_by_its_patch_and_one_below_it_is_not(shop: Path, tmp_path: Path) -> None:
    a, b = tmp_path / "a.patch", tmp_path / "b.patch"
    assert code_of(["patch", "make", str(shop / "model"), str(shop / "once"), "--out", str(a)]) == 0
    assert code_of(["patch", "make", str(shop / "once"), str(shop / "twice"), "--out", str(b)]) == 0
    assert code_of(["patch", "revert", str(shop / "twice"), str(b), "--out", str(tmp_path / "again")]) == 0
    assert files(tmp_path / "again") == files(shop / "once")
    with pytest.raises(ArtefactError, match="is not what the patch was made from") as caught:
        api.revert_patch(shop / "twice", a, tmp_path / "never")
    assert "after the change" in caught.value.remedy
    assert not (tmp_path / "never").exists()
    assert code_of(["patch", "revert", str(tmp_path / "again"), str(a), "--out", str(tmp_path / "first")]) == 0
    assert files(tmp_path / "first") == files(shop / "model")


def test_a_reference_of_its_own_sids_is_read_under_these(shop: Path, tmp_path: Path) -> None:
    """It never had the SIDs that earlier items had in the audited model, and may not be able to spell them."""
    api.tokenize(shop / "data", tmp_path / "sids", TokenizeConfig(levels=3, codes=16), dims=16)
    shape = ModelConfig(width=16, layers=1, heads=2, feed_forward=16, window=5)
    api.train(shop / "data", tmp_path / "sids", tmp_path / "gold", shape, TrainConfig(epochs=1), run=RUN)
    given: dict[str, Any] = {"original": shop / "once", "policy": shop / "lax.toml", "max_users": 20, "run": RUN}
    report = api.audit(shop / "twice", api.ConceptSpec((SECOND,)), shop / "data", reference=tmp_path / "gold", **given)
    mass = {m.metric: m.value for m in report.measurements if m.role == "reference" and m.kind == "value"}
    assert mass["earlier.mass.old"] == mass["earlier.mass.new"] > 0


def test_a_checkpoint_from_before_there_was_a_memory_says_in_its_manifest_what_was_erased(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(shop / "once", old)
    (old / "erased.json").unlink()
    said = read_manifest(old)["provenance"]
    del said["erased"]
    write_manifest(old, said)
    line = ["erase", str(old), "--concept", SECOND, "--data", str(shop / "data"), "--plan", "--json"]
    assert code_of(line) == 0
    told = json.loads(capsys.readouterr().out)["erased"]
    assert [(c["name"], c["items"]) for c in told] == [(FIRST, len(members(shop, FIRST)))]
    said["concept"]["digest"] = "0" * 64
    write_manifest(old, said)
    assert code_of(line) == ArtefactError.exit_code
    assert "--already-erased" in capsys.readouterr().err
    assert code_of([*line, "--already-erased", FIRST]) == 0


def test_what_is_remembered_and_said_too_counts_once(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["erase", str(shop / "once"), "--concept", SECOND, "--data", str(shop / "data"), "--plan", "--json"]
    assert code_of([*line, "--already-erased", FIRST]) == 0
    assert [c["name"] for c in json.loads(capsys.readouterr().out)["erased"]] == [FIRST]


def test_a_list_of_ids_beside_words_need_not_be_there_when_the_catalogue_grows() -> None:
    table, _ = demo_catalogue(0, n_items=200, n_users=80)
    items = items_from_table(table)
    brand = items.brands[0]
    rows = np.flatnonzero([b == brand for b in items.brands])[-2:]  # the new ones
    spec = ("@lost.txt", f"brand={brand}", f"!item:{items.item_ids[rows[0]]}", f'!title~"^{items.titles[rows[1]]}$"')
    points = np.zeros((200, 2), np.float32)
    found, gone = grown_by([Earlier("x", spec, "", "tracer", {})], items, rows, points)
    assert gone.tolist() == [True, False]
    assert list(found[0].sids) == [str(items.item_ids[rows[0]])]
    only = Earlier("x", ("@lost.txt", f"!brand={brand}"), "", "tracer", {})
    assert not grown_by([only], items, rows, points)[1].any()
