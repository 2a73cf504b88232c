"""A comparison of methods <-> `recerase.comparison/1`: one canonical JSON document, as an audit's.

The decision that shaped this file: what a clock says (seconds, and shares made of them) is in the object `run`, so that a
comparison which was interrupted and continued has the digest of a straight one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
from recerase.types import Interval, Scope

SCHEMA = "recerase.comparison/1"
_REMEDY = "Make the comparison again; its finished cells are found."

Standing = Literal["alone", "front", "tied", "dominated", "remembers", ""]
"""`alone` is on the front, too; `remembers`: a method that leaves the concept in lists, and is no candidate."""
EARLIER = "earlier concepts"
"""Of the inputs: what was erased before."""
LEAK, APART = "leak", "apart"
"""What forgetting is measured by: mass that is left, or orders of magnitude from the references where there are any."""


@dataclass(frozen=True)
class Figure:
    """One number of a row: a mean over seeds of means over users."""

    value: float
    n: int
    """Users or histories behind it, a seed."""
    seeds: int
    sd: float | None = None
    """Standard deviation over seeds; None with one seed."""
    interval: Interval | None = None
    """Over users, of the mean over seeds, and as wide as the values of all seeds."""


@dataclass(frozen=True)
class Row:
    """One model, or the models a method made with one setting and several seeds."""

    name: str
    kind: Literal["control", "reference", "method"]
    scope: Scope
    figures: Mapping[str, Figure] = field(default_factory=dict)
    """By the audit's names; `NAME drop/WHOM` and `NAME ratio/WHOM` are comparisons."""
    tuning: Literal["untuned", "searched", "given", ""] = ""
    """`given`: settings were set by hand. Empty for what has no settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    """Those that made a model."""
    steps: int | None = None
    """Gradient steps; None where the method counts none."""
    standing: Standing = ""
    beaten_by: tuple[str, ...] = ()
    """Rows that are at least as good in both figures of the front, and clearly (dominated) or by a hair (tied) better in one."""
    failures: tuple[str, ...] = ()
    """`seed 1: what the method said when it refused`."""


@dataclass(frozen=True)
class Trial:
    """One setting that a search tried, as validation users saw it."""

    method: str
    scope: Scope
    settings: Mapping[str, Any]
    """The settings that were searched."""
    leak: tuple[float, ...] = ()
    """exposure@10 and concept mass, what the choice is made by, in this order."""
    drop: float = 0.0
    """Of NDCG@10 on retained items, against the original."""
    surely: float | None = None
    """The lower end of its interval, paired by user: it drops by at least so much."""
    apart: float | None = None
    """Orders of magnitude from the references' mass, what the choice is made by where there are references."""
    chosen: bool = False
    failure: str = ""


@dataclass(frozen=True)
class Search:
    """How settings were chosen."""

    budget: int
    """Settings a method, its own first."""
    seed: int
    max_drop: float
    criterion: str
    users: int
    """Validation users."""
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Methods on one checkpoint, side by side. Written as `recerase.comparison/1`."""

    concept: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name -> sha256: checkpoint, data, concept, settings, code, each reference, and EARLIER where something was erased before."""
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    scopes: tuple[Scope, ...]
    rows: tuple[Row, ...]
    confidence: float
    search: Search | None = None
    front: str = ""
    """What its two figures are, who is no candidate, when a row counts as beaten, and who stands on it: a line each."""
    notes: tuple[str, ...] = ()
    """What the figures do not say."""
    run: Mapping[str, Any] = field(default_factory=dict)
    """Volatile: started, seconds, environment, `cost`: scope -> row -> seconds and share of training."""


def axis_of(rows: Iterable[Row]) -> str:
    """What the front of these rows measures forgetting by."""
    return APART if any(row.kind == "method" and APART in row.figures for row in rows) else LEAK


def comparison_bytes(comparison: Comparison) -> bytes:
    """The comparison as canonical JSON, sealed like a report."""
    return sealed_bytes(_body(comparison), comparison.run)


def comparison_digest(comparison: Comparison) -> str:
    """sha256 of everything but `run`: equal for two runs of the same comparison."""
    return document_digest(_body(comparison), ())


def parse_comparison(data: bytes | str) -> Comparison:
    """The comparison in a document. Raises ArtefactError when it is none, or not what its digests say."""
    document = open_document(data, SCHEMA, "comparison")
    hints = hints_of(Comparison)
    try:
        check_keys(document, {"schema", *VOLATILE, *hints})
        check_seals(document, "comparison", _REMEDY)
        return Comparison(**{name: decode(document[name], hint, name) for name, hint in hints.items()})
    except (Unfit, RecursionError) as error:
        raise ArtefactError(f"This comparison breaks {SCHEMA}: {error}.", _REMEDY) from error


def read_comparison(path: str | Path) -> Comparison:
    """The comparison in a file. Raises ArtefactError, naming the file, when it cannot be read or is none."""
    data = read_bytes(path)
    try:
        return parse_comparison(data)
    except ArtefactError as error:
        raise ArtefactError(f"{path}: {error.message}", error.remedy) from error


def _body(comparison: Comparison) -> dict[str, Any]:
    hints = {name: hint for name, hint in hints_of(Comparison).items() if name != "run"}
    return {"schema": SCHEMA, **{name: encode(getattr(comparison, name), hint, name) for name, hint in hints.items()}}
