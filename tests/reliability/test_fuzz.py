"""Whatever is in a file or a spec, only our errors come out, soon and in little memory.

Valid documents are changed at random places (replaced, deleted, repeated, of another type, damaged byte by byte), because
random bytes alone never get past the first check; what a digest would catch is sealed again, so that the reader is reached.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tests.conftest import SOAK, counted
from tests.reliability.changes import changed, damaged, deepened, json_of, parquets
from tests.reliability.conftest import POLICY, Job

from recerase.audit.policy_file import load_policy
from recerase.catalog import Items, load_catalogue, parse_concept
from recerase.catalog.items import items_from_table
from recerase.errors import RecEraseError
from recerase.report.codec import document_bytes, document_digest
from recerase.report.schema import parse_report
from recerase.report.text import report_text
from recerase.sid.table_files import read_table

Fuzz = Callable[[Callable[[], None]], None]
EXAMPLES = counted(400, 200_000)
ROUND = 2000
"""Examples drawn in one go; hypothesis remembers what it has drawn, and a soak's worth of that is gigabytes."""
SECONDS, MEGABYTES = 1.0, 512
fuzzing = settings(
    max_examples=min(EXAMPLES, ROUND),
    deadline=None,
    database=None,
    derandomize=SOAK == 0,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Tally:
    """What came of the examples of one target."""

    examples: int = 0
    accepted: int = 0
    escaped: int = 0
    slowest: float = 0.0
    peak: int = field(default_factory=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    @contextmanager
    def example(self) -> Iterator[None]:
        """Ours, or none: any other exception goes on to the test, and so does one that took too long."""
        self.examples += 1
        before, refusal = sum(os.times()[:4]), None
        try:
            yield
            self.accepted += 1
        except RecEraseError as error:
            refusal = error
        except BaseException:
            self.escaped += 1
            raise
        spent = sum(os.times()[:4]) - before
        self.slowest = max(self.slowest, spent)
        assert spent < SECONDS, f"took {spent:.2f} s of CPU"
        if refusal is not None:
            assert refusal.exit_code in (2, 4), refusal
            assert refusal.message, "no message"
            assert refusal.remedy, refusal.message
            str(refusal).encode("utf-8", "surrogatepass")

    @property
    def grown(self) -> int:
        """Megabytes by which the largest size of this process grew."""
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.peak) // 1024


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def fuzz(tally: Tally, figure: Callable[..., None]) -> Callable[[Callable[[], None]], None]:
    """Run the examples, tell how many escaped, and hold the run as a whole to its limits."""

    def run(examples: Callable[[], None]) -> None:
        try:
            for number in range(-(-EXAMPLES // ROUND)):
                (seed(number)(examples) if SOAK else examples)()
        finally:
            figure("fuzzing: examples that escaped as anything but our errors", tally.escaped, of=tally.examples)
        assert tally.grown < MEGABYTES, f"{tally.grown} MB"
        assert tally.examples >= EXAMPLES
        assert 0 < tally.accepted < tally.examples, "a fuzzer that never, or always, gets through tests nothing"

    return run


# ------------------------------------------------------------------------------------------------------ the policy

DEFAULT = files("recerase.audit").joinpath("default_policy.toml").read_bytes()


def toml_of(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml_of(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_of, value)) + "]"
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf") if value is not None else '""'


@st.composite
def policies(draw: st.DrawFn) -> bytes:
    import tomllib

    how = draw(st.integers(0, 9))
    if how < 6:
        valid = tomllib.loads(draw(st.sampled_from([POLICY, DEFAULT.decode()])))
        valid["waiver"] = [{"rule": valid["rule"][0]["id"], "concept": "x", "reason": "y", "expires": date(2030, 1, 1)}]
        document = draw(changed(lambda: valid))
        text = "\n".join(f"{json.dumps(str(k))} = {toml_of(v)}" for k, v in document.items())
        return deepened(text.encode("utf-8", "surrogatepass"))
    if how < 9:
        return draw(damaged(lambda: DEFAULT))
    return draw(
        st.sampled_from(
            [
                b"x = " + b"[" * 5000,
                b"x = " + b"9" * 5000,
                b"x = 0x" + b"f" * 9000,
                b'schema = "' + b"a" * 10**6,
                b"a." * 5000,
            ]
        )
        | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )


def test_policies(tally: Tally, fuzz: Fuzz, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"

    @fuzzing
    @given(policies())
    def examples(data: bytes) -> None:
        file.write_bytes(data)
        with tally.example():
            load_policy(file)

    fuzz(examples)


# ------------------------------------------------------------------------------------------------------ the concept

ROWS = {
    "item_id": ["1", "2", "\U0001f9e8", "4", "5", "6", "7", "8"],
    "title": ["Red vape", "Blue vape pod", "<script>", "a" * 10_000, "b" * 400 + "!", "", "caf\u00e9", "x y z"],
    "description": [""] * 8,
    "categories": [["A", "B"], [], ["A"], None, ["C"], [], [], []],
    "brand": ["Acme", None, "Bolt", "Acme", "", "\u05d0\u05d1", None, None],
    "price": [1.0] * 8,
}
SPECS = [
    "brand=Acme",
    'category="A"',
    r'text~"\bvape\b"',
    "title~^(red|blue) v.*",
    "item:1,2",
    "@ids.txt",
    'like:"red":0.4',
]
PIECES = [
    "(",
    ")",
    "(a+)+",
    "(a|a)*",
    "a{9999}",
    "{1,99999999999}",
    "[",
    "[^",
    "\\",
    "(?P<x>",
    "(?=",
    "(?i)",
    "\\b",
    "$",
    "*",
    ".*",
]
MARKS = [*"!=~:@,\"'", " ", "\0", "\n", "\ud800", "/dev/zero", "../", "nan", "1e999", "\u212a", "\u0130", "x" * 5000]


@st.composite
def specs(draw: st.DrawFn) -> str:
    spec = draw(st.sampled_from(SPECS))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(spec)))
        piece = draw(st.sampled_from(PIECES) | st.sampled_from(MARKS) | st.sampled_from(SPECS) | st.text(max_size=3))
        spec = spec[:at] + piece + spec[at + draw(st.sampled_from([0, 0, 1, 3])) :]
    return spec


def test_concept_specs(tally: Tally, fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("1\n2\n")
    items: Items = items_from_table(pa.table(ROWS))
    points = np.random.default_rng(0).normal(size=(len(items), 3))

    @fuzzing
    @given(st.lists(specs(), min_size=1, max_size=2))
    def examples(words: list[str]) -> None:
        with tally.example():
            parse_concept(words, items, embeddings=points, allow_large=True)

    fuzz(examples)


# ------------------------------------------------------------------------------------------------------ the report


def sealed_again(document: Any) -> bytes:
    """The document with digests that fit it, where it can have any."""
    try:
        document["digest"] = document_digest(document, ("digest", "run", "seal"))
        document["seal"] = document_digest(document, ("seal",))
        return deepened(document_bytes(document))
    except ValueError:  # NaN, or half a surrogate pair: no canonical JSON
        return json_of(document)


def test_reports(tally: Tally, fuzz: Fuzz, job: Job) -> None:
    written = job.report.read_bytes()
    valid = json.loads(written)

    @fuzzing
    @given(
        st.one_of(
            changed(lambda: valid).map(sealed_again),
            changed(lambda: valid).map(sealed_again),
            damaged(lambda: written),
            st.binary(max_size=40),
        )
    )
    def examples(data: bytes) -> None:
        with tally.example():
            report_text(parse_report(data))

    fuzz(examples)


# --------------------------------------------------------------------------------------------------- tables in parquet


SIDS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "codes": pa.array([[1, 2], [1, 3], None, [0, 0]], pa.list_(pa.int32())),
        "listed": [True, True, False, True],
        "resolved": [False] * 4,
    }
)
JSON_SIDS = {"a": ["<a_1>", "<b_2>"], "b": ["<a_1>", "<b_3>"], "c": [7, 9], "\U0001f9e8": ["a_0", "b_0"]}
SCHEMA = {
    "schema": "recerase.sids/1",
    "codes": [2, 4],
    "rows": [[3, 4], [5, 6, 7, 8]],
    "vocabulary": 9,
    "special": {"pad": 0, "bos": 1, "eos": 2},
    "collisions": "unique",
}


def test_sid_tables(tally: Tally, fuzz: Fuzz, tmp_path: Path) -> None:
    """JSON and parquet, with and without a schema beside it."""
    beside = tmp_path / "beside"
    beside.mkdir()
    files_of = st.one_of(
        st.tuples(st.just(tmp_path / "t.json"), changed(lambda: JSON_SIDS).map(json_of), st.just(b"")),
        st.tuples(st.just(tmp_path / "t.json"), damaged(lambda: json_of(JSON_SIDS)), st.just(b"")),
        st.tuples(st.just(tmp_path / "t.parquet"), parquets(SIDS), st.just(b"")),
        st.tuples(st.just(beside / "t.parquet"), parquets(SIDS), changed(lambda: SCHEMA).map(json_of)),
    )

    @fuzzing
    @given(files_of)
    def examples(file: tuple[Path, bytes, bytes]) -> None:
        file[0].write_bytes(file[1])
        (beside / "sid_schema.json").write_bytes(file[2])
        with tally.example():
            table = read_table(file[0])
            table.collisions(), table.rows(), table.digest, table.aligned(table.item_ids[::-1]), table.collision_rate

    fuzz(examples)


INTERACTIONS = pa.table(
    {
        "user_id": ["u", "u", "v", "u", "u"],
        "item_id": ["1", "2", "4", "4", "5"],
        "timestamp": [1, 2, 3, 4, 5],
        "rating": [1.0] * 5,
    }
)


def test_data_directories(tally: Tally, fuzz: Fuzz, tmp_path: Path) -> None:
    tables = {"items": pa.table({**ROWS, "title": ["t"] * 8}), "interactions": INTERACTIONS}
    changing = st.sampled_from([["items"], ["interactions"], ["items", "interactions"]])

    @fuzzing
    @given(st.data(), changing)
    def examples(data: st.DataObject, names: list[str]) -> None:
        for name, valid in tables.items():
            if name in names:
                (tmp_path / f"{name}.parquet").write_bytes(data.draw(parquets(valid)))
            else:
                pq.write_table(valid, tmp_path / f"{name}.parquet")
        with tally.example():
            load_catalogue(tmp_path).interactions.split()

    fuzz(examples)
