"""A report of the standard profile, made without a model: the quick one's, and what only wider profiles measure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recerase.types import Interval, Layer, Measurement, Report, Role

WIDE: dict[str, tuple[Layer, str, dict[Role, float]]] = {
    "depth.first_rank.old": ("behaviour", "higher", {"original": 0.01, "subject": 0.62, "reference": 0.55}),
    "forced_prefix.strength.old": ("behaviour", "lower", {"original": 0.41, "subject": 0.12, "reference": 0.11}),
    "worst_case.mass.old": ("behaviour", "lower", {"original": 0.93, "subject": 0.02, "reference": 0.03}),
    "hidden.next.auc": ("weights", "lower", {"original": 0.81, "subject": 0.66, "reference": 0.64}),
    "hidden.history.auc": ("weights", "lower", {"original": 0.97, "subject": 0.9, "reference": 0.88}),
    "membership.advantage": ("weights", "lower", {"original": 0.5, "subject": 0.1, "reference": 0.06}),
    "relearn.forget.steps": ("weights", "higher", {"original": 0.0, "subject": 12.4, "reference": 20.5}),
    "relearn.forget.reached": ("weights", "lower", {"original": 1.0, "subject": 1.0, "reference": 1.0}),
    "relearn.benign.steps": ("weights", "higher", {"original": 0.0, "subject": 89.0, "reference": 89.0}),
    "relearn.benign.reached": ("weights", "lower", {"original": 1.0, "subject": 0.0, "reference": 0.0}),
    "relearn.forget.exposure@s1": ("weights", "neither", {"original": 0.8, "subject": 0.01, "reference": 0.0}),
    "precision.exposure@10": ("weights", "lower", {"original": 0.07, "subject": 0.001, "reference": 0.0}),
    "precision.int4.mass.old": ("weights", "lower", {"original": 0.06, "subject": 0.001, "reference": 0.0}),
    "forensics.rows.auc": ("weights", "lower", {"original": 0.5, "subject": 0.98, "reference": 0.6}),
    "forensics.table.auc": ("catalogue", "neither", {"original": 0.5, "subject": 1.0, "reference": 0.5}),
    "influence.history": ("behaviour", "neither", {"original": 0.3, "subject": 0.28, "reference": 0.21}),
    "spill.lost.exposure@10": ("utility", "lower", {"original": 0.0, "subject": 0.04, "reference": 0.02}),
    "spill.held_out.mass": ("behaviour", "neither", {"original": 0.1, "subject": 0.08, "reference": 0.05}),
}
STEPS = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0, 89.0]


def widened(report: Report) -> Report:
    """`report` with every metric of WIDE for the roles it has, and both relearning curves."""
    roles = {m.role for m in report.measurements}
    found = [
        Measurement(metric, role, value, 200, layer, Interval(0.9 * value, 1.1 * value, 0.95, "bootstrap"), better=better)  # type: ignore[arg-type]
        for metric, (layer, better, by) in WIDE.items()
        for role, value in by.items()
        if role in roles
    ]  # fmt: skip
    return replace(report, measurements=(*report.measurements, *found), curves={**report.curves, **relearned(roles)})


def relearned(roles: Any) -> dict[str, Any]:
    """Both curves, a list a role: the original shows .8 from the beginning, the others come to that."""
    top = {"original": [0.8] * 11, "subject": [0.07 * i for i in range(11)], "reference": [0.06 * i for i in range(11)]}
    low = {"original": [0.8] * 11, "subject": [0.0] * 11, "reference": [0.0] * 11}
    shown = [{role: line for role, line in lines.items() if role in roles} for lines in (top, low)]
    return {"relearn_forget": {"x": STEPS, **shown[0]}, "relearn_benign": {"x": STEPS, **shown[1]}}
