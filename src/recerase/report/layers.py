"""The measurements as a page shows them: layer by layer, and below each layer what no rule of the audit asks about.

The decision that shaped this file: what informs and does not gate stands under the layer that it informs about, and is called what it
is; a policy that has a rule on one of its metrics makes it an ordinary part of the layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recerase.report.wording import HEADLINE, LAYERS, Row, all_rows, rows_of
from recerase.types import Layer, Report

TITLES: Mapping[Layer, str] = {
    "catalogue": "Catalogue layer: what the shop window shows",
    "behaviour": "Behaviour layer: what the weights answer",
    "weights": "Weights layer: what could come back, or be read off them",
    "utility": "Utility: what must survive",
}
INFORMING: Mapping[str, str] = {
    "forensics": "what the checkpoint gives away of what was erased",
    "influence": "how far concept items in a history move the rest of its list",
    "spill": "what became of items beside the concept",
}
"""Probes that gate nothing by themselves, and what they inform about."""
INFORMED = (
    "forensics.rows.auc",
    "forensics.logprob.auc",
    "forensics.norm.auc",
    "forensics.alone.auc",
    "forensics.table.auc",
    "influence.history",
    "influence.matched.concept",
    "influence.matched.other",
    "spill.lost.exposure",
    "spill.lost.mass",
    "spill.gained.mass",
    "spill.held_out.exposure",
    "spill.held_out.mass",
)
"""Stems of their metrics that are shown beside the headline."""


@dataclass(frozen=True)
class Group:
    """Rows that stand together."""

    layer: Layer
    title: str
    informs: bool
    """No rule asks about any of them."""
    rows: tuple[Row, ...]


def headline_groups(report: Report) -> tuple[Group, ...]:
    """The headline by layer, and what informs about each layer under it."""
    return _grouped(report, rows_of(report, (*HEADLINE, *INFORMED)))


def all_groups(report: Report) -> tuple[Group, ...]:
    """Everything that was measured as a plain value, in the same order."""
    return _grouped(report, all_rows(report))


def _grouped(report: Report, rows: Sequence[Row]) -> tuple[Group, ...]:
    asked = {finding.rule.metric.partition(".")[0] for finding in report.decision.findings}
    informing = {probe: about for probe, about in INFORMING.items() if probe not in asked}
    found: list[Group] = []
    for layer in LAYERS:
        own = [(row.metric.partition(".")[0], row) for row in rows if row.layer == layer]
        parts = [(TITLES[layer], "", tuple(row for probe, row in own if probe not in informing))]
        parts += [
            (f"No rule asks, for information: {about}", name, tuple(row for probe, row in own if probe == name))
            for name, about in informing.items()
        ]
        kept = [(title, name, lines) for title, name, lines in parts if lines]
        if kept and kept[0][1]:  # nothing but what informs: the layer is named all the same
            kept.insert(0, (TITLES[layer], "", ()))
        found += [Group(layer, title, bool(name), lines) for title, name, lines in kept]
    return tuple(found)
