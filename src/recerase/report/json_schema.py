"""The JSON Schema of `recerase.audit/1`, for readers that are not recerase: draft 2020-12, shipped as a file.

The decision that shaped this file: the schema is derived from the same type hints that write and read a report, and the
file beside this module is what `audit_schema` gives; so a field added to a dataclass is a field of the schema, or a test fails.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from enum import Enum
from importlib import resources
from typing import Any, Literal, Union, get_args, get_origin

from recerase.report.codec import hints_of
from recerase.report.schema import DECISION, OPTIONAL, SCHEMA
from recerase.types import Report

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FILE = "audit.schema.json"
_SHA256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_NUMBER = {"$ref": "#/$defs/Number"}
_NUMBER_DEF = {
    "description": 'A number. null: not a number. "inf" and "-inf": infinite, which JSON cannot say.',
    "anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", None]}],
}
_SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "Report.concept": {
        "type": "object",
        "description": "What was to be erased. Facts that are not known are not there.",
        "properties": {
            "name": _TEXT,
            "spec": {"type": "array", "items": _TEXT},
            "items": _COUNT,
            "interactions": _COUNT,
            "users": _COUNT,
            "digest": _SHA256,
            "scope": {"enum": ["output", "influence"]},
        },
    },
    "Report.inputs": {
        "type": "object",
        "description": "Name of an input -> sha256 of it: subject, original, reference (further ones: reference.2 and on), "
        "data, policy, concept, code, and so on.",
        "additionalProperties": _SHA256,
    },
    "Report.method": {
        "type": "object",
        "description": "How the audited checkpoint was erased, in the words of the method; {} where that is not known.",
        "properties": {"name": _TEXT, "config": _ANY_OBJECT, "summary": _ANY_OBJECT, "changes": _ANY_OBJECT},
    },
    "Report.curves": {
        "type": "object",
        "description": "What the plots are drawn of: name of a curve -> x, and the values of each role.",
        "additionalProperties": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": _NUMBER},
        },
    },
    "Report.run": {
        "type": "object",
        "description": "Of this run only, and no part of the digest: when it began, how long it took, where, by which command.",
        "properties": {"started": _TEXT, "seconds": {"type": "number", "minimum": 0}, "environment": _ANY_OBJECT, "command": _TEXT},
    },
    "Measurement.n": _COUNT,
    "LikenessRow.n": _COUNT,
    "Gate.exit_code": {"enum": [0, 1, 5]},
    "Policy.min_users": _COUNT,
}  # fmt: skip
"""Fields whose type hint says less than is true of them."""


def audit_schema() -> dict[str, Any]:
    """The schema of a report as JSON values; every object that recerase closes is closed to other keys."""
    definitions: dict[str, Any] = {"Number": _NUMBER_DEF}
    hints = {name: hint for name, hint in hints_of(Report).items() if name != "decision"}
    properties = {
        "schema": {"const": SCHEMA},
        "digest": {**_SHA256, "description": "sha256 of the canonical bytes of all but `digest`, `run` and `seal`."},
        "seal": {**_SHA256, "description": "sha256 of the canonical bytes of all but `seal`."},
        **{key: _of(hint, f"Decision.{name}", definitions) for key, (name, hint) in DECISION.items()},
        **{name: _of(hint, f"Report.{name}", definitions) for name, hint in hints.items()},
    }
    for name in OPTIONAL:
        properties[name] |= {"minItems": 1, "description": "There where several references were given."}
    return {
        "$schema": DRAFT,
        "$id": "urn:recerase:schema:audit:1",
        "title": SCHEMA,
        "description": "An audit of a generative recommender for a concept, as `recerase audit -o FILE.json` writes it.",
        "type": "object",
        "properties": properties,
        "required": sorted(set(properties) - set(OPTIONAL)),
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def schema_text() -> str:
    """The schema as it is shipped, a JSON text."""
    return resources.files("recerase.report").joinpath(FILE).read_text("utf-8")


def _of(hint: Any, where: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value of the type `hint`, which is the field `where`; dataclasses go to `definitions`."""
    if where in _SPECIAL:
        return dict(_SPECIAL[where])
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        some = _of(next(h for h in inner if h is not type(None)), where, definitions)
        return some if some == _NUMBER else {"anyOf": [some, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is tuple:
        return {"type": "array", "items": _of(inner[0], f"{where}[]", definitions)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    if is_dataclass(hint):
        return _reference(hint, definitions)
    scalars: dict[Any, dict[str, Any]] = {
        float: _NUMBER,
        str: {"type": "string"},
        int: {"type": "integer"},
        bool: {"type": "boolean"},
    }
    return dict(scalars[hint])


def _reference(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """A reference to a dataclass's own schema, made where there is none yet."""
    if cls.__name__ not in definitions:
        definitions[cls.__name__] = {}
        fields = {name: _of(hint, f"{cls.__name__}.{name}", definitions) for name, hint in hints_of(cls).items()}
        definitions[cls.__name__] = {
            "description": (cls.__doc__ or "").strip().splitlines()[0],
            "type": "object",
            "properties": fields,
            "required": sorted(fields),
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{cls.__name__}"}
