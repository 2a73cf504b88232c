"""What of another tool's directory is not rewritten: files that are copied though they name codes, and files that are left behind.

The one decision: nobody can know what a README or a log says of a SID, so such a file is copied as it is and named, when a checkpoint
is inspected, erased from and reported on; what may hold other weights (optimiser states, older checkpoints, tries) is not copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from recerase.layouts.spelling import Spelling
from recerase.store import read_bytes

if TYPE_CHECKING:
    from recerase.layouts.native import Checkpoint

TOKENIZER = (
    "added_tokens.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
"""Files that name tokens because they make them."""
_ESCAPED = re.compile(r"\\u003([ce])", re.IGNORECASE)
_SHOWN = 4


def unescaped(text: str) -> str:
    """A JSON text with `\\u003c` and `\\u003e`, which some programs write in place of angle brackets, as these."""
    return _ESCAPED.sub(lambda match: "<" if match[1] in "cC" else ">", text)


def naming(path: Path, copied: Iterable[str], spelling: Spelling) -> tuple[str, ...]:
    """Those of the copied files that name codes as tokens. Raises ArtefactError when one cannot be read."""
    others = [name for name in copied if Path(name).name not in TOKENIZER]
    texts = ((name, read_bytes(path / name).decode("utf-8", "replace")) for name in others)
    return tuple(name for name, text in texts if spelling.codes.search(unescaped(text)))


def unwritten(checkpoint: Checkpoint) -> tuple[tuple[str, str], ...]:
    """What of a checkpoint's files stays as it was though SIDs change, each with its remedy."""
    names = checkpoint.extra.get("naming", ())
    if not names:
        return ()
    what = f"{_listed(names)} {'names' if len(names) == 1 else 'name'} SIDs, and {'is' if len(names) == 1 else 'are'} not rewritten."
    return ((what, "Remove them, or make them again from the new SID table."),)


def left_behind(checkpoint: Checkpoint) -> str | None:
    """A sentence about the files that are not copied; None when there are none."""
    left = checkpoint.extra.get("left", ())
    if not left:
        return None
    return f"not copied, for they may hold other weights or the concept: {_listed(left)}"


def alone(checkpoint: Checkpoint) -> str | None:
    """A sentence where the layout rewrites files beside the SID table, and none were found; None elsewhere."""
    from recerase.layouts.registry import named_layout

    options = [name for name in ("data", "reverse") if name in named_layout(checkpoint.layout).options]
    if not options or checkpoint.extra.get("side", True):
        return None
    return f"only the SID table is rewritten: other files that name SIDs are found with --layout-set {options[0]}=PATH"


def not_rewritten(checkpoint: Checkpoint) -> tuple[str, ...]:
    """All that is to be said, one sentence or two each, when a checkpoint is going to be written back."""
    found = (alone(checkpoint), left_behind(checkpoint), *map(" ".join, unwritten(checkpoint)))
    return tuple(told for told in found if told is not None)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
