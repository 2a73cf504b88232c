"""Weights as other tools store them: in shards, as pickles, with old buffers beside them; and patched without being held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.layouts.causal_checks import files_of, loads, tensors_of
from tests.layouts.causal_fixtures import lc_rec, make_world, minionerec
from tests.layouts.foreign_fixtures import letter
from transformers import T5ForConditionalGeneration

from recerase.errors import ArtefactError, CheckpointError, PickleError
from recerase.layouts import patching
from recerase.layouts.patching import write_patched
from recerase.layouts.registry import named_layout, open_checkpoint
from recerase.store import sha256_bytes

INDEX = "model.safetensors.index.json"


def in_shards(path: Path, limit: str = "8KB") -> None:
    """The weights of a directory, saved again by transformers in several files."""
    whole = (
        loads(path)
        if "llama" in (path / "config.json").read_text()
        else T5ForConditionalGeneration.from_pretrained(path)
    )
    config = (path / "config.json").read_bytes()
    (path / "model.safetensors").unlink()
    whole.save_pretrained(path, max_shard_size=limit)  # type: ignore[operator]
    (path / "config.json").write_bytes(config)


def written(source: Path, out: Path, change: str | None, **opened: Any) -> Path:
    """A directory written back with one number of one tensor changed."""
    checkpoint = open_checkpoint(source, **opened)
    if change is not None:
        with torch.no_grad():
            checkpoint.recommender.module.get_parameter(change).view(-1)[3] += 0.5
    out.mkdir()
    named_layout(checkpoint.layout).write_back(checkpoint, checkpoint.recommender, checkpoint.table, out)
    return out


@pytest.mark.parametrize("name", ["lc-rec", "minionerec", "letter-tiger"])
def test_one_shard_changes_and_the_index_stays(tmp_path: Path, name: str) -> None:
    source = tmp_path / "in"
    if name == "lc-rec":
        lc_rec(source, make_world())
        in_shards(source)
    elif name == "minionerec":
        minionerec(source, make_world(), tied=False, shard="8KB")
    else:
        letter(source)
        in_shards(source)
    shards = sorted(path.name for path in source.glob("model-*.safetensors"))
    assert len(shards) > 2
    weights = json.loads((source / INDEX).read_text())["weight_map"]
    tensor = (
        "encoder.block.1.layer.1.DenseReluDense.wo.weight"
        if name == "letter-tiger"
        else "model.layers.1.mlp.up_proj.weight"
    )
    before, after = files_of(source), files_of(written(source, tmp_path / "out", tensor))
    assert {file for file in after if after[file] != before[file]} == {weights[tensor]}
    was, now = tensors_of(source), tensors_of(tmp_path / "out")
    assert [key for key in was if not torch.equal(was[key], now[key])] == [tensor]
    assert after[INDEX] == before[INDEX]
    assert files_of(written(source, tmp_path / "again", None)).items() <= before.items()
    if name == "letter-tiger":
        state = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
        assert all(torch.equal(state[key], held) for key, held in now.items())
    else:
        loads(tmp_path / "out")


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    source = lc_rec(tmp_path / "in", make_world())
    in_shards(source)
    said = json.loads((source / INDEX).read_text())
    moved, to = "model.norm.weight", said["weight_map"]["model.embed_tokens.weight"]
    (source / INDEX).write_text(json.dumps(said | {"weight_map": said["weight_map"] | {moved: to}}))
    with pytest.raises(CheckpointError, match=r"places model\.norm\.weight in"):
        open_checkpoint(source)
    (source / INDEX).write_text(json.dumps(said))
    tensors = load_file(source / to)
    save_file(tensors | {moved: torch.ones(16)}, source / to, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="in two files"):
        open_checkpoint(source)


@pytest.mark.parametrize("name", ["lc-rec", "minionerec", "letter-tiger"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_pickles_are_read_where_they_are_trusted(tmp_path: Path, name: str, pieces: int) -> None:
    source = tmp_path / "in"
    made = (
        letter(source)
        if name == "letter-tiger"
        else {"lc-rec": lc_rec, "minionerec": minionerec}[name](source, make_world(), tied=True)
    )
    tensors = load_file(made / "model.safetensors")
    copies = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    first = "shared.weight" if name == "letter-tiger" else "model.embed_tokens.weight"
    tensors |= {key: tensors[first] for key in (copies if name == "letter-tiger" else copies[:1])}
    (source / "model.safetensors").unlink()
    shared = sorted(tensors, key=lambda key: key not in (first, *copies))  # as torch saves them: one memory, one file
    parts = [shared] if pieces == 1 else [shared[:6], shared[6:]]
    names = ["pytorch_model.bin"] if pieces == 1 else [f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)]
    for file, part in zip(names, parts, strict=True):
        torch.save({key: tensors[key] for key in part}, source / file)
    if pieces == 2:
        weights = {key: file for file, part in zip(names, parts, strict=True) for key in part}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    with pytest.raises(PickleError, match=r"pytorch_model.*\.bin is a pickle"):
        open_checkpoint(source)
    before, out = files_of(source), tmp_path / "out"
    after = files_of(written(source, out, first, trust_pickle=True))
    assert {file for file in after if after[file] != before[file]} == {names[0]}
    now = {key: t for file in names for key, t in torch.load(out / file, weights_only=True).items()}
    assert list(now) == shared
    assert {key for key in now if not torch.equal(now[key], tensors[key])} == {first, *copies} & now.keys()
    assert len({now[key].data_ptr() for key in now.keys() & {first, *copies}}) == 1


def test_old_angles_are_kept_where_they_are_the_configs(tmp_path: Path) -> None:
    """LlamaForCausalLM of older transformers saved `rotary_emb.inv_freq` in every layer."""
    source = lc_rec(tmp_path / "in", make_world(), dtype=torch.float16)
    plain = load_file(source / "model.safetensors")
    angles = 1.0 / (10000.0 ** (torch.arange(0, 4, 2).float() / 4))
    for held in (angles, angles.half()):
        old = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": held.clone() for layer in range(2)}
        save_file(plain | old, source / "model.safetensors", metadata={"format": "pt"})
        opened = open_checkpoint(source)
        assert next(opened.recommender.module.parameters()).dtype == torch.float16
        open_checkpoint(source, dtype=torch.float32)
        out = written(source, tmp_path / f"out{held.dtype}", "model.norm.weight")
        now = load_file(out / "model.safetensors")
        assert [key for key in now if not torch.equal(now[key], (plain | old)[key])] == ["model.norm.weight"]
        assert list(now) == list(plain | old) or set(now) == set(plain | old)
    for wrong in (angles * 1.01, angles[:1]):
        bad = {"model.layers.0.self_attn.rotary_emb.inv_freq": wrong.clone()}
        save_file(plain | bad, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="inv_freq, which is not what its config gives"):
            open_checkpoint(source)


def test_tensors_that_are_no_part_of_the_model_are_refused(tmp_path: Path) -> None:
    source = lc_rec(tmp_path / "in", make_world())
    plain = load_file(source / "model.safetensors")
    for name, tensor in (("value_head.weight", torch.ones(3)), ("model.position_ids", torch.arange(3))):
        save_file(plain | {name: tensor}, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=name.split(".")[-2] + "|int64") as told:
            open_checkpoint(source)
        assert "\n" not in told.value.message


def test_a_file_is_patched_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than tensors give the same file; equal numbers keep their bytes, and what is not named stays."""
    monkeypatch.setattr(patching, "_BLOCK", 7)
    old = {"a": torch.randn(5, 9), "b": torch.arange(20.0).bfloat16(), "c": torch.zeros(0, 3), "d": torch.tensor(2.0)}
    old["a"][0, 0] = -0.0
    save_file(old, tmp_path / "old.safetensors", metadata={"format": "pt", "x": "y"})
    data = (tmp_path / "old.safetensors").read_bytes()
    wanted = {"a": old["a"].clone().double(), "b": old["b"].clone().float(), "c": old["c"]}
    wanted["a"][0, 0] = 0.0
    write_patched(tmp_path / "same.safetensors", tmp_path / "old.safetensors", sha256_bytes(data), wanted)
    assert (tmp_path / "same.safetensors").read_bytes() == data
    wanted["a"][4, 8], wanted["b"][13] = 7.0, 0.1
    write_patched(tmp_path / "new.safetensors", tmp_path / "old.safetensors", sha256_bytes(data), wanted)
    made = load_file(tmp_path / "new.safetensors")
    assert torch.equal(made["a"], wanted["a"].float())
    assert torch.equal(made["b"], wanted["b"].bfloat16())
    assert torch.equal(made["d"], old["d"])
    changed = sum(x != y for x, y in zip(data, (tmp_path / "new.safetensors").read_bytes(), strict=True))
    assert 0 < changed <= 6
    (tmp_path / "old.safetensors").write_bytes(data[:-1] + b"\x01")
    for content in (data[:-1] + b"\x01", data[:-3], b"\xff" * 40, b""):
        (tmp_path / "old.safetensors").write_bytes(content)
        with pytest.raises(ArtefactError):
            write_patched(tmp_path / "none.safetensors", tmp_path / "old.safetensors", sha256_bytes(data), wanted)
        assert not (tmp_path / "none.safetensors").exists()
    (tmp_path / "old.safetensors").unlink()
    with pytest.raises(ArtefactError, match="Cannot read"):
        write_patched(tmp_path / "none.safetensors", tmp_path / "old.safetensors", sha256_bytes(data), wanted)
