"""SID tables of RPG and TorchEasyRec: read as these tools read them, never taken for a model, and written back as they write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.layouts import foreign_fixtures, table_fixtures
from tests.layouts.table_fixtures import SEM_IDS, append_reader, digits, rpg_reader

from recerase import api
from recerase.__main__ import run
from recerase.errors import CheckpointError, OutputError, TableError, UsageError
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.layouts.tables import FORMATS, read_sids, source_table
from recerase.sid.quality import quality
from recerase.sid.schema import SidSchema
from recerase.sid.table import SidTable
from recerase.sid.table_files import TOMBSTONE


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rpg/SEM_IDS and bundle/v1; read only."""
    place = tmp_path_factory.mktemp("tables")
    table_fixtures.rpg(place / "rpg")
    table_fixtures.torcheasyrec(place / "bundle")
    return place


def test_rpg_is_read_as_its_tokenizer_reads_it(home: Path) -> None:
    for path in (home / "rpg", home / "rpg" / SEM_IDS):
        layout = detect_layout(path)
        assert layout.name == "rpg"
        table, _ = layout.table(path)
        assert {
            item: tuple(rows) for item, rows in zip(table.item_ids, table.rows().tolist(), strict=True)
        } == rpg_reader(home / "rpg" / SEM_IDS)
        assert (table.schema.pad, table.schema.eos, table.schema.vocabulary) == (0, 65, 66)


def test_torcheasyrec_is_read_as_an_append_reads_it(home: Path) -> None:
    wanted = append_reader(home / "bundle", "v1", [16] * 4)
    for path in (home / "bundle", home / "bundle" / "v1"):
        layout = detect_layout(path)
        assert layout.name == "torcheasyrec"
        table, facts = layout.table(path)
        rows = dict(zip(map(int, table.item_ids), table.rows().tolist(), strict=True))
        assert rows == wanted
        assert list(rows) == list(wanted)
        assert np.flatnonzero(table.resolved).tolist() == [8]
        assert table.schema.collisions == "allowed"
        assert facts == {"generation": "v1", "capacity of a SID": 3, "most items on a SID": 3}


@pytest.mark.parametrize("where", ["rpg", f"rpg/{SEM_IDS}", "bundle", "bundle/v1"])
def test_inspect_names_it_and_prints_its_quality(home: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(home / where), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    name = "rpg" if where.startswith("rpg") else "torcheasyrec"
    assert said["kind"] == f"{name} SID table of another tool"
    facts = said["facts"]
    codes = digits()
    assert facts["layout"] == name
    assert facts["levels"] == 4
    assert facts["codes a level"] == [16] * 4
    assert facts["codes in use"] == [len(np.unique(column)) for column in codes.T]
    assert facts["items sharing their SID"] == 5
    assert facts["collision rate"] == round(5 / 30, 4)
    counted = [np.bincount(column) / 30 for column in codes.T]
    evenness = [float(np.exp(-sum(p * np.log(p) for p in shares if p))) for shares in counted]
    assert facts["perplexity a level"] == [round(value, 1) for value in evenness]
    assert ("capacity of a SID" in facts) == (name == "torcheasyrec")
    assert any("share their SID" in problem for problem in said["problems"])


def test_a_name_decides_where_a_table_lies_beside_a_checkpoint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = foreign_fixtures.letter(tmp_path / "both")
    shutil.copy(home / "rpg" / SEM_IDS, place)
    assert run(["inspect", str(place)]) == 4
    assert "could be" in capsys.readouterr().err
    for name, kind in (("rpg", "rpg SID table"), ("letter-tiger", "letter-tiger checkpoint")):
        assert run(["inspect", str(place), "--layout", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == f"{kind} of another tool"
    assert len(source_table(place, layout="letter-tiger")) == foreign_fixtures.N
    assert len(source_table(place, layout="rpg")) == 30


@pytest.mark.parametrize("where", ["rpg", f"rpg/{SEM_IDS}", "bundle/v1"])
@pytest.mark.parametrize("command", ["audit", "erase"])
def test_there_is_no_model_to_audit_or_erase(
    home: Path, tmp_path: Path, where: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = foreign_fixtures.data(tmp_path / "data")
    given = [command, str(home / where), "--data", str(data), "--concept", "brand=brand2", "--threads", "1"]
    assert run([*given, "--out", str(tmp_path / "out")] if command == "erase" else given) == 4
    said = capsys.readouterr().err
    assert "there is no model in it" in said
    assert "recerase train DATA --sids" in said
    assert "Traceback" not in said
    with pytest.raises(CheckpointError, match="no model"):
        open_checkpoint(home / where)


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "layouts", "--json"]) == 0
    assert {"rpg", "torcheasyrec"} <= json.loads(capsys.readouterr().out)["layouts"].keys()


BROKEN_RPG = {
    "another name": lambda path: (path / SEM_IDS).rename(path / "x.sem_ids"),
    "two tables": lambda path: shutil.copy(path / SEM_IDS, path / SEM_IDS.replace("t5", "t6")),
    "fewer digits": lambda path: (path / SEM_IDS).rename(path / SEM_IDS.replace("4", "8")),
    "a code too large": lambda path: (path / SEM_IDS).write_text('{"B0": [1, 2, 3, 16]}'),
    "tokens": lambda path: (path / SEM_IDS).write_text('{"B0": ["<a_1>", "<b_1>", "<c_1>", "<d_1>"]}'),
    "a short SID": lambda path: (path / SEM_IDS).write_text('{"B0": [1, 2, 3, 4], "B1": [1]}'),
    "cut short": lambda path: (path / SEM_IDS).write_text('{"B0": [1, 2, 3, 4], "B1": [1'),
}


@pytest.mark.parametrize("how", BROKEN_RPG)
def test_a_broken_rpg_table_is_refused(home: Path, tmp_path: Path, how: str) -> None:
    place = Path(shutil.copytree(home / "rpg", tmp_path / "rpg"))
    BROKEN_RPG[how](place)
    with pytest.raises(TableError) as refused:
        read_sids(place)
    assert str(place) in str(refused.value) or "name" in str(refused.value)


def _manifest(place: Path, **changes: object) -> None:
    file = place / "v1" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _column(place: Path, artifact: str, name: str, row: int, value: object) -> None:
    file = place / "v1" / artifact / "part-0.parquet"
    table = pq.read_table(file)
    values = table[name].to_pylist()
    values[row] = value
    import pyarrow as pa

    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(values, table[name].type)), file)


BROKEN_BUNDLE = {
    "no manifest": (lambda p: (p / "v1" / "manifest.json").unlink(), "written last"),
    "half a manifest": (lambda p: (p / "v1" / "manifest.json").write_text('{"codebook": [4'), "written last"),
    "two generations": (lambda p: shutil.copytree(p / "v1", p / "v2"), "2 generations"),
    "a part is missing": (lambda p: (p / "v1" / "item_to_sid" / "part-1.parquet").unlink(), "has 15 rows"),
    "no parts": (lambda p: shutil.rmtree(p / "v1" / "item_to_sid"), "oss://bundle/v1/item_to_sid"),
    "half a part": (lambda p: _cut(p / "v1" / "item_to_sid" / "part-0.parquet"), "cannot be read"),
    "codes too large": (lambda p: _manifest(p, codebook=[8] * 4), r"codes below \[8, 8, 8, 8\]"),
    "other levels": (lambda p: _manifest(p, codebook=[16] * 3), "3 codes below"),
    "no numbers": (lambda p: _manifest(p, codebook="16,16"), "whole numbers"),
    "csv": (
        lambda p: _manifest(p, artifacts={"item_to_sid": {"save_type": "csv", "rows": 30, "location": "x"}}),
        "in parquet",
    ),
    "fuller than said": (lambda p: _manifest(p, max_observed_items_per_sid=2), "3 items on one SID"),
    "a wrong offset": (lambda p: _column(p, "item_to_sid", "offset_codebook", 3, [0, 0, 0, 0]), "offset_codebook"),
    "another direction": (lambda p: _column(p, "sid_to_items", "codebook", 0, [15, 15, 15, 15]), "not say the same"),
    "other items": (lambda p: _column(p, "sid_to_items", "itemids", 0, [7]), "not say the same"),
}


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


@pytest.mark.parametrize("how", BROKEN_BUNDLE)
def test_a_broken_bundle_is_refused(home: Path, tmp_path: Path, how: str) -> None:
    place = Path(shutil.copytree(home / "bundle", tmp_path / "bundle"))
    change, said = BROKEN_BUNDLE[how]
    change(place)
    generation = place if how == "two generations" else place / "v1"
    assert detect_layout(generation).name == "torcheasyrec"
    with pytest.raises(TableError, match=said):
        read_sids(generation)


def test_a_table_is_trained_on_and_never_extended(home: Path, tmp_path: Path) -> None:
    """One place reads tables for train, tokenize --extend and concept --sids; there rows are our own."""
    from recerase.model.recommender import ModelConfig
    from recerase.model.training import TrainConfig
    from recerase.runtime import RunConfig

    data = foreign_fixtures.data(tmp_path / "data", n=30)
    codes = {str(row): sid for row, sid in enumerate(digits().tolist())}
    file = tmp_path / SEM_IDS
    file.write_text(json.dumps(codes))
    shape = ModelConfig(width=8, layers=1, heads=2, feed_forward=8)
    made = api.train(
        data, file, tmp_path / "model", shape, TrainConfig(epochs=1, batch=64), run=RunConfig(threads=1, device="cpu")
    )
    opened = open_checkpoint(made.path)
    assert dict(zip(opened.table.item_ids, opened.table.codes.tolist(), strict=True)) == codes
    assert (opened.table.schema.pad, opened.table.schema.bos, opened.table.schema.eos) == (0, 1, 2)
    with pytest.raises(UsageError, match="without codebooks"):
        api.tokenize(data, tmp_path / "grown", extend=file)
    seen = api.concept_preview(data, api.ConceptSpec(("brand=brand2",)), sids=file)[1]
    assert len(seen.levels) == 4
    letter = foreign_fixtures.letter(tmp_path / "letter")
    with pytest.raises(TableError, match="letter-tiger") as refused:
        read_sids(letter)
    assert "recerase export sids" in refused.value.remedy


def test_a_tombstone_is_no_item(tmp_path: Path) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps({"1": ["<a_1>"], f"{TOMBSTONE}0": ["<a_2>"]}))
    assert read_sids(tmp_path / "x.index.json")[0].item_ids.tolist() == ["1"]


def same(one: SidTable, other: SidTable) -> bool:
    return one.item_ids.tolist() == other.item_ids.tolist() and np.array_equal(one.codes, other.codes)


def place_of(form: str, home: Path) -> Path:
    names = {"letter": "x.index.json", "integers": "x.json", "parquet": "x.parquet", "rpg": SEM_IDS}
    return home / names.get(form, "bundle/v2")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", ["rpg", "bundle/v1", "sids"])
def test_every_format_gives_the_same_table_back(home: Path, tmp_path: Path, form: str, source: str) -> None:
    if source == "sids":
        path = tmp_path / "sids.json"
        path.write_text(json.dumps({f"x{row}": sid for row, sid in enumerate(digits(seed=4).tolist())}))
    else:
        path = home / source
    before = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    out = place_of(form, tmp_path)
    made = api.export_sids(path, form, out)
    assert (made.items, made.levels) == (30, 4)
    assert same(source_table(out), source_table(path))
    assert before == {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    if form == "torcheasyrec":
        size = source_table(path).schema.codes[0]
        assert append_reader(out.parent, "v2", [size] * 4).keys() == set(source_table(path).item_ids)
        assert [file.name for file in out.iterdir() if file.is_file()].count("manifest.json") == 1
    if form == "rpg":
        assert rpg_reader(out).keys() == set(source_table(path).item_ids)
    again = place_of(form, tmp_path / "again")
    again.parent.mkdir(parents=True)
    api.export_sids(path, form, again)
    if form != "torcheasyrec":
        assert again.read_bytes() == out.read_bytes()  # same input, same bytes
    with pytest.raises(OutputError):
        api.export_sids(path, form, out)


@pytest.mark.parametrize("name", ["letter-tiger", "tiger-cf"])
def test_a_checkpoint_of_another_tool_gives_its_table(tmp_path: Path, name: str) -> None:
    make = {"letter-tiger": foreign_fixtures.letter, "tiger-cf": foreign_fixtures.tiger_cf}[name]
    place = make(tmp_path / "ckpt")
    from recerase.runtime import RunConfig

    made = api.export_sids(place, "parquet", tmp_path / "x.parquet", run=RunConfig(trust_pickle=True))
    assert any("does not say how many codes a level" in note for note in made.notes)
    assert same(source_table(tmp_path / "x.parquet"), open_checkpoint(place, trust_pickle=True).table)


def ragged() -> SidTable:
    return SidTable.build(["a", "b", "c"], np.array([[1, 2], [1, -1], [3, 0]]), SidSchema.native((4, 4)))


def hidden() -> SidTable:
    table = SidTable.build(["a", "b", "c"], np.array([[1, 2], [1, 3], [3, 0]]), SidSchema.native((4, 4)))
    return table.unlisted(np.array([False, True, False]))


def absent() -> SidTable:
    return SidTable.build(["a", "b", "c"], np.array([[1, 2], [-1, -1], [3, 0]]), SidSchema.native((4, 4)))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [ragged, hidden, absent])
def test_what_a_format_cannot_say_is_refused_or_said_never_dropped(tmp_path: Path, form: str, kind: object) -> None:
    from recerase.layouts.native import save_sids
    from recerase.store import publish

    table = kind()  # type: ignore[operator]
    with publish(tmp_path / "sids") as result:
        save_sids(result.directory, table, None, None)
    out = place_of(form, tmp_path)
    if form == "rpg":
        out = tmp_path / "m_OPQ2,IVF1,PQ2x4.sem_ids"
    said = {"ragged": "one length", "hidden": "not to be recommended", "absent": "have no SID"}[kind.__name__]  # type: ignore[attr-defined]
    if form == "parquet" or (kind is ragged and form in ("letter", "integers")):
        api.export_sids(tmp_path / "sids", form, out)
        back = source_table(out)
        assert same(back, table)
        assert np.array_equal(back.listed, table.listed)
    else:
        with pytest.raises(UsageError, match=said):
            api.export_sids(tmp_path / "sids", form, out)
        assert not out.exists()


def test_capacity_levels_names_and_types_are_held_to(home: Path, tmp_path: Path) -> None:
    given = (home / "rpg", "torcheasyrec", tmp_path / "v2")
    with pytest.raises(UsageError, match="1 SIDs have more than 2 items, up to 3") as refused:
        api.export_sids(*given, {"capacity": "2"})
    assert "capacity=3" in refused.value.remedy
    with pytest.raises(UsageError, match="no whole number"):
        api.export_sids(*given, {"item_id": "int64"})
    with pytest.raises(UsageError, match="no option 'size'"):
        api.export_sids(*given, {"size": "3"})
    assert not (tmp_path / "v2").exists()
    api.export_sids(home / "bundle", "torcheasyrec", tmp_path / "v2", {"item_id": "int64", "capacity": "5"})
    assert append_reader(tmp_path, "v2", [16] * 4) == append_reader(home / "bundle", "v1", [16] * 4)
    assert json.loads((tmp_path / "v2" / "manifest.json").read_text())["capacity"] == 5
    with pytest.raises(UsageError, match="does not tell 4 digits") as refused:
        api.export_sids(home / "rpg", "rpg", tmp_path / "x.sem_ids")
    assert "MODEL_OPQ4,IVF1,PQ4x4.sem_ids" in refused.value.remedy
    many = {f"x{row}": [row % 3] * 27 for row in range(5)}
    (tmp_path / "many.json").write_text(json.dumps(many))
    with pytest.raises(UsageError, match="26 levels"):
        api.export_sids(tmp_path / "many.json", "letter", tmp_path / "y.index.json")
    with pytest.raises(UsageError, match="no format 'json'"):
        api.export_sids(home / "rpg", "json", tmp_path / "x")


def test_the_command(home: Path, tmp_path: Path) -> None:
    """Under a local app, as the real one will mount it."""
    import typer
    from typer.testing import CliRunner

    from recerase.cli.export_sids import register

    app = typer.Typer()
    export = typer.Typer()
    register(export)
    app.add_typer(export, name="export")
    app.command("other")(lambda: None)
    out = tmp_path / "bundle" / "v2"
    done = CliRunner().invoke(
        app, ["export", "sids", str(home / "rpg"), "--as", "torcheasyrec", "--out", str(out), "--set", "capacity=4"]
    )
    assert done.exit_code == 0, done.output
    assert str(out) in done.output.replace("\n", "")
    assert same(read_sids(out)[0], read_sids(home / "rpg")[0])
    assert detect_layout(out).name == "torcheasyrec"


def test_quality_is_that_of_the_table(home: Path) -> None:
    table = named_layout("rpg").table(home / "rpg")[0]
    assert quality(table).collision_after == pytest.approx(5 / 30)
