"""What OpenOneRec and OneRec-Think share: tokens `<s_a_0>`, a begin and an end token around SIDs, and rows to a multiple of 256.

The one decision: the two are told apart by the order in which their tools add tokens, for it is in every tokenizer file:
expand_qwen3_vocab.py of Kuaishou-OneRec/OpenOneRec adds begin and end behind all codes, expand_vocab.py of
wangshy31/OneRec-Think before them. Codes that a grown vocabulary got later stand behind all of these in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from recerase.errors import ArtefactError
from recerase.layouts.adapters import over_unknown
from recerase.layouts.adapters import remarks as adapter_remarks
from recerase.layouts.causal_dir import kind_of
from recerase.layouts.native import Checkpoint
from recerase.layouts.spelling import ONEREC
from recerase.layouts.token_files import limits, rows_of


def added(path: Path) -> Literal["begin first", "codes first"] | None:
    """In which order a Qwen directory's tokenizer got its SID tokens; None when it is no such directory. Never raises."""
    if kind_of(path) not in ("qwen3", "qwen2") and not over_unknown(path):
        return None
    around = (ONEREC.begin, ONEREC.end)
    try:
        rows = rows_of(path, lambda token: token in around or ONEREC.place(token) is not None)
    except ArtefactError:
        return None
    codes = [row for token, row in rows.items() if token not in around]
    edges = [rows[token] for token in around if token in rows]
    if not codes or len(edges) != len(around):
        return None
    if max(edges) < min(codes):
        return "begin first"
    return "codes first" if min(edges) > min(codes) else None


def end_row(tokenizer: Any, sid: str) -> int:
    """The row of the token that ends a SID."""
    return int(tokenizer.convert_tokens_to_ids(ONEREC.end))


def remarks(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """The traps of both layouts that apply, each with its remedy."""
    told = []
    padded = checkpoint.extra["padded"]
    if padded:
        told.append(
            (
                f"{padded} vocabulary rows have no token: the model is padded.",
                "They are kept, and no code is given one.",
            )
        )
    return (*told, *limits(checkpoint), *adapter_remarks(checkpoint))
