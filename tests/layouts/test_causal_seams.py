"""Where the layouts of causal models meet files, options and each other: each of these went wrong once."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts import onerec_fixtures
from tests.layouts.causal_checks import EASY, files_of
from tests.layouts.causal_fixtures import lc_rec, make_world, minionerec, sid, write_data
from tests.layouts.onerec_fixtures import the_world, whole

from recerase import api
from recerase.errors import CheckpointError, OutputError, TableError
from recerase.layouts.index_json import looks_like_index, read_index
from recerase.layouts.naming import alone
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.layouts.spelling import ONEREC, PLAIN
from recerase.runtime import RunConfig
from recerase.types import Observer

ACME = api.ConceptSpec(("brand=Acme",))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini, lc, open, think, data, policy.toml; read only."""
    home = tmp_path_factory.mktemp("seams")
    world, other = make_world(), the_world()
    minionerec(home / "mini", world, tied=False, dtype=torch.float32)
    lc_rec(home / "lc", world)
    onerec_fixtures.openonerec(home / "open", other, home / "open")
    onerec_fixtures.onerec_think(home / "think", other, home / "think")
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    return home


def copied(shop: Path, name: str, to: Path) -> Path:
    return Path(shutil.copytree(shop / name, to / name))


def moved(source: Path, out: Path, item: int = 3, **options: str) -> Path:
    """A directory written back with one item on the SID of another."""
    opened = open_checkpoint(source, options=options)
    out.mkdir()
    codes = opened.table.codes[[30]]
    table = opened.table.replace(np.array([item]), codes)
    named_layout(opened.layout).write_back(opened, opened.recommender, table, out)
    return out


class Notes(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *more, **named: None


def run(**options: str) -> RunConfig:
    return RunConfig(threads=1, device="cpu", layout_options=tuple(options.items()))


def test_what_an_option_names_is_an_input(shop: Path, tmp_path: Path) -> None:
    """A report went over the SID table that --layout-set sids names, and results into the directory that data names."""
    source = copied(shop, "lc", tmp_path)
    table = Path(shutil.move(source / "Toys.index.json", tmp_path / "table.json"))
    held = table.read_bytes()
    rest: dict[str, Any] = {"policy": shop / "policy.toml", "max_users": 2}
    with pytest.raises(OutputError, match=r"the input .*table\.json"):
        api.audit(source, ACME, shop / "data", outputs=[table], run=run(sids=str(table)), **rest)
    with pytest.raises(OutputError, match=r"the input .*table\.json"):
        api.erase(source, ACME, shop / "data", tmp_path / "out", outputs=[table], run=run(sids=str(table)), **rest)
    with pytest.raises(OutputError, match="the input"):
        api.export_blocklist(source, ACME, shop / "data", table, force=True, run=run(sids=str(table)))
    with pytest.raises(OutputError, match="lies inside the input"):
        api.erase(shop / "mini", ACME, shop / "data", source / "out", run=run(data=str(source)), **rest)
    assert table.read_bytes() == held


def test_an_adapter_whose_base_is_elsewhere_is_nobodys(shop: Path, tmp_path: Path) -> None:
    """One over a Qwen that is named as on a hub was read as LC-Rec's, in LC-Rec's prompt."""
    for name, model in (("mini", None), ("think", "onerec-think"), ("open", "openonerec")):
        place = tmp_path / name
        place.mkdir()
        for file in (shop / name).glob("tokenizer*.json"):
            shutil.copy(file, place)
        said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Qwen/Qwen3-1.7B"}
        (place / "adapter_config.json").write_text(json.dumps(said))
        if model is None:
            with pytest.raises(CheckpointError, match=r"could be minionerec .* and lc-rec") as told:
                detect_layout(place)
            assert "--layout minionerec or --layout lc-rec" in told.value.remedy
            assert detect_layout(place, "minionerec").name == "minionerec"
        else:  # their tokens say whose it is
            assert detect_layout(place).name == model


def test_what_is_not_rewritten_is_said(shop: Path, tmp_path: Path) -> None:
    source, world = copied(shop, "mini", tmp_path), make_world()
    (source / "README.md").write_text(f"The best is {sid(world.codes[0])}.")
    (source / "best.json").write_text(json.dumps([sid(world.codes[1])]).replace("<", "\\u003c").replace(">", "\\u003E"))
    (source / "train" / "old.csv").write_text(f"user,sid\n1,{sid(world.codes[2])}\n")
    (source / "notes.txt").write_text("Nothing here.")
    (source / "optimizer.pt").write_bytes(b"moments of the concept")
    (source / "checkpoint-500").mkdir()
    naming = ("README.md", "best.json", "train/old.csv")
    assert open_checkpoint(source).extra["naming"] == naming
    assert any(what.startswith(", ".join(naming)) for what, _ in api.inspect(source).traps)
    notes = Notes()
    report = api.erase(
        source, ACME, shop / "data", tmp_path / "out", method="filter", policy=shop / "policy.toml", max_users=2,
        run=run(), observer=notes,
    )  # fmt: skip
    told = " | ".join(notes.told)
    assert "README.md, best.json, train/old.csv name SIDs, and are not rewritten" in told
    assert "may hold other weights or the concept: checkpoint-500, optimizer.pt" in told
    assert not {"optimizer.pt", "checkpoint-500"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert any("README.md, best.json, train/old.csv" in limit for limit in report.limits)
    bare = copied(shop, "mini", tmp_path / "bare")
    for folder in ("info", "train", "valid", "test"):
        shutil.rmtree(bare / folder)
    assert "found with --layout-set data=PATH" in str(alone(open_checkpoint(bare)))
    assert alone(open_checkpoint(source)) is alone(open_checkpoint(shop / "lc")) is None


def test_of_two_tables_in_a_folder_the_rewritten_one_is_read_back(shop: Path, tmp_path: Path) -> None:
    """The original's table was read in its place."""
    source = copied(shop, "mini", tmp_path)
    (source / "index").mkdir()
    table = Path(shutil.move(source / "Toys.index.json", source / "index" / "Toys.index.json"))
    (source / "index" / "Tools.index.json").write_text('{"0": ["<a_1>"]}')
    out = moved(source, tmp_path / "out", sids=str(table))
    again = open_checkpoint(out, options={"sids": str(table)})
    assert again.extra["index"].path == out / "index" / "Toys.index.json"
    assert again.table.codes[3].tolist() == again.table.codes[30].tolist()


def test_a_shop_whose_name_begins_anothers(shop: Path, tmp_path: Path) -> None:
    source, data = copied(shop, "mini", tmp_path), tmp_path / "data"
    data.mkdir()
    for name in ("info", "train", "valid", "test"):
        shutil.move(source / name, data / name)
        for file in list((data / name).iterdir()):
            file.with_name(file.name.replace("Toys", "Toys_and_Games")).write_text(
                file.read_text().replace("<a_", "<b_")
            )
    (data / "index").mkdir()
    shutil.move(source / "Toys.index.json", data / "index" / "Toys.index.json")
    (data / "index" / "Toys_and_Games.index.json").write_text('{"0": ["<a_1>"]}')
    said = {"data": str(data), "sids": str(data / "index" / "Toys.index.json")}
    assert all("Toys_and" not in name for name in open_checkpoint(source, options=said).extra["side"])


def test_links_and_sub_folders(shop: Path, tmp_path: Path) -> None:
    linked = copied(shop, "mini", tmp_path)
    shutil.move(linked / "info", tmp_path / "lists")
    (linked / "info").symlink_to(tmp_path / "lists")
    out = moved(linked, tmp_path / "out")
    assert not (out / "info").is_symlink()
    assert open_checkpoint(out).table.codes[3].tolist() == open_checkpoint(out).table.codes[30].tolist()
    for table_too in (False, True):
        source = copied(shop, "mini", tmp_path / str(table_too))
        (source / "data").mkdir()
        for name in ("info", "train", "valid", "test", *(["Toys.index.json"] if table_too else [])):
            shutil.move(source / name, source / "data" / name)
        said = {"data": str(source / "data")}
        out = moved(source, tmp_path / f"out {table_too}", **said)
        assert files_of(out).keys() == files_of(shop / "mini").keys()
        opened = open_checkpoint(out, options=said)
        assert (opened.table.codes[3] == opened.table.codes[30]).all()
        digest = named_layout("minionerec").digest
        assert digest is not None
        assert opened.digest == digest(out, said) == digest(out)
        assert open_checkpoint(source, options=said).digest == digest(source, said)


def test_a_byte_order_mark_hides_no_interactions(shop: Path, tmp_path: Path) -> None:
    """pandas reads past it; the files were not seen when the first column was one that is looked for."""
    source = copied(shop, "mini", tmp_path)
    for file in source.rglob("*.csv"):
        with open(file, newline="") as opened:
            rows = [row[::-1] for row in csv.reader(opened)]
        with open(file, "w", newline="", encoding="utf-8-sig") as opened:
            csv.writer(opened).writerows(rows)
    side = open_checkpoint(source).extra["side"]
    assert [name.split("/")[0] for name in side] == ["info", "test", "train", "valid"]
    out = moved(source, tmp_path / "out")
    table = open_checkpoint(out).table
    assert (out / "train" / "Toys_5_2016-10-2018-11.csv").read_bytes().startswith(b"\xef\xbb\xbfitem_sid,")
    assert table.codes[3].tolist() == table.codes[30].tolist()


def test_tables_in_other_spellings_of_json(shop: Path, tmp_path: Path) -> None:
    text = (shop / "lc" / "Toys.index.json").read_text()
    place = tmp_path / "x.index.json"
    for good in (text.replace("<", "\\u003c"), text.replace('"0"', '"a \\"quoted\\"\\tkey"', 1)):
        place.write_text(good)
        assert looks_like_index(place, tokens=True)
        assert len(read_index(place).items) == 40
    for bad in (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):  # were refused when the method was done
        place.write_bytes(bad)
        with pytest.raises(TableError, match="is not a SID table"):
            read_index(place)
    place.write_text(text.replace("<a_1>", "<a_01>"))
    with pytest.raises(TableError, match="<a_01>"):
        read_index(place)


def test_codes_are_small_numbers_in_plain_digits(shop: Path, tmp_path: Path) -> None:
    assert [PLAIN.place(token) for token in ("<a_0>", "<b_10>", "<a_01>", "<a_900000000>", "<a_1> ")] == [
        (0, 0),
        (1, 10),
        None,
        None,
        None,
    ]
    assert ONEREC.read(whole((3, 0, 12))) == [3, 0, 12]
    for wrong in ("<s_a_1><s_b_2><s_c_12345678901>", "<s_a_01>", "<s_a_1><s_c_1>", "<s_a_900000000>"):
        with pytest.raises(ValueError, match="leaves out a level, or has a code"):
            ONEREC.read(f"<|sid_begin|>{wrong}<|sid_end|>")
    source = copied(shop, "lc", tmp_path)  # a token of such a number took 7 GB
    for file in source.glob("tokenizer*.json"):
        file.write_text(file.read_text().replace("<c_7>", "<c_900000000>"))
    index = json.loads((source / "Toys.index.json").read_text())
    kept = {item: tokens if "<c_7>" not in tokens else [*tokens[:2], "<c_6>"] for item, tokens in index.items()}
    (source / "Toys.index.json").write_text(json.dumps(kept))
    assert open_checkpoint(source).table.schema.codes[2] == 7


def test_a_digest_knows_tokenizer_and_window(shop: Path, tmp_path: Path) -> None:
    source = copied(shop, "lc", tmp_path)
    first = open_checkpoint(source).digest
    (source / "special_tokens_map.json").write_text("{}")
    digest = named_layout("lc-rec").digest
    assert digest is not None
    found = [open_checkpoint(source, options=said).digest for said in ({}, {"window": "3"}, {"window": "7"})]
    assert len({first, *found}) == 4
    assert found == [digest(source), digest(source, {"window": "3"}), digest(source, {"window": "7"})]


def rewritten_json(path: Path, change: Callable[[dict[str, Any]], Any], **style: Any) -> None:
    said = json.loads(path.read_text())
    path.write_text(json.dumps(change(said) or said, **style))


def test_maps_from_sids_to_pids_are_found_and_checked(shop: Path, tmp_path: Path) -> None:
    """Those that were not recognised were copied as they were; wrong ones broke when the method was done."""
    source = copied(shop, "open", tmp_path)
    place = source / "sid2pid.json"
    held = place.read_text()
    good = (
        lambda said: {"5": [], **said},
        lambda said: {key: [{"caption": {"en": "x"}, **one} for one in row] for key, row in said.items()},
    )
    for number, change in enumerate(good):
        place.write_text(held)
        rewritten_json(place, change)
        out = moved(source, tmp_path / str(number))
        assert open_checkpoint(out).extra["side"] == ("sid2pid.json",)
        codes = the_world().codes[30].tolist()
        row = json.loads((out / "sid2pid.json").read_text())[str(codes[0] * 8192**2 + codes[1] * 8192 + codes[2])]
        assert 3 in [one["pid"] for one in row]
    bad: tuple[Callable[[dict[str, Any]], Any], ...] = (
        lambda said: next(iter(said.values()))[0].update(count="many"),
        lambda said: next(iter(said.values()))[0].update(count=None),
        lambda said: next(iter(said.values()))[0].update(pid=3.0),
        lambda said: next(iter(said.values()))[0].update(pid=None),
        lambda said: {**said, "1" * 5000: [{"pid": 99}]},
        lambda said: {f"0{key}": row for key, row in said.items()},
    )
    for change in bad:
        place.write_text(held)
        rewritten_json(place, change)
        with pytest.raises(TableError, match="does not map SIDs to lists of pids"):
            open_checkpoint(source)


def test_every_text_of_a_prompt_file_is_rewritten_or_refused(shop: Path, tmp_path: Path) -> None:
    source, world = copied(shop, "think", tmp_path), the_world()
    for file in source.glob("training_*"):
        file.unlink()
    kind = pa.map_(pa.string(), pa.string())
    told = pa.table({"text": [whole(world.codes[3])], "m": pa.array([[("k", whole(world.codes[3]))]], kind)})
    pq.write_table(told, source / "prompts.parquet")
    out = moved(source, tmp_path / "out")
    row = pq.read_table(out / "prompts.parquet").to_pylist()[0]
    assert row == {"text": whole(world.codes[30]), "m": [("k", whole(world.codes[30]))]}
    escaped = source / "prompts.json"
    escaped.write_text(json.dumps([whole(world.codes[3])]).replace("<", "\\u003c"))
    with pytest.raises(TableError, match=r"writes SIDs with \\u003c"):
        open_checkpoint(source)
    escaped.unlink()
    for wrong in (5, ["x"], {"a": 1}):

        def spoil(said: dict[str, Any], wrong: Any = wrong) -> None:
            said["5"]["sid"] = wrong

        rewritten_json(source / "Beauty.pretrain.json", spoil, indent=4)
        with pytest.raises(TableError, match="is not a SID table"):
            open_checkpoint(source)
