"""How the commands lay values out on a terminal; reports have their own room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from recerase.catalog import Catalogue, Concept, Preview


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


def preview_facts(preview: Preview, catalogue: Catalogue) -> dict[str, str]:
    """Items, interactions and users that a concept touches, with their shares."""
    whole = {
        "items": (preview.items, len(catalogue.items)),
        "interactions": (preview.interactions, len(catalogue.interactions)),
        "users touched": (preview.users, catalogue.interactions.n_users),
    }
    return {name: f"{part} of {total} ({part / max(total, 1):.1%})" for name, (part, total) in whole.items()}


def concept_tables(concept: Concept, preview: Preview, catalogue: Catalogue, show: int) -> Iterator[Table]:
    """The blast radius of a concept, its first items, its shared codes and the items on its border."""
    yield facts_table(f"concept {concept.name}", preview_facts(preview, catalogue))
    items, n = catalogue.items, preview.items
    if show:
        rows = [(items.item_ids[row], items.titles[row]) for row in concept.indices[:show]]
        yield rows_table("items" if n <= show else f"first {show} of {n} items", ("item_id", "title"), rows)
    if preview.levels:
        shared = [(x.level + 1, x.codes, x.sharing, x.prefixes, x.under_prefix) for x in preview.levels]
        columns = ("level", "codes used", "retained items sharing a code", "prefixes", "retained items under them")
        yield rows_table("shared codes", columns, shared)
    if preview.borderline:
        near = [("in" if x.inside else "out", f"{x.similarity:.3f}", x.item_id, x.title) for x in preview.borderline]
        headers = ("concept", "cosine to nearest member", "item_id", "title")
        yield rows_table("border: nearest outside, then farthest inside", headers, near)
