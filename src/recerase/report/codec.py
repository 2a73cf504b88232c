"""Frozen values <-> canonical JSON documents, for the files that a verdict rests on.

The decision that shaped this file: both ways are driven by type hints, so a field added to a dataclass is written and
read without a line here; and a document is read only in the very bytes it was written in, so that no bit of it is
beyond its digest (1E-7 for 1e-07, or a second spelling of a letter, would be).
"""

from __future__ import annotations

import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, Union, get_args, get_origin

from recerase.errors import ArtefactError
from recerase.store import canonical_json, sha256_bytes

VOLATILE = ("digest", "run", "seal")
"""What the digest of a sealed document leaves out."""
_NOT_WRITTEN = frozenset({"values"})
_SURROGATE = re.compile("[\ud800-\udfff]")


class Unfit(ValueError):
    """A value is not of the type it must be; the message names the place."""


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as it is written: UTF-8, sorted keys, no spaces, one line."""
    return canonical_json(document) + b"\n"


def document_digest(document: Mapping[str, Any], without: Iterable[str]) -> str:
    """sha256 of the canonical bytes of a document, but for the keys `without`."""
    return sha256_bytes(canonical_json({key: value for key, value in document.items() if key not in without}))


def sealed_bytes(body: Mapping[str, Any], run: Mapping[str, Any]) -> bytes:
    """A document that vouches for itself: `digest` is that of `body` alone, `seal` also of `run`, which is of one run only."""
    document = {**body, "digest": document_digest(body, ()), "run": plain(run, "run")}
    return document_bytes({**document, "seal": document_digest(document, ())})


def check_seals(document: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raise ArtefactError unless a document that `sealed_bytes` wrote is what its digest and its seal say."""
    for name, without in (("digest", VOLATILE), ("seal", ("seal",))):
        if document[name] != document_digest(document, without):
            raise ArtefactError(
                f"This {what} is not what its {name} says: it was changed after it was written.", remedy
            )


def open_document(data: bytes | str, schema: str, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises ArtefactError when it is none, of another schema, or not in canonical bytes."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    remedy = f"recerase reads a {what} in the bytes it wrote; make it again."
    try:
        document = json.loads(raw.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
        written = document_bytes(document) if isinstance(document, dict) else b""
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"This is not a recerase {what}: it is no JSON ({error}).", remedy) from error
    if not isinstance(document, dict):
        raise ArtefactError(f"This is not a recerase {what}: it holds no JSON object.", remedy)
    found = document.get("schema")
    if found != schema:
        name = f"a {what} of schema {found!r:.60}" if isinstance(found, str) else f"not a recerase {what}"
        raise ArtefactError(f"This is {name}; expected {schema}.", "Read it with the recerase that wrote it.")
    if raw != written:
        raise ArtefactError(f"This {what} is not in canonical bytes: it was changed after it was written.", remedy)
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def encode(value: Any, hint: Any, where: str) -> Any:
    """`value`, of the type `hint`, as JSON values."""
    origin, inner = get_origin(hint), get_args(hint)
    if value is None or hint is Any:
        return plain(value, where)
    if origin in (Union, types.UnionType):
        return encode(value, next(h for h in inner if h is not type(None)), where)
    if origin is tuple:
        return [encode(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if is_dataclass(hint):
        return {name: encode(getattr(value, name), h, f"{where}.{name}") for name, h in hints_of(hint).items()}
    return _number(float(value)) if hint is float else plain(value, where)


def plain(value: Any, where: str) -> Any:
    """Anything JSON can say, by what it is: numpy numbers, paths, dates and enumerations included."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, Mapping):
        return {_SURROGATE.sub("\ufffd", str(key)): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (PurePath, date)):
        return plain(str(value), where)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if hasattr(value, "tolist"):  # a numpy number or array
        return plain(value.tolist(), where)
    raise TypeError(f"{where} in a report is a {type(value).__name__}; a report holds JSON values only")


def _number(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def decode(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type `hint`. Raises Unfit naming the place where it is something else."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else decode(value, next(h for h in inner if h is not type(None)), where)
    if origin is Literal:
        return value if value in inner else _refuse(value, " or ".join(map(repr, inner)), where)
    if origin is tuple:
        items = value if isinstance(value, list) else _refuse(value, "a list", where)
        return tuple(decode(item, inner[0], f"{where}[{i}]") for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        items = value if isinstance(value, dict) else _refuse(value, "an object", where)
        return {key: decode(item, inner[1], f"{where}.{key}") for key, item in items.items()}
    if is_dataclass(hint):
        return _decode_dataclass(value, hint, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        names = [member.value for member in hint]
        return hint(value) if value in names else _refuse(value, " or ".join(map(repr, names)), where)
    return _decode_scalar(value, hint, where)


def _decode_dataclass(value: Any, hint: Any, where: str) -> Any:
    hints = hints_of(hint)
    given = value if isinstance(value, dict) else _refuse(value, "an object", where)
    check_keys(given, hints, f"{where}.")
    return hint(**{name: decode(given[name], h, f"{where}.{name}") for name, h in hints.items()})


def _decode_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is float:
        if value is None:
            return math.nan
        if value in ("inf", "-inf") or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return float(value)
        return _refuse(value, "a number", where)
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    return _refuse(value, {str: "text", int: "a whole number", bool: "true or false"}[hint], where)


def hints_of(cls: Any) -> dict[str, Any]:
    """The fields of a dataclass that are written, and their types; looked up once."""
    return _looked_up(cls)


@functools.cache
def _looked_up(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in _NOT_WRITTEN}


def check_keys(given: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raise Unfit unless an object has just the keys `known`."""
    missing, unknown = sorted(set(known) - set(given)), sorted(set(given) - set(known))
    if missing:
        raise Unfit(f"{where}{missing[0]} is missing")
    if unknown:
        raise Unfit(f"{where}{unknown[0]} is not known")


def _refuse(value: Any, wanted: str, where: str) -> Any:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    raise Unfit(f"{where} must be {wanted}, not {shown}")
