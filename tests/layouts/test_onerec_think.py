"""OneRec-Think from end to end: inspected, audited, erased, written back, and read by what its users read it with."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.layouts.causal_checks import EASY, FAST, OURS, files_of, loads, tensors_of
from tests.layouts.causal_fixtures import N, write_data
from tests.layouts.onerec_fixtures import BEGIN, END, audit_little, onerec_think, the_world, whole
from transformers import AutoTokenizer

from recerase import api
from recerase.catalog.interactions import Histories
from recerase.errors import CheckpointError, EraseError, TableError
from recerase.layouts.onerec_think import write_back
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.runtime import RunConfig

ACME = api.ConceptSpec(("brand=Acme",))
PARQUET = [
    f"training_{kind}_{split}.parquet" for kind in ("prediction_sid_data", "RA") for split in ("train", "val", "test")
]
SIDS = re.compile(r"<\|sid_begin\|><s_a_\d+><s_b_\d+><s_c_\d+><\|sid_end\|>")
"""What precompute_global_trie.py looks for, with three levels."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model (bfloat16, in shards), beside (items and prompts), data, policy.toml; read only."""
    home = tmp_path_factory.mktemp("think")
    world = the_world()
    onerec_think(home / "model", world, home / "beside")
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    return home


def options(shop: Path, **more: str) -> dict[str, str]:
    return {"data": str(shop / "beside"), **more}


def their_items(path: Path) -> dict[str, str]:
    """Item -> SID, as their data scripts read it."""
    return {item: info.get("sid") for item, info in json.loads((path / "Beauty.pretrain.json").read_text()).items()}


def their_prompts(path: Path) -> dict[str, tuple[list[list[str]], list[str]]]:
    """File -> SIDs of each description, and of each groundtruth."""
    found = {}
    for name in PARQUET:
        rows = pq.read_table(path / name).to_pylist()
        found[name] = ([SIDS.findall(row["description"]) for row in rows], [row["groundtruth"] for row in rows])
    return found


def as_they_ask(sids: list[str]) -> str:
    """format_chat_prompt around a description of generate_sid_prediction_data.py, and what their trie begins with."""
    description = "The user has purchased the following items: " + "; ".join(sids) + ";"
    system = (
        "You are a professional recommendation expert who needs to recommend the next possible purchase for users based on "
        "their purchase history. Please predict the most likely next product that the user will purchase based on the user's "
        "historical purchase information."
    )
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{description}<|im_end|>\n<|im_start|>assistant\n"
        f"<think>\n\n</think>\n{BEGIN}"
    )


def test_it_is_recognised_and_described(shop: Path) -> None:
    assert detect_layout(shop / "model").name == "onerec-think"
    found = api.inspect(shop / "model", run=RunConfig(layout_options=tuple(options(shop).items())))
    assert found.kind.startswith("onerec-think")
    assert (found.facts["levels"], found.facts["vocabulary rows"] % 256) == (3, 0)
    assert found.facts["rows beyond the tokenizer"] > 0
    assert found.problems == ()
    assert any("trie" in trap for trap, _ in found.traps)
    assert not any("share a SID" in trap for trap, _ in found.traps)
    with pytest.raises(CheckpointError, match="no JSON of items"):
        open_checkpoint(shop / "model")


def test_from_end_to_end(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit_little(monkeypatch)
    source, out = shop / "model", tmp_path / "out"
    before = files_of(source) | files_of(shop / "beside")
    run = RunConfig(threads=1, device="cpu", layout_options=tuple(options(shop, window="3").items()))
    api.erase(
        source, ACME, shop / "data", out, overrides=FAST, policy=shop / "policy.toml", max_users=3, run=run
    )  # fmt: skip
    assert files_of(source) | files_of(shop / "beside") == before
    after = files_of(out)
    assert set(after) == set(before) - {"exact_trie.pkl", "sequential_data_processed.txt"} | OURS
    changed = {name for name in set(before) & set(after) if after[name] != before[name]}
    assert {name for name in changed if not name.endswith(".safetensors")} == {"Beauty.pretrain.json", *PARQUET}

    old, new = their_items(shop / "beside"), their_items(out)
    moved = {item for item in old if old[item] != new[item]}
    assert len(moved) > 0
    assert moved <= {str(i) for i in range(8)}
    text, was = ((place / "Beauty.pretrain.json").read_text() for place in (out, shop / "beside"))
    assert SIDS.sub("", text) == SIDS.sub("", was)  # all but the SIDs stands as it stood
    assert "Ünïcode" in text
    rewritten_by_item(out, new)
    for name in PARQUET:
        one, two = (pq.read_table(place / name) for place in (shop / "beside", out))
        assert one.schema.equals(two.schema, check_metadata=True)
        others = [column for column in one.column_names if column not in ("description", "groundtruth")]
        assert one.select(others).equals(two.select(others))
        assert [SIDS.sub("", x) for x in one["description"].to_pylist()] == [
            SIDS.sub("", x) for x in two["description"].to_pylist()
        ]

    tensors, made = tensors_of(source), tensors_of(out)
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {n: (t.shape, t.dtype) for n, t in made.items()}
    same_as_theirs(out, new)
    report = out / "report.json"
    assert api.verify_report(report, subject=out, original=source, options=options(shop, window="3")) == ()
    assert len(api.verify_report(report, subject=out, original=source, options=options(shop))) == 2
    assert open_checkpoint(out).digest == named_layout("onerec-think").digest(out)  # type: ignore[misc]
    assert open_checkpoint(out, options=options(shop)).digest == open_checkpoint(out).digest


def rewritten_by_item(out: Path, new: dict[str, str]) -> None:
    """Every record names the items of its user, in order, by the SIDs they now have: shared SIDs are told apart."""
    histories = the_world().histories
    for name, (described, truths) in their_prompts(out).items():
        cut = {"train": 2, "val": 1, "test": 0}[name.removesuffix(".parquet").rpartition("_")[2]]
        for history, sids, truth in zip(histories, described, truths, strict=True):
            meant = [new[str(item)] for item in history[: len(history) - cut]]
            assert [*sids, truth] == meant


def same_as_theirs(out: Path, new: dict[str, str]) -> None:
    """Prompts are read token by token as they are there, with the logits that the users' own class gives."""
    opened = open_checkpoint(out)
    model, own = loads(out), AutoTokenizer.from_pretrained(out, local_files_only=True)
    histories = [[8, 9, 20], [0], [3, 10, 11, 30]]
    tokens, lengths = opened.recommender.tokens(Histories.from_lists(histories), opened.table)
    for b, history in enumerate(histories):
        row = tokens[b, : int(lengths[b])]
        assert row.tolist() == own(as_they_ask([new[str(item)] for item in history])).input_ids
        with torch.no_grad():
            theirs = model(input_ids=row[None], use_cache=False).logits
            assert torch.equal(theirs, opened.recommender.module(input_ids=row[None], use_cache=False).logits)  # type: ignore[operator]
    ids = opened.table.rows()
    for row, item in enumerate(opened.table.item_ids):
        spelled = own(new[str(item)]).input_ids
        assert spelled == [spelled[0], *ids[row].tolist(), spelled[-1]]


def moved_to(shop: Path, item: int, to: int, staging: Path, **more: str) -> Path:
    """What is written when one item takes the SID of another, with no weight changed."""
    opened = open_checkpoint(shop / "model", options=options(shop, **more))
    staging.mkdir()
    write_back(opened, opened.recommender, opened.table.replace(np.array([item]), opened.table.codes[[to]]), staging)
    return staging


def test_unchanged_means_byte_for_byte_and_a_move_changes_no_weight(shop: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(shop / "model", options=options(shop))
    before = files_of(shop / "model") | files_of(shop / "beside")
    (tmp_path / "same").mkdir()
    write_back(opened, opened.recommender, opened.table, tmp_path / "same")
    after = files_of(tmp_path / "same")
    assert after == {name: data for name, data in before.items() if name in after}
    assert set(before) - set(after) == {"exact_trie.pkl", "sequential_data_processed.txt"}
    moved = moved_to(shop, 0, 30, tmp_path / "moved")
    after = files_of(moved)
    assert {name for name in after if before[name] != after[name]} == {"Beauty.pretrain.json", *PARQUET}
    rewritten_by_item(moved, their_items(moved))


def test_without_users_a_shared_sid_is_refused_and_an_own_one_is_not(shop: Path, tmp_path: Path) -> None:
    """Items 0 and 20 share a SID: a record that does not say which of them is meant cannot be rewritten."""
    place = tmp_path / "shop"
    onerec_think(place / "model", the_world(), place / "beside", users=False)
    with pytest.raises(EraseError, match="several items share"):
        moved_to(place, 0, 30, tmp_path / "refused")
    moved = moved_to(place, 1, 30, tmp_path / "moved")
    rewritten_by_item(moved, their_items(moved))
    opened = open_checkpoint(place / "model", options=options(place))
    assert any("share a SID" in told for told, _ in detect_layout(place / "model").remarks(opened))
    both = opened.table.replace(np.array([0, 20]), opened.table.codes[[30, 30]])
    (tmp_path / "both").mkdir()
    write_back(opened, opened.recommender, both, tmp_path / "both")
    rewritten_by_item(tmp_path / "both", their_items(tmp_path / "both"))


def test_json_text_and_nested_columns_are_rewritten_too(shop: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(shop / "beside", tmp_path / "beside"))
    codes = the_world().codes
    one, other = whole(codes[1]), whole(codes[30])
    (place / "notes.txt").write_text(f"{one} and {other}, not {BEGIN} or {END}\n")
    (place / "chat.jsonl").write_text(json.dumps({"messages": f"bought {one}\n"}) + "\n")
    record = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    said = [[{"role": "user", "content": f"x {one}"}], None]
    kept = pa.array([one, "kept"]).dictionary_encode()
    nested = pa.table({"messages": pa.array(said, pa.list_(record)), "n": [1, 2], "kind": kept})
    pq.write_table(nested, place / "chat.parquet")
    pq.write_table(pa.table({"word": ["none"]}), place / "other.parquet")
    moved = moved_to(shop, 1, 30, tmp_path / "out", data=str(place))
    assert (moved / "notes.txt").read_text() == f"{other} and {other}, not {BEGIN} or {END}\n"
    assert json.loads((moved / "chat.jsonl").read_text())["messages"] == f"bought {other}\n"
    found = pq.read_table(moved / "chat.parquet")
    assert found.schema.equals(nested.schema)
    assert found["messages"].to_pylist() == [[{"role": "user", "content": f"x {other}"}], None]
    assert found["kind"].to_pylist() == [other, "kept"]
    assert not (moved / "other.parquet").exists()


def test_sids_alone_make_a_table_too(shop: Path, tmp_path: Path) -> None:
    """Item -> SID, with items that have none; SIDs of the items in `sids`, prompts in `data`."""
    place = Path(shutil.copytree(shop / "model", tmp_path / "model"))
    codes = the_world().codes
    (place / "sids.json").write_text(json.dumps({str(i): whole(codes[i]) if i < N - 2 else "" for i in range(N)}))
    opened = open_checkpoint(place)
    assert len(opened.table) == N - 2
    (tmp_path / "out").mkdir()
    table = opened.table.replace(np.array([1]), opened.table.codes[[30]])
    write_back(opened, opened.recommender, table, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "sids.json").read_text())
    assert said == {str(i): whole(codes[30 if i == 1 else i]) if i < N - 2 else "" for i in range(N)}


def test_what_does_not_belong_together_is_refused(shop: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(shop / "beside", tmp_path / "beside"))
    with pytest.raises(CheckpointError, match="There is no directory"):
        open_checkpoint(shop / "model", options={"data": str(tmp_path / "nowhere")})
    (place / "notes.txt").write_text(whole([9, 9, 9]))
    with pytest.raises(
        TableError, match=r"names <.sid_begin.><s_a_9><s_b_9><s_c_9><.sid_end.>, which is the SID of no item"
    ):
        open_checkpoint(shop / "model", options={"data": str(place)})
    (place / "notes.txt").unlink()
    items = json.loads((place / "Beauty.pretrain.json").read_text())
    items["3"]["sid"] = items["3"]["sid"].replace("<s_b", "<s_c", 1)
    (place / "Beauty.pretrain.json").write_text(json.dumps(items, indent=4))
    with pytest.raises(TableError, match="leaves out a level"):
        open_checkpoint(shop / "model", options={"data": str(place)})
    (place / "Beauty.pretrain.json").write_text(json.dumps(items, indent=4).replace(": {", " :{"))
    with pytest.raises(TableError, match="laid out as"):
        open_checkpoint(shop / "model", options={"data": str(place)})
