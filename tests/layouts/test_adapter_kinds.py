"""Adapters over Qwen2 in a MiniOneRec directory and over T5: the same classes of peft, in the other layouts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.layouts.adapter_fixtures import IDS, TARGETS, logits, loud, theirs
from tests.layouts.causal_fixtures import make_tokenizer, make_world, minionerec
from tests.layouts.foreign_fixtures import codes, index_of
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from recerase import api
from recerase.layouts.registry import detect_layout, named_layout, open_checkpoint


def test_other_layouts_have_adapters_too(tmp_path: Path) -> None:
    """MiniOneRec over Qwen2: without a config.json of its own, the base says what it is."""
    source, base = minionerec(tmp_path / "lora", make_world(), tied=True), tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.move(source / name, base / name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        whole = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=TARGETS))
        loud(whole)
    whole.peft_config["default"].base_model_name_or_path = str(base)
    whole.save_pretrained(source, save_embedding_layers=False)
    assert detect_layout(source).name == "minionerec"
    opened = open_checkpoint(source)
    assert torch.equal(logits(opened.recommender.module), logits(theirs(source, base)))
    assert opened.recommender.module.lm_head.weight is opened.recommender.module.model.embed_tokens.weight  # type: ignore[union-attr]
    assert any("does not hold embed_tokens and lm_head" in what for what, _ in api.inspect(source).traps)


@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]], ids=["factors", "embeddings"])
def test_a_t5_may_have_an_adapter(tmp_path: Path, saved: list[str] | None) -> None:
    index = index_of(codes())
    source, base = tmp_path / "lora", tmp_path / "base"
    source.mkdir()
    rows = make_tokenizer(source, index, llama=True)
    shape = T5Config(
        vocab_size=rows + 3, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(2)
        T5ForConditionalGeneration(shape).save_pretrained(base)
        model = T5ForConditionalGeneration.from_pretrained(base)
        model.resize_token_embeddings(rows)  # here to fewer
        whole = get_peft_model(
            model, LoraConfig(r=2, target_modules=["q", "v", "wo"], task_type="SEQ_2_SEQ_LM", modules_to_save=saved)
        )
        loud(whole)
    whole.peft_config["default"].base_model_name_or_path = str(base)
    whole.save_pretrained(source, save_embedding_layers=False)
    (source / "Toy.index.json").write_text(json.dumps(index))
    assert detect_layout(source).name == "letter-tiger"
    opened = open_checkpoint(source)
    fresh = T5ForConditionalGeneration.from_pretrained(base)
    fresh.resize_token_embeddings(rows)
    theirs = PeftModel.from_pretrained(fresh, source).eval()
    given = {"input_ids": IDS, "decoder_input_ids": torch.tensor([[0, 9, 8]])}
    with torch.no_grad():
        wanted = theirs(**given).logits
        assert torch.equal(opened.recommender.module(**given).logits, wanted)
        state = opened.recommender.start(IDS, torch.tensor([IDS.shape[1]]))
    torch.testing.assert_close(state.logits[0], wanted[0, 0], atol=2e-5, rtol=2e-5)
    assert named_layout("letter-tiger").digest(source) == opened.digest
    held = {
        name.split(".")[0]
        for name, p in opened.recommender.module.named_parameters()
        if p.requires_grad and "lora_" not in name
    }
    assert held == (set() if saved is None else {"encoder", "decoder", "lm_head"})
    embedded = opened.recommender.embed(IDS)  # what soft tokens are made of is what the encoder reads
    whole_state = opened.recommender.start(IDS, torch.tensor([IDS.shape[1]]), embeds=embedded)
    torch.testing.assert_close(whole_state.logits, state.logits, atol=2e-5, rtol=2e-5)
