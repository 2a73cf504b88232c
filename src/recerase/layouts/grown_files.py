"""The files of a transformers directory whose vocabulary has grown: tokenizer, config, weights; every other file is as it was.

The one decision: as everywhere here, a file is patched. A new token is spelled in the text of the file as its neighbour there is,
behind it, with that one's flags, because tokenizers of several kinds are read by several versions of transformers and saving one anew
would change more than was asked for. What comes out is parsed again, and the tokenizer is loaded and asked: each new token is one id,
the one that its row has, and every old token has the id that it had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recerase.errors import ArtefactError, CheckpointError, EraseError
from recerase.layouts.growth import Growth, NewRow, Room, growth_between, named_rows
from recerase.layouts.spelling import PLAIN, Spelling
from recerase.layouts.tensors import DTYPES
from recerase.layouts.weights import CONFIG
from recerase.store import read_bytes

if TYPE_CHECKING:
    import torch

    from recerase.layouts.native import Checkpoint
    from recerase.model.recommender import Recommender
    from recerase.sid.table import SidTable

TOKENIZER, ADDED, SETTINGS = "tokenizer.json", "added_tokens.json", "tokenizer_config.json"
_ADAPTER = "adapter_config.json"
_SHARDS = ".safetensors.index.json"
_SECTIONS = {TOKENIZER: "added_tokens", SETTINGS: "added_tokens_decoder", ADDED: None}
_SPACE = re.compile(r"\s*")
_DECODER = json.JSONDecoder()

Place = tuple[Any, int, int]
"""A key of an object or place in a list, and where its text begins (an object's key included) and ends."""


def token_growth(source: Checkpoint, after: SidTable) -> Growth:
    """What has come to the vocabulary of a directory with a token a code."""
    return growth_between(source.table.schema, after.schema, spelling_of(source).token)


def spelling_of(source: Checkpoint) -> Spelling:
    """How the directory's tool writes codes as tokens."""
    return source.extra.get("spelling", PLAIN)


def token_room(checkpoint: Checkpoint, behind: str = "", hint: str = "") -> Room:
    """The room of a directory with a token a code: new rows come behind every token that its tokenizer's files name.

    Raises EraseError when its weights are an adapter or a pickle, or rows behind those tokens have a meaning of their own.
    """
    path, weights = checkpoint.path, checkpoint.extra["weights"]
    if (path / _ADAPTER).is_file():
        raise EraseError(
            f"{path} holds an adapter, and the rows of embedding and head are those of the model that it is laid over.",
            "Merge it into its base model first, or leave --grow-vocabulary out.",
        )
    if not all(name.endswith(".safetensors") for name in weights):
        raise EraseError(
            f"{path / weights[0]} is a pickle, to which rows cannot be added.", "Save it as safetensors first."
        )
    first = 1 + max(
        (
            row
            for name in _SECTIONS
            if (path / name).is_file()
            for row in _rows(name, json.loads(read_bytes(path / name)))
        ),
        default=-1,
    )
    if (named := max(named_rows(checkpoint.recommender.module), default=-1)) >= first:
        raise EraseError(
            f"{path / CONFIG} gives row {named} a meaning, and its tokenizer ends at row {first - 1}.",
            "Restore the tokenizer's files: new tokens would come to lie there.",
        )
    return Room(first, spelling_of(checkpoint).token, behind, hint)


def _rows(name: str, said: Any) -> list[int]:
    """Every vocabulary row that one of the tokenizer's files names."""
    if name == ADDED:
        return list(said.values())
    if name == SETTINGS:
        return [int(row) for row in said.get("added_tokens_decoder") or {}]
    model = (said.get("model") or {}).get("vocab") or ()
    rows = list(model.values()) if isinstance(model, dict) else [len(model) - 1]
    return rows + [entry["id"] for entry in said.get("added_tokens") or []]


def regrown(name: str, data: bytes, growth: Growth, source: Checkpoint, model: Recommender) -> bytes:
    """A file of the directory, with the new rows in it when it speaks of rows; `data` itself when it does not.

    `source` and `model` say by how much the weights have become larger, which an index of shards tells.
    Raises ArtefactError when the file could not be patched as it is laid out.
    """
    if not growth.rows or not (name in _SECTIONS or name == CONFIG or name.endswith(_SHARDS)):
        return data
    text = data.decode("utf-8")
    if name == CONFIG:
        new = _with_number(text, ("vocab_size",), growth.matrix)
    elif name.endswith(_SHARDS):
        said, new = json.loads(text).get("metadata") or {}, text
        for key, more in _larger(source, model).items():
            if type(said.get(key)) is int:
                new = _with_number(new, ("metadata", key), said[key] + more)
    else:
        new = _with_tokens(name, text, growth, spelling_of(source))
    return new.encode("utf-8")


def _larger(source: Checkpoint, model: Recommender) -> dict[str, int]:
    """What an index of shards counts, in the new weights more than in the old: bytes of stored tensors, and parameters."""
    old, new = source.recommender.module.state_dict(), model.module.state_dict()
    names = [source.extra["aliases"].get(key, key) for file in source.extra["stored"].values() for key in file.values()]
    counted = [sum(p.numel() for p in one.module.parameters()) for one in (source.recommender, model)]
    return {
        "total_size": sum(new[name].nbytes - old[name].nbytes for name in names),
        "total_parameters": counted[1] - counted[0],
    }


def _with_tokens(name: str, text: str, growth: Growth, spelling: Spelling) -> str:
    """The text of a tokenizer's file with the new tokens after its last entry, each spelled as the last SID token there."""
    section = _SECTIONS[name]
    begin = next((begin for key, begin, _ in _values(text, 0) if key == section), -1) if section else _skip(text, 0)
    places = _places(text, begin) if begin >= 0 and text[begin] in "{[" else []
    known = [place for place in places if spelling.place(_content(name, text, place)) is not None]
    if not known:
        return text
    _, first, end = known[-1]
    like, was = text[first:end], _content(name, text, known[-1])
    gap = text[places[-2][2] : places[-1][1]] if len(places) > 1 else ", "
    made = [_like(name, like, was, row) for row in growth.rows]
    last = places[-1][2]
    new = text[:last] + "".join(gap + entry for entry in made) + text[last:]
    before, after = _named(name, json.loads(text)), _named(name, json.loads(new))
    if after != before + [(row.token, row.row) for row in growth.rows]:
        raise ArtefactError(f"{name} could not be rewritten as it is laid out.", "Report this: it is a bug.")
    return new


def _like(name: str, like: str, was: str, row: NewRow) -> str:
    """The text of an entry for `row`, made of that of the token `was`."""
    token = json.dumps(row.token)
    text = like.replace(json.dumps(was), token, 1)
    if name == TOKENIZER:
        return re.sub(r'("id"\s*:\s*)\d+', rf"\g<1>{row.row}", text, count=1)
    number = re.compile(r'^"\d+"') if name == SETTINGS else re.compile(r"\d+$")
    return number.sub(f'"{row.row}"' if name == SETTINGS else str(row.row), text, count=1)


def _named(name: str, said: Any) -> list[tuple[str, int]]:
    """(token, row) of every added token, in the order of the file."""
    if name == ADDED:
        return list(said.items())
    if name == SETTINGS:
        return [(entry["content"], int(row)) for row, entry in said["added_tokens_decoder"].items()]
    return [(entry["content"], entry["id"]) for entry in said["added_tokens"]]


def _content(name: str, text: str, place: Place) -> str:
    """The token of an entry."""
    key, begin, end = place
    if name == ADDED:
        return str(key)
    inner = text[begin:end] if name == TOKENIZER else text[begin:end].partition(":")[2]
    return str(json.loads(inner).get("content"))


def _places(text: str, at: int) -> list[Place]:
    """The members of the object, or the elements of the list, that begins at `at`."""
    found: list[Place] = []
    in_object = text[at] == "{"
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        begin, key = at, len(found)
        if in_object:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)
        _, at = _DECODER.raw_decode(text, at)
        found.append((key, begin, at))
        at = _skip(text, at)
        at = _skip(text, at + 1) if text[at] == "," else at
    return found


def _values(text: str, at: int) -> list[tuple[str, int, int]]:
    """Key, and beginning and end of the value, of each member of the object at `at`."""
    found = []
    for key, begin, end in _places(text, _skip(text, at)):
        _, colon = _DECODER.raw_decode(text, begin)
        found.append((key, _skip(text, _skip(text, colon) + 1), end))
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _with_number(text: str, keys: tuple[str, ...], number: int) -> str:
    """The text of a JSON object with another number at the end of `keys`. Raises ArtefactError when there is none."""
    at, end = 0, 0
    for key in keys:
        found = [(begin, end) for name, begin, end in _values(text, at) if name == key]
        if not found:
            raise ArtefactError(f"A file of the checkpoint has no {'.'.join(keys)}.", "Restore its JSON files.")
        at, end = found[-1]
    return text[:at] + str(number) + text[end:]


def grown_safetensors(data: bytes, wanted: Mapping[str, torch.Tensor]) -> bytes:
    """A safetensors file (of known good form) with the values and the lengths of `wanted`: order, names, dtypes, metadata stay.

    The bytes of a tensor whose shape did not change and whose values are equal are those of the file.
    """
    import torch

    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    parts: list[bytes] = []
    at = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda pair: pair[1]["data_offsets"]):
        first, last = (begin + place for place in entry["data_offsets"])
        kind = getattr(torch, DTYPES[entry["dtype"]][0])
        new = wanted[name].detach().cpu().to(kind).contiguous()
        held = data[first:last]
        same = list(new.shape) == entry["shape"] and (
            not held or torch.equal(torch.frombuffer(bytearray(held), dtype=kind), new.flatten())
        )
        part = held if same else new.flatten().view(torch.uint8).numpy().tobytes()
        entry["shape"], entry["data_offsets"] = list(new.shape), [at, at + len(part)]
        parts.append(part)
        at += len(part)
    said = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    said += b" " * (-len(said) % 8)
    return b"".join([len(said).to_bytes(8, "little"), said, *parts])


def prove_tokens(source: Path, staging: Path, growth: Growth) -> None:
    """Load both tokenizers and compare: old tokens as they were, new ones each one id. Raises EraseError when it is not so.

    A directory whose tokenizer is not of files that transformers loads by itself (a sentence-piece model is taken from elsewhere by
    LETTER-TIGER) is left to the comparison of its JSON files.
    """
    from recerase.layouts.prompts import load_tokenizer

    if not growth.rows or not (staging / TOKENIZER).is_file():
        return
    try:
        old, new = (load_tokenizer(path) for path in (source, staging))
    except CheckpointError as error:
        raise EraseError(
            f"The tokenizer cannot be loaded with its new tokens: {error.message}", error.remedy
        ) from error
    fresh = {row.token: row.row for row in growth.rows}
    vocabulary = new.get_vocab()
    kept = {token: row for token, row in vocabulary.items() if token not in fresh}
    spelled = {token: new.encode(token, add_special_tokens=False) for token in fresh}
    wrong = [token for token, row in fresh.items() if spelled[token] != [row] or vocabulary.get(token) != row]
    if wrong or kept != old.get_vocab():
        raise EraseError(
            f"transformers does not read {wrong[0] if wrong else 'the old tokens'} as the row that was written for it.",
            "Leave --grow-vocabulary out: this tokenizer cannot be grown file by file.",
        )
