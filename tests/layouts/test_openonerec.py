"""OpenOneRec from end to end: inspected, audited, erased, written back, and read by what its users read it with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts.causal_checks import EASY, FAST, OURS, files_of, loads, tensors_of
from tests.layouts.causal_fixtures import N, write_data
from tests.layouts.onerec_fixtures import BEGIN, SIZE, audit_little, openonerec, the_world, whole
from transformers import AutoTokenizer

from recerase import api
from recerase.__main__ import run
from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, EraseError, TableError
from recerase.layouts.openonerec import remapped, write_back
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.runtime import RunConfig

ACME = api.ConceptSpec(("brand=Acme",))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model (bfloat16, in shards), beside (pid2sid.parquet, sid2pid.json), data, policy.toml; read only."""
    home = tmp_path_factory.mktemp("open")
    world = the_world()
    openonerec(home / "model", world, home / "beside", torch.bfloat16, "16KB")
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    return home


def options(shop: Path) -> dict[str, str]:
    return {"sids": str(shop / "beside" / "pid2sid.parquet"), "reverse": str(shop / "beside" / "sid2pid.json")}


def their_codes(path: Path, column: str = "codes") -> dict[int, list[int]]:
    """pid -> codes, as the scripts in data/onerec_data zip it."""
    found = pq.read_table(path)
    return dict(zip(found["pid"].to_pylist(), found[column].to_pylist(), strict=True))


def their_map(path: Path) -> dict[int, list[dict[str, int]]]:
    """What load_pid_mapping makes of the map."""
    return {int(key): row for key, row in json.loads(path.read_text()).items()}


def as_they_ask(history: list[list[int]]) -> str:
    """The prompt as their evaluation makes it: qwen3_soft_switch.jinja2 without thinking, and prompt_token behind it."""
    shown = "".join(whole(codes) for codes in history)
    system = "你是一个智能推荐助手，能够根据用户的浏览历史预测用户可能感兴趣的下一个内容。"
    asked = f"根据以下用户浏览记录，请预测用户接下来可能观看的内容：\n{shown}"
    chat = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{asked}/no_think<|im_end|>\n<|im_start|>assistant\n"
    )
    return chat + "<think>\n\n</think>\n\n" + BEGIN


def test_it_is_recognised_and_described(shop: Path) -> None:
    assert detect_layout(shop / "model").name == "openonerec"
    found = api.inspect(shop / "model", run=RunConfig(layout_options=tuple(options(shop).items())))
    assert found.kind.startswith("openonerec")
    assert (found.facts["levels"], found.facts["dtype"], found.facts["embedding and head"]) == (3, "bfloat16", "tied")
    assert found.facts["codes with a vocabulary row"] == [SIZE] * 3
    own = AutoTokenizer.from_pretrained(shop / "model", local_files_only=True)
    assert found.facts["vocabulary rows"] % 256 == 0
    assert found.facts["rows beyond the tokenizer"] == found.facts["vocabulary rows"] - len(own) > 0
    assert found.facts["items sharing their SID"] == 4
    assert found.problems == ()
    assert any("padded" in trap for trap, _ in found.traps)
    with pytest.raises(CheckpointError, match="holds no parquet with pid and codes"):
        open_checkpoint(shop / "model")


def test_from_end_to_end(
    shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit_little(monkeypatch)
    source, out = shop / "model", tmp_path / "out"
    before = files_of(source) | files_of(shop / "beside")
    said = [f"--layout-set={key}={value}" for key, value in {**options(shop), "window": "3"}.items()]
    common = ["--concept=brand=Acme", f"--data={shop / 'data'}", f"--policy={shop / 'policy.toml'}", *said]
    common += ["--threads=1", "--device=cpu", "--max-users=3"]
    assert run(["erase", str(source), "--out", str(out), *[f"--set={x}" for x in FAST], *common]) in (0, 5)
    assert files_of(source) | files_of(shop / "beside") == before
    after = files_of(out)
    assert set(after) == set(before) | OURS
    changed = {name for name in before if after[name] != before[name]}
    assert {"pid2sid.parquet", "sid2pid.json"} <= changed
    assert all(name.endswith(".safetensors") for name in changed - {"pid2sid.parquet", "sid2pid.json"})

    old, new = their_codes(shop / "beside" / "pid2sid.parquet"), their_codes(out / "pid2sid.parquet")
    moved = {pid for pid in old if old[pid] != new[pid]}
    assert len(moved) > 0
    assert moved <= set(range(8))
    assert new[20] == old[20]  # it shared its SID with an item that had to go
    consistent(out)
    was, now = tensors_of(source), tensors_of(out)
    assert {n: (t.shape, t.dtype) for n, t in was.items()} == {n: (t.shape, t.dtype) for n, t in now.items()}
    opened = open_checkpoint(out)
    same_as_theirs(out, opened, new)
    capfd.readouterr()
    verify = ["report", "verify", str(out / "report.json"), "--subject", str(out), "--original", str(source)]
    assert run([*verify, *said]) == 0
    assert run(verify) == 4  # without the options the original's table is nowhere
    assert "holds no parquet" in capfd.readouterr().err
    assert opened.digest == named_layout("openonerec").digest(out)  # type: ignore[misc]


def consistent(out: Path) -> None:
    """Table and map say the same, and the map is as their tool writes it: every SID once, pids by count, largest first."""
    codes, rows = their_codes(out / "pid2sid.parquet"), their_map(out / "sid2pid.json")
    told = {one["pid"]: key for key, row in rows.items() for one in row}
    assert told == {pid: c[0] * 8192**2 + c[1] * 8192 + c[2] for pid, c in codes.items()}
    assert sum(map(len, rows.values())) == N
    assert all(
        row and [one["count"] for one in row] == sorted((o["count"] for o in row), reverse=True)
        for row in rows.values()
    )


def same_as_theirs(out: Path, opened: api.Checkpoint, codes: dict[int, list[int]]) -> None:  # type: ignore[name-defined]
    """Prompts are read token by token as they are there, with the logits that the users' own class gives."""
    model, own = loads(out), AutoTokenizer.from_pretrained(out, local_files_only=True)
    histories = [[8, 9, 20], [0], [3, 10, 11, 30]]
    tokens, lengths = opened.recommender.tokens(Histories.from_lists(histories), opened.table)
    for b, history in enumerate(histories):
        row = tokens[b, : int(lengths[b])]
        assert row.tolist() == own(as_they_ask([codes[pid] for pid in history])).input_ids
        with torch.no_grad():
            theirs = model(input_ids=row[None], use_cache=False).logits
            assert torch.equal(theirs, opened.recommender.module(input_ids=row[None], use_cache=False).logits)  # type: ignore[operator]


def test_unchanged_means_byte_for_byte_and_a_move_changes_two_files(shop: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(shop / "model", options=options(shop))
    before = files_of(shop / "model") | files_of(shop / "beside")
    (tmp_path / "same").mkdir()
    write_back(opened, opened.recommender, opened.table, tmp_path / "same")
    assert files_of(tmp_path / "same") == before
    (tmp_path / "moved").mkdir()
    to = np.array([opened.table.codes[30]])
    write_back(opened, opened.recommender, opened.table.replace(np.array([0]), to), tmp_path / "moved")
    after = files_of(tmp_path / "moved")
    assert {name for name in before if after[name] != before[name]} == {"pid2sid.parquet", "sid2pid.json"}
    consistent(tmp_path / "moved")
    assert their_codes(tmp_path / "moved" / "pid2sid.parquet")[0] == to[0].tolist()
    was, now = (pq.read_metadata(place / "pid2sid.parquet") for place in (shop / "beside", tmp_path / "moved"))
    assert [was.row_group(i).num_rows for i in range(was.num_row_groups)] == [
        now.row_group(i).num_rows for i in range(now.num_row_groups)
    ]
    one, two = (pq.read_table(place / "pid2sid.parquet") for place in (shop / "beside", tmp_path / "moved"))
    assert one.schema.equals(two.schema, check_metadata=True)
    assert one.drop_columns("codes").equals(two.drop_columns("codes"))
    assert now.row_group(0).column(0).compression == "GZIP"


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int16()), pa.list_(pa.int64(), 3)])
def test_other_types_of_the_table_stay(kind: pa.DataType, shop: Path, tmp_path: Path) -> None:
    """`sid` is what data/onerec_data reads, `codes` what infer_res_kmeans.py writes."""
    codes = the_world().codes
    place = tmp_path / "t.parquet"
    pq.write_table(pa.table({"sid": pa.array(codes.tolist(), kind), "pid": [str(i) for i in range(N)]}), place)
    opened = open_checkpoint(shop / "model", options={"sids": str(place)})
    (tmp_path / "out").mkdir()
    write_back(opened, opened.recommender, opened.table.replace(np.array([2]), codes[3:4]), tmp_path / "out")
    found = pq.read_table(tmp_path / "out" / "t.parquet")
    assert found.schema.equals(pq.read_table(place).schema)
    assert found["sid"].to_pylist() == [codes[3 if i == 2 else i].tolist() for i in range(N)]


def test_the_map_keeps_its_layout_and_its_order() -> None:
    rows = {
        "9": [{"pid": 1, "count": 5}, {"pid": 2, "count": 1}],
        "12": [{"pid": 3, "count": 3}],
        "40": [{"iid": 4, "count": 9}],
    }
    for style in ({}, {"indent": 2}, {"separators": (",", ":")}):
        data = json.dumps(rows, **style).encode()  # type: ignore[arg-type]
        moved = remapped(data, Path("m.json"), {"1": 12, "4": 11})
        meant = {"9": rows["9"][1:], "11": rows["40"], "12": [rows["9"][0], *rows["12"]]}
        assert moved == json.dumps(meant, **style).encode()  # type: ignore[arg-type]
    unsorted = {"12": rows["12"], "9": rows["9"]}
    assert list(json.loads(remapped(json.dumps(unsorted).encode(), Path("m.json"), {"1": 10}))) == ["12", "9", "10"]
    with pytest.raises(TableError, match="laid out as json"):
        remapped(b'{"9" :[{"pid":1}]}', Path("m.json"), {"1": 12})


def test_what_does_not_belong_together_is_refused(shop: Path, tmp_path: Path) -> None:
    table, place = shop / "beside" / "pid2sid.parquet", tmp_path / "sid2pid.json"
    rows = json.loads((shop / "beside" / "sid2pid.json").read_text())
    first, second = list(rows)[:2]
    rows[first], rows[second] = rows[second], rows[first]
    place.write_text(json.dumps(rows))
    with pytest.raises(TableError, match=r"has item \d+ under"):
        open_checkpoint(shop / "model", options={"sids": str(table), "reverse": str(place)})
    found = pq.read_table(table)
    for column, values, match in (
        ("pid", pa.array([0] * N), "not all different"),
        ("codes", pa.array([[1, 2]] + [[1, 2, 3]] * (N - 1)), "not all of one length"),
        ("codes", pa.array([[1, 2, SIZE]] * N), rf"<s_c_{SIZE}>, which the tokenizer"),
        ("codes", pa.array([[1, 2, -1]] * N), "reach from -1"),
        ("codes", pa.array(["<s_a_1>"] * N), "no lists"),
    ):
        pq.write_table(found.set_column(found.column_names.index(column), column, values), tmp_path / "t.parquet")
        with pytest.raises(TableError, match=match):
            open_checkpoint(shop / "model", options={"sids": str(tmp_path / "t.parquet")})


def test_filtering_is_refused_and_two_maps_must_be_told_apart(shop: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(shop / "model", options=options(shop))
    with pytest.raises(EraseError, match="cannot say that an item is not to be recommended"):
        write_back(opened, opened.recommender, opened.table.unlisted(np.arange(N) < 8), tmp_path)
    place = Path(shutil.copytree(shop / "model", tmp_path / "model"))
    for name in ("sid2pid.json", "sid2iid.json"):
        shutil.copy(shop / "beside" / "sid2pid.json", place / name)
    with pytest.raises(CheckpointError, match="2 maps") as told:
        open_checkpoint(place, options={"sids": options(shop)["sids"]})
    assert "reverse=FILE" in told.value.remedy
    assert open_checkpoint(place, options={"sids": options(shop)["sids"], "reverse": "sid2pid.json"}).table.levels == 3
