"""The parts of growing a vocabulary: rows in memory, codewords beside them, and the text of each kind of file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from tests.layouts import causal_fixtures as causal
from tests.layouts import growth_fixtures as fixtures
from tests.layouts.causal_checks import files_of, tensors_of
from tests.layouts.test_native import IDS, made, published
from transformers import AutoModelForCausalLM, AutoTokenizer

from recerase.errors import ArtefactError, EraseError
from recerase.growing import codebooks_for, offered_codes
from recerase.layouts.grown import grown, trimmed
from recerase.layouts.grown_files import grown_safetensors, prove_tokens, regrown, token_growth, token_room
from recerase.layouts.growth import Growth, NewRow, Room, further, grown_schema, lacking, room_of
from recerase.layouts.native import Checkpoint, load_checkpoint
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.layouts.spelling import ONEREC, PLAIN, Spelling
from recerase.sid.quantize import TokenizeConfig, fit_codebooks, tokenize
from recerase.sid.schema import SidSchema

NEW = Growth((NewRow(0, 1, 30, "<a_1>"), NewRow(2, 4, 31, "<c_4>")), 32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint whose tokens are as LC-Rec writes them; read only."""
    return open_checkpoint(causal.lc_rec(tmp_path_factory.mktemp("plain") / "model", fixtures.full_world()))


def written(source: Checkpoint, out: Path, item: int, code: tuple[int, int]) -> Checkpoint:
    """`source` as it is, but for one item that got a new code, written back; what was offered and not used is in the way."""
    room = room_of(named_layout(source.layout), source)
    offered = grown(source, room, sorted({code, *lacking(source.table.schema, room)}), seed=0)
    codes = offered.table.codes[[item]].copy()
    codes[0, code[0]] = code[1]
    table = offered.table.replace(np.array([item]), codes)
    model, table, codebooks = trimmed(source, offered, room, offered.recommender, table)
    out.mkdir()
    named_layout(source.layout).write_back(replace(source, codebooks=codebooks), model, table, out)
    return replace(source, recommender=model, table=table, codebooks=codebooks)


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_and_all_other_tensors_are_bit_for_bit_what_they_were(tmp_path: Path, tied: bool) -> None:
    """In shards, in bfloat16, with a matrix longer than the tokenizer by one row: that one is used first."""
    source = causal.minionerec(tmp_path / "model", fixtures.full_world())
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    for file in source.glob("*.safetensors*"):
        file.unlink()
    causal.make_weights(source, rows + 1, False, tied, torch.bfloat16, "20KB")
    opened = open_checkpoint(source)
    made_of = written(opened, tmp_path / "out", 9, (2, 6))
    assert files_of(source)["config.json"] == files_of(tmp_path / "out")["config.json"]
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    wide = {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - wide)
    for name in wide & before.keys():
        assert torch.equal(before[name][:rows], after[name][:rows])
        assert not torch.equal(before[name][rows], after[name][rows])
        assert len(after[name]) == rows + 1
    again = written(open_checkpoint(tmp_path / "out", layout="minionerec"), tmp_path / "more", 9, (2, 1))
    assert len(again.recommender.embed(torch.tensor([[rows + 1]]))[0]) == 1
    tensors = tensors_of(tmp_path / "more")
    assert {len(tensors[name]) for name in wide & tensors.keys()} == {rows + 2} == {made_of.table.schema.vocabulary + 1}
    index = json.loads((tmp_path / "more" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    AutoModelForCausalLM.from_pretrained(tmp_path / "more", local_files_only=True)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "more", local_files_only=True)) == rows + 2


@pytest.mark.parametrize("layout", ["lc-rec", "letter-tiger"])
def test_old_clients_see_the_logits_that_they_saw(tmp_path: Path, layout: str) -> None:
    """The softmax has more terms; what old rows say after old tokens is what it was. A T5's own head stays its own."""
    world = fixtures.full_world()
    if layout == "lc-rec":
        source = causal.lc_rec(tmp_path / "model", world)
    else:
        source = fixtures.full_letter(tmp_path / "model", tie=False)
        tensors = load_file(source / "model.safetensors")
        tensors["lm_head.weight"] = tensors["shared.weight"].flip(0).clone()
        (source / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    opened = open_checkpoint(source, options={} if layout == "lc-rec" else {"tokenizer": "directory"})
    now = written(opened, tmp_path / "out", 9, (2, 1))
    tokens = torch.tensor([[2, 5, 9, 21, 3]])
    more = {} if layout == "lc-rec" else {"decoder_input_ids": tokens[:, :2]}
    with torch.inference_mode():
        old, new = (one.recommender.module(input_ids=tokens, **more).logits for one in (opened, now))
    assert new.shape[2] == old.shape[2] + 1
    torch.testing.assert_close(new[..., : old.shape[2]], old, rtol=1e-5, atol=1e-6)
    read = open_checkpoint(tmp_path / "out", layout=layout)
    state = read.recommender.module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in now.recommender.module.state_dict().items())
    if layout == "letter-tiger":
        assert not torch.equal(state["shared.weight"], state["lm_head.weight"])


def test_a_new_row_is_the_mean_of_its_levels_but_for_a_little(tmp_path: Path) -> None:
    source = open_checkpoint(causal.lc_rec(tmp_path / "model", fixtures.full_world()))
    room = room_of(named_layout("lc-rec"), source)
    offered = grown(source, room, [(2, 1), (2, 4)], seed=0)
    other = grown(source, room, [(2, 1), (2, 4)], seed=1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weight = offered.recommender.module.state_dict()[name]
        level = weight[torch.from_numpy(source.table.schema.rows[2][[0, 2, 3, 5, 7]])]
        for row in offered.table.schema.rows[2][[1, 4]]:
            away = (weight[int(row)] - level.mean(0)) / level.std(0, correction=0)
            assert 0 < float(away.abs().mean()) < 0.2
            assert not torch.equal(weight[int(row)], other.recommender.module.state_dict()[name][int(row)])
    shared = dict(source.recommender.module.named_parameters())
    mine = dict(offered.recommender.module.named_parameters())
    assert sum(mine[name] is not shared[name] for name in shared) == 2  # no second copy of a large model
    assert source.recommender.module.config.vocab_size == source.table.schema.vocabulary


def test_new_codewords_take_no_item_from_the_old_ones(tmp_path: Path) -> None:
    opened = open_checkpoint(causal.lc_rec(tmp_path / "model", fixtures.full_world()))
    points = np.random.default_rng(0).normal(size=(causal.N, 5)).astype(np.float32)
    source = replace(opened, codebooks=fit_codebooks(points, opened.table), embeddings=points)
    assert source.codebooks is not None
    room = room_of(named_layout("lc-rec"), source)
    codes = [(2, 1), (2, 4), *further(source.table.schema, room, 9)]
    offered = grown(source, room, codes, seed=0)
    assert offered.codebooks is not None
    before, after = (one.nearest(points, source.table.codes) for one in (source.codebooks, offered.codebooks))
    nearer = before != after
    assert not nearer[~np.isin(after, [1, 4, *range(8, 17)])].any()
    own = before == source.table.codes  # whoever has the nearest keeps it
    assert (after == source.table.codes)[own].all()
    words = offered.codebooks.vectors[2]
    assert len(np.unique(words, axis=0)) == len(words) == 17
    table = offered.table.replace(np.array([9]), offered.table.codes[[9]] * [1, 1, 0] + [0, 0, 12])
    _, kept, codebooks = trimmed(source, offered, room, offered.recommender, table)
    assert codebooks is not None
    assert [len(words) for words in codebooks.vectors] == list(kept.schema.codes) == [2, 4, 13]
    assert np.array_equal(codebooks.vectors[2][:8], source.codebooks.vectors[2])
    subject = replace(source, table=kept, codebooks=codebooks)
    found = codebooks_for(source, subject)
    assert found is codebooks  # an audit can say where the new code lies
    found.point(kept.codes)
    assert codebooks_for(source, source) is source.codebooks
    strange = replace(codebooks, vectors=tuple(words + 1 for words in codebooks.vectors))
    assert codebooks_for(source, replace(subject, codebooks=strange)) is source.codebooks
    assert [level.tolist() for level in offered_codes(source, offered)] == [[], [], [1, 4, *range(8, 17)]]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_native_checkpoint_grows_beyond_its_codes(tmp_path: Path, kind: str) -> None:
    points = np.random.default_rng(3).normal(size=(40, 8)).astype(np.float32)
    table, codebooks, _ = tokenize(points, np.array(IDS, dtype=object), TokenizeConfig(levels=2, codes=7))
    source = load_checkpoint(
        published(tmp_path / "model", made(kind, table, tie=kind == "causal"), (table, codebooks, points))
    )
    now = written(source, tmp_path / "staging", 5, (1, 9))
    out = published(tmp_path / "out", now.recommender, (now.table, now.codebooks, points))
    assert (tmp_path / "staging" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    read = load_checkpoint(out)
    assert read.table.codes[5, 1] == 9
    assert read.table.schema.to_json() == now.table.schema.to_json()
    assert read.table.schema.rows[1].tolist() == [10, 11, 12, 13, 14, 15, 16, -1, -1, 17]
    assert read.recommender.module.config.vocab_size == read.table.schema.vocabulary == 18
    assert np.array_equal(read.codebooks.encode(points), codebooks.encode(points))
    old, new = (one.recommender.module.get_input_embeddings().weight for one in (source, read))
    assert torch.equal(old, new[:17])


def test_rows_are_in_the_order_in_which_the_tools_add_them() -> None:
    schema = SidSchema((2, 12), (np.arange(2), np.where(np.arange(12) % 2, -1, np.arange(10, 22))), 30, 28, -1, 29)
    spelled = Room(30, lambda level, code: f"<{'ab'[level]}_{code}>")
    assert lacking(schema, spelled) == [(1, 11), (1, 1), (1, 3), (1, 5), (1, 7), (1, 9)]  # '>' sorts behind digits
    wanted = [(1, 1), (1, 11), (1, 12), (1, 3)]
    tokens = sorted(f"<b_{code}>" for _, code in wanted)
    grew = grown_schema(schema, spelled, wanted)
    assert [int(grew.rows[1][int(token[3:-1])]) for token in tokens] == [30, 31, 32, 33]
    assert [int(grown_schema(schema, Room(30), wanted).rows[1][code]) for code in (1, 3, 11, 12)] == [30, 31, 32, 33]
    behind = replace(spelled, behind="<b_8>")
    assert lacking(schema, behind) == [(1, 9)]
    assert further(schema, behind, 3) == [(1, 90), (1, 91), (1, 92)]
    assert further(schema, spelled, 2) == [(1, 12), (1, 13)]
    assert grown_schema(schema, spelled, []).to_json() == schema.to_json()


@pytest.mark.parametrize("spelling", [PLAIN, ONEREC], ids=["plain", "onerec"])
@pytest.mark.parametrize("indent", [None, 1, 2])
def test_json_is_patched_as_it_is_laid_out(plain: Checkpoint, indent: int | None, spelling: Spelling) -> None:
    """In each spelling; tokens of the other one are any tokens, beside which nothing is spelled."""
    source = replace(plain, extra={**plain.extra, "spelling": spelling})
    growth = Growth(tuple(replace(row, token=spelling.token(row.level, row.code)) for row in NEW.rows), NEW.matrix)
    first, second = (row.token for row in growth.rows)
    last, strange = spelling.token(2, 3), (ONEREC if spelling is PLAIN else PLAIN).token(2, 3)
    entry = {"content": last, "lstrip": False, "normalized": True, "special": False}
    other = {**entry, "content": "</s>", "normalized": False, "special": True}
    files: dict[str, Any] = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [{"id": 1, **other}, {"id": 29, **entry}, {"id": 2, **other, "content": strange}],
            "model": {"vocab": {"a": 0, '"]}': 3}},
        },
        "added_tokens.json": {spelling.token(1, 2): 28, last: 29, strange: 19},
        "tokenizer_config.json": {"added_tokens_decoder": {"1": other, "29": entry}, "note": f'brace "}}" and {last}'},
        "config.json": {"model_type": "t5", "inner": {"vocab_size": 5}, "vocab_size": 30, "window": 30},
    }
    for name, said in files.items():
        text = json.dumps(said, indent=indent, ensure_ascii=name != "config.json")
        new = regrown(name, text.encode(), growth, source, source.recommender).decode()
        wanted = json.loads(text)
        if name == "tokenizer.json":
            wanted["added_tokens"] += [{"id": 30, **entry, "content": first}, {"id": 31, **entry, "content": second}]
        elif name == "added_tokens.json":
            wanted |= {first: 30, second: 31}
        elif name == "config.json":
            wanted["vocab_size"] = 32
        else:
            wanted["added_tokens_decoder"] |= {"30": {**entry, "content": first}, "31": {**entry, "content": second}}
        assert json.loads(new) == wanted
        assert new == json.dumps(wanted, indent=indent, ensure_ascii=name != "config.json")


def test_files_that_do_not_speak_of_rows_stay(plain: Checkpoint) -> None:
    for name, said in (
        ("generation_config.json", b'{"vocab_size": 3}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": null, "x": "<c_3>"}'),
        ("tokenizer_config.json", b'{"extra": [1]}'),
        ("added_tokens.json", b'{"<extra_id_0>": 19}'),
        ("added_tokens.json", b'{"<s_c_3>": 19}'),
        ("vocab.json", b'{"<c_3>": 29}'),
    ):
        assert regrown(name, said, NEW, plain, plain.recommender) == said
    with pytest.raises(ArtefactError, match="no vocab_size"):
        regrown("config.json", b"{}", NEW, plain, plain.recommender)


def test_a_tensor_of_another_length_and_the_rest_of_the_bytes(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    held = {
        "b": torch.randn(3, 4, generator=rng).bfloat16(),
        "a": torch.randn(5, generator=rng),
        "c.weight": torch.randn(2, 4, generator=rng).half(),
    }
    data = save(held, {"format": "pt", "more": "ä"})
    held["a"][0] = float("nan")
    longer = torch.cat([held["b"], torch.ones(2, 4).bfloat16()])
    new = grown_safetensors(data, {"a": held["a"], "b": longer.float(), "c.weight": held["c.weight"]})
    (tmp_path / "x.safetensors").write_bytes(new)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "more": "ä"}
        assert torch.equal(opened.get_tensor("b"), longer)
        assert opened.get_tensor("b").dtype == torch.bfloat16
        assert opened.get_tensor("a").isnan()[0]
        assert torch.equal(opened.get_tensor("c.weight"), held["c.weight"])
    assert (int.from_bytes(new[:8], "little")) % 8 == 0


def test_a_tokenizer_that_reads_it_otherwise_is_refused(tmp_path: Path) -> None:
    source = causal.lc_rec(tmp_path / "model", fixtures.full_world())
    opened = open_checkpoint(source)
    now = written(opened, tmp_path / "out", 9, (2, 1))
    growth = token_growth(opened, now.table)
    prove_tokens(source, tmp_path / "out", growth)
    for before, after in (('"<c_1>"', '"<c_9>"'), ('"<a_0>"', '"<a_9>"')):
        broken = Path(shutil.copytree(tmp_path / "out", tmp_path / f"broken{after[2]}"))
        text = (broken / "tokenizer.json").read_text()
        (broken / "tokenizer.json").write_text(text.replace(before, after))
        with pytest.raises(EraseError, match="does not read"):
            prove_tokens(source, broken, growth)


def test_padding_that_is_not_needed_stays_as_it_is(tmp_path: Path) -> None:
    """Three rows are offered, all of them padding; the one that is kept is the first, whichever was chosen."""
    source = causal.lc_rec(tmp_path / "model", fixtures.full_world())
    rows = json.loads((source / "config.json").read_text())["vocab_size"]
    causal.make_weights(source, rows + 5, True, False, torch.float32)
    written(open_checkpoint(source), tmp_path / "out", 9, (2, 6))
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        changed = (before[name] != after[name]).any(1).nonzero().flatten().tolist()
        assert changed == [rows]
    assert files_of(source)["config.json"] == files_of(tmp_path / "out")["config.json"]


def test_an_adapter_and_a_pickle_have_no_room(tmp_path: Path) -> None:
    source = open_checkpoint(causal.lc_rec(tmp_path / "model", fixtures.full_world()))
    pickled = replace(source, extra={**source.extra, "weights": ["pytorch_model.bin"]})
    with pytest.raises(EraseError, match="is a pickle, to which rows cannot be added"):
        token_room(pickled)
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(EraseError, match="holds an adapter"):
        token_room(source)


def test_rows_that_mean_something_else_are_not_taken(tmp_path: Path) -> None:
    source = causal.lc_rec(tmp_path / "model", fixtures.full_world())
    said = json.loads((source / "config.json").read_text())
    for file in source.glob("*.safetensors"):
        file.unlink()
    causal.make_weights(source, said["vocab_size"] + 4, True, False, torch.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "pad_token_id": said["vocab_size"] + 2}))
    with pytest.raises(EraseError, match="gives row 413 a meaning"):
        room_of(named_layout("lc-rec"), open_checkpoint(source))
