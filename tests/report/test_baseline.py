"""`recerase.baseline/1` is read in the bytes it was written in, or not at all."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from recerase.audit.gate import accepted
from recerase.errors import ArtefactError
from recerase.report.baseline import SCHEMA, baseline_bytes, load_baseline, parse_baseline
from recerase.report.schema import report_digest
from recerase.store import canonical_json, sha256_bytes


@pytest.fixture
def data(make_report: Any) -> bytes:
    report = make_report()
    return baseline_bytes(accepted(report, report_digest(report), "ticket 412", date(2026, 6, 1)))


def signed(document: dict[str, Any]) -> bytes:
    body = {key: value for key, value in document.items() if key != "digest"}
    return canonical_json({**body, "digest": sha256_bytes(canonical_json(body))}) + b"\n"


def test_it_comes_back_and_its_digest_is_its_own(data: bytes) -> None:
    found = parse_baseline(data)
    assert baseline_bytes(found) == data
    assert found.digest == json.loads(data)["digest"]
    assert len(found.rules) == 8
    assert len(data) < 5000  # not the report itself


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "recerase.baseline/2"}, "recerase.baseline/2"),
        ({"schema": None}, "not a recerase baseline"),
        ({"verdict": "perhaps"}, "verdict must be"),
        ({"rules": {}}, "rules must be a list"),
        ({"rules": [{}]}, "is missing"),
        ({"extra": 1}, "extra is not known"),
        ({"reason": 3}, "reason must be text"),
    ],
)
def test_what_breaks_the_schema_is_refused_with_its_place(data: bytes, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        parse_baseline(signed({**json.loads(data), **change}))
    parse_baseline(signed(json.loads(data)))


def test_a_change_that_was_not_signed_is_seen(data: bytes) -> None:
    with pytest.raises(ArtefactError, match="digest"):
        parse_baseline(data.replace(b"ticket 412", b"ticket 413"))


def test_a_file_is_named_when_it_cannot_be_read(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_bytes(data)
    assert load_baseline(path) == parse_baseline(data)
    path.write_bytes(data[:-1])
    with pytest.raises(ArtefactError, match=r"base\.json"):
        load_baseline(path)
    assert SCHEMA in data.decode()
