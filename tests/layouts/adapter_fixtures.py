"""Adapters as LC-Rec's lora_finetune.py leaves them, made with peft's own classes over a base of transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.layouts.causal_fixtures import World, make_tokenizer, make_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

SAVED = ["embed_tokens", "lm_head"]
IDS = torch.arange(3, 60)[None]
TARGETS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "down_proj", "up_proj"]


def resized(base: Path, rows: int) -> Any:
    """The base as the tools load it, with rows for all tokens (the new ones random, of whatever mean)."""
    model = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype="auto")
    model.resize_token_embeddings(rows)
    return model


def loud(model: Any) -> None:
    """What training leaves: no factor zero, saved modules far from the base's."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.3 if "modules_to_save" in name else 0.15))


def adapter(
    path: Path, base: Path, world: World, *, new_rows: bool = True, tied: bool = False, dtype: torch.dtype = torch.float32,
    config_too: bool = True, safe: bool = True, **settings: Any,
) -> Path:  # fmt: skip
    """An adapter directory over a base directory, which is made when it is not there."""
    path.mkdir(parents=True)
    rows = make_tokenizer(path, world.index, llama=True)
    tokens = len({token for sid in world.index.values() for token in sid})
    if not base.exists():
        make_weights(base, rows - tokens if new_rows else rows, True, tied, dtype)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = resized(base, rows)
        config = LoraConfig(
            **({"r": 3, "lora_alpha": 6, "lora_dropout": 0.05, "target_modules": TARGETS, "modules_to_save": SAVED,
                "task_type": "CAUSAL_LM"} | settings)
        )  # fmt: skip
        whole = get_peft_model(model, config)
        loud(whole)
    whole.peft_config["default"].base_model_name_or_path = str(base)
    whole.save_pretrained(path, safe_serialization=safe, save_embedding_layers=False)
    if config_too:
        model.config.save_pretrained(path)
    (path / "Toys.index.json").write_text(json.dumps(world.index))
    (path / "training_args.bin").write_bytes(b"settings of a Trainer")
    return path


def theirs(path: Path, base: Path) -> Any:
    """What test.py of LC-Rec makes of it."""
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    return PeftModel.from_pretrained(resized(base, len(tokenizer)), path).eval()


def logits(module: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = module(input_ids=ids).logits
    return found
