"""The report's plots as inline SVG that takes its ink and its colours from the page around it.

The decision that shaped this file: matplotlib draws with placeholder colours, which are then replaced by currentColor
and CSS variables, so that one drawing is readable in light, in dark and on paper. Figures are plain Figure objects
(no pyplot, no backend is chosen), ids are salted with the plot's name, and no date or font is embedded: the same
report draws the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recerase.report.wording import (
    Row,
    all_rows,
    comparison,
    find_row,
    metric_label,
    number,
    percent,
    role_names,
    title_text,
)
from recerase.types import Measurement, Report, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, _GRID, _GOOD = "#010203", "#010204", "#010205"
COLOURS: Mapping[Role, str] = {
    "original": "#010206",
    "subject": "#010207",
    "reference": "#010208",
    "filter": "#010209",
}
_CSS = {
    INK: "currentColor",
    _GRID: "var(--grid)",
    _GOOD: "var(--pass)",
    **{colour: f"var(--{role})" for role, colour in COLOURS.items()},
}
MARKS: Mapping[Role, str] = {"original": "s", "subject": "o", "reference": "D", "filter": "^"}
_DASHES: Mapping[Role, Any] = {"original": "-", "subject": "-", "reference": (0, (4, 2)), "filter": (0, (1, 1.5))}
_ORDER: Mapping[Role, float] = {"original": 2.0, "filter": 2.1, "reference": 2.2, "subject": 2.3}
"""What is drawn over what: the audited model is never hidden behind another one."""
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_WIDTH, _HEIGHT, _TALL = 4.5, 2.8, 3.6
FLOOR = 1e-12
"""Masses below this are drawn here; float32 log-probabilities say nothing about them."""

EXPOSURES = (
    ("natural.exposure", "all users"),
    ("natural_concept_users.exposure", "users of the\nconcept"),
    ("saturated.exposure", "concept-only\nhistories"),
    ("neighbours.exposure", "nearest-item\nhistories"),
    ("replay.exposure", "stale client,\nold SIDs"),
)


@dataclass(frozen=True)
class Plot:
    """One drawing, and what is said around it."""

    name: str
    title: str
    caption: str
    svg: str
    """An `<svg>` element, safe to put into a page as it is."""
    roles: tuple[Role, ...]
    """Whose colours are in it, for the legend; empty where it needs none."""


def plots(report: Report) -> tuple[Plot, ...]:
    """Every plot the report has data for, in the order of the page."""
    makers: tuple[Callable[[Report], Plot | None], ...] = (
        exposure_plot,
        mass_by_rank_plot,
        exposure_by_k_plot,
        saturated_plot,
        utility_plot,
    )
    made = (maker(report) for maker in makers)
    return tuple(plot for plot in made if plot is not None)


def exposure_plot(report: Report) -> Plot | None:
    """Exposure before, after and under the reference, with intervals, one line a kind of history."""
    found = [(label, find_row(report, stem)) for stem, label in EXPOSURES]
    rows = [(label, row) for label, row in found if row is not None]
    if not rows:
        return None
    roles = _shown(report, {role for _, row in rows for role in row.by_role})

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
    return plot_of("exposure", "Exposure", caption, told, roles, draw, height=_TALL)


def mass_by_rank_plot(report: Report) -> Plot | None:
    """Exact concept mass user by user, most exposed first; the subject under its current SIDs as a thin line."""
    series = _series(report, "mass_by_rank")
    if series is None:
        return None
    x, lines = series
    new = _series(report, "mass_by_rank_new")
    current = new[1].get("subject") if new is not None and new[0] == x else None

    def draw(axes: Axes) -> None:
        for role, y in lines.items():
            axes.plot(x, _floored(y), color=COLOURS[role], linestyle=_DASHES[role], zorder=_ORDER[role])
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
    return plot_of("mass", "Concept mass by rank", caption, caption, tuple(lines), draw, height=_TALL)


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
    series = _series(report, name)
    if series is None:
        return None
    x, lines = series

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for role, y in lines.items():
            mark: dict[str, Any] = {"marker": MARKS[role], "markersize": 3.5} if len(x) <= 30 else {}
            look: dict[str, Any] = {
                "color": COLOURS[role],
                "linestyle": _DASHES[role],
                "zorder": _ORDER[role],
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


def _series(report: Report, name: str) -> tuple[list[float], dict[Role, list[float]]] | None:
    """x, and y a role, of a curve; roles whose y does not belong to x are left out, and so is the filter control."""
    curve = report.curves.get(name)
    if not isinstance(curve, Mapping) or not curve.get("x"):
        return None
    x = list(curve["x"])
    lines = {role: list(curve[role]) for role in _shown(report, curve) if len(curve[role]) == len(x)}
    return (x, lines) if lines else None


def _tick(metric: str) -> str:
    return title_text(metric_label(metric), 60).replace(", ", "\n")


def _shown(report: Report, among: Any) -> tuple[Role, ...]:
    roles: tuple[Role, ...] = ("original", "subject", "reference")
    return tuple(role for role in roles if role in among)


def _said(row: Row, roles: Sequence[Role], report: Report) -> str:
    names = role_names(report)
    return ", ".join(f"{names[role]} {percent(row.by_role[role].value)}" for role in roles if role in row.by_role)


def _floored(values: Sequence[float]) -> list[float]:
    return [max(value, FLOOR) if math.isfinite(value) else math.nan for value in values]


def as_percent(axis: Any, signed: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    def text(value: float, _: int) -> str:
        shown = f"{100 * value:.6g}"
        return f"+{shown} %" if signed and value > 0 else f"{shown} %"

    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(text))


def plot_of(
    name: str,
    title: str,
    caption: str,
    told: str,
    roles: tuple[Role, ...],
    draw: Callable[[Any], None],
    height: float = _HEIGHT,
) -> Plot:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text: the page's reader has the glyph
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = f"recerase-{name}"
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        svg = _inline(_svg(figure), name, title_text(f"{title}. {told}", 2000))
    return Plot(name, title, caption, svg, roles)


def _svg(figure: Figure) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    return sink.getvalue().decode()


def _inline(drawing: str, name: str, told: str) -> str:
    """An SVG file as an element of an HTML page: no prolog, metadata or style sheet, own ids, the page's colours."""
    from html import escape

    svg = drawing[drawing.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    view = re.search(r'viewBox="([\d. -]+)"', svg)
    svg = re.sub(r"<svg[^>]*>", "", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub("|".join(_CSS), lambda colour: _CSS[colour.group()], svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    box = view.group(1) if view else "0 0 360 216"
    return f'<svg class="plot" viewBox="{box}" role="img" aria-label="{escape(told, quote=True)}">{svg.strip()}'
