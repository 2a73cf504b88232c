"""Prompt templates as data: the text that a tool puts around SIDs, and the vocabulary rows its own tokenizer makes of it.

The one decision: nothing is tokenized apart that the tool tokenizes together. Whole prompts with real SIDs in them are given to the
directory's tokenizer, and what it puts before, between and after the SIDs is the prompt; a tokenizer that spells a separator in two
ways is found out here, and refused.

    {"text": "### Input:\\n{history}\\n### Response:\\n", "separator": ", ", "begin": "", "end": "", "empty": "", "bos": "tokenizer"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from recerase.catalog.files import read_file
from recerase.errors import CheckpointError, UsageError
from recerase.model.prompt import Prompt
from recerase.types import IntArray

HISTORY = "{history}"
NUMBER = "{number}"
"""In the text that begins an item: its place in the history, from 1."""
PROMPT_OPTION = (
    'JSON file of a prompt: "text" with {history} in it (one string, or a list of strings that are tokenized one by one), '
    '"separator" between items, "begin" ({number} in it is an item\'s place) and "end" around each SID, '
    '"empty" in place of an empty history, '
    '"bos" tokenizer, always or never'
)
"""What --layout-set prompt=FILE takes, for help."""

Bos = Literal["tokenizer", "always", "never"]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Template:
    """A prompt as people write it."""

    text: tuple[str, ...]
    """Pieces that are tokenized one by one and joined; exactly one holds {history}."""
    separator: str = ""
    begin: str = ""
    """Before each SID of the history, {number} in it being its place from 1, and `end` after it."""
    end: str = ""
    empty: str = ""
    """What stands in place of {history} when there is none."""
    bos: Bos = "tokenizer"
    """Whether the first piece begins with the tokenizer's bos: as it does by itself, always, or never."""

    def to_json(self) -> dict[str, Any]:
        """The content of a prompt file."""
        return {**asdict(self), "text": list(self.text)}


def read_template(path: str | Path) -> Template:
    """The template in a JSON file. Raises UsageError, naming what it may hold, when it is none."""
    known = {field.name for field in fields(Template)}
    try:
        said = json.loads(read_file(Path(path)))
        if not isinstance(said, dict) or "text" not in said:
            raise ValueError('it has no "text"')
        if unknown := sorted(said.keys() - known):
            raise ValueError(f"{unknown[0]!r:.40} is unknown")
        text = said.pop("text")
        pieces = (text,) if isinstance(text, str) else tuple(text)
        if not all(isinstance(value, str) for value in (*pieces, *said.values())):
            raise ValueError("all of it must be text")
        return checked(Template(pieces, **said))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} is no prompt: {error!s:.120}.", f"A prompt is a {PROMPT_OPTION}.") from error


def checked(template: Template) -> Template:
    """The template. Raises ValueError when it does not say where the history stands, or names no way to begin."""
    if sum(piece.count(HISTORY) for piece in template.text) != 1:
        raise ValueError(f'"text" must hold {HISTORY} exactly once')
    if template.bos not in get_args(Bos):
        raise ValueError(f'"bos" is {template.bos!r:.40}')
    return template


def load_tokenizer(directory: Path) -> Any:
    """The directory's own tokenizer, from local files, without code of its own. Raises CheckpointError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing or hostile file makes transformers raise whatever it meets
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(
            f"The tokenizer in {directory} cannot be loaded: {reason}.",
            "Put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside config.json.",
        ) from error


def make_prompt(template: Template, tokenizer: Any, sids: Sequence[str], rows: IntArray, window: int = 3) -> Prompt:
    """The prompt that the tokenizer makes of a template.

    Args:
        sids: a few SIDs as the tool writes them, of one length and at least one; each is used in the first and other places.
        rows: int64 [len(sids), L] their vocabulary rows.
        window: the most items of a history; what stands between items that are numbered is spelled for so many.
    Raises:
        CheckpointError: the tokenizer does not keep SIDs whole, or what stands between them depends on them.
    """
    encode = _encoder(tokenizer, template)
    many, numbered = len(sids), NUMBER in template.begin
    found: set[Prompt] = set()
    for turn in range(many):
        order = [(turn + k) % many for k in range(max(3, window) if numbered else 3)]
        parts = _parts(encode(_joined(template, [sids[k] for k in order])), rows[order], sids)
        alone = _parts(encode(_joined(template, [sids[turn]])), rows[[turn]], sids)
        between = tuple(parts[1:-1])
        if (not numbered and between[0] != between[1]) or (parts[0], parts[-1]) != (alone[0], alone[1]):
            raise CheckpointError(
                "The tokenizer spells what stands around SIDs in more than one way in this prompt.",
                "Give a prompt whose separator stands clear of the SIDs with --layout-set prompt=FILE.",
            )
        empty = tuple(encode(_joined(template, [])))
        found.add(Prompt(parts[0], () if numbered else between[0], parts[-1], empty, between if numbered else None))
    if len(found) != 1 or not next(iter(found)).empty:
        raise CheckpointError(
            "What the tokenizer puts around SIDs depends on the SIDs, or is nothing.",
            "Give another prompt with --layout-set prompt=FILE.",
        )
    return found.pop()


def _joined(template: Template, sids: Sequence[str]) -> tuple[str, ...]:
    """The pieces of the text with a history in them."""
    history = (
        template.separator.join(
            f"{template.begin.replace(NUMBER, str(place))}{sid}{template.end}" for place, sid in enumerate(sids, 1)
        )
        if sids
        else template.empty
    )
    return tuple(piece.replace(HISTORY, history) for piece in template.text)


def _encoder(tokenizer: Any, template: Template) -> Callable[[Sequence[str]], list[int]]:
    """Pieces -> vocabulary rows; nothing is put at their ends but what `bos` says."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id

    def encode(pieces: Sequence[str]) -> list[int]:
        out: list[int] = []
        for number, piece in enumerate(pieces):
            ids = [int(row) for row in tokenizer.encode(piece)]
            by_itself = bool(ids) and bos is not None and ids[0] == bos
            while ids and ids[0] == bos:
                ids = ids[1:]
            while ids and ids[-1] == eos:
                ids = ids[:-1]
            wanted = by_itself if template.bos == "tokenizer" else template.bos == "always"
            out += [int(bos), *ids] if number == 0 and wanted and bos is not None else ids
        return out

    return encode


def _parts(ids: list[int], rows: IntArray, sids: Sequence[str]) -> list[tuple[int, ...]]:
    """What stands before, between and after the SIDs with `rows` [n, L] among `ids`: n + 1 parts."""
    parts, rest = [], ids
    for sid in rows.tolist():
        size = len(sid)
        windows = (
            np.lib.stride_tricks.sliding_window_view(np.asarray(rest), size)
            if len(rest) >= size
            else np.empty((0, size))
        )
        hits = np.flatnonzero((windows == np.asarray(sid)).all(1))
        if not len(hits):
            raise CheckpointError(
                f"The tokenizer does not keep the SID {sids[0]!r:.60} whole in a prompt.",
                "Give the directory with the tokenizer that the model was trained with.",
            )
        parts.append(tuple(rest[: hits[0]]))
        rest = rest[int(hits[0]) + size :]
    return [*parts, tuple(rest)]


def template_of(options: Mapping[str, str], shipped: Template) -> Template:
    """The template of a layout, or the one in the file that --layout-set prompt=FILE names."""
    return read_template(options["prompt"]) if "prompt" in options else checked(shipped)
