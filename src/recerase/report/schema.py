"""Report <-> `recerase.audit/1`: one canonical JSON document, the same bytes for the same audit.

The decision that shaped this file: both ways are driven by the type hints of types.py, so a field added there is
written and read without a line here, and what is read is checked against the same hints. Everything that may differ
between two runs of one audit is in the object `run`; `digest` is the sha256 of all the rest and is checked on reading.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from recerase.errors import ArtefactError
from recerase.store import canonical_json, sha256_bytes
from recerase.types import Control, Decision, Finding, Report, Verdict

SCHEMA = "recerase.audit/1"

_DECISION: Mapping[str, tuple[str, Any]] = {
    "verdict": ("verdict", Verdict),
    "reason": ("reason", str),
    "rules": ("findings", tuple[Finding, ...]),
    "controls": ("controls", tuple[Control, ...]),
    "warnings": ("warnings", tuple[str, ...]),
}
"""Key in the document -> field of Decision and its type: a reader finds the verdict at the top, not a level down."""
_NOT_WRITTEN = frozenset({"values"})
_FULL = "recerase report show reads reports as recerase wrote them; audit again to get one."
_SURROGATE = re.compile("[\ud800-\udfff]")


def report_bytes(report: Report) -> bytes:
    """The report as canonical JSON: UTF-8, sorted keys, no spaces, one line.

    A NaN is written as null and an infinite number as "inf" or "-inf" (as text it is never below a limit). The values
    a unit behind a measurement are not written. Raises TypeError where a mapping holds what JSON cannot.
    """
    body = _body(report)
    document = {**body, "digest": _digest(body), "run": _plain(report.run, "run")}
    return canonical_json(document) + b"\n"


def report_digest(report: Report) -> str:
    """sha256 of everything in the document but `run` and `digest`: equal for two runs of the same audit."""
    return _digest(_body(report))


def parse_report(data: bytes | str) -> Report:
    """The report in a document; what `report_bytes` wrote comes back equal, and writes the same bytes again.

    Raises ArtefactError when it is not JSON, not a known schema, not what its digest says, or breaks the schema (the
    message names the place).
    """
    document = _document(data)
    schema = document.get("schema")
    if schema != SCHEMA:
        name = f"a report of schema {schema!r}" if isinstance(schema, str) else "not a recerase report"
        raise ArtefactError(f"This is {name}; expected {SCHEMA}.", "Read it with the recerase that wrote it.")
    hints = get_type_hints(Report)
    known = {"schema", "digest", *_DECISION, *hints} - {"decision"}
    _check_keys(document, known, known, "")
    body = {key: value for key, value in document.items() if key not in ("digest", "run")}
    if document["digest"] != _digest(body):
        raise ArtefactError("This report is not what its digest says: it was changed after it was written.", _FULL)
    decision = Decision(**{name: _decode(document[key], hint, key) for key, (name, hint) in _DECISION.items()})
    rest = {name: _decode(document[name], hint, name) for name, hint in hints.items() if name != "decision"}
    rest["curves"] = _floats(rest["curves"])
    return Report(decision=decision, **rest)


def read_report(path: str | Path) -> Report:
    """The report in a file. Raises ArtefactError when it cannot be read or is no report."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtefactError(f"Cannot read {path}: {error.strerror}.", "Check the path and its permissions.") from error
    try:
        return parse_report(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error.message}", error.remedy) from error


def _body(report: Report) -> dict[str, Any]:
    decision = {key: _encode(getattr(report.decision, name), hint, key) for key, (name, hint) in _DECISION.items()}
    hints = {name: hint for name, hint in get_type_hints(Report).items() if name not in ("decision", "run")}
    rest = {name: _encode(getattr(report, name), hint, name) for name, hint in hints.items()}
    return {"schema": SCHEMA, **decision, **rest}


def _digest(body: Mapping[str, Any]) -> str:
    try:
        return sha256_bytes(canonical_json(body))
    except (UnicodeEncodeError, ValueError) as error:
        raise ArtefactError("This report holds text or numbers that are no JSON.", _FULL) from error


def _document(data: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"This is not a recerase report: it is no JSON ({error}).", _FULL) from error
    if not isinstance(document, dict):
        raise ArtefactError("This is not a recerase report: it holds no JSON object.", _FULL)
    return document


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _encode(value: Any, hint: Any, where: str) -> Any:
    """`value`, of the type `hint`, as JSON values."""
    origin, inner = get_origin(hint), get_args(hint)
    if value is None or hint is Any:
        return _plain(value, where)
    if origin in (Union, types.UnionType):
        return _encode(value, next(h for h in inner if h is not type(None)), where)
    if origin is tuple:
        return [_encode(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if is_dataclass(hint):
        return {name: _encode(getattr(value, name), h, f"{where}.{name}") for name, h in _hints(hint).items()}
    return _number(float(value)) if hint is float else _plain(value, where)


def _plain(value: Any, where: str) -> Any:
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
        return {_SURROGATE.sub("\ufffd", str(key)): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (PurePath, date)):
        return _plain(str(value), where)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if hasattr(value, "tolist"):  # a numpy number or array
        return _plain(value.tolist(), where)
    raise TypeError(f"{where} in a report is a {type(value).__name__}; a report holds JSON values only")


def _number(value: float) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"


def _decode(value: Any, hint: Any, where: str) -> Any:
    """A JSON value as the type `hint`. Raises ArtefactError naming the place where it is something else."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(value, next(h for h in inner if h is not type(None)), where)
    if origin is Literal:
        return value if value in inner else _refuse(value, " or ".join(map(repr, inner)), where)
    if origin is tuple:
        items = value if isinstance(value, list) else _refuse(value, "a list", where)
        return tuple(_decode(item, inner[0], f"{where}[{i}]") for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        items = value if isinstance(value, dict) else _refuse(value, "an object", where)
        return {key: _decode(item, inner[1], f"{where}.{key}") for key, item in items.items()}
    if is_dataclass(hint):
        return _decode_dataclass(value, hint, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        names = [member.value for member in hint]
        return hint(value) if value in names else _refuse(value, " or ".join(map(repr, names)), where)
    return _decode_scalar(value, hint, where)


def _decode_dataclass(value: Any, hint: Any, where: str) -> Any:
    hints = _hints(hint)
    given = value if isinstance(value, dict) else _refuse(value, "an object", where)
    _check_keys(given, hints, hints, f"{where}.")
    return hint(**{name: _decode(given[name], h, f"{where}.{name}") for name, h in hints.items()})


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


def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in _NOT_WRITTEN}


def _check_keys(given: Mapping[str, Any], needed: Any, known: Any, where: str) -> None:
    missing, unknown = sorted(set(needed) - set(given)), sorted(set(given) - set(known))
    if missing:
        raise ArtefactError(f"This report breaks {SCHEMA}: {where}{missing[0]} is missing.", _FULL)
    if unknown:
        raise ArtefactError(f"This report breaks {SCHEMA}: {where}{unknown[0]} is not known.", _FULL)


def _refuse(value: Any, wanted: str, where: str) -> Any:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    raise ArtefactError(f"This report breaks {SCHEMA}: {where} must be {wanted}, not {shown}.", _FULL)


def _floats(value: Any) -> Any:
    """Curves hold numbers only, so what is null or "inf" among them is a number again."""
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [math.nan if item is None else float(item) if item in ("inf", "-inf") else item for item in value]
    return value
