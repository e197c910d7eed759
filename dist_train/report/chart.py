"""Line charts and scatter plots: where everything lies. ``templates/charts.html`` writes them as SVG.

The geometry is our own rather than matplotlib's, which was tried (3.11, SVG with text as text) and does not fit into
a page: it writes colours into style attributes, which neither the dark mode nor the check boxes of a page can change,
gives every chart the same ids, and has no tooltip for a point. The chart of accuracy against shots took 25 kB instead
of 7, and the import more than a second. Here the page's own font and colours apply, a check box shows and hides a
line by the style sheet alone (no script), and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

COLOURS = 8
"""Number of the style sheet's colours ``--c0`` to ``--c7``: Okabe & Ito's eight, which colour-blind people can tell
apart, darker on white and lighter on black."""
DASHES = ("", "7 4", "1.5 4", "12 4 2 4", "14 8", "7 3 2 3 2 3")
"""Dash patterns. With the colours they make 48 lines that differ."""
MAX_POINTS = 200
"""Points of a line; more are averaged over equal stretches."""
_FEW_POINTS = 12  # a line with this many or fewer has dots and all its error bars
_MARKS = (  # outlines of about equal areas around the origin
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "m-3.5-3.5h7v7h-7z", "m0-5l4.6 8h-9.2z", "m0-5l5 5l-5 5l-5-5z",
    "m0 5l4.6-8h-9.2z", "m-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z", "m-5-3h10v6h-10z", "m-3-5h6v10h-6z",
)  # fmt: skip

Point = tuple[float, float]


@dataclass(frozen=True)
class Label:
    """Name and look of a line, or of a group of marks.

    Attributes:
        colour: number below COLOURS; -1 is the colour of text, for what needs no colour of its own.
        pattern: number of a dash pattern, or of a mark.
        key: CSS class that a check box shows and hides; without a key, lines and marks are always shown.
        shown: whether the check box is checked at first.
    """

    name: str
    colour: int
    pattern: int = 0
    key: str = ""
    shown: bool = True

    @property
    def ink(self) -> str:
        """Return the colour as CSS."""
        return f"var(--c{self.colour})" if self.colour >= 0 else "var(--soft)"

    @property
    def dashes(self) -> str:
        """Return the value of ``stroke-dasharray``; "" for a solid line."""
        return DASHES[self.pattern % len(DASHES)]

    @property
    def mark(self) -> str:
        """Return the outline of the mark as path data, relative to its centre."""
        return _MARKS[self.pattern % len(_MARKS)]


@dataclass(frozen=True)
class Series:
    """A line in the units of its axes. ``halves`` are half-widths of error bars, one per point, or empty."""

    label: Label
    points: tuple[Point, ...]
    halves: tuple[float, ...] = ()

    def with_halves(self) -> list[tuple[Point, float]]:
        """Return each point with the half-width of its error bar, 0 where there is none."""
        return list(zip(self.points, self.halves or (0.0,) * len(self.points), strict=True))


@dataclass(frozen=True)
class Frame:
    """Size of a line chart and edges of its plot, in the units of the SVG."""

    width: int = 440
    height: int = 260
    left: int = 48
    right: int = 428
    top: int = 12
    bottom: int = 218


FRAME = Frame()


@dataclass(frozen=True)
class Scale:
    """A linear map from values between ``low`` and ``high`` to places between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low or 1) * (self.end - self.start)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class ErrorBar:
    """An error bar at ``x`` between two heights."""

    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Dot:
    """A dot with a tooltip."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A placed series; ``path`` is the value of a polyline's ``points``."""

    label: Label
    path: str
    bars: tuple[ErrorBar, ...]
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Band:
    """A range to show across the plot, from ``low`` to ``high`` (values, or places once the chart is laid out)."""

    low: float
    high: float
    text: str


@dataclass(frozen=True)
class LineChart:
    """A line chart, laid out in the units of the SVG.

    Attributes:
        key: labels to explain above the plot; empty where only one line could be meant, None where check boxes
            explain all lines.
    """

    title: str
    x_label: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    band: Band | None
    key: tuple[Label, ...] | None
    frame: Frame = FRAME


@dataclass(frozen=True)
class Mark:
    """A mark of a scatter plot, with its tooltip."""

    x: float
    y: float
    text: str
    label: Label


@dataclass(frozen=True)
class ScatterPlot:
    """A square plot without axes, laid out in the units of the SVG; ``mark_scale`` is the size of its marks."""

    title: str
    marks: tuple[Mark, ...]
    mark_scale: float
    side: int = 300


def line_chart(
    title: str,
    x_label: str,
    series: Iterable[Series],
    x_ticks: Sequence[float] = (),
    band: Band | None = None,
) -> LineChart | None:
    """Lay out a line chart.

    Few points get dots; more than MAX_POINTS become means of equal stretches. Points that are not finite are left
    out, and so are series without points.

    Args:
        x_ticks: values to mark on the horizontal axis; round ones by default.

    Returns:
        None where no series has a point.
    """
    lines = [thinned for s in series if (thinned := _thin(s)).points]
    if not lines:
        return None
    x, x_marks = _horizontal(lines, x_ticks)
    y, y_marks = _vertical(lines, band)
    placed = [_line(s, x, y) for s in sorted(lines, key=lambda s: s.label.shown)]  # what is shown lies on top
    unkeyed = tuple(s.label for s in lines if not s.label.key)
    return LineChart(
        title,
        x_label,
        tuple(placed),
        tuple(Tick(x.place(mark), short_number(mark)) for mark in x_marks),
        tuple(Tick(y.place(mark), short_number(mark)) for mark in y_marks),
        band and Band(y.place(band.low), y.place(band.high), band.text),
        (unkeyed if len(unkeyed) > 1 else ()) if unkeyed else None,
    )


def _horizontal(lines: Sequence[Series], ticks: Sequence[float]) -> tuple[Scale, Sequence[float]]:
    values = [x for s in lines for x, _ in s.points]
    marks = ticks or round_marks(min(0.0, *values), max(values))
    pad = 0.15 * (marks[-1] - marks[0]) if ticks else 0.0
    return Scale(min(marks[0], *values) - pad, max(marks[-1], *values) + pad, FRAME.left, FRAME.right), marks


def _vertical(lines: Sequence[Series], band: Band | None) -> tuple[Scale, Sequence[float]]:
    ends = [end for s in lines for (_, y), half in s.with_halves() for end in (_lower_end(y, half), y + half)]
    ends += (band.low, band.high) if band else ()
    # The axis begins at zero, unless that would press all lines together at the top.
    low = min(ends) if min(ends) > 0.5 * max(ends) else min(0.0, *ends)
    marks = round_marks(low, max(ends), over=True)
    return Scale(marks[0], marks[-1], FRAME.bottom, FRAME.top), marks


def _line(series: Series, x: Scale, y: Scale) -> Line:
    path = " ".join(f"{x.place(across):.1f},{y.place(value):.1f}" for across, value in series.points)
    few = len(series.points) <= _FEW_POINTS
    bars, dots = [], []
    for (across, value), half in series.with_halves()[:: 1 if few else math.ceil(len(series.points) / 10)]:
        if half:
            bars.append(ErrorBar(x.place(across), y.place(value + half), y.place(_lower_end(value, half))))
        if few:
            text = f"{series.label.name}: {value:.2f}" + (f" ± {half:.2f}" if half else "")
            dots.append(Dot(x.place(across), y.place(value), text))
    return Line(series.label, path, tuple(bars), tuple(dots))


def scatter_plot(
    title: str, points: Sequence[Sequence[float]], names: Sequence[str], groups: Sequence[Label | None]
) -> ScatterPlot:
    """Lay out marks at ``points`` [N, 2], each with a name and the group it belongs to, if any.

    Both axes have one scale, and the points lie in the middle of the plot.
    """
    side = ScatterPlot.side
    ends = [(min(point[axis] for point in points), max(point[axis] for point in points)) for axis in (0, 1)]
    span = max(high - low for low, high in ends) or 1.0
    marks = []
    for point, name, group in zip(points, names, groups, strict=True):
        x, y = (side / 2 + (side - 24) * (v - sum(end) / 2) / span for v, end in zip(point, ends, strict=True))
        marks.append(Mark(x, y, name, group or Label("", 0)))
    marks.sort(key=lambda mark: bool(mark.label.key) and mark.label.colour >= 0)  # coloured groups lie on top
    return ScatterPlot(title, tuple(marks), 1.0 if len(points) <= 250 else 0.75)


def _lower_end(value: float, half: float) -> float:
    """Return the lower end of an error bar: a bar of a value above zero does not go below zero."""
    return max(value - half, min(value, 0.0))


def _thin(series: Series) -> Series:
    kept = [(point, half) for point, half in series.with_halves() if math.isfinite(point[1])]
    if len(kept) <= MAX_POINTS:
        halves = tuple(half for _, half in kept) if series.halves else ()
        return replace(series, points=tuple(point for point, _ in kept), halves=halves)
    stretch = math.ceil(len(kept) / MAX_POINTS)
    groups = [[point for point, _ in kept[start : start + stretch]] for start in range(0, len(kept), stretch)]
    means = tuple((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups)
    halves = tuple(half for _, half in kept[::stretch]) if series.halves else ()
    return replace(series, points=means, halves=halves)


def round_marks(low: float, high: float, over: bool = False) -> list[float]:
    """Return two to seven multiples of 1, 2 or 5 times a power of ten.

    The first is at or below ``low``; the last is at or below ``high``, or at or above it with ``over``.
    """
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 5)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9) if over else math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def short_number(value: float) -> str:
    """Return a number as short as it reads well: 75k, 1.5M, 0.05."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and value % (unit / 10) == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
