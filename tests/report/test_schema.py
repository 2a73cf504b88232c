"""`recerase.audit/1`: lossless, canonical, honest about what is not a number, and closed to anything else."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recerase.errors import ArtefactError
from recerase.report.schema import SCHEMA, parse_report, read_report, report_bytes, report_digest
from recerase.store import canonical_json, sha256_bytes
from recerase.types import Decision, Gate, Interval, Measurement, Move, Report, Verdict

Change = Callable[[dict[str, Any]], None]
NUMBERS = st.floats(allow_nan=False)

GATE = Gate("policy", 5, "the policy says inconclusive")


def signed(document: dict[str, Any]) -> bytes:
    """The document with the digest it ought to have, so that only its schema is at fault."""
    body = {key: value for key, value in document.items() if key not in ("digest", "run", "seal")}
    whole = {**body, "digest": sha256_bytes(canonical_json(body)), "run": document["run"]}
    return canonical_json({**whole, "seal": sha256_bytes(canonical_json(whole))}) + b"\n"


def small(**changes: Any) -> Report:
    empty = Report(Decision(Verdict.INCONCLUSIVE, "nothing", ()), GATE, (), (), {}, {})
    return replace(empty, **changes)


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("original", [True, False])
def test_a_report_comes_back_equal_and_writes_the_same_bytes(
    make_report: Any, verdict: Verdict, original: bool
) -> None:
    report = make_report(verdict, original=original)
    data = report_bytes(report)
    assert parse_report(data) == report
    assert report_bytes(parse_report(data)) == data


def test_bytes_are_canonical(make_report: Any) -> None:
    data = report_bytes(make_report())
    assert data == canonical_json(json.loads(data)) + b"\n"
    assert json.loads(data)["schema"] == SCHEMA


@given(value=NUMBERS, low=NUMBERS, high=NUMBERS, n=st.integers(0, 2**53))
def test_every_number_survives(value: float, low: float, high: float, n: int) -> None:
    found = Measurement("m", "subject", value, n, "catalogue", Interval(low, high, 0.95, "wilson"))
    data = report_bytes(small(measurements=(found,)))
    assert parse_report(data).measurements == (found,)
    json.loads(data, parse_constant=pytest.fail)


def test_nan_is_null_and_infinity_is_never_below_a_limit() -> None:
    found = Measurement("m", "subject", math.nan, 3, "catalogue", Interval(0.1, math.inf, 0.95, "bootstrap"))
    data = report_bytes(small(measurements=(found,), curves={"c": {"x": [1, 2], "subject": [math.nan, math.inf]}}))
    written = json.loads(data)["measurements"][0]
    assert written["value"] is None
    assert written["interval"]["high"] == "inf"
    back = parse_report(data)
    assert math.isnan(back.measurements[0].value)
    assert back.measurements[0].interval == found.interval
    assert math.isnan(back.curves["c"]["subject"][0])
    assert back.curves["c"]["subject"][1] == math.inf
    assert report_bytes(back) == data


def test_numpy_values_write_what_python_values_write() -> None:
    plain = small(curves={"c": {"x": [1.0, 2.0]}}, method={"steps": 3, "share": 0.5}, concept={"items": 4})
    numpy = small(
        curves={"c": {"x": np.array([1.0, 2.0])}},
        method={"steps": np.int64(3), "share": np.float64(0.5)},
        concept={"items": np.int32(4)},
    )
    assert report_bytes(numpy) == report_bytes(plain)


def test_paths_days_and_dataclasses_in_a_mapping_are_written_as_what_they_say() -> None:
    gate = {
        "fail_on": "policy",
        "exit_code": 5,
        "reason": GATE.reason,
        "regressions": [],
        "undecided": [],
        "baseline": "",
    }
    said = small(run={"path": Path("a/b"), "day": date(2026, 6, 1), "gate": GATE, "kind": Verdict.PASS})
    plain = small(run={"path": "a/b", "day": "2026-06-01", "gate": gate, "kind": "pass"})
    assert report_bytes(said) == report_bytes(plain)


def test_curves_that_hold_no_lists_are_kept_as_they_are() -> None:
    curves = {"c": {"x": [1.0], "told": "x", "deep": {"y": 2}}}
    assert parse_report(report_bytes(small(curves=curves))).curves == curves


def test_an_integer_where_a_float_belongs_writes_the_same_bytes() -> None:
    one, other = (small(measurements=(Measurement("m", "subject", v, 3, "catalogue"),)) for v in (1, 1.0))
    assert report_bytes(one) == report_bytes(other)


def test_values_a_unit_are_not_written(make_report: Any) -> None:
    report = make_report()
    assert any(m.values is not None for m in report.measurements)
    assert all("values" not in m for m in json.loads(report_bytes(report))["measurements"])


def test_only_run_is_volatile(make_report: Any) -> None:
    report = make_report()
    later = replace(report, run={"started": "2031-01-01T00:00:00Z", "seconds": 2.0})
    one, other = json.loads(report_bytes(report)), json.loads(report_bytes(later))
    assert {key for key in one if one[key] != other[key]} == {"run", "seal"}
    assert report_digest(report) == report_digest(later) == one["digest"]
    assert report_digest(replace(report, limits=("one more",))) != one["digest"]


@given(title=st.text() | st.text(alphabet=st.characters(codec=None, categories=("Cs", "Cc", "Cf", "So"))))
def test_any_title_can_be_written(title: str) -> None:
    data = report_bytes(small(moves=(Move("1", title, (1, 2), (3, 4)),)))
    back = parse_report(data).moves[0].title
    assert len(back) == len(title)
    assert all(a == b or ("\ud800" <= a <= "\udfff" and b == "\ufffd") for a, b in zip(title, back, strict=True))


def test_what_json_cannot_say_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"run\.handle in a report is a object"):
        report_bytes(small(run={"handle": object()}))


def test_a_changed_report_is_not_what_its_digest_says(make_report: Any) -> None:
    document = json.loads(report_bytes(make_report(Verdict.FAIL)))
    document["verdict"] = "pass"
    with pytest.raises(ArtefactError, match="digest"):
        parse_report(canonical_json(document) + b"\n")
    with pytest.raises(ArtefactError, match="canonical bytes"):
        parse_report(json.dumps(document))


def test_the_seal_is_over_run_too(make_report: Any) -> None:
    document = json.loads(report_bytes(make_report()))
    document["run"]["seconds"] += 1
    with pytest.raises(ArtefactError, match="seal"):
        parse_report(canonical_json(document) + b"\n")


@pytest.mark.parametrize(
    ("written", "respelt"),
    [(b"8.3e-05", b"8.3E-05"), (b"8.3e-05", b"8.30e-05"), (b"pass", b"p\\u0061ss"), (b"{", b" {"), (b"}\n", b"}")],
)
def test_what_is_spelt_otherwise_is_refused_though_it_means_the_same(
    make_report: Any, written: bytes, respelt: bytes
) -> None:
    data = report_bytes(make_report())
    assert written in data
    assert json.loads(data.replace(written, respelt, 1)) == json.loads(data)
    with pytest.raises(ArtefactError, match="canonical bytes"):
        parse_report(data.replace(written, respelt, 1))


def drop(*path: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def put(value: Any, *path: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("recerase.audit/2", "schema"), r"recerase\.audit/2"),
        (drop("schema"), "not a recerase report"),
        (put(1, "schema"), "not a recerase report"),
        (put("perhaps", "verdict"), "verdict must be 'pass' or 'fail' or 'inconclusive', not \"perhaps\""),
        (drop("measurements", 0, "n"), r"measurements\[0\]\.n is missing"),
        (put(1, "measurements", 0, "colour"), r"measurements\[0\]\.colour is not known"),
        (put("many", "measurements", 1, "n"), r"measurements\[1\]\.n must be a whole number"),
        (put(True, "measurements", 1, "n"), r"measurements\[1\]\.n must be a whole number"),
        (put(0.5, "measurements", 1, "n"), r"measurements\[1\]\.n must be a whole number"),
        (put("0.1", "rules", 0, "measurement", "value"), r"rules\[0\]\.measurement\.value must be a number"),
        (put("nobody", "rules", 0, "measurement", "role"), r"rules\[0\]\.measurement\.role must be 'subject'"),
        (put([1], "rules", 0), r"rules\[0\] must be an object"),
        (put({}, "examples"), "examples must be a list"),
        (put([["a", 1]], "concept"), "concept must be an object"),
        (put(3, "inputs", "data"), r"inputs\.data must be text"),
        (put("yes", "extra"), "extra is not known"),
        (drop("limits"), "limits is missing"),
    ],
)
def test_what_breaks_the_schema_is_refused_with_its_place(make_report: Any, change: Change, message: str) -> None:
    document = json.loads(report_bytes(make_report()))
    change(document)
    with pytest.raises(ArtefactError, match=message) as refused:
        parse_report(signed(document))
    assert refused.value.exit_code == 4
    assert refused.value.remedy


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": NaN}', b'{"schema": 1, "schema": 2}', b"[" * 100_000],
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ArtefactError):
        parse_report(data)


@given(data=st.binary(max_size=60))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with pytest.raises(ArtefactError):
        parse_report(data)


def test_a_file_is_read_and_named_when_it_cannot_be(make_report: Any, tmp_path: Path) -> None:
    report, path = make_report(), tmp_path / "report.json"
    path.write_bytes(report_bytes(report))
    assert read_report(path) == report
    path.write_bytes(b"{}")
    with pytest.raises(ArtefactError, match=r"report\.json"):
        read_report(path)
    with pytest.raises(ArtefactError, match=r"missing\.json"):
        read_report(tmp_path / "missing.json")


def test_importing_the_report_room_imports_nothing_heavy() -> None:
    rooms = ", ".join(f"recerase.report.{name}" for name in ("schema", "wording", "text", "markdown", "html", "plots"))
    heavy = ("torch", "transformers", "matplotlib", "jinja2", "faiss", "sklearn")
    code = f"import sys, {rooms}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
