"""How numbers, roles, metrics and titles are worded, so that console, Markdown and HTML say the same thing.

The decision that shaped this file: every page is cut from the same rows. A row is one metric with what each model
showed for it; which rows make the headline, and what they are called, is decided here and nowhere else.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recerase.report.labels import metric_label
from recerase.types import Gate, Layer, Measurement, Report, Result, Role, Skipped

TITLE_LENGTH = 120
"""Characters of a title that are shown; the JSON report has all of them."""

ROLES: tuple[Role, ...] = ("original", "subject", "reference", "filter")
LAYERS: tuple[Layer, ...] = ("catalogue", "behaviour", "weights", "utility")

HEADLINE = (
    "natural.exposure",
    "natural_concept_users.exposure",
    "saturated.exposure",
    "neighbours.exposure",
    "replay.exposure",
    "earlier.exposure",
    "natural.mass.old",
    "natural.mass.new",
    "natural_concept_users.mass.old",
    "saturated.mass.old",
    "nearest.leak",
    "free.invalid",
    "free.old_concept",
    "aliasing.shared_sid",
    "depth.first_rank.old",
    "forced_prefix.strength.old",
    "worst_case.mass.old",
    "relearn.forget.steps",
    "relearn.forget.reached",
    "relearn.benign.steps",
    "relearn.benign.reached",
    "hidden.next.auc",
    "hidden.history.auc",
    "membership.advantage",
    "within.advantage",
    "precision.exposure",
    "precision.mass.old",
    "precision.mass.new",
    "utility.ndcg",
    "utility.recall",
    "utility_concept_users.ndcg",
    "utility_neighbours.ndcg",
)
"""Stems of the metrics in the before and after table, in its order; `@10` where there is a choice."""

_UNSEEN = re.compile(
    "[\u0000-\u001f\u007f-\u009f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+"
)


@dataclass(frozen=True)
class Row:
    """One metric, and what each model showed for it."""

    metric: str
    label: str
    layer: Layer
    by_role: Mapping[Role, Measurement]


def number(value: float) -> str:
    """Three significant digits without clutter: `0.0712`, `8.3e-5`, `21,410`; `n/a` for NaN."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if size >= 999.5:
        return f"{value:,.0f}"
    if value == 0 or size >= 1e-4:
        return f"{value:.3g}"
    return re.sub(r"e-0*", "e-", f"{value:.1e}").replace(".0e", "e")


def percent(value: float) -> str:
    """A share as a percentage: `7.12 %`."""
    return f"{number(100 * value)} %"


def value_text(found: Measurement) -> str:
    """A measurement's value in its own unit: a drop in percent, a ratio as a multiple, anything else as it is."""
    if found.kind == "drop":
        return percent(found.value)
    return f"{number(found.value)} x" if found.kind == "ratio" else number(found.value)


def interval_text(found: Measurement) -> str:
    """Where the truth lies: `[0.01, 0.02]`, `at most 0.003`, `at least 0.997`, `exact`, or nothing when there is no interval."""
    if found.interval is None:
        return ""
    low, high, method = found.interval.low, found.interval.high, found.interval.method
    if method == "exact" and low == high:  # beside several references the ends are exact, and apart
        return "exact"
    shown = percent if found.kind == "drop" else number
    if method == "rule-of-three":  # of hits none at all, or nothing else
        return f"at least {shown(low)}" if found.value >= high else f"at most {shown(high)}"
    return f"[{shown(low)}, {shown(high)}]"


def role_names(report: Report) -> dict[Role, str]:
    """What the columns are called, only for roles that were read: before/after when there is another original, and of several
    references how many the figures are means of."""
    present = {m.role for m in report.measurements}
    same = "original" in report.inputs and report.inputs["original"] == report.inputs.get("subject")
    erased = "original" in present and not same
    names: dict[Role, str] = {
        "original": "before" if erased else "original",
        "subject": "after" if erased else "audited",
        "reference": f"{len(report.references)} references" if report.references else "reference",
        "filter": "filter only",
    }
    return {role: names[role] for role in ROLES if role in present}


def all_rows(report: Report) -> tuple[Row, ...]:
    """Every metric that was measured as a plain value, layer by layer, in the order of the report."""
    found: dict[str, dict[Role, Measurement]] = {}
    for m in report.measurements:
        if m.kind == "value":
            found.setdefault(m.metric, {})[m.role] = m
    rows = [Row(metric, metric_label(metric), next(iter(by.values())).layer, by) for metric, by in found.items()]
    return tuple(sorted(rows, key=lambda row: LAYERS.index(row.layer)))


def headline_rows(report: Report) -> tuple[Row, ...]:
    """The rows of the before and after table: one for each headline metric that was measured."""
    return rows_of(report, HEADLINE)


def rows_of(report: Report, stems: Sequence[str]) -> tuple[Row, ...]:
    """The row of each of `stems` that was measured, in their order; at cut-off 10 where there is a choice."""
    rows = {row.metric: row for row in all_rows(report)}
    names = (_preferred(stem, rows) for stem in stems)
    return tuple(rows[name] for name in names if name is not None)


def find_row(report: Report, stem: str) -> Row | None:
    """The row of `stem`, at cut-off 10 where there is a choice; None when it was not measured."""
    rows = {row.metric: row for row in all_rows(report)}
    name = _preferred(stem, rows)
    return None if name is None else rows[name]


def comparison(report: Report, metric: str, kind: str, versus: Role) -> Measurement | None:
    """The subject's drop or ratio of `metric` against a role, if it was measured."""
    for m in report.measurements:
        if (m.metric, m.kind, m.versus, m.role) == (metric, kind, versus, "subject"):
            return m
    return None


def change_text(row: Row) -> str:
    """From the original to the subject: `-99.8 %`, `gone`, or nothing where there is no original or it was zero.

    Nothing either where no way is the better one, for an AUC, whose zero is at .5, and for an answer of yes or no.
    """
    before, after = row.by_role.get("original"), row.by_role.get("subject")
    if before is not None and (
        before.better == "neither" or row.label.startswith("AUC") or row.metric.endswith(".reached")
    ):
        return ""
    if before is None or after is None or not before.value > 0 or math.isnan(after.value):
        return ""
    if after.value == 0:
        return "gone" if before.better == "lower" else "-100 %"
    change = 100 * (after.value / before.value - 1)
    if change >= 1000:
        return f"x {number(after.value / before.value)}"
    if change < -99.9:
        return f"{max(change, -99.99):.2f} %"
    return f"{change:+.1f} %" if round(change, 1) else "0 %"


def rules_tally(report: Report) -> str:
    """`9 pass, 2 fail (quick profile)`: how many of the rules that were asked came to which result, in which profile."""
    findings = report.decision.findings
    counts = [(sum(f.result is result for f in findings), result.value) for result in Result]
    told = ", ".join(f"{count} {name}" for count, name in counts if count) or "no rules"
    return f"{told} ({report.decision.profile} profile)"


def gate_text(gate: Gate) -> str:
    """The exit code and why, as every format says it: `exit code 1 (fail on policy): the policy says fail`."""
    return f"exit code {gate.exit_code} (fail on {gate.fail_on}): {title_text(gate.reason, 600)}"


def grouped_skips(skipped: Sequence[Skipped]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(reason, what it kept from being measured), reasons in the order of the report; of the subject where no model is named."""
    found: dict[str, dict[str, list[str]]] = {}
    for s in skipped:
        roles = found.setdefault(s.reason, {}).setdefault(s.metric, [])
        if s.role not in roles:
            roles.append(s.role)
    return tuple(
        (reason, tuple(name if roles == ["subject"] else f"{name} ({', '.join(roles)})" for name, roles in by.items()))
        for reason, by in found.items()
    )


def title_text(title: str, length: int = TITLE_LENGTH) -> str:
    """A title fit for display: control and bidirectional marks out, white space joined, cut at `length` characters."""
    clean = " ".join(_UNSEEN.sub(" ", title[: 4 * length]).split())
    if len(clean) <= length and len(title) <= 4 * length:
        return clean or "(no title)"
    cut = clean[: length - 1]
    while cut and (unicodedata.combining(cut[-1]) or cut[-1] in "\u200d\ufe0f" or clean[len(cut) :][:1] == "\u200d"):
        cut = cut[:-1]
    return cut.rstrip() + "…"


def facts(values: Mapping[str, Any], prefix: str = "") -> tuple[tuple[str, str], ...]:
    """A nested mapping as (name, text) lines, sorted by name; a long list is counted."""
    lines: list[tuple[str, str]] = []
    for key in sorted(values):
        name, value = title_text(f"{prefix}{key}".replace("_", " ")), values[key]
        if isinstance(value, Mapping):
            lines += facts(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            shown = ", ".join(_fact(v) for v in value[:4])
            lines.append((name, f"{shown} and {len(value) - 4:,} more" if len(value) > 4 else shown or "none"))
        else:
            lines.append((name, _fact(value)))
    return tuple(lines)


def _fact(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    return number(value) if isinstance(value, float) else title_text(str(value), 400)


def _preferred(stem: str, metrics: Mapping[str, Any]) -> str | None:
    names = [name for name in metrics if name == stem or name.startswith(f"{stem}@")]
    exact = [name for name in names if name in (stem, f"{stem}@10", f"{stem}@r25")]
    return exact[0] if exact else names[-1] if names else None
