"""The report's plots: what of a report is drawn, and what is said around it. How it is drawn: drawing.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recerase.report.drawing import (
    COLOURS,
    DASHES,
    FLOOR,
    INK,
    MARKS,
    ORDER,
    TALL,
    Plot,
    as_percent,
    curve_of,
    plot_of,
    shown_roles,
)
from recerase.report.labels import metric_label
from recerase.report.relearn_plot import relearn_plots
from recerase.report.wording import (
    Row,
    all_rows,
    comparison,
    find_row,
    number,
    percent,
    role_names,
    title_text,
)
from recerase.types import Measurement, Report, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPOSURES = (
    ("natural.exposure", "all users"),
    ("natural_concept_users.exposure", "users of the\nconcept"),
    ("saturated.exposure", "concept-only\nhistories"),
    ("neighbours.exposure", "nearest-item\nhistories"),
    ("replay.exposure", "stale client,\nold SIDs"),
)


def plots(report: Report) -> tuple[Plot, ...]:
    """Every plot the report has data for, in the order of the page."""
    makers: tuple[Callable[[Report], Plot | None], ...] = (
        exposure_plot,
        mass_by_rank_plot,
        exposure_by_k_plot,
        saturated_plot,
    )
    made = (*(maker(report) for maker in makers), *relearn_plots(report), utility_plot(report))
    return tuple(plot for plot in made if plot is not None)


def exposure_plot(report: Report) -> Plot | None:
    """Exposure before, after and under the reference, with intervals, one line a kind of history."""
    found = [(label, find_row(report, stem)) for stem, label in EXPOSURES]
    rows = [(label, row) for label, row in found if row is not None]
    if not rows:
        return None
    roles = shown_roles({role for _, row in rows for role in row.by_role})

    def draw(axes: Axes) -> None:
        _dots(axes, rows, roles)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the first ten recommended slots")
        as_percent(axes.xaxis)
        axes.grid(axis="y", visible=False)

    told = "; ".join(f"{row.label}: {_said(row, roles, report)}" for _, row in rows)
    caption = "Share of recommended slots given to the concept. Bars are the intervals the rules are decided on."
    return plot_of("exposure", "Exposure", caption, told, roles, draw, height=TALL)


def mass_by_rank_plot(report: Report) -> Plot | None:
    """Exact concept mass user by user, most exposed first; the subject under its current SIDs as a thin line."""
    series = curve_of(report, "mass_by_rank")
    if series is None:
        return None
    x, lines = series
    new = curve_of(report, "mass_by_rank_new")
    current = new[1].get("subject") if new is not None and new[0] == x else None

    def draw(axes: Axes) -> None:
        for role, y in lines.items():
            axes.plot(x, _floored(y), color=COLOURS[role], linestyle=DASHES[role], zorder=ORDER[role])
        if current is not None and current != lines.get("subject"):
            axes.plot(x, _floored(current), color=COLOURS["subject"], linewidth=1, linestyle=(0, (1, 1)))
        axes.set_yscale("log")
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of users, most exposed first")
        axes.set_ylabel("probability of the concept")
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.minorticks_off()
        as_percent(axes.xaxis)

    caption = "Exact probability of generating a concept item's old SID, user by user, on a log scale."
    if current is not None:
        caption += f" Dotted: {role_names(report).get('subject', 'audited')}, under the current SIDs."
    return plot_of("mass", "Concept mass by rank", caption, caption, tuple(lines), draw, height=TALL)


def exposure_by_k_plot(report: Report) -> Plot | None:
    """Exposure as the list grows longer."""
    title, caption = "Exposure by length of the list", "Exposure@k over all users: does the concept wait further down?"
    return _lines(report, "exposure_by_k", title, caption, "k, length of the list")


def saturated_plot(report: Report) -> Plot | None:
    """Exposure as histories hold more and more of nothing but the concept."""
    title, caption = (
        "Histories of nothing but the concept",
        "Exposure@10 for histories of m concept items, m = 1 and up.",
    )
    return _lines(report, "saturated_by_m", title, caption, "m, concept items in the history")


def utility_plot(report: Report) -> Plot | None:
    """Forest plot: what retained items lost against the original, segment by segment."""
    rows = [row for row in all_rows(report) if row.layer == "utility" and row.metric.startswith("utility")]
    drops = [(row.metric, comparison(report, row.metric, "drop", "original")) for row in rows]
    found = [(metric, drop) for metric, drop in drops if drop is not None and math.isfinite(drop.value)]
    if not found:
        return None
    roles: tuple[Role, ...] = ("subject",)

    def draw(axes: Axes) -> None:
        for place, (_, drop) in enumerate(found):
            _whisker(axes, place, drop, "subject", negate=True)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(found)), [_tick(metric) for metric, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.set_xlabel("change against the original")
        as_percent(axes.xaxis, signed=True)
        axes.grid(axis="y", visible=False)

    caption = "Change on retained items against the original, user by user. Left of the line is worse."
    told = "; ".join(f"{metric_label(metric)}: {percent(-drop.value)}" for metric, drop in found)
    return plot_of("utility", "Utility by segment", caption, told, roles, draw, height=0.5 * len(found) + 0.75)


def _lines(report: Report, name: str, title: str, caption: str, xlabel: str) -> Plot | None:
    series = curve_of(report, name)
    if series is None:
        return None
    x, lines = series

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for role, y in lines.items():
            mark: dict[str, Any] = {"marker": MARKS[role], "markersize": 3.5} if len(x) <= 30 else {}
            look: dict[str, Any] = {
                "color": COLOURS[role],
                "linestyle": DASHES[role],
                "zorder": ORDER[role],
                "clip_on": False,
            }
            axes.plot(x, y, **look, **mark)
        top = max((value for y in lines.values() for value in y if math.isfinite(value)), default=0.0)
        axes.set_ylim(0, 1.08 * top if top > 0 else 0.01)
        axes.margins(x=0.03)
        axes.set_xlabel(xlabel)
        as_percent(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return plot_of(name, title, caption, caption, tuple(lines), draw)


def _dots(axes: Axes, rows: Sequence[tuple[str, Row]], roles: Sequence[Role]) -> None:
    step = 0.2
    for place, (_, row) in enumerate(rows):
        for turn, role in enumerate(roles):
            if role in row.by_role:
                _whisker(axes, place + step * (turn - (len(roles) - 1) / 2), row.by_role[role], role)


def _whisker(axes: Axes, height: float, found: Measurement, role: Role, negate: bool = False) -> None:
    sign = -1 if negate else 1
    if found.interval is not None:
        ends = [sign * end for end in (found.interval.low, found.interval.high)]
        if all(map(math.isfinite, ends)):
            axes.plot(ends, [height, height], color=COLOURS[role], linewidth=1.6)
    if math.isfinite(found.value):
        axes.plot([sign * found.value], [height], MARKS[role], color=COLOURS[role], clip_on=False)


def _tick(metric: str) -> str:
    return title_text(metric_label(metric), 60).replace(", ", "\n")


def _said(row: Row, roles: Sequence[Role], report: Report) -> str:
    names = role_names(report)
    return ", ".join(f"{names[role]} {percent(row.by_role[role].value)}" for role in roles if role in row.by_role)


def _floored(values: Sequence[float]) -> list[float]:
    return [max(value, FLOOR) if math.isfinite(value) else math.nan for value in values]
