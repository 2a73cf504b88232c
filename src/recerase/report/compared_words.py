"""How a comparison is worded, so that console, Markdown and HTML show the same tables.

The decision that shaped this file: a table is (title, headers, rows of text), cut from one list of columns; a cell is the mean
over seeds with the spread beside it, and the number of users or histories stands in a line of its own above all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from recerase.report.compared import APART, Comparison, Figure, Row, Search
from recerase.report.wording import number, percent, title_text
from recerase.types import Scope

Shown = Callable[[float], str]


@dataclass(frozen=True)
class Table:
    """One table of a comparison."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int]
    """Columns of numbers."""


_MEASURES = ("Recall", "MRR", "NDCG")
_LEAKAGE: tuple[tuple[str, str, Shown], ...] = (
    ("natural.exposure@10", "exposure@10", number),
    ("saturated.exposure@10", "concept-only", number),
    ("natural.mass.old", "mass, old SIDs", number),
    ("saturated.mass.old", "concept-only", number),
    ("natural.mass.new", "mass, new SIDs", number),
    ("saturated.mass.new", "concept-only", number),
)
_LIKENESS: tuple[tuple[str, str, Shown], ...] = (
    (APART, "orders apart", number),
    ("natural.mass.old ratio/reference", "mass / reference, old SIDs", number),
    ("natural_concept_users.mass.old ratio/reference", "concept users", number),
    ("saturated.mass.old ratio/reference", "concept-only", number),
    ("natural.mass.new ratio/reference", "new SIDs", number),
    ("natural_concept_users.mass.new ratio/reference", "concept users", number),
    ("saturated.mass.new ratio/reference", "concept-only", number),
    ("equivalent", "masses equivalent", percent),
)
_TOLD: tuple[tuple[str, str, Shown], ...] = (
    ("likeness.auc", "AUC, from references", number),
    ("likeness.auc of/reference", "AUC, references", number),
    ("likeness.auc difference/reference", "difference", number),
    ("influence.history", "history influence", number),
)
_RELEARN: tuple[tuple[str, str, Shown], ...] = tuple(
    column
    for kind in ("forget", "benign")
    for column in (
        (f"relearn.{kind}.steps", f"steps, {kind}", number),
        (f"relearn.{kind}.reached", "brought back", percent),
        (f"relearn.{kind}.steps ratio/reference", "steps / reference", number),
    )
)
_UCAN_FORGET: tuple[tuple[str, str, Shown], ...] = (
    ("ucan.kl", "KL", number),
    ("ucan.prediction_shift", "shift %", number),
    ("ucan.perplexity", "perplexity", number),
    *((f"ucan.forget.{measure.lower()}@{k}", f"{measure}@{k}", number) for measure in _MEASURES for k in (5, 10)),
)
_UCAN_RETAIN: tuple[tuple[str, str, Shown], ...] = (
    *((f"ucan.retain.{measure.lower()}@{k}", f"{measure}@{k}", number) for measure in _MEASURES for k in (5, 10)),
    ("ucan.trade_off@10", "trade-off@10", number),
)
_UTILITY: tuple[tuple[str, str, Shown], ...] = (
    ("utility.ndcg@10", "NDCG@10", number),
    ("utility.ndcg@10 drop/original", "drop vs original", percent),
    ("utility.ndcg@10 drop/reference", "drop vs reference", percent),
    ("utility_concept_users.ndcg@10", "concept users", number),
    ("utility_neighbours.ndcg@10", "neighbours", number),
    ("utility_neighbours.ndcg@10 ratio/reference", "neighbours / reference", number),
)
_TABLES = (
    ("Leakage", _LEAKAGE),
    ("Likeness to the reference", _LIKENESS),
    ("Told apart, and influence of histories", _TOLD),
    ("Utility", _UTILITY),
    ("Relearning", _RELEARN),
    ("U-CAN's figures on the concept's pairs", _UCAN_FORGET),
    ("U-CAN's figures on retained pairs", _UCAN_RETAIN),
)
_STANDINGS = {
    "alone": "alone on the front",
    "front": "on the front",
    "tied": "tied",
    "dominated": "dominated",
    "remembers": "does not forget",
    "": "",
}


def title_of(comparison: Comparison) -> str:
    """What the comparison is called."""
    return f"Comparison: {title_text(str(comparison.concept.get('name', 'concept')))}"


def about(comparison: Comparison) -> str:
    """Concept, methods and seeds in one line."""
    concept = comparison.concept
    counts = [f"{concept[k]:,} {k}" for k in ("items", "interactions", "users") if isinstance(concept.get(k), int)]
    counts += [f"seeds {', '.join(map(str, comparison.seeds))}", f"scope {' and '.join(comparison.scopes)}"]
    counts.append(
        "untuned" if comparison.search is None else f"at most {comparison.search.budget} settings tried a method"
    )
    return ", ".join(counts)


def tables(comparison: Comparison, scope: Scope) -> Iterator[Table]:
    """The tables of one scope: leakage, likeness, utility and whatever else was read, cost and front, what failed or was chosen."""
    rows = [row for row in comparison.rows if row.scope == scope]
    for title, columns in _TABLES:
        kept = [column for column in columns if any(column[0] in row.figures for row in rows)]
        if kept:
            yield _figures(title, kept, rows)
    methods = [row for row in rows if row.kind == "method"]
    cells = tuple((title_text(row.name), *_cost(comparison, row), _tuning(row), _standing(row)) for row in methods)
    headers = ("method", "seconds", "processor", "of training", "steps", "seeds", "settings", "front")
    yield Table("Cost and front", headers, cells, frozenset({1, 2, 3, 4, 5}))
    failed = tuple((title_text(row.name), title_text(why, 400)) for row in methods for why in row.failures)
    if failed:
        yield Table("Failed", ("method", "why"), failed, frozenset())
    if comparison.search is not None:
        yield _search(comparison.search, scope)


def _figures(title: str, columns: list[tuple[str, str, Shown]], rows: list[Row]) -> Table:
    """The rows that have a figure, below a line that says how many users or histories each column rests on."""
    shown = [row for row in rows if any(name in row.figures for name, _, _ in columns)]
    sizes = []
    for name, _, _ in columns:
        found = sorted({row.figures[name].n for row in shown if name in row.figures})
        sizes.append(" or ".join(f"{n:,}" for n in found))
    cells = [("n", *sizes)]
    for row in shown:
        own = tuple(cell(row.figures[name], how) if name in row.figures else "" for name, _, how in columns)
        cells.append((title_text(row.name), *own))
    return Table(
        title, ("model", *(header for _, header, _ in columns)), tuple(cells), frozenset(range(1, len(columns) + 1))
    )


def cell(found: Figure, shown: Shown = number) -> str:
    """`0.041 ±0.002`: the mean over seeds, and the standard deviation where there are several."""
    value = shown(found.value)
    return value if found.sd is None or not math.isfinite(found.sd) else f"{value} ±{shown(found.sd)}"


def interval(found: Figure, shown: Shown = number) -> str:
    """`[0.03, 0.05]`."""
    return "" if found.interval is None else f"[{shown(found.interval.low)}, {shown(found.interval.high)}]"


def _cost(comparison: Comparison, row: Row) -> tuple[str, str, str, str, str]:
    """Seconds, processor seconds, share of training (of processor time where that is known), steps and seeds of a row."""
    cost = comparison.run.get("cost", {}).get(row.scope, {}).get(row.name, {})
    share = cost.get("share") if cost.get("cpu_share") is None else cost["cpu_share"]
    seconds, busy = (f"{cost[name]:,.1f}" if name in cost else "" for name in ("seconds", "cpu_seconds"))
    told = percent(share) if share is not None else "not known" if seconds else ""
    return seconds, busy, told, "" if row.steps is None else f"{row.steps:,}", f"{len(row.seeds)}"


def _tuning(row: Row) -> str:
    if not row.seeds:
        return ""
    return {"untuned": "its own", "given": "given by hand", "searched": "searched", "": ""}[row.tuning]


def _standing(row: Row) -> str:
    by = ", ".join(title_text(name) for name in row.beaten_by)
    return f"{_STANDINGS[row.standing]}{f': {by}' if by else ''}"


def _search(search: Search, scope: Scope) -> Table:
    """Every setting that was tried, as validation users saw it."""
    rows, likened = [], any(trial.apart is not None for trial in search.trials)
    names = ("exposure@10", "mass", *(("orders apart",) if likened else ()), "drop")
    for trial in search.trials:
        if trial.scope == scope:
            changed = ", ".join(f"{name}={number(float(value))}" for name, value in trial.settings.items()) or "its own"
            away = [number(trial.apart) if trial.apart is not None else ""] if likened else []
            seen = [*(number(value) for value in trial.leak), *away, percent(trial.drop)]
            seen = ["failed", *[""] * (len(names) - 1)] if trial.failure else seen
            rows.append((title_text(trial.method), changed, *seen, "chosen" if trial.chosen else ""))
    title = f"Settings tried, on {search.users:,} validation users (seed {search.seed})"
    right = frozenset(range(2, 2 + len(names)))
    return Table(title, ("method", "setting", *names, ""), tuple(rows), right)
