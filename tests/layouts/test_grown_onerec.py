"""A vocabulary of OpenOneRec or OneRec-Think grows in their own spelling, into the padding that they leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.layouts import onerec_fixtures as onerec
from tests.layouts.causal_checks import files_of, tensors_of
from tests.layouts.test_grown import written
from transformers import AutoTokenizer

from recerase.layouts.growth import further, room_of
from recerase.layouts.registry import named_layout, open_checkpoint, recognised


@pytest.mark.parametrize("name", ["openonerec", "onerec-think"])
def test_one_rec_grows_in_its_own_spelling(tmp_path: Path, name: str) -> None:
    """A code that nobody has comes into the padding behind all tokens, with its own letter, and into all that names the item's SID."""
    source, world = tmp_path / "model", onerec.the_world()
    (onerec.openonerec if name == "openonerec" else onerec.onerec_think)(source, world, beside=source)
    opened = open_checkpoint(source)
    first = 1 + max(AutoTokenizer.from_pretrained(source, local_files_only=True).get_vocab().values())
    written(opened, tmp_path / "out", 9, (2, onerec.SIZE))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    codes = [*world.codes[9, :2].tolist(), onerec.SIZE]
    assert tokenizer.encode(f"<s_c_{onerec.SIZE}>", add_special_tokens=False) == [first]
    assert len(tokenizer.encode(onerec.whole(codes), add_special_tokens=False)) == 5
    assert files_of(source)["config.json"] == files_of(tmp_path / "out")["config.json"]
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    changed = {key: (before[key] != after[key]).any(-1).nonzero().flatten().tolist() for key in before}
    assert {key: rows for key, rows in changed.items() if rows} == {"model.embed_tokens.weight": [first]}
    read = open_checkpoint(tmp_path / "out")  # by its content: still this layout's alone
    assert [layout.name for layout, _ in recognised(tmp_path / "out")] == [read.layout] == [name]
    assert read.table.codes[9].tolist() == codes
    assert read.table.rows()[9, 2] == first
    assert (read.table.codes != opened.table.codes).any(1).nonzero()[0].tolist() == [9]
    if name == "openonerec":
        rows = json.loads((tmp_path / "out" / "sid2pid.json").read_text())
        assert [one["pid"] for one in rows[str(codes[0] * 8192**2 + codes[1] * 8192 + codes[2])]] == [9]


def test_one_rec_gets_no_code_that_its_map_cannot_hold(tmp_path: Path) -> None:
    onerec.openonerec(tmp_path / "model", onerec.the_world(), beside=tmp_path / "model")
    opened = open_checkpoint(tmp_path / "model")
    room = room_of(named_layout("openonerec"), opened)
    assert further(opened.table.schema, room, 3) == [(2, 10), (2, 11), (2, 12)]
    assert room.most == 8192
    assert further(opened.table.schema, replace(room, most=12), 3) == [(2, 10), (2, 11)]
    assert further(opened.table.schema, replace(room, most=10), 3) == []
