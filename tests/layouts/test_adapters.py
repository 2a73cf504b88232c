"""LoRA adapters from end to end: read with peft's numbers, erased in what they hold, written back as adapters, the base untouched."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.layouts.adapter_fixtures import IDS, adapter, logits, theirs
from tests.layouts.causal_checks import EASY, FAST, OURS, files_of
from tests.layouts.causal_fixtures import CODES, make_weights, make_world, write_data

from recerase import api
from recerase.assembly import choose_concept, open_checkpoint_for
from recerase.catalog import load_catalogue
from recerase.catalog.interactions import Histories
from recerase.erase.method import EraseRequest
from recerase.erase.methods import get_method, make_config
from recerase.erase.paths import soft_tokens
from recerase.errors import CheckpointError, OutputError, PickleError
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint
from recerase.runtime import RunConfig

ACME = api.ConceptSpec(("brand=Acme",))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """adapter over base (rows of the new tokens in the adapter alone), data, policy.toml, a short prompt.json; read only."""
    home = tmp_path_factory.mktemp("lora")
    world = make_world()
    adapter(home / "adapter", home / "base", world)
    write_data(home / "data", world)
    (home / "policy.toml").write_text(EASY)
    (home / "prompt.json").write_text('{"text": "next: {history}"}')
    return home


def erased(
    shop: Path, source: Path, out: Path, trust_pickle: bool = False, named: str = "npo"
) -> dict[str, torch.Tensor]:
    """Erase with a method that is quick, and write back; the state that was written, without an audit."""
    run = RunConfig(threads=1, device="cpu", trust_pickle=trust_pickle)
    catalogue = load_catalogue(shop / "data")
    before = open_checkpoint_for(source, catalogue, run)
    chosen = choose_concept(ACME, catalogue, None)
    request = EraseRequest(before.recommender, before.table, catalogue.interactions, chosen.members)
    method, _ = get_method(named)
    made = method.run(request, make_config(method, None, {"steps": "2", "batch": "4"} if named == "npo" else {}))
    out.mkdir()
    named_layout(before.layout).write_back(before, made.model, made.table, out)
    return made.model.module.state_dict()


def test_it_is_recognised_and_has_pefts_numbers(shop: Path) -> None:
    assert detect_layout(shop / "adapter").name == "lc-rec"
    found = api.inspect(shop / "adapter")
    assert found.problems == ()
    assert any("adapter over" in what for what, _ in found.traps)
    assert not any("does not hold" in what for what, _ in found.traps)
    opened = open_checkpoint(shop / "adapter")
    model = opened.recommender
    assert torch.equal(logits(model.module), logits(theirs(shop / "adapter", shop / "base")))
    assert pickle.dumps(opened)
    histories = Histories(torch.arange(12).numpy(), torch.tensor([0, 5, 12]).numpy(), torch.arange(2).numpy(), None)  # type: ignore[arg-type]
    tokens, lengths = model.tokens(histories, opened.table)
    with torch.no_grad():  # the walk goes through the same layers as the module's own forward
        state = model.start(tokens, lengths)
        at = model.advance(state, torch.tensor([7, 9]), None)
        for user, length in enumerate(lengths.tolist()):
            for column, row in enumerate((7, 9)):
                whole = torch.cat([tokens[user, :length], torch.tensor([row])])[None]
                wanted = logits(model.module, whole).log_softmax(-1)[0]
                torch.testing.assert_close(state.log_probs[user], wanted[-2], atol=2e-5, rtol=2e-5)
                torch.testing.assert_close(at.log_probs[user, column], wanted[-1], atol=2e-5, rtol=2e-5)


def test_from_end_to_end(shop: Path, tmp_path: Path) -> None:
    source, out = shop / "adapter", tmp_path / "out"
    before, base = files_of(source), files_of(shop / "base")
    report = api.erase(
        source, ACME, shop / "data", out, overrides=FAST, policy=shop / "policy.toml", max_users=4,
        run=RunConfig(threads=1, device="cpu", layout_options=(("prompt", str(shop / "prompt.json")),)),
    )  # fmt: skip
    assert (files_of(source), files_of(shop / "base")) == (before, base)
    after = files_of(out)
    assert set(after) == set(before) - {"training_args.bin"} | OURS
    changed = {name for name in after.keys() & before.keys() if after[name] != before[name]}
    assert changed == {"Toys.index.json", "adapter_model.safetensors"}
    was, now = (load_file(place / "adapter_model.safetensors") for place in (source, out))
    assert {n: (t.shape, t.dtype) for n, t in was.items()} == {n: (t.shape, t.dtype) for n, t in now.items()}
    moved = {name for name in was if not torch.equal(was[name], now[name])}
    assert any("lora_A" in name for name in moved)
    assert {"base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"} <= moved
    told = report.method["changes"]["tensors_changed"]
    assert told
    assert all("lora_" in name or "modules_to_save" in name for name in told)
    ours = open_checkpoint(out)
    assert torch.equal(logits(ours.recommender.module), logits(theirs(out, shop / "base")))


def test_u_can_turns_down_the_factors_and_nothing_else_of_an_adapter(shop: Path, tmp_path: Path) -> None:
    """On the disk, in columns; what else the adapter holds, and the base, is bit for bit what it was."""
    source, base = shop / "adapter", files_of(shop / "base")
    erased(shop, source, tmp_path / "out", named="u-can")
    was, now = (load_file(place / "adapter_model.safetensors") for place in (source, tmp_path / "out"))
    moved = {name for name in was if not torch.equal(was[name], now[name])}
    assert {"lora_A" in name for name in moved} == {True, False}
    assert all("lora_A" in name or "lora_B" in name for name in moved)
    for name in moved:
        ratio = now[name] / was[name]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert files_of(shop / "base") == base


def test_what_the_adapter_does_not_hold_cannot_change(shop: Path, tmp_path: Path) -> None:
    """Only LoRA factors over a base that has all rows; the base is bit for bit what it was, in memory and on the disk."""
    world = make_world()
    source = adapter(
        tmp_path / "lora", tmp_path / "base", world, new_rows=False, modules_to_save=None, config_too=False
    )
    assert any("does not hold embed_tokens and lm_head" in what for what, _ in api.inspect(source).traps)
    base = files_of(tmp_path / "base")
    made = erased(shop, source, tmp_path / "out")
    assert files_of(tmp_path / "base") == base
    old, new = (open_checkpoint(place).recommender.module for place in (source, tmp_path / "out"))
    was, now = old.state_dict(), new.state_dict()
    held = {name for name, p in new.named_parameters() if p.requires_grad}
    assert held == {name for name in was if "lora_" in name}
    assert all(torch.equal(was[name], now[name]) for name in was.keys() - held)
    assert not all(torch.equal(was[name], now[name]) for name in held)
    assert all(torch.equal(made[name], now[name]) for name in now)  # what was trained is what was written
    assert torch.equal(logits(new), logits(theirs(tmp_path / "out", tmp_path / "base")))


def test_only_the_changed_tensors_bytes_are_exchanged(shop: Path, tmp_path: Path) -> None:
    opened = open_checkpoint(shop / "adapter")
    out = tmp_path / "out"
    out.mkdir()
    named_layout("lc-rec").write_back(opened, opened.recommender, opened.table, out)
    assert all(
        (out / name).read_bytes() == content
        for name, content in files_of(shop / "adapter").items()
        if name != "training_args.bin"
    )
    with torch.no_grad():
        opened.recommender.module.get_parameter("model.layers.1.self_attn.q_proj.lora_B.default.weight")[0, 0] += 1
    again = tmp_path / "again"
    again.mkdir()
    named_layout("lc-rec").write_back(opened, opened.recommender, opened.table, again)
    was, now = (load_file(place / "adapter_model.safetensors") for place in (out, again))
    assert [name for name in was if not torch.equal(was[name], now[name])] == [
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 9}, "layers_to_transform": [1]},
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "modules_to_save": None},
        {"bias": "lora_only", "lora_bias": False},
    ],
    ids=["dora", "patterns", "embeddings", "bias"],
)
def test_variants_have_pefts_numbers_too(shop: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    source = adapter(tmp_path / "lora", tmp_path / "base", make_world(), new_rows=False, **settings)
    opened = open_checkpoint(source)
    module, wanted = opened.recommender.module, theirs(source, tmp_path / "base")
    assert torch.equal(logits(module), logits(wanted))
    state = opened.recommender.start(IDS, torch.tensor([IDS.shape[1]]))
    torch.testing.assert_close(state.logits[0], logits(wanted)[0, -1], atol=2e-5, rtol=2e-5)
    with torch.no_grad():
        again = opened.recommender.start(IDS, torch.tensor([IDS.shape[1]]))
        torch.testing.assert_close(again.logits[0], logits(wanted)[0, -1], atol=2e-5, rtol=2e-5)
        members = np.arange(len(opened.table)) < 3
        spelled = opened.table.codes[:3]
        q = [
            torch.nn.functional.one_hot(torch.from_numpy(spelled[:, level]).long(), size).float()
            for level, size in enumerate(CODES)
        ]
        rows = torch.from_numpy(opened.table.rows()[:3])
        torch.testing.assert_close(soft_tokens(opened.recommender, members, q).vectors, opened.recommender.embed(rows))


def test_bfloat16_is_peft_too(shop: Path, tmp_path: Path) -> None:
    """peft computes factors in float32 beside a base of bfloat16, and so do we."""
    source = adapter(tmp_path / "lora", tmp_path / "base", make_world(), dtype=torch.bfloat16)
    tensors = load_file(source / "adapter_model.safetensors")
    assert {t.dtype for name, t in tensors.items() if "lora_" not in name} == {torch.bfloat16}
    opened = open_checkpoint(source)
    assert torch.equal(logits(opened.recommender.module), logits(theirs(source, tmp_path / "base")))
    erased(shop, source, tmp_path / "out")
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: t.dtype for name, t in made.items()} == {name: t.dtype for name, t in tensors.items()}
    assert not torch.equal(made["base_model.model.lm_head.weight"], tensors["base_model.model.lm_head.weight"])
    ours = open_checkpoint(tmp_path / "out").recommender.module
    assert torch.equal(logits(ours), logits(theirs(tmp_path / "out", tmp_path / "base")))
    save_file({name: t.bfloat16() for name, t in tensors.items()}, source / "adapter_model.safetensors")
    assert torch.equal(logits(open_checkpoint(source).recommender.module), logits(theirs(source, tmp_path / "base")))


def test_a_bin_adapter_is_a_pickle(shop: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(shop / "adapter", tmp_path / "bin"))
    tensors = load_file(source / "adapter_model.safetensors")
    (source / "adapter_model.safetensors").unlink()
    torch.save(tensors, source / "adapter_model.bin")
    with pytest.raises(PickleError, match=r"adapter_model\.bin"):
        open_checkpoint(source)
    erased(shop, source, tmp_path / "out", trust_pickle=True)
    made = torch.load(tmp_path / "out" / "adapter_model.bin", weights_only=True)
    assert list(made) == list(tensors)
    assert not torch.equal(made["base_model.model.lm_head.weight"], tensors["base_model.model.lm_head.weight"])
    ours = open_checkpoint(tmp_path / "out", trust_pickle=True).recommender.module
    assert torch.equal(logits(ours), logits(theirs(tmp_path / "out", shop / "base")))


def test_the_base_may_be_named(shop: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(shop / "adapter", tmp_path / "moved"))
    said = json.loads((source / "adapter_config.json").read_text())
    (source / "adapter_config.json").write_text(json.dumps(said | {"base_model_name_or_path": "huggyllama/llama-7b"}))
    with pytest.raises(CheckpointError, match="LoRA adapter over huggyllama/llama-7b") as told:
        open_checkpoint(source)
    assert "--layout-set base=DIR" in told.value.remedy
    (source / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"could be minionerec .* and lc-rec"
    ):  # whose it is nothing says any more
        detect_layout(source)
    opened = open_checkpoint(source, layout="lc-rec", options={"base": str(shop / "base")})
    assert torch.equal(logits(opened.recommender.module), logits(theirs(shop / "adapter", shop / "base")))
    other = tmp_path / "other"
    make_weights(other, 64, True, False, torch.float32)
    assert open_checkpoint(source, layout="lc-rec", options={"base": str(other)}).digest != opened.digest
    for wrong in (tmp_path / "nothing", shop / "adapter"):
        with pytest.raises(CheckpointError, match=r"no base model|is an adapter too"):
            open_checkpoint(source, layout="lc-rec", options={"base": str(wrong)})


def test_random_rows_are_refused(shop: Path, tmp_path: Path) -> None:
    """New tokens whose rows lie nowhere: in the tools they are drawn anew at every load."""
    for number, saved in enumerate((None, ["embed_tokens"])):
        source = adapter(tmp_path / f"lora{number}", tmp_path / "base", make_world(), modules_to_save=saved)
        with pytest.raises(CheckpointError, match="would be random"):
            open_checkpoint(source)
    source = adapter(
        tmp_path / "tied", tmp_path / "tied_base", make_world(), tied=True, modules_to_save=["embed_tokens"]
    )
    with pytest.raises(CheckpointError, match="does not hold lm_head"):
        open_checkpoint(source)


def test_what_is_not_supported_is_refused_in_one_sentence(shop: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(shop / "adapter", tmp_path / "adapter"))
    said = json.loads((source / "adapter_config.json").read_text())
    for change, reason in [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"of_a_later_peft": 3}, "of_a_later_peft"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 2}, "does not fit its base"),
        ({"target_modules": ["q_proj"]}, "left over"),
    ]:
        (source / "adapter_config.json").write_text(json.dumps(said | change))
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(source)
    (source / "adapter_config.json").write_text(json.dumps(said))
    tensors = load_file(source / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    save_file({key: t for key, t in tensors.items() if key != name}, source / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing.*up_proj"):
        open_checkpoint(source)
    base = Path(shutil.copytree(shop / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(CheckpointError, match="quantised"):
        open_checkpoint(shop / "adapter", options={"base": str(base)})
    shutil.copy(shop / "base" / "model.safetensors", source)
    with pytest.raises(CheckpointError, match="weights of a whole model"):
        open_checkpoint(source)


def test_a_vocabulary_that_peft_saved_by_itself_is_held(tmp_path: Path) -> None:
    """Without modules_to_save, peft writes resized embeddings beside the factors (save_embedding_layers)."""
    source = adapter(tmp_path / "lora", tmp_path / "base", make_world(), modules_to_save=None)
    whole = theirs(source, tmp_path / "base")
    with pytest.raises(CheckpointError, match="would be random"):
        open_checkpoint(source)
    whole.save_pretrained(source, save_embedding_layers=True)
    opened = open_checkpoint(source)
    assert torch.equal(logits(opened.recommender.module), logits(whole))
    held = {name for name, p in opened.recommender.module.named_parameters() if p.requires_grad and "lora_" not in name}
    assert held == {"model.embed_tokens.weight", "lm_head.weight"}


def test_the_base_is_no_place_for_the_result(shop: Path) -> None:
    with pytest.raises(OutputError, match="base"):
        api.erase(
            shop / "adapter", ACME, shop / "data", shop / "base" / "out", method="npo", policy=shop / "policy.toml",
            run=RunConfig(threads=1, device="cpu"),
        )  # fmt: skip
    assert not (shop / "base" / "out").exists()
