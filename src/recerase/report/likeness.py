"""Whether the audited model could be one more reference, as every format tells it: a title, a table and what it means.

The one decision: a row says its verdict before its numbers, and the sentence below the table says that no rule rests on it.
"""

from __future__ import annotations

from recerase.report.labels import metric_label
from recerase.report.wording import number, title_text
from recerase.types import LikenessRow, Report

TITLE = "Behaviour layer: could it be one more of the references?"
HEADERS = ("measured", "verdict", "value", "interval", "limit", "n", "why")
RIGHT = frozenset({2, 5})
"""Columns that are set flush right."""
MEANING = (
    "Equivalent: no further from the references than one more of them could be. Not equivalent: further than that. Too few: the "
    "interval is on both sides of the limit, or there is none, and more users or references are needed to tell. A mass is told as "
    "its ratio to the references'; the classifier, which sees what each model does with a user, by how much better its AUC is for "
    "the audited model than among references. No rule asks for any of these: how often a clean model is found alike is not known."
)


def likeness_cells(report: Report) -> tuple[tuple[str, ...], ...]:
    """The cells of every row, under HEADERS; () where there are no two references."""
    return tuple(_cells(row) for row in report.likeness)


def _cells(row: LikenessRow) -> tuple[str, ...]:
    mass = row.auc is None and row.metric != "auc"
    value = "" if row.value is None else f"{number(row.value)} x" if mass else number(row.value)
    interval = "" if row.interval is None else f"[{number(row.interval.low)}, {number(row.interval.high)}]"
    limit = ""
    if row.limit is not None:
        both = mass and row.limit > 0
        limit = f"{number(1 / row.limit)} to {number(row.limit)}" if both else f"<= {number(row.limit)}"
    label = metric_label(row.metric) if mass else "told from a reference by a classifier"
    return (label, row.verdict, value, interval, limit, f"{row.n:,}", title_text(row.reason, 400))
