"""A comparison as one HTML file: tables, the front as inline SVG, nothing fetched, nothing run; in the report's style."""

from __future__ import annotations

from typing import Any

from recerase.report.compared import SCHEMA, Comparison, comparison_digest
from recerase.report.compared_plot import front_plot
from recerase.report.compared_words import about, tables, title_of
from recerase.report.html import page_template
from recerase.report.wording import facts


def comparison_html(comparison: Comparison) -> str:
    """The whole page. Equal comparisons give equal pages."""
    return page_template("comparison.html.j2").render(**_page(comparison))


def _page(comparison: Comparison) -> dict[str, Any]:
    from markupsafe import Markup

    plots = {scope: front_plot(comparison, scope) for scope in comparison.scopes}
    run = {key: value for key, value in comparison.run.items() if key != "cost"}
    return {
        "comparison": comparison,
        "title": title_of(comparison),
        "about": about(comparison),
        "tables": {scope: tuple(tables(comparison, scope)) for scope in comparison.scopes},
        "plots": plots,
        "svg": {scope: Markup(plot.svg) for scope, plot in plots.items() if plot is not None},
        "settings": [
            (f"{row.name}, scope {row.scope}", facts(row.settings)) for row in comparison.rows if row.kind == "method"
        ],
        "run_facts": facts(run),
        "input_facts": facts({**comparison.inputs, "this comparison": comparison_digest(comparison)}),
        "schema": SCHEMA,
    }
