"""A comparison is its cells: they are found again, a killed run goes on to the same table, and a refusal is a row."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.comparing.conftest import CONCEPT, QUICK, RUN, Compare, Finished, Shop

from recerase import api
from recerase.comparing.cells import CELLS, READINGS, Bench
from recerase.comparing.outputs import FILES, render_comparison
from recerase.comparing.rows import DROP
from recerase.errors import ArtefactError, CheckpointError, OutputError, UsageError, WriteError
from recerase.report.compared import APART, LEAK, comparison_bytes, comparison_digest, read_comparison
from recerase.store import read_manifest, read_run, sha256_file, verify_manifest
from recerase.types import Silent

OTHER = api.ConceptSpec(("brand=Emberly",))


def weights(out: Path) -> dict[str, str]:
    """Every cell's file but its manifest, which says how long it took."""
    kept = (path for path in sorted(out.rglob("*")) if path.is_file() and "recerase.json" not in path.name)
    return {path.relative_to(out).as_posix(): sha256_file(path) for path in kept if path.parent != out}


def plan(shop: Shop, out: Path, **fields: Any) -> list[str]:
    config = api.CompareConfig(
        **({"methods": ("npo", "ga"), "seeds": (0,), "overrides": QUICK, "max_users": 25} | fields)
    )
    return [cell.state for cell in api.plan_compare(shop.model, CONCEPT, shop.data, out, config, run=RUN)]


def test_the_table_holds_what_was_asked(finished: Finished) -> None:
    made = finished.comparison
    rows = {row.name: row for row in made.rows}
    assert list(rows) == ["original", "filter", "reference", "npo", "tracer/paper", "ga"]
    npo, paper = rows["npo"], rows["tracer/paper"]
    assert npo.seeds == (0, 1)
    assert npo.steps == 2
    assert npo.figures[LEAK].seeds == 2
    assert npo.figures[LEAK].interval.low <= npo.figures[LEAK].value <= npo.figures[LEAK].interval.high
    assert (paper.seeds, paper.figures, paper.standing) == ((), {}, "")
    assert [text[:7] for text in paper.failures] == ["seed 0:", "seed 1:"]
    assert "min_moved" in paper.failures[0]
    assert {npo.standing, rows["ga"].standing} <= {"alone", "front", "tied", "dominated", "remembers"}
    assert npo.figures[APART].seeds == 2
    assert 0 <= npo.figures[APART].interval.low <= npo.figures[APART].value
    assert rows["reference"].figures[APART].value == pytest.approx(0, abs=1e-12)
    assert "two-sided" in made.front
    assert rows["original"].standing == rows["filter"].standing == rows["reference"].standing == ""
    cost, training = made.run["cost"]["output"]["npo"], read_run(finished.model)
    assert cost["share"] == pytest.approx(cost["seconds"] / training["seconds"])
    assert cost["cpu_share"] == pytest.approx(cost["cpu_seconds"] / training["cpu_seconds"])
    assert training["cpu_seconds"] > 0
    assert npo.figures["influence.history"].seeds == 2
    assert 0 <= npo.figures["influence.history"].value <= 1


def test_figures_are_those_of_the_audit(shop: Shop, finished: Finished) -> None:
    rows = {row.name: row for row in finished.comparison.rows}
    cells = [path for path in (finished.out / CELLS).iterdir()]
    told = {path: read_manifest(path)["provenance"] for path in cells}
    npo = [path for path in cells if told[path]["method"]["name"] == "npo"]
    assert len(npo) == 2
    reports = [
        api.audit(path, CONCEPT, shop.data, original=shop.model, reference=shop.gold, max_users=25, run=RUN)
        for path in npo
    ]
    for metric in ("natural.exposure@10", "saturated.mass.new", "utility.ndcg@10"):
        values = [
            m.value
            for r in reports
            for m in r.measurements
            if (m.metric, m.role, m.kind) == (metric, "subject", "value")
        ]
        assert rows["npo"].figures[metric].value == pytest.approx(np.mean(values), rel=1e-12)
        assert rows["npo"].figures[metric].sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
        for role in ("original", "filter", "reference"):
            (own,) = [m for m in reports[0].measurements if (m.metric, m.role, m.kind) == (metric, role, "value")]
            assert rows[role].figures[metric].value == own.value
    drops = [
        m
        for r in reports
        for m in r.measurements
        if (m.metric, m.role, m.kind) == ("utility.ndcg@10", "subject", "drop")
    ]
    assert rows["npo"].figures[DROP].value == pytest.approx(np.mean([m.value for m in drops]))
    ratio = rows["npo"].figures["natural.mass.old ratio/reference"]
    told_ratio = [
        m.value
        for r in reports
        for m in r.measurements
        if (m.metric, m.role, m.kind) == ("natural.mass.old", "subject", "ratio")
    ]
    assert ratio.value == pytest.approx(np.mean(told_ratio))


def test_a_killed_comparison_goes_on_to_the_same_table(
    shop: Shop, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = compare(tmp_path / "straight", search=2)

    class Stopper(Silent):
        def __init__(self, notes: int) -> None:
            self.notes = notes

        def note(self, text: str) -> None:
            self.notes -= "left" in text
            if self.notes == 0:
                raise KeyboardInterrupt

    broken = tmp_path / "broken"
    for kills in (2, 1):
        with pytest.raises(KeyboardInterrupt) as caught:
            compare(broken, {"observer": Stopper(kills)}, search=2)
        assert "Finished cells are kept" in "".join(caught.value.__notes__)
        assert not [name for name in FILES if (broken / name).exists()]
    states = plan(shop, broken, search=2)
    assert states == ["done", "done", "to do", "done", "to do", "after the search"]
    assert len(list((broken / CELLS).iterdir())) == 2  # of npo's two the one that was chosen, and ga's own
    made: list[str] = []
    real = Bench._make
    monkeypatch.setattr(Bench, "_make", lambda self, *given: made.append(given[1].name) or real(self, *given))  # type: ignore[func-returns-value]
    again = compare(broken, search=2)
    assert made == ["ga"]
    assert comparison_digest(again) == comparison_digest(straight)
    assert replace(again, run={}) == replace(straight, run={})
    assert weights(broken) == weights(tmp_path / "straight")
    assert not [path for path in broken.rglob(".*")]
    verify_manifest(broken)
    assert set(plan(shop, broken, search=2)) == {"done"}
    written = {name: (broken / name).read_bytes() for name in ("comparison.md", "comparison.html")}
    third = compare(broken, search=2)
    assert made == ["ga"]
    assert third.run["cost"] == again.run["cost"]  # what a finished cell took is kept with it
    assert (broken / "comparison.md").read_bytes() == written["comparison.md"]


def test_a_larger_comparison_makes_what_is_new_and_fresh_makes_all(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []
    real = Bench._make

    def counting(self: Bench, directory: Path, contender: Any, setting: Any, scope: Any, seed: int, state: Any) -> Any:
        made.append((contender.name, seed))
        return real(self, directory, contender, setting, scope, seed, state)

    monkeypatch.setattr(Bench, "_make", counting)
    compare(tmp_path / "out", methods=("npo",), overrides=QUICK[:2])
    compare(tmp_path / "out", seeds=(0, 1))
    assert made == [("npo", 0), ("npo", 1), ("ga", 0), ("ga", 1)]
    made.clear()
    before = weights(tmp_path / "out")
    compare(tmp_path / "out", {"fresh": True}, methods=("ga",), overrides=QUICK[2:])
    assert made == [("ga", 0)]
    assert weights(tmp_path / "out") == before


def test_a_cell_is_found_by_everything_it_depends_on(shop: Shop, finished: Finished) -> None:
    out = finished.out
    changes: list[dict[str, Any]] = [
        {"seeds": (2,)},
        {"overrides": (*QUICK, "npo.lr=0.01", "ga.lr=0.01")},
        {"scope": "influence"},
        {"max_users": 20},
    ]
    assert plan(shop, out) == ["done", "done"]
    for change in changes:
        assert plan(shop, out, **change) == ["to do", "to do"], change
    other = api.ConceptSpec((CONCEPT.specs[0], 'title~"e"'), allow_large=True)
    config = api.CompareConfig(("npo",), (0,), QUICK[:2], max_users=25)
    for subject, concept, run in (
        (shop.gold, CONCEPT, RUN),
        (shop.model, other, RUN),
        (shop.model, CONCEPT, replace(RUN, seed=3)),
        (shop.model, CONCEPT, replace(RUN, threads=2)),
    ):
        cells = api.plan_compare(subject, concept, shop.data, out, config, run=run)
        assert [cell.state for cell in cells] == ["to do"]


def test_a_damaged_cell_is_an_error_and_no_number(compare: Compare, finished: Finished, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    for reading in (out / READINGS).iterdir():
        reading.write_bytes(reading.read_bytes()[:-50])
    with pytest.raises(ArtefactError, match=r"seal.*--fresh"):
        compare(out)
    shutil.rmtree(out / READINGS)
    for weights in (out / CELLS).glob("*/model.safetensors"):
        data = weights.read_bytes()
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"sha256.*--fresh"):
        compare(out)


def test_what_is_there_is_not_lost(shop: Shop, compare: Compare, finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for taken in (tmp_path / "mine", shop.model, shop.data / "out"):
        with pytest.raises(OutputError):
            compare(taken)
    shutil.copytree(shop.home / "sids", tmp_path / "sids")
    with pytest.raises(OutputError, match="no comparison"):
        compare(tmp_path / "sids")
    shutil.copytree(finished.out, tmp_path / "out")
    before = (tmp_path / "out" / FILES[0]).read_bytes()
    config = api.CompareConfig(("npo",), (0,), QUICK[:2], max_users=25)
    with pytest.raises(OutputError, match="--force"):
        api.compare(shop.gold, CONCEPT, shop.data, tmp_path / "out", config, run=RUN)
    assert (tmp_path / "out" / FILES[0]).read_bytes() == before
    api.compare(shop.gold, CONCEPT, shop.data, tmp_path / "out", config, run=RUN, force=True)
    assert (tmp_path / "out" / FILES[0]).read_bytes() != before
    assert plan(shop, tmp_path / "out") == ["done", "done"]
    for wrong in ("x.pdf", "out/x.json"):
        with pytest.raises(UsageError):
            compare(tmp_path / "out", {"outputs": [tmp_path / wrong]})


def test_a_full_disk_ends_the_run(compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recerase.layouts import registry

    def full(*given: object) -> None:
        raise WriteError("no space", "")

    native = registry.named_layout("native")
    monkeypatch.setattr(registry, "named_layout", lambda name: replace(native, write_back=full))
    with pytest.raises(WriteError):
        compare(tmp_path / "out")
    monkeypatch.undo()


def test_both_scopes_are_two_tables_and_the_same_model_is_told(compare: Compare, tmp_path: Path) -> None:
    made = compare(tmp_path / "out", methods=("npo",), overrides=QUICK[:2], scope="both", training_seconds=100.0)
    by_scope = {scope: [row for row in made.rows if row.scope == scope] for scope in ("output", "influence")}
    assert [[row.name for row in rows] for rows in by_scope.values()] == [["original", "filter", "npo"]] * 2
    assert any("made no difference to npo" in note for note in made.notes)
    cost = made.run["cost"]["output"]["npo"]
    assert cost["share"] == pytest.approx(cost["seconds"] / 100)


def test_the_document_comes_back_equal_and_no_bit_changes_unseen(finished: Finished, tmp_path: Path) -> None:
    again = read_comparison(finished.out / "comparison.json")
    assert (
        comparison_bytes(again)
        == comparison_bytes(finished.comparison)
        == (finished.out / "comparison.json").read_bytes()
    )
    for name in FILES:
        assert render_comparison(again, name) == (finished.out / name).read_bytes()
    assert (finished.out.parent / "also.md").read_bytes() == (finished.out / "comparison.md").read_bytes()
    data = comparison_bytes(again)
    (tmp_path / "c.json").write_bytes(data.replace(b'"seeds":[0,1]', b'"seeds":[0,2]', 1))
    with pytest.raises(ArtefactError, match="changed"):
        read_comparison(tmp_path / "c.json")


def test_what_was_prepared_is_known_by_its_digest_and_not_by_its_place(
    shop: Shop, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["prepare_steps=1", "hops=1", "batch=4", "steps=1"]
    api.prepare(shop.model, shop.data, tmp_path / "ready", overrides=small, run=RUN)
    shutil.copytree(tmp_path / "ready", tmp_path / "elsewhere")
    pairs = [f"unlearnrec.{pair}" for pair in small]
    fields: dict[str, Any] = {"methods": ("unlearnrec",)}
    made = compare(tmp_path / "out", overrides=(*pairs, f"unlearnrec.prepared={tmp_path}/ready"), **fields)
    row = next(row for row in made.rows if row.kind == "method")
    assert row.seeds == (0,)
    assert len(row.settings["prepared"]) == 64
    assert str(tmp_path).encode() not in comparison_bytes(made)
    assert any("was prepared before" in note for note in made.notes)
    monkeypatch.setattr(Bench, "_make", lambda *given: pytest.fail("it was made again"))
    again = compare(tmp_path / "out", overrides=(*pairs, f"unlearnrec.prepared={tmp_path}/elsewhere"), **fields)
    assert again.rows == made.rows
    with pytest.raises(CheckpointError, match="another checkpoint"):
        config = api.CompareConfig(("unlearnrec",), (0,), (f"unlearnrec.prepared={tmp_path}/ready",), max_users=25)
        api.compare(shop.gold, CONCEPT, shop.data, tmp_path / "other", config, run=RUN)
    with pytest.raises(CheckpointError, match="known to be erased before"):
        compare(
            tmp_path / "gone",
            {"earlier": [OTHER]},
            overrides=(*pairs, f"unlearnrec.prepared={tmp_path}/ready"),
            **fields,
        )
    assert not [name for name in ("other", "gone") if (tmp_path / name).exists()]
