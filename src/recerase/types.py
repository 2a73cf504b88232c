"""The frozen values that travel between rooms; no behaviour beyond what keeps them consistent.

Shape letters, everywhere in this package: B batch, T history tokens, H history items, L levels, K codes a level,
V vocabulary, N items, M concept items, D embedding width, W beam width, Q tree nodes a step.
Item numbers are row numbers of the catalogue (items.parquet), never ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]

Layer = Literal["catalogue", "behaviour", "weights", "utility"]
Role = Literal["subject", "original", "filter", "reference"]
Scope = Literal["output", "influence"]
Profile = Literal["quick", "standard", "thorough"]
FailOn = Literal["policy", "regression", "any", "never"]
Alike = Literal["equivalent", "not equivalent", "too few", "not known"]


@dataclass(frozen=True)
class Interval:
    """Where the truth lies, with `confidence`; `method` names the construction (wilson, bootstrap, rule-of-three)."""

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Measurement:
    """One number a probe read off one model, `role`; it decides nothing. Of several references: their mean."""

    metric: str
    """Dotted name, probe first: `natural.exposure@10`."""
    role: Role
    value: float
    n: int
    """Independent units behind the value (users or histories)."""
    layer: Layer
    interval: Interval | None = None
    versus: Role | None = None
    """For a comparison: the model compared with."""
    kind: Literal["value", "drop", "ratio"] = "value"
    """`drop` = (versus - role) / versus, `ratio` = role / versus, both paired over users where values are."""
    better: Literal["lower", "higher", "neither"] = "lower"
    values: FloatArray | None = field(default=None, repr=False, compare=False)
    """[n] the value a unit, in an order shared by every role, for paired comparison; never serialised."""


@dataclass(frozen=True)
class Skipped:
    """What was not measured and why, so that it can never look like what passed."""

    metric: str
    """A metric, or `probe.*` when the whole probe was skipped."""
    role: Role
    reason: str


class Result(str, Enum):
    """What one rule concluded."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    WAIVED = "waived"


class Verdict(str, Enum):
    """What the policy concluded; the exit code follows from it alone."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        return {"pass": 0, "fail": 1, "inconclusive": 5}[self.value]


@dataclass(frozen=True)
class Rule:
    """One line of a policy: a metric and its limit. Passes with the whole interval within it, fails with the whole beyond it."""

    id: str
    metric: str
    max: float | None = None
    min: float | None = None
    max_ratio_to: Role | None = None
    min_ratio_to: Role | None = None
    """With `max`, with `min`: the limit is on subject / that role."""
    max_drop_vs: Role | None = None
    max_drop: float | None = None
    """Largest relative drop against `max_drop_vs`."""
    optional: bool = False
    """Undecided without a value beyond its limit, it is reported and does not make the verdict inconclusive."""
    profile: Profile | None = None
    """The first profile whose audits ask it; None: all do, and where its probe is not run it is inconclusive."""
    scope: Scope | None = None
    """The scope in which it is asked; None: in both."""


@dataclass(frozen=True)
class Waiver:
    """Forgives one rule for one concept until an ISO date (inclusive)."""

    rule: str
    concept: str
    reason: str
    expires: str


@dataclass(frozen=True)
class Policy:
    """The rules, and how sure a pass must be."""

    rules: tuple[Rule, ...]
    waivers: tuple[Waiver, ...] = ()
    profile: Profile = "quick"
    confidence: float = 0.95
    min_users: int = 1000
    on_inconclusive: Literal["fail", "inconclusive"] = "inconclusive"
    digest: str = ""


@dataclass(frozen=True)
class Finding:
    """What one rule concluded, from which number."""

    rule: Rule
    result: Result
    reason: str
    """One plain sentence."""
    measurement: Measurement | None = None
    limit: str = ""
    """The limit as it is shown: `<= 0.001`, `drop vs original <= 1 %`."""
    enough: int | None = None
    """Of an inconclusive rule that was measured: how many units (as `n` counts them) would have been enough to decide it in four
    audits of five, were the value the truth. None: of other rules, and where no number would be."""


@dataclass(frozen=True)
class Control:
    """A model whose verdict is known beforehand, run to see whether the audit can tell."""

    name: Literal["original", "filter", "reference"]
    expected: str
    """`fails every layer`, `passes catalogue, fails behaviour`, `passes`."""
    observed: str
    holds: bool | None
    """None: could not be run (says why in `observed`)."""


@dataclass(frozen=True)
class Decision:
    """The one verdict, and everything it rests on; console, files and exit code all read this object."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...]
    controls: tuple[Control, ...] = ()
    warnings: tuple[str, ...] = ()
    as_of: str = ""
    """ISO date that makes the same decision again: the day after the last of the concept's waivers that had expired;
    empty when none had. Not the day of the audit, so that equal runs on two days stay equal."""
    profile: Profile = "quick"
    """The profile that was run: which probes, and which rules were asked."""


@dataclass(frozen=True)
class BaselineRule:
    """What one rule concluded in the audit that was accepted."""

    rule: Rule
    result: Result
    limit: str
    value: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Baseline:
    """An audit that somebody accepted, to hold later ones against. Written as `recerase.baseline/1`."""

    concept: str
    concept_digest: str
    policy: str
    """Digest of the policy it was decided by."""
    report: str
    """Digest of the report it was made of."""
    verdict: Verdict
    rules: tuple[BaselineRule, ...]
    controls: tuple[str, ...]
    """Names of the controls that held."""
    reason: str
    """Why it was accepted, in the words of who did; on an ISO date."""
    date: str
    digest: str = ""
    """sha256 of all the rest."""


@dataclass(frozen=True)
class Gate:
    """What the process says of a verdict: the exit code, and why; every format shows this object."""

    fail_on: FailOn
    exit_code: int
    reason: str
    """One plain sentence."""
    regressions: tuple[str, ...] = ()
    """Rules that are worse than in the baseline; empty without one."""
    undecided: tuple[str, ...] = ()
    """What the baseline had decided and this audit has not, or leaves open and worse: rules, controls, or `verdict`."""
    baseline: str = ""
    """Digest of the baseline; empty without one."""


@dataclass(frozen=True)
class Environment:
    """Where a number was made; goes into every report. `threads` are those of each of the `processes` that shared the work."""

    recerase: str
    python: str
    torch: str
    platform: str
    device: str
    dtype: str
    threads: int
    seed: int
    deterministic: bool
    packages: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1


@dataclass(frozen=True)
class Move:
    """One item's change of SID."""

    item_id: str
    title: str
    old: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One user whose list shows the concept before, and what stands there after."""

    user_id: str
    history: tuple[str, ...]
    before: tuple[str, ...]
    """Titles recommended by the original, best first."""
    before_concept: tuple[bool, ...]
    after: tuple[str, ...]
    after_concept: tuple[bool, ...]


@dataclass(frozen=True)
class ReferenceFigures:
    """What one of several references showed by itself; `name` is what the report's inputs call it: reference, reference.2."""

    name: str
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class LikenessRow:
    """One test of whether the audited model could be one more of several references; it informs and gates nothing.

    A mass: `value` is its ratio to the references', to stay within the factor `limit`, both ways, with its whole interval. `auc`:
    how much better a classifier tells the model from a reference than references from each other, to stay below `limit`.
    """

    metric: str
    verdict: Alike
    reason: str
    n: int
    value: float | None = None
    interval: Interval | None = None
    limit: float | None = None
    auc: float | None = None
    auc_references: float | None = None


@dataclass(frozen=True)
class Report:
    """An audit, whole. Written as `recerase.audit/1` by report/schema.py."""

    decision: Decision
    gate: Gate
    measurements: tuple[Measurement, ...]
    skipped: tuple[Skipped, ...]
    concept: Mapping[str, Any]
    """name, spec, items, interactions, users, digest, scope."""
    inputs: Mapping[str, str]
    """Name -> sha256 digest: subject, original, reference (further ones: reference.2 and on), data, policy, concept, code."""
    method: Mapping[str, Any] = field(default_factory=dict)
    """How the subject was erased, if it was: name, config, summary, tensors changed and identical."""
    moves: tuple[Move, ...] = ()
    examples: tuple[Example, ...] = ()
    curves: Mapping[str, Any] = field(default_factory=dict)
    """Plot data: name -> {"x": [...], "role": [...]} lists of floats."""
    policy: Policy | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    """Volatile: started, seconds, environment, command. Not part of the canonical digest."""
    limits: tuple[str, ...] = ()
    """What was not tested and what a pass does not mean."""
    references: tuple[ReferenceFigures, ...] = ()
    likeness: tuple[LikenessRow, ...] = ()
    """Both are empty, and not written, where no two references were given."""


class Observer(Protocol):
    """Told how long work is going; the library itself never prints."""

    def start(self, task: str, total: int | None) -> None: ...

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None: ...

    def finish(self, task: str) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """The observer that says nothing."""

    def start(self, task: str, total: int | None) -> None: ...

    def advance(self, task: str, step: int = 1, **figures: float | str) -> None: ...

    def finish(self, task: str) -> None: ...

    def note(self, text: str) -> None: ...


SILENT = Silent()
