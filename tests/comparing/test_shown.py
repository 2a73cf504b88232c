"""Every format shows every row, says what was not measured, and holds on to its width."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console
from tests.comparing.conftest import Finished

from recerase.report.compared import Comparison, Figure, Search, Trial
from recerase.report.compared_html import comparison_html
from recerase.report.compared_markdown import comparison_markdown
from recerase.report.compared_plot import front_plot
from recerase.report.compared_text import comparison_text
from recerase.report.compared_words import cell, interval, tables
from recerase.types import Interval

NASTY = '<b onclick="x">|`@you`'


def searched(made: Comparison) -> Comparison:
    trials = (
        Trial("npo", "output", {"lr": 0.003}, (0.1, 0.01), 0.012, chosen=True),
        Trial("ga", "output", {}, failure="no"),
    )
    return replace(made, search=Search(2, 0, 0.02, "the rule", 25, trials))


def shown(made: Comparison, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(comparison_text(made))
    return capture.get()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_console_shows_every_row_within_its_width(finished: Finished, width: int) -> None:
    text = shown(searched(finished.comparison), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for row in finished.comparison.rows:
        assert row.name in text
    assert "chosen" in text
    assert "±" in text


def test_the_share_is_of_processor_time_where_that_is_known(finished: Finished) -> None:
    made = finished.comparison

    def share(**cost: float | None) -> str:
        given = {"seconds": 5.0, **cost}
        run = {**made.run, "cost": {"output": {"npo": given}}}
        table = next(x for x in tables(replace(made, run=run), "output") if x.title == "Cost and front")
        (row,) = (row for row in table.rows if row[0] == "npo")
        return row[table.headers.index("of training")]

    assert share() == "not known"
    assert share(share=0.25) == "25 %"
    assert share(share=0.25, cpu_share=0.125, cpu_seconds=2.0) == "12.5 %"


def test_markdown_has_a_table_of_everything(finished: Finished) -> None:
    text = comparison_markdown(searched(finished.comparison))
    assert "(no title)" not in text  # a cell without a figure is empty
    assert "|  |" in text
    for title in ("Leakage", "Likeness", "Utility", "Cost and front", "Failed", "validation users"):
        assert title in text
    assert all(
        line.count(" | ") == text.splitlines()[i + 1].count(" | ")
        for i, line in enumerate(text.splitlines())
        if line.startswith("| model")
    )
    assert "recerase.comparison/1" in text
    assert all(note[:40] in text.replace("\\", "") for note in finished.comparison.notes)


def test_the_page_is_whole_and_fetches_nothing(finished: Finished) -> None:
    page = comparison_html(finished.comparison)
    assert page.count("<svg") == page.count("</svg>") == 1
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert "<script" not in page
    for row in finished.comparison.rows:
        assert f"<bdi>{row.name}</bdi>" in page


def test_the_front_is_drawn_and_not_without_a_method(finished: Finished) -> None:
    plot = front_plot(finished.comparison, "output")
    assert plot is not None
    ET.fromstring(plot.svg.replace("xlink:href", "href"))
    for name in ("npo", "ga", "original", "filter", "reference"):
        assert f">{name}<" in plot.svg
    assert front_plot(finished.comparison, "output") == plot
    alone = replace(finished.comparison, rows=tuple(row for row in finished.comparison.rows if row.kind != "method"))
    assert front_plot(alone, "output") is None
    assert "<svg" not in comparison_html(alone)


def test_what_comes_from_a_user_marks_up_nothing(finished: Finished) -> None:
    made = replace(finished.comparison, concept={**finished.comparison.concept, "name": NASTY})
    assert "<b onclick" not in comparison_html(made)
    assert "<b onclick" not in comparison_markdown(made)
    assert NASTY in shown(made, 120)


def test_a_cell_says_mean_spread_and_interval() -> None:
    found = Figure(0.0412, 90, 3, 0.002, Interval(0.03, 0.05, 0.95, "bootstrap"))
    assert cell(found) == "0.0412 ±0.002"
    assert interval(found) == "[0.03, 0.05]"
    assert cell(replace(found, sd=None)) == "0.0412"
    assert interval(replace(found, interval=None)) == ""


def test_n_stands_above_the_rows(finished: Finished) -> None:
    leakage = next(iter(tables(finished.comparison, "output")))
    assert leakage.title == "Leakage"
    assert leakage.rows[0][:2] == ("n", "25")
    assert [row[0] for row in leakage.rows[1:]] == ["original", "filter", "reference", "npo", "ga"]
