"""How further training brings the concept back, drawn: the audited model's curve beside the reference's, and the level that counts.

The decision that shaped this file: the level is the attack's own, half of what the original shows before any step, and the steps that
are told are those that were measured, never read off the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from recerase.report.drawing import COLOURS, DASHES, INK, MARKS, ORDER, Plot, as_percent, curve_of, plot_of
from recerase.report.wording import find_row, number, percent, role_names
from recerase.types import Report, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATTACKS = (
    ("forget", "Relearning from the concept", "on interactions with the concept"),
    ("benign", "Relearning from anything else", "on interactions without the concept"),
)
_TICKS = 8
"""Of more steps only every second has its number written below the axis."""


def relearn_plots(report: Report) -> Iterator[Plot | None]:
    """A plot an attack; None where it was not run."""
    for kind, title, trained in ATTACKS:
        yield _plot(report, kind, title, trained)


def half_level(report: Report, kind: str) -> float | None:
    """Half of what the original shows before the first step; None where that is not known, or nothing."""
    found = curve_of(report, f"relearn_{kind}")
    first = found[1].get("original", [math.nan])[0] if found is not None else math.nan
    return first / 2 if first > 0 and math.isfinite(first) else None


def steps_text(report: Report, kind: str) -> str:
    """When each is at half: `Reached in 12.4 steps (after). Not reached within 89 steps (reference).`; empty: nobody was asked."""
    steps, reached = (find_row(report, f"relearn.{kind}.{what}") for what in ("steps", "reached"))
    if steps is None or reached is None:
        return ""
    names, told = role_names(report), []
    roles: tuple[Role, ...] = ("subject", "reference")
    for role in roles:
        if role in steps.by_role and role in reached.by_role:
            count, share = number(steps.by_role[role].value), reached.by_role[role].value
            came = (
                "Reached in" if share == 1 else "Reached by some, on average in" if share > 0 else "Not reached within"
            )
            told.append(f"{came} {count} steps ({names[role]}).")
    return " ".join(told)


def _plot(report: Report, kind: str, title: str, trained: str) -> Plot | None:
    found = curve_of(report, f"relearn_{kind}")
    if found is None:
        return None
    (x, lines), level = found, half_level(report, kind)

    def draw(axes: Axes) -> None:
        for role, y in lines.items():
            axes.plot(
                x, y, marker=MARKS[role], markersize=3.5, color=COLOURS[role], linestyle=DASHES[role],
                zorder=ORDER[role], clip_on=False,
            )  # fmt: skip
        if level is not None:
            axes.axhline(level, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1.5)
            at: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate("half", (0, level), xytext=(4, 3), **at)
        top = max((value for y in lines.values() for value in y if math.isfinite(value)), default=0.0)
        axes.set_ylim(0, 1.08 * top if top > 0 else 0.01)
        _steps_axis(axes, x)
        as_percent(axes.yaxis)

    caption = f"Exposure@10 after histories of nothing but the concept, while a copy is trained further {trained}."
    if level is not None:
        caption += f" Dashed: half of what the original shows at first, {percent(level)}."
    caption = " ".join(filter(None, (caption, steps_text(report, kind))))
    return plot_of(f"relearn_{kind}", title, caption, caption, tuple(lines), draw)


def _steps_axis(axes: Axes, x: list[float]) -> None:
    """Steps from 0 on, the later ones closer together, as they were read."""
    axes.set_xscale("symlog", linthresh=1, linscale=0.5)
    axes.margins(x=0.03)
    axes.set_xlim(-0.05, max(1.0, x[-1]) * 1.08)
    shown = x if len(x) <= _TICKS else [*x[:2], *x[2:-1:2], x[-1]]
    axes.set_xticks(shown, [number(step) for step in shown])
    axes.minorticks_off()
    axes.set_xlabel("steps of further training")
