"""What was measured stands under its layer, and what gates nothing says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.report.test_html import Page
from tests.report.widened import WIDE, widened

from recerase.report.html import report_html
from recerase.report.layers import INFORMED, INFORMING, TITLES, all_groups, headline_groups
from recerase.report.markdown import report_markdown
from recerase.report.wording import LAYERS, all_rows
from recerase.types import Finding, Report, Result, Rule


@pytest.fixture(scope="module")
def wide(make_report: Any) -> Report:
    return widened(make_report())


def test_every_row_is_in_one_group_of_its_own_layer(wide: Report) -> None:
    groups = all_groups(wide)
    placed = [row.metric for group in groups for row in group.rows]
    assert sorted(placed) == sorted(row.metric for row in all_rows(wide))
    assert len(set(placed)) == len(placed)
    assert all(row.layer == group.layer for group in groups for row in group.rows)
    order = [LAYERS.index(group.layer) for group in groups]
    assert order == sorted(order)
    assert [group.title for group in groups if not group.informs] == [TITLES[layer] for layer in LAYERS]


def test_what_informs_stands_below_the_layer_it_informs_about(wide: Report) -> None:
    informing = {(group.layer, row.metric) for group in all_groups(wide) if group.informs for row in group.rows}
    expected = {(layer, metric) for metric, (layer, _, _) in WIDE.items() if metric.partition(".")[0] in INFORMING}
    assert informing == expected
    shown = {row.metric.partition("@")[0] for group in headline_groups(wide) if group.informs for row in group.rows}
    assert shown == {metric.partition("@")[0] for _, metric in expected} & set(INFORMED)


def test_a_rule_makes_its_probe_part_of_the_layer(wide: Report) -> None:
    asked = Finding(Rule("near", "spill.lost.exposure@10", max=0.1), Result.PASS, "within the limit")
    gated = replace(wide, decision=replace(wide.decision, findings=(*wide.decision.findings, asked)))
    assert not any(row.metric.startswith("spill") for g in headline_groups(gated) if g.informs for row in g.rows)
    (utility,) = (g for g in headline_groups(gated) if g.layer == "utility")
    assert "spill.lost.exposure@10" in [row.metric for row in utility.rows]


def test_a_layer_of_which_only_that_was_measured_is_named(make_report: Any) -> None:
    report = widened(make_report())
    only = replace(report, measurements=tuple(m for m in report.measurements if m.metric.startswith("forensics.rows")))
    layer, informs = headline_groups(only)
    assert (layer.title, layer.rows, layer.informs) == (TITLES["weights"], (), False)
    assert [row.metric for row in informs.rows] == ["forensics.rows.auc"]
    assert TITLES["weights"] in report_markdown(only)


def test_the_weights_layer_is_in_both_reports_and_absent_where_it_was_not_measured(
    wide: Report, make_report: Any
) -> None:
    text, page = report_markdown(wide), Page(report_html(wide))
    told = "steps to half of the original's exposure, further training on the concept"
    for layer in LAYERS:
        assert f"### {TITLES[layer]}" in text
        assert TITLES[layer] in page.text
    assert f"| {told} | 0 | 12.4 | 20.5 |" in text
    assert told in page.text
    assert page.open == []
    assert INFORMING["spill"] in page.text
    assert f"#### No rule asks, for information: {INFORMING['influence']}" in text
    quick = make_report()
    for shown in (report_markdown(quick), Page(report_html(quick)).text):
        assert TITLES["catalogue"] in shown
        assert TITLES["weights"] not in shown
        assert "for information" not in shown
        assert "Relearning" not in shown
