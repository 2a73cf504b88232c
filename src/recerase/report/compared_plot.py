"""The front as a drawing: what each model still gives the concept against what it kept of its utility.

The decision that shaped this file: the best corner is top left (little leakage, no loss); filled marks are beaten by nobody and
joined by a line, hollow ones are beaten; controls and references are drawn for scale and are no candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recerase.report.compared import Comparison, Figure, Row
from recerase.report.plots import COLOURS, FLOOR, INK, MARKS, Plot, as_percent, plot_of
from recerase.report.wording import number, percent, title_text
from recerase.types import Role, Scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAK, _DROP = "leak", "utility.ndcg@10 drop/original"
_ROOM = 4.0
"""Factor of the leakage axis on either side of what is drawn."""
_LABELS = ((5, 4, "left"), (-5, -11, "right"), (5, -11, "left"), (-5, 4, "right"))
"""Where a name stands beside its mark, in turn from left to right, so that neighbours do not cover each other's."""


def front_plot(comparison: Comparison, scope: Scope) -> Plot | None:
    """Leakage and utility of every row of a scope; None where no method has both."""
    rows = [row for row in comparison.rows if row.scope == scope and _LEAK in row.figures]
    points = [(row, row.figures[_LEAK], _drop_of(row)) for row in rows]
    drawn = [(row, leak, drop) for row, leak, drop in points if drop is not None]
    if not any(row.kind == "method" for row, _, _ in drawn):
        return None

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        for turn, (row, leak, drop) in enumerate(sorted(drawn, key=lambda point: point[1].value)):
            _point(axes, row, leak, drop, _LABELS[turn % len(_LABELS)])
        best = sorted((max(leak.value, FLOOR), -drop.value) for row, leak, drop in drawn if row.standing == "front")
        axes.plot(*zip(*best, strict=True), color=COLOURS["subject"], linewidth=0.8, linestyle=(0, (2, 2)), zorder=1.5)
        axes.set_xscale("log")
        shown = [max(leak.value, FLOOR) for _, leak, _ in drawn]
        axes.set_xlim(min(shown) / _ROOM, max(shown) * _ROOM)
        axes.margins(y=0.18)
        axes.set_xlabel("probability of the concept, log scale")
        axes.set_ylabel("NDCG@10 against the original")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.minorticks_off()
        as_percent(axes.yaxis, signed=True)

    told = "; ".join(f"{row.name}: {number(leak.value)}, {percent(-drop.value)}" for row, leak, drop in drawn)
    caption = "Left: less of the concept is left. Up: more utility is kept. Filled: beaten by nobody. Bars: intervals."
    return plot_of(f"front-{scope}", f"Front, scope {scope}", caption, told, (), draw, height=3.6)


def _drop_of(row: Row) -> Figure | None:
    """The original lost nothing of itself."""
    if row.name == "original" and row.kind == "control":
        return Figure(0.0, row.figures[_LEAK].n, 1)
    return row.figures.get(_DROP)


def _point(axes: Any, row: Row, leak: Figure, drop: Figure, label: tuple[int, int, str]) -> None:
    roles: dict[str, Role] = {"original": "original", "filter": "filter", "reference": "reference"}
    role: Role = roles.get(row.name, "subject") if row.kind != "method" else "subject"
    x, y = max(leak.value, FLOOR), -drop.value
    if leak.interval is not None:
        axes.plot(
            [max(leak.interval.low, FLOOR), max(leak.interval.high, FLOOR)], [y, y], color=COLOURS[role], linewidth=1
        )
    if drop.interval is not None:
        axes.plot([x, x], [-drop.interval.high, -drop.interval.low], color=COLOURS[role], linewidth=1)
    hollow = row.standing in ("tied", "dominated")
    axes.plot([x], [y], MARKS[role], color=COLOURS[role], fillstyle="none" if hollow else "full", zorder=3)
    right, up, side = label
    look = {"textcoords": "offset points", "color": INK, "fontsize": 7.5, "horizontalalignment": side}
    axes.annotate(title_text(row.name, 24), (x, y), xytext=(right, up), **look)
