"""How the commands lay values out on a terminal; reports have their own room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from recerase.catalog import Catalogue, Concept
    from recerase.catalog.concept import Preview


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Two columns, one fact a row; nothing in them is taken for markup."""
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = ", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(Text(name), Text(shown))
    return table


def rows_table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    """A plain table with a header."""
    table = Table(title=Text(title), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table


def concept_tables(concept: Concept, preview: Preview, catalogue: Catalogue, show: int) -> Iterator[Table]:
    """The blast radius of a concept, its first items, its shared codes and the items on its border."""
    n, total = int(concept.members.sum()), len(catalogue.interactions)
    yield facts_table(
        f"concept {concept.name}",
        {
            "items": f"{n} of {len(catalogue.items)} ({n / len(catalogue.items):.1%})",
            "interactions": f"{preview.interactions} of {total} ({preview.interactions / max(total, 1):.1%})",
            "users touched": f"{preview.users} of {catalogue.interactions.n_users}",
        },
    )
    items = catalogue.items
    if show:
        rows = [(items.item_ids[row], items.titles[row]) for row in concept.indices[:show]]
        yield rows_table("items" if n <= show else f"first {show} of {n} items", ("item_id", "title"), rows)
