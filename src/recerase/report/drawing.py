"""How a plot of a report is drawn: inline SVG that takes its ink and its colours from the page around it.

The decision that shaped this file: matplotlib draws with placeholder colours, which are then replaced by currentColor
and CSS variables, so that one drawing is readable in light, in dark and on paper. Figures are plain Figure objects
(no pyplot, no backend is chosen), ids are salted with the plot's name, and no date or font is embedded: the same
report draws the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recerase.report.wording import title_text
from recerase.types import Report, Role

if TYPE_CHECKING:
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
DASHES: Mapping[Role, Any] = {"original": "-", "subject": "-", "reference": (0, (4, 2)), "filter": (0, (1, 1.5))}
ORDER: Mapping[Role, float] = {"original": 2.0, "filter": 2.1, "reference": 2.2, "subject": 2.3}
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
WIDTH, HEIGHT, TALL = 4.5, 2.8, 3.6
"""Inches."""
FLOOR = 1e-12
"""Masses below this are drawn here; float32 log-probabilities say nothing about them."""


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


def curve_of(report: Report, name: str) -> tuple[list[float], dict[Role, list[float]]] | None:
    """x, and y a role, of a curve; roles whose y does not belong to x are left out, and so is the filter control."""
    curve = report.curves.get(name)
    if not isinstance(curve, Mapping) or not curve.get("x"):
        return None
    x = list(curve["x"])
    lines = {role: list(curve[role]) for role in shown_roles(curve) if len(curve[role]) == len(x)}
    return (x, lines) if lines else None


def shown_roles(among: Any) -> tuple[Role, ...]:
    """The roles that are drawn, of those that are in `among`: all but the filter, which has the original's weights."""
    roles: tuple[Role, ...] = ("original", "subject", "reference")
    return tuple(role for role in roles if role in among)


def as_percent(axis: Any, signed: bool = False) -> None:
    """Shares on an axis as percentages; `signed`: with a plus."""
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
    height: float = HEIGHT,
) -> Plot:
    """What `draw` draws on axes of our style; `told` is what it says to whoever cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text: the page's reader has the glyph
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = f"recerase-{name}"
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
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
