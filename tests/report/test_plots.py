"""Plots are drawn from what is there, leave no trace in matplotlib, and come out the same each time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from tests.report.widened import widened

from recerase.report.plots import exposure_plot, mass_by_rank_plot, plots, utility_plot
from recerase.report.relearn_plot import half_level, steps_text
from recerase.types import Interval, Report


@pytest.fixture(scope="module")
def report(make_report: Any) -> Report:
    made: Report = make_report()
    return made


def test_every_plot_is_there_and_is_xml(report: Report) -> None:
    drawn = plots(report)
    assert [plot.name for plot in drawn] == ["exposure", "mass", "exposure_by_k", "saturated_by_m", "utility"]
    for plot in drawn:
        ElementTree.fromstring(plot.svg.replace("xlink:href", "href"))


def test_a_plot_needs_its_data(make_report: Any) -> None:
    bare = replace(make_report(original=False, reference=False), curves={}, measurements=())
    assert plots(bare) == ()
    assert utility_plot(make_report(original=False)) is None


def test_relearning_is_drawn_where_it_was_run(report: Report) -> None:
    wide = widened(report)
    drawn = {plot.name: plot for plot in plots(wide)}
    assert list(drawn)[-3:] == ["relearn_forget", "relearn_benign", "utility"]
    forget, benign = drawn["relearn_forget"], drawn["relearn_benign"]
    assert forget.roles == ("original", "subject", "reference")
    assert "half of what the original shows at first, 40 %" in forget.caption
    assert "Reached in 12.4 steps (after). Reached in 20.5 steps (reference)." in forget.caption
    assert "Not reached within 89 steps (after). Not reached within 89 steps (reference)." in benign.caption
    assert ">half<" in forget.svg
    assert "Relearning" not in " ".join(plot.title for plot in plots(report))


def test_relearning_without_an_original_has_no_level(make_report: Any) -> None:
    alone = widened(make_report(original=False, reference=False))
    assert half_level(alone, "forget") is None
    (plot,) = (plot for plot in plots(alone) if plot.name == "relearn_forget")
    assert plot.roles == ("subject",)
    assert ">half<" not in plot.svg
    assert half_level(widened(make_report()), "forget") == pytest.approx(0.4)
    nothing = {"relearn_forget": {"x": [0.0, 1.0], "original": [0.0, 0.0], "subject": [0.0, math.nan]}}
    drawn = plots(replace(alone, curves=nothing))
    assert half_level(replace(alone, curves=nothing), "forget") is None
    assert [plot.name for plot in drawn if plot.name.startswith("relearn")] == ["relearn_forget"]


def test_steps_are_told_only_with_whether_they_sufficed(make_report: Any) -> None:
    wide = widened(make_report())
    unsure = tuple(m for m in wide.measurements if m.metric != "relearn.forget.reached")
    assert steps_text(replace(wide, measurements=unsure), "forget") == ""
    assert steps_text(make_report(), "forget") == ""


def test_a_curve_that_does_not_belong_to_x_is_left_out(report: Report) -> None:
    curve = {"x": [0.0, 0.5, 1.0], "subject": [1e-3, 1e-4], "original": [0.1, 0.01, 0.001]}
    plot = mass_by_rank_plot(replace(report, curves={"mass_by_rank": curve}))
    assert plot is not None
    assert plot.roles == ("original",)
    assert mass_by_rank_plot(replace(report, curves={"mass_by_rank": {"x": []}})) is None


def test_zeros_and_what_is_no_number_can_be_drawn(report: Report) -> None:
    curve = {"x": [0.0, 0.5, 1.0], "subject": [0.0, math.nan, 0.0], "original": [math.inf, 0.1, 0.0]}
    assert mass_by_rank_plot(replace(report, curves={"mass_by_rank": curve})) is not None
    wild = Interval(math.nan, math.inf, 0.95, "bootstrap")
    odd = tuple(replace(m, value=math.nan, interval=wild) for m in report.measurements)
    assert exposure_plot(replace(report, measurements=odd)) is not None


def test_drawing_leaves_matplotlib_as_it_was_and_ignores_how_it_is_set(report: Report) -> None:
    before = dict(matplotlib.rcParams)
    first = exposure_plot(report)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert exposure_plot(report) == first


def test_the_plot_says_its_numbers_in_words(report: Report) -> None:
    plot = exposure_plot(report)
    assert plot is not None
    assert "before 7.12 %, after 0 %" in plot.svg.split(">")[0]
