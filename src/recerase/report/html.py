"""A report as one HTML file: verdict first, plots inline, nothing fetched, nothing run.

The decision that shaped this file: the template only places what is prepared here as plain text, and everything is
escaped by jinja2; the plots are the one exception, and they hold no word that came from a user.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recerase.report.drawing import Plot
from recerase.report.labels import UNITS, metric_label
from recerase.report.layers import all_groups, headline_groups
from recerase.report.likeness import MEANING, TITLE, likeness_cells
from recerase.report.plots import plots
from recerase.report.schema import SCHEMA, report_digest
from recerase.report.wording import (
    ROLES,
    Row,
    change_text,
    comparison,
    facts,
    find_row,
    gate_text,
    grouped_skips,
    interval_text,
    number,
    percent,
    role_names,
    rules_tally,
    title_text,
    value_text,
)
from recerase.types import Example, Finding, Measurement, Report

if TYPE_CHECKING:
    from jinja2 import Template

MOVES_SHOWN = 200
EXAMPLES_SHOWN = 20
_TILES = (
    ("natural.exposure", "Exposure", "of recommended slots, all users"),
    ("saturated.exposure", "Saturated exposure", "of slots, concept-only histories"),
    ("natural.mass.old", "Concept mass", "probability of the old SIDs"),
)


@dataclass(frozen=True)
class Tile:
    """One figure of the headline: what it was, what it is, and how sure that is."""

    title: str
    unit: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class Gauge:
    """A rule's interval and limit on one line, in percent of its width; `over` where the value runs off it."""

    low: float
    high: float
    point: float
    limit: float
    over: bool


@dataclass(frozen=True)
class RuleLine:
    """A finding as the page shows it."""

    finding: Finding
    label: str
    value: str
    interval: str
    n: str
    limit: str
    gauge: Gauge | None


@dataclass(frozen=True)
class ListLine:
    """One recommended title, and whether it is a concept item."""

    title: str
    concept: bool


def report_html(report: Report) -> str:
    """The whole page. Equal reports give equal pages."""
    return page_template("report.html.j2").render(**_page(report))


@functools.cache
def page_template(name: str) -> Template:
    """A template of this room, compiled once a process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("recerase.report", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "title_text": title_text,
        "long_text": _long_text,
        "percent": percent,
        "thousands": _thousands,
    }
    environment.filters |= {
        "value_text": value_text,
        "interval_text": interval_text,
        "facts": facts,
        "gate_text": gate_text,
    }
    return environment.get_template(name)


def _page(report: Report) -> dict[str, Any]:
    from markupsafe import Markup

    names, drawn = role_names(report), plots(report)
    return {
        "report": report,
        "decision": report.decision,
        "concept": report.concept,
        "names": names,
        "tally": rules_tally(report),
        "tiles": tiles(report),
        "rules": tuple(rule_line(finding) for finding in report.decision.findings),
        "units": UNITS,
        "groups": headline_groups(report),
        "all_groups": all_groups(report),
        "likeness": {"title": TITLE, "rows": likeness_cells(report), "meaning": MEANING},
        "comparisons": tuple(m for m in report.measurements if m.kind != "value" and m.role == "subject"),
        "role_order": tuple(role for role in ROLES if role in names),
        "change_text": change_text,
        "metric_label": metric_label,
        "plots": drawn,
        "svg": {plot.name: Markup(plot.svg) for plot in drawn},  # our own drawing: labels are ours, told is escaped
        "legend": _legend(drawn, names),
        "changes": _changes(report.method),
        "method": {key: value for key, value in report.method.items() if key != "changes"},
        "moves": report.moves[:MOVES_SHOWN],
        "examples": tuple(_example(example) for example in report.examples[:EXAMPLES_SHOWN]),
        "skips": grouped_skips(report.skipped),
        "environment_facts": facts({key: value for key, value in report.run.items() if key != "command"}),
        "schema": SCHEMA,
        "digest": report_digest(report),
    }


def tiles(report: Report) -> tuple[Tile, ...]:
    """The figures beside the verdict: exposure, the same under pressure, exact mass, and what utility it cost."""
    found = [(find_row(report, stem), title, unit) for stem, title, unit in _TILES]
    made = [_tile(row, title, unit) for row, title, unit in found if row is not None and "subject" in row.by_role]
    utility = find_row(report, "utility.ndcg")
    if utility is not None and "subject" in utility.by_role:
        drop = comparison(report, utility.metric, "drop", "original")
        note = "" if drop is None else f"{_signed(-drop.value)} against the original"
        made.append(_tile(utility, "Utility", f"{utility.metric.partition('.')[2]}, retained items", note, number))
    return tuple(made)


def rule_line(finding: Finding) -> RuleLine:
    """A finding with its number in words and its gauge."""
    found, label = finding.measurement, metric_label(finding.rule.metric)
    limit = title_text(finding.limit).replace("<= ", "≤\u00a0").replace(">= ", "≥\u00a0").replace(" %", "\u00a0%")
    if found is None:
        return RuleLine(finding, label, "not measured", "", "", limit, None)
    return RuleLine(finding, label, value_text(found), interval_text(found), f"{found.n:,}", limit, gauge(finding))


def gauge(finding: Finding) -> Gauge | None:
    """Where the interval lies against the limit; None without a number, or with a limit of zero."""
    rule, found = finding.rule, finding.measurement
    limit = next((end for end in (rule.max_drop, rule.max, rule.min) if end is not None), None)
    if found is None or limit is None or not limit > 0 or not math.isfinite(found.value):
        return None
    ends = (found.value, found.value) if found.interval is None else (found.interval.low, found.interval.high)
    low, high = (end if math.isfinite(end) else found.value for end in ends)
    left = min(0.0, max(low, -limit / 2))
    right = limit * (1.5 if rule.min is None else 2.5)

    def place(value: float) -> float:
        return round(100 * (min(max(value, left), right) - left) / (right - left), 2)

    return Gauge(place(low), place(high), place(found.value), place(limit), over=found.value > right)


def _tile(row: Row, title: str, unit: str, note: str = "", shown: Any = percent) -> Tile:
    after, before = row.by_role["subject"], row.by_role.get("original")
    cut = row.metric.partition("@")[2]
    note = note or _tile_note(after)
    name = f"{title}@{cut}" if cut and "@" not in unit else title
    return Tile(name, unit, "" if before is None else shown(before.value), shown(after.value), note)


def _tile_note(found: Measurement) -> str:
    if found.interval is None or not math.isfinite(found.interval.high):
        return ""
    return f"at most {percent(found.interval.high)}, {percent(found.interval.confidence)} sure"


def _signed(change: float) -> str:
    shown = round(100 * change, 1)
    return f"{shown:+.1f} %" if shown else "0 %"


def _legend(drawn: Sequence[Plot], names: Mapping[Any, str]) -> Mapping[str, tuple[tuple[str, str], ...]]:
    return {plot.name: tuple((role, names[role]) for role in plot.roles if role in names) for plot in drawn}


def _changes(method: Mapping[str, Any]) -> tuple[str, ...]:
    """What the erasure touched, in sentences; an unknown fact is left to the table of the method."""
    found = method.get("changes")
    if not isinstance(found, Mapping):
        return ()
    lines = []
    if "tensors_identical" in found and "tensors" in found:
        same, changed = len(found["tensors_identical"]), found.get("tensors_changed", ())
        more = f" and {len(changed) - 6:,} more" if len(changed) > 6 else ""
        told = f": {', '.join(map(str, changed[:6]))}{more}" if changed else ""
        lines.append(f"{same} of {found['tensors']} tensors are bit for bit identical; {len(changed)} changed{told}.")
    if "items_moved" in found and "share_moved" in found:
        lines.append(f"{found['items_moved']:,} items ({percent(found['share_moved'])}) have another SID.")
    if "items_unlisted" in found:
        lines.append(f"{found['items_unlisted']:,} items were taken off the list of what may be recommended.")
    return tuple(lines)


def _example(example: Example) -> dict[str, Any]:
    return {
        "user": title_text(example.user_id, 60),
        "history": tuple(title_text(title) for title in example.history),
        "before": _list(example.before, example.before_concept),
        "after": _list(example.after, example.after_concept),
    }


def _list(titles: Sequence[str], concept: Sequence[bool]) -> tuple[ListLine, ...]:
    return tuple(ListLine(title_text(title), is_in) for title, is_in in zip(titles, concept, strict=False))


def _long_text(text: Any) -> str:
    return title_text(str(text), 600)


def _thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
