"""The front as a drawing: what each model still gives the concept against what it kept of its utility.

The decision that shaped this file: the best corner is top left (forgotten, no loss); filled marks are beaten by nobody and joined
by a line, hollow ones are beaten or do not forget; controls and references are drawn for scale and are no candidates. Without a
reference forgetting is mass, on a log scale; with one it is orders of magnitude from it, either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recerase.report.compared import APART, LEAK, Comparison, Figure, Row, axis_of
from recerase.report.drawing import COLOURS, FLOOR, INK, MARKS, Plot, as_percent, plot_of
from recerase.report.wording import number, percent, title_text
from recerase.types import Role, Scope

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DROP = "utility.ndcg@10 drop/original"
_ROOM = 4.0
"""Factor of the leakage axis on either side of what is drawn."""
_WORDS = {
    LEAK: ("Left: less of the concept is left.", "probability of the concept, log scale"),
    APART: (
        "Left: nearer to the references' mass, from above or from below.",
        "orders of magnitude of mass from the reference",
    ),
}
_LABELS = ((5, 4, "left"), (-5, -11, "right"), (5, -11, "left"), (-5, 4, "right"))
"""Where a name stands beside its mark, in turn from left to right, so that neighbours do not cover each other's."""


def front_plot(comparison: Comparison, scope: Scope) -> Plot | None:
    """Leakage and utility of every row of a scope; None where no method has both."""
    rows = [row for row in comparison.rows if row.scope == scope]
    axis = axis_of(rows)
    masses = axis == LEAK
    floor = FLOOR if masses else 0.0
    points = [(row, row.figures[axis], _drop_of(row, axis)) for row in rows if axis in row.figures]
    drawn = [(row, leak, drop) for row, leak, drop in points if drop is not None]
    if not any(row.kind == "method" for row, _, _ in drawn):
        return None
    side, label = _WORDS[axis]

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter

        for turn, (row, leak, drop) in enumerate(sorted(drawn, key=lambda point: point[1].value)):
            _point(axes, row, leak, drop, _LABELS[turn % len(_LABELS)], floor)
        best = sorted(
            (max(leak.value, floor), -drop.value) for row, leak, drop in drawn if row.standing in ("alone", "front")
        )
        axes.plot(*zip(*best, strict=True), color=COLOURS["subject"], linewidth=0.8, linestyle=(0, (2, 2)), zorder=1.5)
        if masses:
            axes.set_xscale("log")
            shown = [max(leak.value, floor) for _, leak, _ in drawn]
            axes.set_xlim(min(shown) / _ROOM, max(shown) * _ROOM)
        axes.margins(x=0.12, y=0.18)
        axes.set_xlabel(label)
        axes.set_ylabel("NDCG@10 against the original")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.minorticks_off()
        as_percent(axes.yaxis, signed=True)

    told = "; ".join(f"{row.name}: {number(leak.value)}, {percent(-drop.value)}" for row, leak, drop in drawn)
    caption = f"{side} Up: more utility is kept. Filled: beaten by nobody. Bars: intervals."
    return plot_of(f"front-{scope}", f"Front, scope {scope}", caption, told, (), draw, height=3.6)


def _drop_of(row: Row, axis: str) -> Figure | None:
    """The original lost nothing of itself."""
    if row.name == "original" and row.kind == "control":
        return Figure(0.0, row.figures[axis].n, 1)
    return row.figures.get(_DROP)


def _point(axes: Any, row: Row, leak: Figure, drop: Figure, label: tuple[int, int, str], floor: float) -> None:
    roles: dict[str, Role] = {"original": "original", "filter": "filter", "reference": "reference"}
    role: Role = roles.get(row.name, "subject") if row.kind != "method" else "subject"
    x, y = max(leak.value, floor), -drop.value
    if leak.interval is not None:
        axes.plot(
            [max(leak.interval.low, floor), max(leak.interval.high, floor)], [y, y], color=COLOURS[role], linewidth=1
        )
    if drop.interval is not None:
        axes.plot([x, x], [-drop.interval.high, -drop.interval.low], color=COLOURS[role], linewidth=1)
    hollow = row.standing in ("tied", "dominated", "remembers")
    axes.plot([x], [y], MARKS[role], color=COLOURS[role], fillstyle="none" if hollow else "full", zorder=3)
    right, up, side = label
    look = {"textcoords": "offset points", "color": INK, "fontsize": 7.5, "horizontalalignment": side}
    axes.annotate(title_text(row.name, 24), (x, y), xytext=(right, up), **look)
