"""The front, against its definition spelled out in loops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from recerase.comparing.front import places
from recerase.report.compared import Figure
from recerase.types import Interval

ENDS = st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2))


def figure(value: float, below: float, above: float) -> Figure:
    return Figure(value, 10, 1, None, Interval(value - below, value + above, 0.95, "bootstrap"))


def by_definition(rows: list[tuple[Figure, Figure]]) -> list[tuple[str, tuple[int, ...]]]:
    found = []
    for own in rows:
        beats, clearly = [], []
        for i, other in enumerate(rows):
            pairs = list(zip(other, own, strict=True))
            if all(a.value <= b.value for a, b in pairs) and any(a.value < b.value for a, b in pairs):
                beats.append(i)
                if any(a.value < b.value and a.interval.high < b.interval.low for a, b in pairs):
                    clearly.append(i)
        others = [other for other in rows if other is not own]
        alone = len(rows) > 1 and any(
            all(own[f].interval.high < other[f].interval.low for other in others)
            and not any(own[1 - f].interval.low > other[1 - f].interval.high for other in others)
            for f in (0, 1)
        )
        standing = "dominated" if clearly else "tied" if beats else "alone" if alone else "front"
        found.append((standing, tuple(clearly or beats)))
    return found


@given(st.lists(st.tuples(ENDS, ENDS), max_size=8))
def test_places_are_those_of_the_definition(ends: list[tuple[tuple[int, int, int], tuple[int, int, int]]]) -> None:
    rows = [(figure(*leak), figure(*drop)) for leak, drop in ends]
    found = places([leak for leak, _ in rows], [drop for _, drop in rows])
    assert [(place.standing, place.beaten_by) for place in found] == by_definition(rows)
    assert not rows or any(place.standing in ("front", "alone") for place in found)
    assert sum(place.standing == "alone" for place in found) <= 2  # one by each figure


def test_overlapping_intervals_tie_and_disjoint_ones_dominate() -> None:
    drops = [figure(0, 1, 1)] * 3
    leaks = [figure(1, 0.5, 0.5), figure(1.8, 0.5, 0.5), figure(3, 0.5, 0.5)]
    assert [place.standing for place in places(leaks, drops)] == ["front", "tied", "dominated"]
    assert [place.standing for place in places(leaks[1:], drops[1:])] == ["alone", "dominated"]
    assert places(leaks, drops)[2].beaten_by == (0, 1)


def test_a_row_without_an_interval_is_exact() -> None:
    exact = [Figure(1.0, 5, 1), Figure(2.0, 5, 1)]
    assert [place.standing for place in places(exact, [Figure(0.0, 5, 1)] * 2)] == ["alone", "dominated"]


def test_alone_is_clear_in_one_figure_against_all_and_never_clearly_worse() -> None:
    near, far, farther = figure(1, 0.5, 0.5), figure(3, 0.5, 0.5), figure(6, 0.5, 0.5)
    good, same, bad = figure(0, 1, 1), figure(1, 1, 1), figure(5, 1, 1)
    assert [x.standing for x in places([near, far, farther], [same, good, bad])] == ["alone", "front", "dominated"]
    assert [x.standing for x in places([near, far], [bad, good])] == ["front", "front"]  # each is clearly worse in one
    assert [x.standing for x in places([near], [good])] == ["front"]  # among nobody
    assert [x.standing for x in places([near], [good], others=1)] == ["alone"]
    assert places([], []) == ()
