"""What was erased before, said to a comparison of a checkpoint that does not remember it: kept by no method, counted nowhere."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.comparing.conftest import CONCEPT, QUICK, RUN, Compare, Finished, Shop
from tests.layouts import foreign_fixtures

from recerase import api
from recerase.__main__ import run
from recerase.assembly import open_checkpoint_for
from recerase.audit.probes import AuditConfig
from recerase.catalog import load_catalogue, parse_concept
from recerase.catalog.demo import DEMO_CONCEPT
from recerase.comparing import session
from recerase.comparing.cells import CELLS, Bench
from recerase.comparing.outputs import FILES
from recerase.comparing.ucan import pairs_of
from recerase.earlier import gone_from
from recerase.erase import method
from recerase.errors import OutputError, WriteError
from recerase.report.compared import EARLIER, comparison_digest, read_comparison

EMBERLY = "brand=Emberly"
"""Makes some of what the concept has, and other things besides."""
NPO: dict[str, Any] = {"methods": ("npo",), "overrides": QUICK[:2], "max_users": None}


def said(*words: str) -> list[api.ConceptSpec]:
    return [api.ConceptSpec((spec,), allow_large=True) for spec in words]


def states(shop: Shop, out: Path, *words: str) -> list[str]:
    config = api.CompareConfig(seeds=(0,), **NPO)
    cells = api.plan_compare(shop.model, CONCEPT, shop.data, out, config, earlier=said(*words), run=RUN)
    return [cell.state for cell in cells]


def test_what_is_said_to_be_erased_before_is_kept_by_no_method_and_counted_nowhere(
    shop: Shop, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[method.EraseRequest] = []
    real = method.EraseRequest
    monkeypatch.setattr(method, "EraseRequest", lambda **given: asked.append(real(**given)) or asked[-1])
    out, given = tmp_path / "out", {"earlier": said(EMBERLY)}
    made = compare(out, given, **NPO)
    catalogue = load_catalogue(shop.data)
    first, concept = (parse_concept([spec], catalogue.items).members for spec in (EMBERLY, DEMO_CONCEPT))
    besides = first & ~concept
    assert besides.any()
    assert besides.sum() < first.sum()
    assert [request.gone.tolist() for request in asked] == [besides.tolist()]
    targets = catalogue.interactions.split().test.targets
    (row,) = [row for row in made.rows if row.kind == "method"]
    assert besides[targets].any()
    assert row.figures["utility.ndcg@10"].n == int((~(first | concept)[targets]).sum())
    (cell,) = (out / CELLS).iterdir()
    kept = json.loads((cell / "erased.json").read_text())["concepts"]
    assert [(c["name"], c["method"]) for c in kept] == [(EMBERLY, ""), (DEMO_CONCEPT, "npo")]
    assert set(kept[0]["items"]) == set(catalogue.items.item_ids[first])
    (note,) = [note for note in made.notes if note.startswith("Erased before:")]
    assert f"{EMBERLY} ({first.sum()} items). {besides.sum()} items of theirs" in note
    assert EARLIER in read_comparison(out / "comparison.json").inputs
    monkeypatch.setattr(Bench, "_make", lambda *given: pytest.fail("it was made again"))
    assert comparison_digest(compare(out, given, **NPO)) == comparison_digest(made)
    ids = ",".join(str(item) for item in catalogue.items.item_ids[first])
    assert states(shop, out, EMBERLY) == states(shop, out, f"item:{ids}") == ["done"]  # the same items
    assert states(shop, out) == states(shop, out, EMBERLY, f"item:{catalogue.items.item_ids[~first][0]}") == ["to do"]
    before = [(out / name).read_bytes() for name in FILES]
    for other in ({}, {"earlier": said(f"item:{ids.partition(',')[0]}")}):
        with pytest.raises(OutputError, match="set of earlier concepts"):
            compare(out, other, **NPO)
    assert [(out / name).read_bytes() for name in FILES] == before


def test_a_method_is_told_everything_that_there_is_to_tell(
    shop: Shop, compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a request but the rows that --grow-vocabulary offers, which a comparison does not; another tool may need a code."""
    asked: list[dict[str, Any]] = []

    def seen(**given: Any) -> None:
        asked.append(given)
        raise WriteError("seen", "")

    monkeypatch.setattr(
        session, "with_codebooks", lambda read, *given: replace(read, extra={**read.extra, "needed": 7})
    )
    names = {field.name for field in fields(method.EraseRequest)} - {"offered"}
    monkeypatch.setattr(method, "EraseRequest", seen)
    with pytest.raises(WriteError, match="seen"):
        compare(tmp_path / "out", **NPO)
    assert asked[0]["needed"] == 7
    assert set(asked[0]) == names


def test_ucans_retained_pairs_lead_to_nothing_that_was_erased_before(shop: Shop, tmp_path: Path) -> None:
    catalogue = load_catalogue(shop.data)
    before = open_checkpoint_for(shop.model, catalogue, RUN)
    concept, first = (parse_concept([spec], catalogue.items) for spec in (DEMO_CONCEPT, EMBERLY))
    found = {}
    for earlier in ((), tuple(said(EMBERLY))):
        gone = gone_from([], earlier, catalogue, before.table)
        bench = Bench(catalogue, concept, before, gone, AuditConfig(), RUN, tmp_path)
        found[bool(earlier)] = pairs_of(bench, 10**6)
    besides = first.members & ~concept.members
    assert besides[found[False].retain.targets].any()
    assert not besides[found[True].retain.targets].any()
    assert found[True].forget.targets.tolist() == found[False].forget.targets.tolist()


def test_where_nothing_was_erased_before_nothing_is_said_of_it(finished: Finished) -> None:
    assert EARLIER not in finished.comparison.inputs
    assert not [note for note in finished.comparison.notes if "rased before" in note]


@pytest.mark.parametrize("wrong", ["brand=Nobody", "colour~red", "@lost.txt", 'text~"("'])
def test_words_that_name_nothing_are_refused_in_the_sentence_of_erase(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    told = []
    concept = ["--concept", DEMO_CONCEPT]
    for command in (["erase", *concept], ["compare", "-m", "ga", *concept], ["prepare"]):
        words = [command[0], str(shop.model), *command[1:], "--data", str(shop.data), "--already-erased", wrong]
        code = run([*words, "--out", str(tmp_path / "out"), "--device", "cpu", "-q"])
        told.append((code, capsys.readouterr().err))
    assert told[0][0] == 2
    assert len(told[0][1].strip()) > 20
    assert told[1:] == told[:1] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "prepare"])
def test_a_list_that_names_what_was_erased_is_an_input(
    shop: Shop, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "lists"
    home.mkdir()
    (home / "gone.html").write_text("\n".join(load_catalogue(shop.data).items.item_ids[:3]) + "\n")
    words = [command, str(shop.model), "--data", str(shop.data), "--already-erased", f"@{home}/gone.html", "-q"]
    if command == "compare":
        words += ["--concept", DEMO_CONCEPT, "--out", f"{tmp_path}/out", "-o", f"{home}/gone.html"]
    else:
        words += ["--out", str(home), "--force"]
    assert run(words) == OutputError.exit_code
    assert "gone.html" in capsys.readouterr().err.replace("\n", "")
    assert [path.name for path in home.iterdir()] == ["gone.html"]
    assert not (tmp_path / "out").exists()


def test_the_models_made_of_another_tools_checkpoint_remember_what_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign_fixtures.data(tmp_path / "data")
    foreign_fixtures.letter(tmp_path / "letter")
    words = ["compare", f"{tmp_path}/letter", "--data", f"{tmp_path}/data", "--concept", "brand=brand2", "-m", "ga"]
    words += ["--already-erased", "brand=brand3", "--set", "ga.steps=1", "--set", "ga.batch=4", "--seeds", "0"]
    words += ["--max-users", "12", "--threads", "1", "--device", "cpu", "--out", f"{tmp_path}/out"]
    assert run(words) == 0
    assert "erased before: brand=brand3 (10 items)" in " ".join(capsys.readouterr().err.split())
    (cell,) = (tmp_path / "out" / CELLS).iterdir()
    kept = json.loads((cell / "erased.json").read_text())["concepts"]
    rows = np.arange(foreign_fixtures.N)
    assert [c["name"] for c in kept] == ["brand=brand3", "brand=brand2"]
    assert set(kept[0]["items"]) == {str(row) for row in rows if row % foreign_fixtures.TASTES == 3}
    assert (cell / "Toy.index.json").is_file()
