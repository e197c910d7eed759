"""Layout of charts, and the looks of lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from dist_train.fewshot.methods import LABELS
from dist_train.fewshot.results import Results
from dist_train.report.chart import (
    COLOURS,
    FRAME,
    MAX_POINTS,
    Band,
    Label,
    LineChart,
    Point,
    Series,
    line_chart,
    round_marks,
    scatter_plot,
    short_number,
)
from dist_train.report.plots import method_labels


def chart_of(*points: Point, halves: tuple[float, ...] = (), band: Band | None = None) -> LineChart:
    chart = line_chart("title", "x", [Series(Label("a", 1), points, halves)], band=band)
    assert chart is not None
    return chart


def heights(chart: LineChart) -> list[float]:
    return [float(pair.split(",")[1]) for pair in chart.lines[0].path.split()]


def test_points_and_error_bars_are_placed() -> None:
    chart = chart_of((1.0, 0.0), (2.0, 10.0), halves=(0.0, 2.0))
    low, high = chart.lines[0].dots
    assert FRAME.left < low.x < high.x <= FRAME.right and low.y == FRAME.bottom > high.y >= FRAME.top
    assert low.text == "a: 0.00" and high.text == "a: 10.00 ± 2.00"
    (bar,) = chart.lines[0].bars
    assert bar.x == high.x and bar.bottom - high.y == pytest.approx(high.y - bar.top)


def test_error_bar_of_a_value_above_zero_ends_at_zero() -> None:
    (bar,) = chart_of((1.0, 1.0), halves=(3.0,)).lines[0].bars
    assert bar.bottom == FRAME.bottom


def test_band_is_placed_with_the_points() -> None:
    chart = chart_of((0.0, 0.0), (1.0, 1.0), band=Band(0.5, 2.0, "range"))
    assert chart.band is not None and FRAME.top <= chart.band.high < chart.band.low < FRAME.bottom


def test_many_points_become_means() -> None:
    chart = chart_of(*((float(n), 1.0 if n % 2 else 3.0) for n in range(4000)))
    assert len(heights(chart)) == MAX_POINTS and len(set(heights(chart))) == 1
    assert not chart.lines[0].dots


def test_points_that_are_not_finite_are_left_out() -> None:
    holes = ((0.5, float("nan")), (0.6, float("inf")))
    assert chart_of((0.0, 1.0), *holes, (1.0, 1.0)).lines[0].path.count(",") == 2
    assert line_chart("title", "x", [Series(Label("a", 0), holes)]) is None


def test_one_line_needs_no_key_and_lines_with_check_boxes_have_none() -> None:
    a, b = (Series(Label(name, n), ((0.0, 1.0),)) for n, name in enumerate("ab"))
    boxed = Series(Label("c", 2, key="m2"), ((0.0, 1.0),))
    keys = [chart.key for lines in ([a], [a, b], [boxed]) if (chart := line_chart("title", "x", lines))]
    assert keys == [(), (a.label, b.label), None]


def test_scatter_plot_has_one_scale_and_coloured_groups_on_top() -> None:
    group, rest = Label("group", 3, key="g0"), Label("other", -1, key="g1")
    plot = scatter_plot("title", [[0, 0], [4, 0], [2, 2]], ["a", "b", "c"], [group, None, rest])
    assert [(mark.text, mark.x, mark.y) for mark in plot.marks] == [("b", 288, 81), ("c", 150, 219), ("a", 12, 81)]


@pytest.mark.parametrize(
    "low, high", [(0, 5.7), (0, 61), (52.3, 60.9), (0, 1e-3), (0, 75_000), (0, 0), (7, 7), (-3, 2)]
)
def test_round_marks(low: float, high: float) -> None:
    marks = round_marks(low, high, over=True)
    assert 2 <= len(marks) <= 7 and marks[0] <= low and marks[-1] >= high
    assert len({round(b - a, 9) for a, b in itertools.pairwise(marks)}) == 1


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (0.05, "0.05"), (1500, "1.5k"), (75_000, "75k"), (2e6, "2M"), (60, "60")]
)
def test_short_number(value: float, text: str) -> None:
    assert short_number(value) == text


def test_up_to_eight_methods_are_shown_in_a_colour_each(many_methods: Callable[[list[str]], Results]) -> None:
    for names in (["nn", "nn10", "nn1", "imprint", "mean", "phi1", "phi2", "phi2star"], ["nn", "phi2"]):
        labels = list(method_labels(many_methods(names)).values())
        assert [label.colour for label in labels] == list(range(len(names)))
        assert all(label.shown and not label.dashes for label in labels)


def test_of_many_methods_the_best_of_each_kind_is_shown_and_no_two_lines_are_alike(
    many_methods: Callable[[list[str]], Results],
) -> None:
    names = list(LABELS)
    labels = method_labels(many_methods(names))
    assert list(labels) == names and len(names) > COLOURS
    assert len({(label.ink, label.dashes) for label in labels.values()}) == len(names)
    assert len({label.key for label in labels.values()}) == len(names)
    shown = [name for name, label in labels.items() if label.shown]
    assert len(shown) == COLOURS and "phi2" in shown and not any(labels[name].dashes for name in shown)
    assert not labels["nn"].shown  # two of its kind are better
