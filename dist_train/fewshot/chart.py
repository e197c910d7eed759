"""Line charts as SVG text, to be put into an HTML page that has ``STYLE`` in its style sheet.

Written by hand rather than by a plotting library: the page's own font and colours apply, in the light
and in the dark, and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape

COLOURS = 8
STYLE = """
:root { --c0:#6b7280; --c1:#b45309; --c2:#0d9488; --c3:#2563eb; --c4:#c026d3;
 --c5:#15803d; --c6:#be123c; --c7:#5b21b6; }
@media (prefers-color-scheme: dark) { :root { --c0:#9ca3af; --c1:#f59e0b; --c2:#2dd4bf; --c3:#60a5fa; --c4:#e879f9;
 --c5:#4ade80; --c6:#fb7185; --c7:#c4b5fd; } }
figure { margin:0; min-width:0; } figcaption { font-weight:600; font-size:.95rem; }
svg { display:block; width:100%; height:auto; margin-top:.3rem; } svg text { font-size:13px; fill:var(--soft); }
svg .grid { stroke:var(--line); } svg .axis { stroke:var(--soft); }
svg .line { fill:none; stroke-width:2; stroke-linejoin:round; stroke-linecap:round; }
svg .bar { stroke-width:1.5; } svg .dot { stroke:var(--page); stroke-width:1.5; }
.key { display:flex; flex-wrap:wrap; gap:.1rem .9rem; font-size:.85rem; color:var(--soft); min-height:1.4em; }
.key i { display:inline-block; width:.9em; height:.22em; border-radius:1em; vertical-align:.25em; margin-right:.35em; }
"""
"""Needs the colours --soft (text), --line (rules) and --page (background)."""

MAX_POINTS = 200
WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42  # margins of the plot, in the same units


@dataclass(frozen=True)
class Series:
    """A named line. ``colour`` is a number below COLOURS; ``halves`` are half-widths of error bars."""

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]
    halves: tuple[float, ...] = ()


def line_chart(title: str, x_label: str, series: list[Series], x_ticks: list[float] | None = None) -> str:
    """A figure: title, key, plot. Few points get dots; many (over MAX_POINTS) become means of equal
    stretches. Points that are not finite are left out, and series without points too.

    Args:
        x_ticks: values to mark below the axis; round ones by default.

    Returns:
        A ``<figure>``; the empty text where no series has a point.
    """
    series = [thinned for s in series if (thinned := _thin(s)).points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ends = [y + sign * half for s in series for (_, y), half in _with_halves(s) for sign in (-1, 1)]
    x_marks = x_ticks or round_marks(min(0.0, *xs), max(xs))
    pad = 0.15 * (x_marks[-1] - x_marks[0]) if x_ticks else 0.0
    x_low, x_high = min(x_marks[0], *xs) - pad, max(x_marks[-1], *xs) + pad
    # From zero, unless that would press all lines together at the top.
    y_marks = round_marks(min(ends) if min(ends) > 0.5 * max(ends) else min(0.0, *ends), max(ends), over=True)
    y_low, y_high = y_marks[0], y_marks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low or 1) * (HEIGHT - TOP - BOTTOM)

    floor = HEIGHT - BOTTOM
    parts = []
    for mark in y_marks:
        y = place(x_low, mark)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4.5:.1f}" text-anchor="end">{number(mark)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    for mark in x_marks:
        x = place(mark, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{number(mark)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for s in series:
        parts += _draw(s, place)
    key = "".join(f'<span><i style="background:var(--c{s.colour})"></i>{escape(s.name)}</span>' for s in series)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="key">{key}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _draw(s: Series, place: Callable[[float, float], tuple[float, float]]) -> list[str]:
    colour = f"var(--c{s.colour})"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in s.points))
    parts = [f'<polyline class="line" style="stroke:{colour}" points="{path}"/>']
    if len(s.points) > 12:
        return parts
    for (x, y), half in _with_halves(s):
        (left, top), (_, bottom), (_, centre) = place(x, y + half), place(x, y - half), place(x, y)
        if half:
            parts.append(
                f'<path class="bar" style="stroke:{colour}" d="M{left:.1f} {top:.1f}V{bottom:.1f}'
                f'M{left - 4:.1f} {top:.1f}h8M{left - 4:.1f} {bottom:.1f}h8"/>'
            )
        label = f"{s.name}: {y:.2f}" + (f" ± {half:.2f}" if half else "")
        parts.append(
            f'<circle class="dot" style="fill:{colour}" cx="{left:.1f}" cy="{centre:.1f}" r="4">'
            f"<title>{escape(label)}</title></circle>"
        )
    return parts


def _with_halves(s: Series) -> list[tuple[tuple[float, float], float]]:
    return list(zip(s.points, s.halves or (0.0,) * len(s.points), strict=True))


def _thin(s: Series) -> Series:
    kept = [(point, half) for point, half in _with_halves(s) if math.isfinite(point[1])]
    if len(kept) <= MAX_POINTS:
        halves = tuple(half for _, half in kept) if s.halves else ()
        return replace(s, points=tuple(point for point, _ in kept), halves=halves)
    stretch = math.ceil(len(kept) / MAX_POINTS)
    groups = [[point for point, _ in kept[k : k + stretch]] for k in range(0, len(kept), stretch)]
    means = tuple((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups)
    return replace(s, points=means, halves=())


def round_marks(low: float, high: float, over: bool = False) -> list[float]:
    """Two to seven multiples of 1, 2 or 5 times a power of ten; the first is at or below ``low``, the last
    at or below ``high``, or with ``over`` at or above it."""
    span = (high - low) or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(f for f in (1, 2, 5, 10) if span / (step * f) <= 5)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9) if over else math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """As short as it reads well: 75k, 1.5M, 0.05."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * unit or (abs(value) >= unit and value % (unit / 10) == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
