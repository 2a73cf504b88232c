"""A report on the console: the verdict first, then what it rests on, readable at any width and without colour.

The decision that shaped this file: a table that does not fit becomes a list, one block a row; nothing is cut off and
no meaning is carried by colour alone. Everything that comes from a user is Text, never markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from recerase.report.diff import diff_rows
from recerase.report.likeness import HEADERS, MEANING, RIGHT, TITLE, likeness_cells
from recerase.report.wording import (
    change_text,
    gate_text,
    grouped_skips,
    headline_rows,
    interval_text,
    role_names,
    rules_tally,
    title_text,
    value_text,
)
from recerase.types import Decision, Finding, Report, Result, Verdict

_STYLES: dict[Result | Verdict, str] = {
    Result.PASS: "green",
    Result.FAIL: "bold red",
    Result.INCONCLUSIVE: "yellow",
    Result.WAIVED: "cyan",
    Verdict.PASS: "green",
    Verdict.FAIL: "red",
    Verdict.INCONCLUSIVE: "yellow",
}
_HOLDS = {True: ("holds", "green"), False: ("broken", "bold red"), None: ("undecided", "yellow")}
_GAP = 2
_FOLDED = 13
"""Narrowest that a column which may fold is allowed to become."""


@dataclass(frozen=True)
class Columns:
    """A table where it fits, some columns folded if need be; else one block a row: `header  value`, a line each."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    right: frozenset[int] = frozenset()
    """Columns set flush right."""
    folds: frozenset[int] = frozenset({0})
    """Columns that may take several lines; no other one is ever folded."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = self._widths(options.max_width)
        yield Text(self.title, style="bold")
        if widths is None:
            yield from self._blocks()
        else:
            yield self._table(widths)

    def _widths(self, most: int) -> list[int] | None:
        """Of each column, so that the table is at most `most` wide; what is to spare goes to the first that folds."""
        wide = [max([len(h), *(row[i].cell_len for row in self.rows)]) for i, h in enumerate(self.headers)]
        widths = [min(w, _FOLDED) if i in self.folds else w for i, w in enumerate(wide)]
        spare = most - sum(widths) - _GAP * len(widths)
        if spare < 0:
            return None
        for i in sorted(self.folds):
            more = min(wide[i] - widths[i], spare)
            widths[i], spare = widths[i] + more, spare - more
        return widths

    def _table(self, widths: Sequence[int]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, header_style="dim")
        for i, (header, width) in enumerate(zip(self.headers, widths, strict=True)):
            side: Literal["left", "right"] = "right" if i in self.right else "left"
            table.add_column(header, width=width, justify=side, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _blocks(self) -> Iterable[RenderableType]:
        for row in self.rows:
            yield Text("- ").append_text(row[0])
            grid = Table.grid(padding=(0, 2))
            grid.add_column(no_wrap=True, style="dim")
            grid.add_column(overflow="fold")
            for header, cell in zip(self.headers[1:], row[1:], strict=True):
                if cell.plain:
                    grid.add_row(f"  {header}", cell)
            yield grid


def verdict_panel(report: Report) -> Panel:
    """The verdict, why, and for which concept: what a reader who stops here must have seen."""
    decision, concept = report.decision, report.concept
    style = _STYLES[decision.verdict]
    lines = Text(decision.verdict.value.upper(), style=f"bold {style}")
    lines.append(f"  {_safe(decision.reason)}", style="default")
    lines.append(f"\nconcept {_safe(str(concept.get('name', 'not named')))}", style="default not bold")
    counts = [
        f"{concept[key]:,} {key}" for key in ("items", "interactions", "users") if isinstance(concept.get(key), int)
    ]
    lines.append("".join(f", {count}" for count in counts), style="default not bold")
    lines.append(f"\nrules   {rules_tally(report)}", style="default not bold")
    lines.append(f"\n{gate_text(report.gate)}", style="default not bold")
    return Panel(lines, border_style=style, box=box.HEAVY, title="recerase", title_align="left")


def rules_table(decision: Decision) -> RenderableType:
    """Rule, value, interval, n, limit and result, and below it the reason of each rule that did not pass."""
    rows = tuple(_rule_row(finding) for finding in decision.findings)
    headers = ("rule", "result", "value", "interval", "n", "limit")
    table = Columns("Rules", headers, rows, frozenset({2, 4}), frozenset({0, 5}))
    reasons = [
        Text(f"{finding.result.value} ", style=_STYLES[finding.result])
        .append(f"{_safe(finding.rule.id)}: ", style="bold default")
        .append(_safe(finding.reason), style="not bold default")
        for finding in decision.findings
        if finding.result is not Result.PASS
    ]
    return Group(table if rows else Text("No rules."), *([Text()] if reasons else []), *reasons)


def before_after_table(report: Report) -> RenderableType:
    """The headline metrics, a column for each model that was read."""
    names, rows = role_names(report), headline_rows(report)
    change = "original" in names and any(change_text(row) for row in rows)
    cells = []
    for row in rows:
        values = [value_text(row.by_role[role]) if role in row.by_role else "" for role in names]
        cells.append(tuple(map(Text, [_safe(row.label), *values, *([change_text(row)] if change else [])])))
    headers = ("measured", *names.values(), *(["change"] if change else []))
    title = "Before and after" if names.get("original") == "before" else "Measured"
    return Columns(title, headers, tuple(cells), frozenset(range(1, len(headers))))


def likeness_table(report: Report) -> RenderableType:
    """Whether the audited model could be one more of several references, and what that means."""
    rows = tuple(tuple(Text(_safe(cell) if cell else "") for cell in row) for row in likeness_cells(report))
    table = Columns(TITLE, HEADERS, rows, RIGHT, frozenset({0, 6}))
    return Group(table, Text(MEANING, style="dim"))


def controls_table(decision: Decision) -> RenderableType:
    """The models whose verdict is known beforehand, and whether the audit could tell."""
    rows = []
    for control in decision.controls:
        word, style = _HOLDS[control.holds]
        rows.append(
            (
                Text(_safe(control.name)),
                Text(word, style=style),
                Text(_safe(control.expected)),
                Text(_safe(control.observed)),
            )
        )
    return Columns("Controls", ("control", "result", "expected", "observed"), tuple(rows), folds=frozenset({2, 3}))


def not_tested(report: Report) -> RenderableType:
    """What a pass does not mean, and what was skipped and why."""
    lines = [Text(f"- {_safe(limit)}") for limit in report.limits]
    for reason, names in grouped_skips(report.skipped):
        lines.append(Text(f"- {_safe(', '.join(names))}: {_safe(reason)}"))
    return Group(Text("Not tested", style="bold"), *lines)


def report_text(report: Report) -> RenderableType:
    """The whole report for a console: verdict, rules, before and after, likeness, controls, warnings, what was not tested."""
    parts: list[RenderableType] = [verdict_panel(report), Text(), rules_table(report.decision), Text()]
    if headline_rows(report):
        parts += [before_after_table(report), Text()]
    if report.likeness:
        parts += [likeness_table(report), Text()]
    if report.decision.controls:
        parts += [controls_table(report.decision), Text()]
    parts += [Text(f"warning: {_safe(warning)}", style="yellow") for warning in report.decision.warnings]
    parts += [Text()] if report.decision.warnings else []
    return Group(*parts, not_tested(report))


def diff_table(before: Report, after: Report) -> RenderableType:
    """Two reports side by side: verdict, exit code and every rule."""
    rows = [tuple(Text(_safe(cell) if cell else "") for cell in row) for row in diff_rows(before, after)]
    headers = ("rule", "first", "second", "change")
    return Columns("First and second report", headers, tuple(rows), folds=frozenset({0, 1, 2}))


def _rule_row(finding: Finding) -> tuple[Text, ...]:
    found, result = finding.measurement, Text(finding.result.value, style=_STYLES[finding.result])
    measured: Sequence[str] = ("-", "", "")
    if found is not None:
        measured = (value_text(found), interval_text(found), f"{found.n:,}")
    return (Text(_safe(finding.rule.id), style="bold"), result, *map(Text, measured), Text(_safe(finding.limit)))


def _safe(text: str) -> str:
    return title_text(text, 400)
