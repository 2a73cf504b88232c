"""A directory is one layout's, told by its content; none, two, or a name that is none are refused in a sentence that teaches."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.layouts import foreign_fixtures as fixtures

from recerase.errors import CheckpointError, TableError, UsageError
from recerase.layouts import registry
from recerase.layouts.index_json import TOMBSTONE, looks_like_index, read_index, rewritten
from recerase.layouts.native import load_checkpoint, save_checkpoint
from recerase.layouts.registry import detect_layout, layouts, named_layout, open_checkpoint, recognised
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.store import publish, read_manifest


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fixture of each T5 layout."""
    home = tmp_path_factory.mktemp("foreign")
    fixtures.letter(home / "letter-tiger")
    fixtures.tiger_cf(home / "tiger-cf")
    return home


def test_every_layout_says_what_it_looks_for() -> None:
    names = [layout.name for layout in layouts()]
    assert len(set(names)) == len(names)
    assert {"native", "letter-tiger", "tiger-cf"} <= set(names)
    assert all(layout.users and layout.marks for layout in layouts())


@pytest.mark.parametrize("name", ["letter-tiger", "tiger-cf"])
def test_each_fixture_is_of_its_layout_alone(places: Path, name: str) -> None:
    assert [layout.name for layout, _ in recognised(places / name)] == [name]


def test_unknown_is_refused_with_what_was_looked_for_and_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt.*native.*letter-tiger.*tiger-cf") as refused:
        detect_layout(tmp_path)
    assert "recerase list layouts" in refused.value.remedy
    assert ".pth" in named_layout("tiger-cf").summary


def test_two_layouts_are_refused_naming_both_and_a_name_decides(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = replace(named_layout("letter-tiger"), name="twin")
    known = layouts()
    monkeypatch.setattr(registry, "layouts", lambda: (*known, twin))
    with pytest.raises(CheckpointError, match=r"letter-tiger.*twin") as refused:
        detect_layout(places / "letter-tiger")
    assert "--layout twin" in refused.value.remedy
    assert detect_layout(places / "letter-tiger", "twin").name == "twin"


def test_names_and_options_that_are_none(places: Path) -> None:
    with pytest.raises(UsageError, match="letter-tigre") as refused:
        detect_layout(places / "letter-tiger", "letter-tigre")
    assert "letter-tiger?" in refused.value.remedy
    with pytest.raises(UsageError, match="sid") as refused:
        open_checkpoint(places / "letter-tiger", options={"sid": "x"})
    assert "sids" in refused.value.remedy


def test_native_bytes_are_those_of_save_checkpoint(tmp_path: Path) -> None:
    """Behind the protocol a native checkpoint is written as it was before there was one."""
    from recerase.model.recommender import ModelConfig, new_recommender
    from recerase.sid.quantize import TokenizeConfig, tokenize

    points = np.random.default_rng(3).normal(size=(20, 6)).astype(np.float32)
    ids = np.array([f"i{n}" for n in range(20)], dtype=object)
    table, codebooks, _ = tokenize(points, ids, TokenizeConfig(levels=2, codes=8))
    model = new_recommender(ModelConfig(width=16, layers=1, heads=2, feed_forward=16), table.schema, 0)
    with publish(tmp_path / "one") as result:
        save_checkpoint(result.directory, model, table, codebooks, points)
    source = load_checkpoint(tmp_path / "one")
    with publish(tmp_path / "two") as result:
        named_layout("native").write_back(source, source.recommender, source.table, result.directory)
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")
    assert source.layout == "native"
    assert named_layout("native").digest(tmp_path / "one") == source.digest


STYLES = {
    "one line": '{"7": ["<a_1>", "<b_2>"], "3": ["<a_3>", "<b_4>"]}',
    "compact": '{"7":["<a_1>","<b_2>"],"3":["<a_3>","<b_4>"]}',
    "indented": '{\n  "7": [\n    "<a_1>",\n    "<b_2>"\n  ],\n  "3": [\n    "<a_3>",\n    "<b_4>"\n  ]\n}\n',
    "numbers": '{"7": [1, 2], "3": [3, 4]}',
}


@pytest.mark.parametrize("style", STYLES)
def test_a_table_is_rewritten_in_its_own_style(tmp_path: Path, style: str) -> None:
    path = tmp_path / "x.index.json"
    path.write_text(STYLES[style])
    index = read_index(path)
    assert looks_like_index(path, tokens=style != "numbers")
    assert index.items == ("7", "3")
    schema = SidSchema((5, 6), (np.arange(5), np.arange(5, 11)), 11, -1, -1, -1)
    before = SidTable.build(["3", "7"], np.array([[3, 4], [1, 2]]), schema)
    assert rewritten(index, path.read_bytes(), before, before) == path.read_bytes()
    after = before.replace(np.array([0]), np.array([[3, 2]]))
    text = rewritten(index, path.read_bytes(), before, after).decode()
    wanted = STYLES[style].replace("<b_4>", "<b_2>").replace("[3, 4]", "[3, 2]")
    if style == "numbers":
        assert text == wanted
        return
    begin = wanted.rstrip().removesuffix("}").rstrip()
    assert text.startswith(begin)
    assert f'"{TOMBSTONE}0"' in text  # <b_4> has no item any more
    path.write_text(text)
    again = read_index(path)
    assert again.items == index.items
    assert 4 in again.kept[:, 1]
    assert rewritten(again, text.encode(), after, after) == text.encode()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"1": []}',
        '{"1": ["<b_1>"]}',
        '{"1": [1], "2": ["<a_1>"]}',
        '{"1": [-1]}',
        '{"1": [1], "1": [2]}',
        "{",
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.index.json").write_text(text)
    with pytest.raises(TableError, match="SID table"):
        read_index(tmp_path / "x.index.json")


def test_no_table_and_two_tables_teach_the_option(places: Path, tmp_path: Path) -> None:
    place = tmp_path / "letter"
    shutil.copytree(places / "letter-tiger", place)
    (place / "Toy.index.json").rename(tmp_path / "Toy.index.json")
    with pytest.raises(CheckpointError, match=r"index\.json") as refused:
        open_checkpoint(place)
    assert "--layout-set sids=FILE" in refused.value.remedy
    found = open_checkpoint(place, options={"sids": str(tmp_path / "Toy.index.json")})
    assert len(found.table) == fixtures.N
    for name in ("One.index.json", "Two.index.json"):
        shutil.copy2(tmp_path / "Toy.index.json", place / name)
    with pytest.raises(CheckpointError, match="2 SID tables"):
        open_checkpoint(place)
    assert open_checkpoint(place, options={"sids": "Two.index.json"}).extra["index"].path.name == "Two.index.json"
