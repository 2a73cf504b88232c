"""LC-Rec and LETTER's variant of it: a LLaMA directory, asked in an instruction, with `*.index.json` beside it.

The prompt is `sft_prompt` and the first of the sequential recommendation prompts in LC-Rec's prompt.py (test_prompt_ids is 0 in
LETTER-LC-Rec/utils.py of HonghuiBao2000/LETTER), the history is joined by ", " and cut to 20 items (his_sep, max_his_len there).
With add_prefix its data.py puts "1. ", "2. " and so on before the items of a history once it is cut; that is an option here.

The one decision: what lora_finetune.py leaves, an adapter over a base model that lies elsewhere, is as good as a whole model, and
stays an adapter (adapters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recerase.errors import ArtefactError, UsageError
from recerase.layouts.adapters import ADAPTER, is_adapter
from recerase.layouts.adapters import remarks as adapter_remarks
from recerase.layouts.causal_dir import (
    OPTIONS,
    Kind,
    has_tokens,
    index_of,
    index_path,
    kind_of,
    read_causal,
)
from recerase.layouts.causal_files import Side, digest_of_causal
from recerase.layouts.foreign import write_foreign
from recerase.layouts.grown_files import token_room
from recerase.layouts.letter import remarks as token_remarks
from recerase.layouts.minionerec import csvs_of, lists_of
from recerase.layouts.native import Checkpoint
from recerase.layouts.prompts import NUMBER, Template
from recerase.layouts.protocol import NO_OPTIONS, Layout, LoadRequest
from recerase.layouts.weights import CONFIG

NAME = "lc-rec"
PROMPT = Template(
    text=(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nThe user has interacted with items {history} in chronological order. "
        "Can you predict the next possible item that the user may expect?\n\n### Response:",
    ),
    separator=", ",
)


def _end(tokenizer: Any, sid: str) -> int:
    """The row of eos, which follows an answer there at once."""
    return -1 if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)


KIND = Kind(name=NAME, template=PROMPT, window=20, end=_end)


def _detect(path: Path) -> str | None:
    kind = kind_of(path)
    adapter = is_adapter(path)
    if (kind != "llama" and not (adapter and kind is None)) or not has_tokens(path):
        return None
    try:
        if lists_of(path) or csvs_of(path):
            return None
    except (OSError, ArtefactError):
        return None
    return (
        f"{f'a LoRA adapter ({ADAPTER})' if adapter else f'a llama {CONFIG}'}, and tokens like <a_60> in its tokenizer"
    )


def load(path: Path, request: LoadRequest) -> Checkpoint:
    """Read an LC-Rec directory; see `Layout.load`."""
    kind = replace(KIND, template=_template(request.options))
    return read_causal(path, request, kind, index_of(path, request))


def _template(options: Mapping[str, str]) -> Template:
    """How the model is asked: with numbered items where --layout-set add_prefix=yes says so."""
    said = options.get("add_prefix", "no")
    if said not in ("yes", "no"):
        raise UsageError(f"add_prefix={said:.40} is neither yes nor no.", "Give --layout-set add_prefix=yes.")
    return replace(PROMPT, begin=f"{NUMBER}. ") if said == "yes" else PROMPT


def digest(path: Path, options: Mapping[str, str] = NO_OPTIONS) -> str:
    """What the digest of a checkpoint is; see `Layout.digest`."""
    table = index_path(path, LoadRequest(options=options))
    return digest_of_causal(path, options, _template(options), table, Side(path))


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of this layout that apply, each with its remedy."""
    return (*token_remarks(checkpoint), *adapter_remarks(checkpoint))


LAYOUTS = (
    Layout(
        name=NAME,
        users="LC-Rec and LETTER on LLaMA: a transformers directory with tokens like <a_60>, and NAME.index.json",
        marks=(f"a llama {CONFIG} or {ADAPTER}", "tokens like <a_60>", "*.index.json"),
        detect=_detect,
        load=load,
        write_back=write_foreign,
        remarks=remarks,
        digest=digest,
        room=token_room,
        options=OPTIONS | {"add_prefix": "yes where histories are numbered, as LC-Rec does with add_prefix"},
    ),
)
