"""Numbers and titles are shown so that nobody is misled by how they were shortened."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recerase.report.labels import metric_label
from recerase.report.wording import (
    TITLE_LENGTH,
    all_rows,
    change_text,
    facts,
    grouped_skips,
    headline_rows,
    interval_text,
    number,
    role_names,
    title_text,
)
from recerase.types import Interval, Measurement, Role, Skipped


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_a_shown_number_is_the_number_to_three_digits(value: float) -> None:
    assume(value == 0 or abs(value) > 1e-300)
    shown = float(number(value).replace(",", ""))
    tolerance = 0.5 if abs(value) >= 999.5 else 0.051 * abs(value) if abs(value) < 1e-4 else 0.00501 * abs(value)
    assert abs(shown - value) <= tolerance
    assert len(number(value)) <= 20


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.07123, "0.0712"),
        (8.3e-5, "8.3e-5"),
        (1e-12, "1e-12"),
        (1e-4, "0.0001"),
        (0.99999, "1"),
        (999.9, "1,000"),
        (21410, "21,410"),
        (math.nan, "n/a"),
        (math.inf, "inf"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


@given(st.text(max_size=400))
def test_a_shown_title_is_short_printable_and_one_line(title: str) -> None:
    shown = title_text(title)
    assert 0 < len(shown) <= TITLE_LENGTH
    assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    assert title_text(shown) == shown


def test_a_family_emoji_is_not_cut_apart() -> None:
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
    for length in range(1, 12):
        shown = title_text("ab" + family + " kit and more", length + 3)
        assert not shown.rstrip("…").endswith("\u200d")
        assert family in shown or "\u200d" not in shown


def test_a_cut_title_says_so_and_a_short_one_is_whole() -> None:
    assert title_text("x" * 10_000).endswith("…")
    assert title_text("Sandalwood incense") == "Sandalwood incense"
    assert title_text(" \u202e\x00 ") == "(no title)"


def measurement(role: Any, value: float) -> Measurement:
    return Measurement("natural.exposure@10", role, value, 10, "catalogue")


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0.2, 0.1, "-50.0 %"),
        (0.1, 0.0, "gone"),
        (0.1, 0.1, "0 %"),
        (0.0, 0.1, ""),
        (0.1, 1e-9, "-99.99 %"),
        (0.001, 0.5, "x 500"),
        (0.1, math.nan, ""),
        (math.nan, 0.1, ""),
    ],
)
def test_a_change_never_rounds_to_gone(make_report: Any, before: float, after: float, shown: str) -> None:
    found = (measurement("original", before), measurement("subject", after))
    (row,) = all_rows(replace(make_report(), measurements=found))
    assert change_text(row) == shown


def test_the_columns_are_called_before_and_after_only_when_something_was_erased(make_report: Any) -> None:
    report = make_report()
    assert role_names(report)["original"] == "before"
    assert role_names(report)["subject"] == "after"
    same = replace(report, inputs={**report.inputs, "original": report.inputs["subject"]})
    assert role_names(same)["subject"] == "audited"
    assert set(role_names(make_report(original=False, reference=False))) == {"subject"}


def test_headline_rows_are_a_selection_in_a_fixed_order(make_report: Any) -> None:
    report = make_report()
    names = [row.metric for row in headline_rows(report)]
    shuffled = replace(report, measurements=report.measurements[::-1])
    assert names == [row.metric for row in headline_rows(shuffled)]
    assert names[0] == "natural.exposure@10"
    assert set(names) <= {row.metric for row in all_rows(report)}


def test_every_metric_of_the_registry_has_words() -> None:
    from recerase.audit.cards import metrics

    assert [name for name in metrics() if metric_label(name) == name] == []
    assert metric_label("unknown.metric@10") == "unknown.metric@10"


def test_labels_are_short_tell_metrics_apart_and_say_their_unit() -> None:
    from recerase.audit.cards import metrics

    labels = {name: metric_label(name) for name in metrics()}
    assert len(set(labels.values())) == len(labels)
    assert max(map(len, labels.values())) <= 80
    units = {
        "auc": "AUC", "mlp": "AUC", "control": "AUC", "selectivity": "AUC", "mlp_selectivity": "AUC", "tpr": "share",
        "steps": "steps", "reached": "1 yes, 0 no", "exposure": "exposure@", "mass": "mass",
    }  # fmt: skip
    for name, label in labels.items():
        stem = name.partition("@")[0].removesuffix(".old").removesuffix(".new")
        assert units.get(stem.rpartition(".")[2], "") in label, name
        if name.startswith("influence.") or stem.startswith("forced_prefix."):
            assert label.startswith(("share of", "chance that")), name


def test_steps_of_an_attack_are_counted_in_the_label() -> None:
    told = [metric_label(f"relearn.benign.exposure@s{step}") for step in (1, 5)]
    assert told == [
        "exposure@10 after 1 step, further training on anything else",
        "exposure@10 after 5 steps, further training on anything else",
    ]


@pytest.mark.parametrize(
    ("metric", "better", "shown"),
    [
        ("hidden.next.auc", "lower", ""),
        ("relearn.forget.reached", "lower", ""),
        ("forensics.identical", "neither", ""),
        ("membership.advantage", "lower", "-50.0 %"),
    ],
)
def test_a_change_is_told_only_where_half_of_it_means_half(
    make_report: Any, metric: str, better: Any, shown: str
) -> None:
    found = tuple(
        Measurement(metric, role, value, 10, "weights", better=better)
        for role, value in (("original", 0.8), ("subject", 0.4))
    )
    (row,) = all_rows(replace(make_report(), measurements=found))
    assert change_text(row) == shown


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [(0.0, 0.0, 0.02, "at most 0.02"), (1.0, 0.98, 1.0, "at least 0.98")],
)
def test_a_one_sided_interval_names_the_end_that_is_not_certain(
    value: float, low: float, high: float, shown: str
) -> None:
    found = replace(measurement("subject", value), interval=Interval(low, high, 0.95, "rule-of-three"))
    assert interval_text(found) == shown


TOLD: tuple[Role, ...] = ("subject", "original", "filter")


def test_models_that_were_skipped_alike_are_named_together() -> None:
    skipped = tuple(Skipped(name, role, "r") for role in TOLD for name in ("a", "b"))
    assert grouped_skips(skipped) == (("r", ("a (subject, original, filter)", "b (subject, original, filter)")),)


def test_skips_are_grouped_by_reason_and_none_is_lost() -> None:
    skipped = (Skipped("a", "subject", "r"), Skipped("b", "reference", "r"), Skipped("c", "subject", "s"))
    assert grouped_skips(skipped) == (("r", ("a", "b (reference)")), ("s", ("c",)))


def test_facts_are_flat_sorted_and_counted() -> None:
    lines = facts({"b": {"on": True, "n": 12345}, "a": list("abcdef"), "c": [], "d": None})
    assert lines == (
        ("a", "a, b, c, d and 2 more"),
        ("b: n", "12,345"),
        ("b: on", "yes"),
        ("c", "none"),
        ("d", "none"),
    )
