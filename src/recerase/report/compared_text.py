"""A comparison on the console: the same tables as on the page, each a list of blocks where it does not fit."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from recerase.report.compared import Comparison
from recerase.report.compared_words import about, tables, title_of
from recerase.report.text import Columns


def comparison_text(comparison: Comparison) -> RenderableType:
    """The whole comparison; what comes from a user is Text, never markup."""
    parts: list[RenderableType] = [Text(title_of(comparison), style="bold"), Text(about(comparison)), Text()]
    for scope in comparison.scopes:
        if len(comparison.scopes) > 1:
            parts += [Text(f"Scope {scope}", style="bold underline"), Text()]
        for table in tables(comparison, scope):
            rows = tuple(tuple(map(Text, row)) for row in table.rows)
            folds = frozenset({0, len(table.headers) - 1} - table.right)
            parts += [Columns(table.title, table.headers, rows, table.right, folds), Text()]
    parts += [*map(Text, comparison.front.splitlines()), Text()]
    parts += [Text(f"- {note}") for note in comparison.notes]
    return Group(*parts)
