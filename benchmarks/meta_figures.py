"""What the pools of `meta.py` say of each metric: AUC and interval, the table of META.md, and the JSON that ships.

The decision that shaped this file: an interval must not be narrow because two small pools do not overlap. A bootstrap over models and
DeLong's variance both shrink to a point at an AUC of 1, which most metrics have here; Newcombe's score interval (Statistics in
Medicine 2006, part 2, method 5: Hanley and McNeil's variance at the AUC that is tried) does not: 10 + 10 models that are told
apart without a mistake say that the AUC is above .80, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import numpy as np

import recerase
from recerase.audit.card import MetricSpec
from recerase.audit.cards import PROBES, metrics
from recerase.audit.power import LEAST, SCHEMA, TABLE_FACTS
from recerase.store import pretty_json, write_bytes
from recerase.types import FloatArray

CONFIDENCE = 0.95
POWER = Path(recerase.__file__).parent / "audit" / "power.json"
BEHIND = {"catalogue": "with", "behaviour": "filter", "weights": "filter", "utility": "with"}
"""Layer -> the pool that is told from `without` where a metric is to gate: a layer behind the shop window must see behind it."""

HOW_TO_READ = """How to read it. **with**: models trained on everything; **without**: trained without the concept's interactions;
**filter**: the weights of *with*, with no concept item listed. Every one is read as a subject is, its histories as they are. The
AUC is the chance that a model which knows the concept looks worse than one which does not, in the direction that the metric's card
calls worse; ties count half. In brackets alone, or after an AUC below .5, stands the two-sided one. Intervals are at 95 %
(Newcombe), and as wide as {m} + {n} models make them: without a mistake, {whole:.2f} to 1. **halves**: the AUC between the first and
the second half of *with*, and of *without*; halves are made alike, so what is beyond .5 is chance (standard deviation {chance:.2f}).

A metric of the catalogue may gate by default where it tells *with* from *without* at {least:g} or more; one of behaviour or of
weights where it tells *filter* from *without*, for what sees only the shop window takes a filter for clean. Utility asks another
question, and a metric that is better neither way sets no limit."""
SAYS_NOT = """What this does not say: that a metric tells apart models of another kind or size, on another catalogue, or by a concept
that is less of a kind; that it tells an *erased* model from a clean one, which is harder than all of this; nor where its limit
should be. No SID moves here, so what is read under the new table is what is read under the old."""


@dataclass(frozen=True)
class Values:
    """What was read off one model."""

    measured: Mapping[str, float]
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]
    """Probe -> processor seconds; a reading that several share is the first one's."""


@dataclass(frozen=True)
class Run:
    """How the numbers were made: the head of META.md."""

    date: str
    command: str
    recipes: tuple[Mapping[str, Any], ...]
    catalogue: Mapping[str, Any]
    audit: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Auc:
    """The chance that a model of one pool looks worse than one of the other, ties half, and where it lies at 95 %."""

    value: float
    low: float
    high: float

    @property
    def two_sided(self) -> float:
        """Whichever way the metric points."""
        return max(self.value, 1 - self.value)


@dataclass(frozen=True)
class Figure:
    """A metric's power, or why it has none."""

    metric: str
    spec: MetricSpec
    apart: Mapping[str, Auc]
    """`with` and `filter`, each told from `without`; empty where a pool was not measured whole."""
    halves: Mapping[str, float]
    """Pool -> AUC between its halves, which are made alike."""
    medians: Mapping[str, float]
    why_not: str = ""

    @property
    def pool(self) -> str:
        """Which of the two comparisons counts."""
        return BEHIND[self.spec.layer]

    @property
    def gates(self) -> bool:
        """Whether it may gate by default."""
        directed = self.spec.better != "neither" and self.spec.layer != "utility"
        return bool(self.apart) and directed and self.apart[self.pool].value >= LEAST


def auc(worse: FloatArray, better: FloatArray) -> float:
    """The share of pairs of `worse` [m] and `better` [n] in which the former is above, ties half. Infinities are in order.

    Raises ValueError for NaN or an empty side.
    """
    worse, better = np.asarray(worse, np.float64), np.asarray(better, np.float64)
    if not worse.size or not better.size or np.isnan(worse).any() or np.isnan(better).any():
        raise ValueError("an AUC needs numbers on both sides")
    ordered = np.sort(better)
    below = np.searchsorted(ordered, worse, "left") + np.searchsorted(ordered, worse, "right")
    return float(below.mean() / (2 * len(ordered)))


def newcombe(value: float, m: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Both ends of the interval of an AUC of `value` from `m` and `n` models (Newcombe 2006, method 5)."""
    z, extra = NormalDist().inv_cdf((1 + confidence) / 2), (m + n) / 2 - 1

    def beyond(tried: float) -> bool:
        spread = 1 + extra * ((1 - tried) / (2 - tried) + tried / (1 + tried))
        return abs(value - tried) > z * math.sqrt(tried * (1 - tried) * spread / (m * n))

    ends = []
    for out in (0.0, 1.0):
        inside = value
        for _ in range(60):
            tried = (inside + out) / 2
            inside, out = (inside, tried) if beyond(tried) else (tried, out)
        ends.append(inside)
    return ends[0], ends[1]


def figures(values: Mapping[str, Sequence[Values]], k: Sequence[int]) -> tuple[Figure, ...]:
    """A figure for each metric that a probe which was run yields, in the order of the registry."""
    run = {probe for models in values.values() for model in models for probe in model.seconds}
    names = {spec.name for card in PROBES.values() if card.name in run for spec in card.metrics}
    known = metrics(k)
    order = [spec.name for card in PROBES.values() for spec in card.metrics]
    wanted = [name for name in known if _stem(name, known) in names]
    wanted.sort(key=lambda name: order.index(_stem(name, known)))
    return tuple(_figure(name, known[name], values) for name in wanted)


def _stem(name: str, known: Mapping[str, MetricSpec]) -> str:
    return known[name].name


def _figure(name: str, spec: MetricSpec, values: Mapping[str, Sequence[Values]]) -> Figure:
    read = {pool: [model.measured.get(name, math.nan) for model in models] for pool, models in values.items()}
    if any(math.isnan(value) for numbers in read.values() for value in numbers):
        return Figure(name, spec, {}, {}, {}, _why_not(name, values))
    arrays = {pool: np.asarray(numbers) for pool, numbers in read.items()}
    sign = -1.0 if spec.better == "higher" else 1.0
    clean = arrays["without"]
    apart = {}
    for pool in ("with", "filter"):
        found = auc(sign * arrays[pool], sign * clean)
        apart[pool] = Auc(found, *newcombe(found, len(arrays[pool]), len(clean)))
    halves = {pool: auc(*np.array_split(arrays[pool], 2)) for pool in ("with", "without")}
    return Figure(name, spec, apart, halves, {pool: float(np.median(a)) for pool, a in arrays.items()})


def _why_not(name: str, values: Mapping[str, Sequence[Values]]) -> str:
    """Why not every model has a value: the reason of the first that has none, and in how many."""
    models = [(pool, model) for pool, found in values.items() for model in found]
    lacking = [(pool, model) for pool, model in models if math.isnan(model.measured.get(name, math.nan))]
    pool, first = lacking[0]
    given = [why for skipped, why in first.skipped.items() if skipped == name or name.startswith(_all_of(skipped))]
    reason = given[0] if given else "its probe has nothing to say of these pools"
    return (
        reason if len(lacking) == len(models) else f"{reason} ({len(lacking)} of {len(models)} models, first of {pool})"
    )


def _all_of(skipped: str) -> tuple[str, ...]:
    """What the names begin with that `natural.*` stands for; a name alone stands for no other."""
    return (skipped[:-1],) if skipped.endswith(".*") else ()


def tables(found: Sequence[Figure], values: Mapping[str, Sequence[Values]], run: Run) -> str:
    """META.md."""
    m, n = len(values["with"]), len(values["without"])
    whole = newcombe(1.0, m, n)[0]
    lines = [
        "# What each metric can tell",
        "",
        _made(run, m, n),
        "",
        HOW_TO_READ.format(m=m, n=n, whole=whole, chance=_chance(m), least=LEAST),
        "",
        _summary(found),
        "",
        "| metric | layer | better | with / without | filter / without | halves | median with | filter | without | may gate |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *(_row(figure) for figure in found if figure.apart),
        "",
        *_lacking(found),
        *_not_read(values),
        SAYS_NOT,
        "",
        "Processor seconds a model (median; a reading that several probes share is counted to the first):",
        "",
        "| probe | profile | seconds |",
        "| --- | --- | ---: |",
        *_seconds(values),
        "",
    ]
    return "\n".join(lines)


def _made(run: Run, m: int, n: int) -> str:
    """How it was made: date, command, machine, pools, catalogue, settings."""
    recipes = "; ".join(", ".join(f"{key} {value:g}" for key, value in recipe.items()) for recipe in run.recipes)
    audit = ", ".join(f"{name} {value}" for name, value in run.audit.items())
    about = run.catalogue
    return (
        f"Made {run.date} with `{run.command}`; {run.where}. Pools of {m} and {n} models with the seeds 0 to {m + n - 1}, "
        f"causal, of these recipes in turn, the same in both pools: {recipes}. The catalogue is the demo's, {about['items']} items "
        f"and {about['users']:,} users; the concept is `{about['concept']}`. One further model of either kind, in no pool, stands "
        f"beside every subject as its original and as its reference. The audit's settings: {audit}."
    )


def _chance(n: int) -> float:
    """The standard deviation of the AUC between two halves of `n` models that nothing tells apart, without ties."""
    half = n // 2
    return math.sqrt((2 * half + 1) / (12 * half * half))


def _summary(found: Sequence[Figure]) -> str:
    asked = [f for f in found if f.apart and f.spec.layer != "utility" and f.spec.better != "neither"]
    halves = [value for f in found for value in f.halves.values()]
    weak = [f.metric for f in asked if not f.gates]
    told = [f"{sum(f.gates for f in asked)} of {len(asked)} metrics about the concept may gate by default."]
    if weak:
        told.append(f"Below {LEAST:g}: {', '.join(f'`{name}`' for name in weak)}.")
    seen = [f.spec.layer for f in asked if f.apart["with"].value >= LEAST > f.apart["filter"].value]
    if seen:
        layers = ", ".join(f"{seen.count(layer)} of the {layer} layer" for layer in dict.fromkeys(seen))
        told.append(f"Taken in by a filter: {layers}.")
    if halves:
        told.append(
            f"Halves, over all metrics and both pools: mean {np.mean(halves):.3f}, median {median(halves):.3f}."
        )
    return " ".join(told)


def _row(figure: Figure) -> str:
    spec, directed = figure.spec, figure.spec.better != "neither"
    cells = [f"`{figure.metric}`", spec.layer, spec.better]
    for pool in ("with", "filter"):
        value = figure.apart[pool]
        if not directed:
            cells.append(f"({value.two_sided:.2f})")
        else:
            other = f" ({value.two_sided:.2f})" if value.value < 0.5 else ""
            cells.append(f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]{other}")
    cells.append(" · ".join(f"{value:.2f}" for value in figure.halves.values()))
    cells += [f"{figure.medians[pool]:.3g}" for pool in ("with", "filter", "without")]
    return f"| {' | '.join([*cells, _may(figure)])} |"


def _may(figure: Figure) -> str:
    if figure.spec.layer == "utility":
        return "asks of utility"
    if figure.spec.better == "neither":
        return "no direction"
    if figure.metric in TABLE_FACTS:
        return "a fact of the table"
    return "yes" if figure.gates else "**no**"


def _lacking(found: Sequence[Figure]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for figure in found:
        if not figure.apart:
            by_reason.setdefault(figure.why_not, []).append(f"`{figure.metric}`")
    return [f"No figure: {', '.join(names)}: {reason}.\n" for reason, names in by_reason.items()]


def _not_read(values: Mapping[str, Sequence[Values]]) -> list[str]:
    left = [f"`{name}`" for name in PROBES if not any(name in model.seconds for model in values["with"])]
    return [f"Probes that were not read: {', '.join(left)}.\n"] if left else []


def _seconds(values: Mapping[str, Sequence[Values]]) -> list[str]:
    models = [model for pool in ("with", "without") for model in values[pool]]
    probes = [name for name in PROBES if any(name in model.seconds for model in models)]
    spent = {name: median(model.seconds[name] for model in models if name in model.seconds) for name in probes}
    return [f"| {name} | {PROBES[name].profile} | {seconds:.1f} |" for name, seconds in spent.items()]


def write_power(found: Sequence[Figure], run: Run, models: int, path: Path | None = None) -> None:
    """The JSON that ships: of every metric its AUC against `without`, and of those without one the reason."""
    told: dict[str, Any] = {}
    for figure in found:
        if figure.apart:
            value = figure.apart[figure.pool]
            directed = figure.spec.better != "neither"
            ends = {"auc": value.value, "low": value.low, "high": value.high} if directed else {}
            numbers = {name: round(number, 4) for name, number in {**ends, "two_sided": value.two_sided}.items()}
            told[figure.metric] = {**numbers, "pool": figure.pool}
    reasons = {figure.metric: figure.why_not for figure in found if not figure.apart}
    whole = {"schema": SCHEMA, "date": run.date, "n": [models, models], "metrics": told, "no_figure": reasons}
    write_bytes(path or POWER, pretty_json(whole))
