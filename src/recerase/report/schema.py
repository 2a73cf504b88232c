"""Report <-> `recerase.audit/1`: one canonical JSON document, the same bytes for the same audit.

The decision that shaped this file: everything that may differ between two runs of one audit is in the object `run`.
`digest` is the sha256 of all the rest and names the audit; `seal` is the sha256 of the document with its run, so that
no bit of it can change unseen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recerase.errors import ArtefactError
from recerase.report.codec import (
    VOLATILE,
    Unfit,
    check_keys,
    check_seals,
    decode,
    document_digest,
    encode,
    hints_of,
    open_document,
    sealed_bytes,
)
from recerase.store import read_bytes
from recerase.types import Control, Decision, Finding, Profile, Report, Verdict

SCHEMA = "recerase.audit/1"

DECISION: Mapping[str, tuple[str, Any]] = {
    "verdict": ("verdict", Verdict),
    "reason": ("reason", str),
    "rules": ("findings", tuple[Finding, ...]),
    "controls": ("controls", tuple[Control, ...]),
    "warnings": ("warnings", tuple[str, ...]),
    "as_of": ("as_of", str),
    "profile": ("profile", Profile),
}
"""Key in the document -> field of Decision and its type: a reader finds the verdict at the top, not a level down."""
OPTIONAL = ("references", "likeness")
"""Fields of Report that are written only where they hold something: reports without them are read, and written, as they ever were."""
_FULL = "recerase report show reads reports as recerase wrote them; audit again to get one."


def report_bytes(report: Report) -> bytes:
    """The report as canonical JSON: UTF-8, sorted keys, no spaces, one line.

    A NaN is written as null and an infinite number as "inf" or "-inf" (as text it is never below a limit). The values
    a unit behind a measurement are not written. Raises TypeError where a mapping holds what JSON cannot.
    """
    return sealed_bytes(_body(report), report.run)


def report_digest(report: Report) -> str:
    """sha256 of everything in the document but `run`, `digest` and `seal`: equal for two runs of the same audit."""
    return document_digest(_body(report), ())


def decision_document(decision: Decision) -> dict[str, Any]:
    """A decision as it stands in the document."""
    return {key: encode(getattr(decision, name), hint, key) for key, (name, hint) in DECISION.items()}


def parse_report(data: bytes | str) -> Report:
    """The report in a document; what `report_bytes` wrote comes back equal, and writes the same bytes again.

    Raises ArtefactError when it is not JSON, not a known schema, not what its digests say, or breaks the schema (the
    message names the place).
    """
    document = open_document(data, SCHEMA, "report")
    hints = hints_of(Report)
    try:
        hints = {name: hint for name, hint in hints.items() if name in document or name not in OPTIONAL}
        check_keys(document, {"schema", *VOLATILE, *DECISION, *hints} - {"decision"})
        for name in OPTIONAL:
            if name in document and not document[name]:
                raise Unfit(f"{name} is there and holds nothing")
        check_seals(document, "report", _FULL)
        decision = Decision(**{name: decode(document[key], hint, key) for key, (name, hint) in DECISION.items()})
        rest = {name: decode(document[name], hint, name) for name, hint in hints.items() if name != "decision"}
        rest["curves"] = _floats(rest["curves"])
    except (Unfit, RecursionError) as error:
        raise ArtefactError(f"This report breaks {SCHEMA}: {error}.", _FULL) from error
    return Report(decision=decision, **rest)


def read_report(path: str | Path) -> Report:
    """The report in a file. Raises ArtefactError, naming the file, when it cannot be read or is no report."""
    data = read_bytes(path)
    try:
        return parse_report(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error.message}", error.remedy) from error


def _body(report: Report) -> dict[str, Any]:
    hints = {name: hint for name, hint in hints_of(Report).items() if name not in ("decision", "run")}
    rest = {
        name: encode(value, hint, name)
        for name, hint in hints.items()
        if (value := getattr(report, name)) or name not in OPTIONAL
    }
    return {"schema": SCHEMA, **decision_document(report.decision), **rest}


def _floats(value: Any) -> Any:
    """Curves hold numbers only, so what is null or "inf" among them is a number again."""
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [math.nan if item is None else float(item) if item in ("inf", "-inf") else item for item in value]
    return value
