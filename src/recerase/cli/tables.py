"""How the commands lay values out on a terminal; reports have their own room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from recerase.catalog import Catalogue, Concept, Preview

_GAP = 2
_READABLE = 13
"""A column narrower than this is read letter by letter."""


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Two columns, one fact a row; nothing in them is taken for markup."""
    table = Table(title=Text(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = ", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)
        table.add_row(Text(name), Text(shown))
    return table


@dataclass(frozen=True)
class Rows:
    """A table where every column keeps a readable width; else one block a row, `column  value`, a line each."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[Text(str(value)) for value in row] for row in self.rows]
        wide = [max([len(name), *(row[i].cell_len for row in cells)]) for i, name in enumerate(self.columns)]
        least = wide[0] + sum(min(w, _READABLE) for w in wide[1:]) + _GAP * len(wide)
        if least <= options.max_width:
            table = Table(title=Text(self.title), title_justify="left", box=None, padding=(0, _GAP, 0, 0))
            for i, name in enumerate(self.columns):
                table.add_column(name, overflow="fold", no_wrap=i == 0, min_width=min(wide[i], _READABLE))
            for row in cells:
                table.add_row(*row)
            yield table
            return
        yield Text(self.title)
        for row in cells:
            yield facts_table(f"- {row[0]}", {f"  {c}": v for c, v in zip(self.columns[1:], row[1:], strict=True)})


def preview_facts(preview: Preview, catalogue: Catalogue) -> dict[str, str]:
    """Items, interactions and users that a concept touches, with their shares."""
    whole = {
        "items": (preview.items, len(catalogue.items)),
        "interactions": (preview.interactions, len(catalogue.interactions)),
        "users touched": (preview.users, catalogue.interactions.n_users),
    }
    return {name: f"{part} of {total} ({part / max(total, 1):.1%})" for name, (part, total) in whole.items()}


def concept_facts(concept: Concept, preview: Preview, catalogue: Catalogue, show: int) -> dict[str, Any]:
    """What `concept_tables` shows, as JSON values: counts and what they are of, first items, shared codes, border."""
    items = catalogue.items
    return {
        "name": concept.name,
        "spec": list(concept.spec),
        "digest": concept.digest,
        "items": preview.items,
        "interactions": preview.interactions,
        "users": preview.users,
        "of": {
            "items": len(items),
            "interactions": len(catalogue.interactions),
            "users": catalogue.interactions.n_users,
        },
        "first": [{"item_id": str(items.item_ids[row]), "title": items.titles[row]} for row in concept.indices[:show]],
        "levels": [asdict(level) for level in preview.levels],
        "borderline": [asdict(item) for item in preview.borderline],
    }


def concept_tables(concept: Concept, preview: Preview, catalogue: Catalogue, show: int) -> Iterator[RenderableType]:
    """The blast radius of a concept, its first items, its shared codes and the items on its border."""
    yield facts_table(f"concept {concept.name}", preview_facts(preview, catalogue))
    items, n = catalogue.items, preview.items
    if show:
        rows = [(items.item_ids[row], items.titles[row]) for row in concept.indices[:show]]
        yield Rows("items" if n <= show else f"first {show} of {n} items", ("item_id", "title"), rows)
    if preview.levels:
        shared = [(x.level + 1, x.codes, x.sharing, x.prefixes, x.under_prefix) for x in preview.levels]
        columns = ("level", "codes used", "retained items sharing a code", "prefixes", "retained items under them")
        yield Rows("shared codes", columns, shared)
    if preview.borderline:
        near = [("in" if x.inside else "out", f"{x.similarity:.3f}", x.item_id, x.title) for x in preview.borderline]
        headers = ("concept", "cosine to nearest member", "item_id", "title")
        yield Rows("border: nearest outside, then farthest inside", headers, near)
