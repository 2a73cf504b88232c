"""A comparison as Markdown. The decision is the report's: everything that did not come from recerase is escaped."""

from __future__ import annotations

from collections.abc import Iterator

from recerase.report.compared import SCHEMA, Comparison, comparison_digest
from recerase.report.compared_words import about, tables, title_of
from recerase.report.markdown import cell_text, digest_rows, escaped, table_lines


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison in GitHub's Markdown. Equal comparisons give equal text."""
    parts = [f"# {escaped(title_of(comparison))}", f"{escaped(about(comparison))}.", *table_blocks(comparison, 2)]
    parts += ["## What the figures do not say", "\n".join(f"- {escaped(note, 1000)}" for note in comparison.notes)]
    digests = digest_rows({**comparison.inputs, "this comparison": comparison_digest(comparison)})
    parts += ["## Provenance", table_lines(("input", "sha256"), digests, set())]
    parts.append(f"Mean ± standard deviation over seeds. Schema `{SCHEMA}`.")
    return "\n\n".join(parts) + "\n"


def table_blocks(comparison: Comparison, level: int) -> Iterator[str]:
    """Its tables, and by what rules they were filled; headings begin at `level`."""
    for scope in comparison.scopes:
        if len(comparison.scopes) > 1:
            yield f"{'#' * level} Scope {scope}"
        for table in tables(comparison, scope):
            yield f"{'#' * (level + 1)} {escaped(table.title)}"
            rows = [[cell_text(cell) for cell in row] for row in table.rows]
            yield table_lines(table.headers, rows, set(table.right))
    yield "\n".join(f"- {escaped(line, 1000)}" for line in comparison.front.splitlines())
    if comparison.search is not None:
        yield f"Settings were chosen on validation users. {escaped(comparison.search.criterion, 1000)}"
