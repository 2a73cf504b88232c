"""Baseline <-> `recerase.baseline/1`: the small file that says which audit somebody accepted, and why.

The decision that shaped this file: it holds what later audits are held against and the digests of where that came
from, not the report itself; and it is read as strictly as a report, for a build that it lets pass rests on it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from recerase.errors import ArtefactError
from recerase.report.codec import Unfit, check_keys, decode, document_bytes, document_digest, encode, open_document
from recerase.store import read_bytes
from recerase.types import Baseline

SCHEMA = "recerase.baseline/1"
_AGAIN = "Make it again with `recerase report bless`."


def baseline_bytes(baseline: Baseline) -> bytes:
    """The baseline as canonical JSON, with its own digest."""
    document = _document(baseline)
    return document_bytes({**document, "digest": document_digest(document, ("digest",))})


def parse_baseline(data: bytes | str) -> Baseline:
    """The baseline in a document. Raises ArtefactError when it is anything else, or not what its digest says."""
    document = open_document(data, SCHEMA, "baseline")
    try:
        check_keys(document, {"schema", *(field.name for field in fields(Baseline))})
        if document["digest"] != document_digest(document, ("digest",)):
            raise ArtefactError(
                "This baseline is not what its digest says: it was changed after it was written.", _AGAIN
            )
        body = {key: value for key, value in document.items() if key != "schema"}
        found: Baseline = decode(body, Baseline, "baseline")
    except (Unfit, RecursionError) as error:
        raise ArtefactError(f"This baseline breaks {SCHEMA}: {error}.", _AGAIN) from error
    return found


def load_baseline(path: str | Path) -> Baseline:
    """The baseline in a file. Raises ArtefactError, naming the file, when it cannot be read or is no baseline."""
    data = read_bytes(path)
    try:
        return parse_baseline(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error.message}", error.remedy) from error


def _document(baseline: Baseline) -> dict[str, Any]:
    return {"schema": SCHEMA, **encode(baseline, Baseline, "baseline")}
