"""A native checkpoint comes back bit for bit, plain transformers reads it, and nothing altered or foreign gets in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recerase.catalog import Histories
from recerase.errors import ArtefactError, CheckpointError, PickleError, TableError
from recerase.layouts.describe import describe
from recerase.layouts.native import checkpoint_digest, load_checkpoint, load_sids, save_checkpoint, save_sids
from recerase.layouts.registry import detect_layout, open_checkpoint
from recerase.layouts.weights import fill_exactly
from recerase.model.recommender import ModelConfig, Recommender, new_recommender
from recerase.sid.quantize import TokenizeConfig, tokenize
from recerase.store import publish, read_manifest, write_bytes, write_manifest

N, D = 40, 8
IDS = [f"item-{number:02d}" for number in range(N)]


@pytest.fixture(scope="module")
def sids() -> tuple:
    points = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)
    table, codebooks, _ = tokenize(points, np.array(IDS, dtype=object), TokenizeConfig(levels=3, codes=8))
    return table, codebooks, points


def made(kind: str, table, seed: int = 0, tie: bool = False) -> Recommender:
    config = ModelConfig(kind=kind, width=16, layers=2, heads=2, feed_forward=24, window=5, tie=tie)
    return new_recommender(config, table.schema, seed)


def published(out: Path, recommender: Recommender, sids: tuple) -> Path:
    with publish(out) as result:
        save_checkpoint(result.directory, recommender, *sids)
        result.provenance = {"command": "test"}
    return out


def logits(module: torch.nn.Module, kind: str, vocabulary: int) -> torch.Tensor:
    tokens = torch.arange(3, 12)[None] % vocabulary
    extra = {"decoder_input_ids": tokens[:, :3]} if kind == "seq2seq" else {}
    with torch.inference_mode():
        return module.eval()(input_ids=tokens, **extra).logits


KINDS = pytest.mark.parametrize(
    ("kind", "tie"), [("causal", False), ("causal", True), ("seq2seq", False), ("seq2seq", True)]
)


@KINDS
def test_round_trip_is_bit_exact(tmp_path: Path, sids: tuple, kind: str, tie: bool) -> None:
    model = made(kind, sids[0], tie=tie)
    back = load_checkpoint(published(tmp_path / "ckpt", model, sids))
    before, after = model.module.state_dict(), back.recommender.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    inputs, outputs = (
        back.recommender.module.get_input_embeddings().weight,
        back.recommender.module.get_output_embeddings().weight,
    )
    assert (inputs is outputs) == tie
    assert back.recommender.window == 5
    assert back.recommender.kind == kind
    assert back.table.digest == sids[0].digest
    assert np.array_equal(back.embeddings, sids[2])
    assert all(np.array_equal(a, b) for a, b in zip(back.codebooks.vectors, sids[1].vectors, strict=True))
    assert back.codebooks.metadata() == sids[1].metadata()
    assert np.array_equal(back.codebooks.recipe.centre, sids[1].recipe.centre)
    vocabulary = sids[0].schema.vocabulary
    assert torch.equal(logits(model.module, kind, vocabulary), logits(back.recommender.module, kind, vocabulary))


@KINDS
def test_plain_transformers_computes_the_same(tmp_path: Path, sids: tuple, kind: str, tie: bool) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    model = made(kind, sids[0], tie=tie)
    path = published(tmp_path / "ckpt", model, sids)
    family = AutoModelForSeq2SeqLM if kind == "seq2seq" else AutoModelForCausalLM
    plain = family.from_pretrained(path, local_files_only=True)
    vocabulary = sids[0].schema.vocabulary
    assert torch.equal(logits(model.module, kind, vocabulary), logits(plain, kind, vocabulary))


@KINDS
def test_same_model_same_bytes(tmp_path: Path, sids: tuple, kind: str, tie: bool) -> None:
    first = published(tmp_path / "first", made(kind, sids[0], tie=tie), sids)
    second = published(tmp_path / "second", made(kind, sids[0], tie=tie), sids)
    assert read_manifest(first) == read_manifest(second)


def test_an_untied_head_that_equals_its_embedding_stays_untied(tmp_path: Path, sids: tuple) -> None:
    """Two tensors in the file are two parameters, whatever their values: editing one must not edit the other."""
    model = made("seq2seq", sids[0])
    with torch.no_grad():
        model.module.lm_head.weight.copy_(model.module.shared.weight)
    back = load_checkpoint(published(tmp_path / "ckpt", model, sids)).recommender.module
    assert back.lm_head.weight is not back.shared.weight


def test_other_weights_other_digest_other_provenance_same_digest(tmp_path: Path, sids: tuple) -> None:
    first = load_checkpoint(published(tmp_path / "first", made("causal", sids[0], seed=0), sids))
    second = load_checkpoint(published(tmp_path / "second", made("causal", sids[0], seed=1), sids))
    assert first.digest != second.digest
    write_manifest(tmp_path / "first", {"command": "other"})
    assert load_checkpoint(tmp_path / "first").digest == first.digest


@pytest.mark.parametrize("name", ["config.json", "codebooks.safetensors"])
def test_the_digest_is_of_all_that_is_read(tmp_path: Path, sids: tuple, name: str) -> None:
    """The same weights under another config, or with other item embeddings, give an audit other numbers."""
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    before = load_checkpoint(path).digest
    if name == "config.json":
        config = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    else:
        save_sids(path, sids[0], sids[1], sids[2] + 1)
    write_manifest(path, {})
    after = load_checkpoint(path).digest
    assert after != before
    assert checkpoint_digest(path) == after


def test_rows_follow_the_catalogue(tmp_path: Path, sids: tuple) -> None:
    table, _, points = sids
    path = published(tmp_path / "ckpt", made("causal", table), sids)
    order = np.random.default_rng(0).permutation(N)
    back = load_checkpoint(path, item_ids=[IDS[row] for row in order])
    assert np.array_equal(back.table.codes, table.codes[order])
    assert np.array_equal(back.embeddings, points[order])


@pytest.mark.parametrize("ids", [IDS[:-1], [*IDS, "stranger"]], ids=["missing", "extra"])
def test_a_table_of_another_catalogue_is_refused(tmp_path: Path, sids: tuple, ids: list[str]) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    with pytest.raises(TableError):
        load_checkpoint(path, item_ids=ids)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "sids.parquet", "sid_schema.json", "codebooks.safetensors", "config.json"]
)
def test_one_flipped_bit_in_any_file_is_noticed(tmp_path: Path, sids: tuple, name: str) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    data = bytearray((path / name).read_bytes())
    data[-9] ^= 1
    (path / name).write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_checkpoint(path)
    found = describe(path)
    assert found.broken
    assert any(name in problem for problem in found.problems)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pth"])
def test_a_pickle_is_refused(tmp_path: Path, sids: tuple, name: str) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(weights, path / name)
    write_manifest(path, {})
    with pytest.raises(PickleError, match="pickle"):
        load_checkpoint(path)
    trusted = load_checkpoint(path, trust_pickle=True).recommender.module.state_dict()
    assert all(torch.equal(trusted[key], weights[key]) for key in weights)


def test_a_table_that_speaks_of_more_rows_than_the_model_has_is_refused(tmp_path: Path, sids: tuple) -> None:
    points = sids[2]
    larger, codebooks, _ = tokenize(points, np.array(IDS, dtype=object), TokenizeConfig(levels=3, codes=16))
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    save_sids(path, larger, codebooks, points)
    write_manifest(path, {})
    with pytest.raises(TableError, match="vocabulary rows"):
        load_checkpoint(path)


@pytest.mark.parametrize("change", ["drop", "add", "reshape"])
def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path, sids: tuple, change: str) -> None:
    from safetensors.torch import save

    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    weights = load_file(path / "model.safetensors")
    if change == "drop":
        weights.pop("model.norm.weight")
    elif change == "add":
        weights["stranger"] = torch.zeros(1)
    else:
        weights["model.norm.weight"] = torch.zeros(3)
    write_bytes(path / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_manifest(path, {})
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_filling_notices_a_load_that_ties(sids: tuple, tmp_path: Path) -> None:
    """The trap of transformers 5: a strict load into a tied T5 matches every key and loses one of two matrices."""
    model = made("seq2seq", sids[0])
    weights = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    weights = {name: tensor for name, tensor in weights.items() if "embed_tokens" not in name}
    tied = made("seq2seq", sids[0], tie=True).module
    with pytest.raises(CheckpointError, match="did not load"):
        fill_exactly(tied, weights, tmp_path)


def test_dtype_is_the_stored_one_unless_another_is_asked_for(tmp_path: Path, sids: tuple) -> None:
    model = made("causal", sids[0])
    model.module.to(torch.bfloat16)
    path = published(tmp_path / "ckpt", model, sids)
    assert load_checkpoint(path).recommender.module.lm_head.weight.dtype == torch.bfloat16
    assert load_checkpoint(path, dtype=torch.float32).recommender.module.lm_head.weight.dtype == torch.float32


def test_loading_leaves_the_random_state_alone(tmp_path: Path, sids: tuple) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    before = torch.random.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_sids_without_embeddings_or_codebooks(tmp_path: Path, sids: tuple) -> None:
    with publish(tmp_path / "sids") as result:
        save_sids(result.directory, sids[0], None, None)
    table, codebooks, embeddings = load_sids(tmp_path / "sids")
    assert table.digest == sids[0].digest
    assert codebooks is None
    assert embeddings is None


def test_an_unlisted_item_stays_unlisted(tmp_path: Path, sids: tuple) -> None:
    table = sids[0].unlisted(np.arange(N) < 4)
    path = published(tmp_path / "ckpt", made("causal", table), (table, *sids[1:]))
    assert np.array_equal(load_checkpoint(path).table.listed, table.listed)


def test_a_loaded_model_reads_histories_like_the_one_saved(tmp_path: Path, sids: tuple) -> None:
    model = made("causal", sids[0])
    back = load_checkpoint(published(tmp_path / "ckpt", model, sids))
    histories = Histories.from_lists([[1, 2, 3], list(range(9))])
    for old, new in zip(model.tokens(histories, sids[0]), back.recommender.tokens(histories, back.table), strict=True):
        assert torch.equal(old, new)


def test_layouts_are_told_by_content(tmp_path: Path, sids: tuple) -> None:
    path = published(tmp_path / "any.name", made("causal", sids[0]), sids)
    assert detect_layout(path).name == "native"
    assert open_checkpoint(path).digest == load_checkpoint(path).digest
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="native"):
        detect_layout(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="does not exist"):
        detect_layout(tmp_path / "nowhere")


def test_describe_counts_what_is_there(tmp_path: Path, sids: tuple) -> None:
    model = made("seq2seq", sids[0])
    found = describe(published(tmp_path / "ckpt", model, sids))
    assert found.kind == "native checkpoint"
    assert not found.problems
    assert found.facts["vocabulary rows"] == sids[0].schema.vocabulary
    assert found.facts["embedding and head"] == "untied"
    assert found.facts["codes a level"] == [8, 8, 8]
    assert found.facts["parameters"] == sum(parameter.numel() for parameter in model.module.parameters())
    assert found.facts["items sharing their SID"] == 0


def test_a_manifest_is_needed(tmp_path: Path, sids: tuple) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    (path / "recerase.json").unlink()
    with pytest.raises(ArtefactError, match=r"recerase\.json"):
        load_checkpoint(path)


def test_config_holds_the_window_and_no_machine_path(tmp_path: Path, sids: tuple) -> None:
    path = published(tmp_path / "ckpt", made("causal", sids[0]), sids)
    text = (path / "config.json").read_text()
    assert json.loads(text)["recerase"]["window"] == 5
    assert str(tmp_path) not in text
