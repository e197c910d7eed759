"""Line charts and scatter plots as SVG text, to be put into an HTML page that has ``style()`` in its style sheet.

Written by hand rather than by a plotting library: the page's own font and colours apply, in the light
and in the dark, and the same numbers give the same bytes. What is shown is chosen by check boxes and the
style sheet alone (``chips``): no script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

COLOURS = 8
DASHES = ("", "7 4", "1.5 4")
"""Dashed lines have the colours once more: 24 lines that differ."""
# After Okabe & Ito's eight, which the colour-blind tell apart, darker on white and lighter on black.
_LIGHT = ("#0072b2", "#d55e00", "#008f67", "#b4489a", "#3aa0dc", "#c98b00", "#22262b", "#7a7a00")
_DARK = ("#4f9be8", "#f5853f", "#3ecf9f", "#e58ccb", "#a6daf8", "#f2bd3d", "#f2f4f6", "#c2c24a")
_STYLE = """
figure { margin:0; min-width:0; } figcaption { font-weight:600; font-size:.95rem; }
figure > svg { display:block; width:100%; height:auto; margin-top:.3rem; }
svg text { font-size:13px; fill:var(--soft); } svg .grid { stroke:var(--line); } svg .axis { stroke:var(--soft); }
svg .band { fill:var(--soft); opacity:.13; } svg .limit { stroke:var(--soft); stroke-dasharray:4 3; }
.s { --ink:var(--faint); --wide:1.25; --on:0; } .s polyline { fill:none; stroke:var(--ink); stroke-width:var(--wide);
 stroke-linejoin:round; stroke-linecap:round; } .s .bar { stroke:var(--ink); stroke-width:1.5; opacity:var(--on); }
.s .dot { fill:var(--ink); stroke:var(--page); stroke-width:1.5; opacity:var(--on); } .s .mark { fill:var(--ink);
 stroke:var(--page); stroke-width:.5; }
.key, .chips { display:flex; flex-wrap:wrap; gap:.1rem .9rem; font-size:.85rem; color:var(--soft); min-height:1.4em; }
.key svg, .chips svg { width:1.6em; height:.8em; margin-right:.3em; vertical-align:-.05em; flex:none; }
.chips { gap:.4rem; padding:.5rem 0; }
.chips label { position:relative; display:inline-flex; align-items:center; border:1px solid var(--line);
 border-radius:1rem; padding:.1rem .7rem; cursor:pointer; white-space:nowrap; background:var(--page); }
.chips input { position:absolute; opacity:0; width:1px; height:1px; }
.chips label:has(:checked) { color:var(--text); background:var(--tint); border-color:var(--soft); }
.chips label:has(:focus-visible) { outline:2px solid var(--c0); outline-offset:1px; }
.chips label:not(:has(:checked)) svg { opacity:.35; }
"""

MAX_POINTS = 200
WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 42  # margins of the plot, in the same units
SIDE = 300  # of a scatter plot
_MARKS = (  # about equal areas, around the origin
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "m-3.5-3.5h7v7h-7z", "m0-5l4.6 8h-9.2z", "m0-5l5 5l-5 5l-5-5z",
    "m0 5l4.6-8h-9.2z", "m-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z", "m-5-3h10v6h-10z", "m-3-5h6v10h-6z",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What check boxes show and hide: a method, or a group of classes.

    Attributes:
        key: its CSS class; lines and marks of this key follow the check box.
        colour: number below COLOURS; -1 = the colour of what is not told apart.
        dash: number of a dash pattern, or of a mark.
        shown: at the beginning.
    """

    key: str
    name: str
    colour: int
    dash: int = 0
    shown: bool = True


@dataclass(frozen=True)
class Series:
    """A named line. ``colour`` and ``dash`` are numbers below COLOURS and of DASHES; ``halves`` are half-widths of
    error bars, of which a line of many points shows about ten; with ``choice``, of the same colour, a check box shows
    and hides it."""

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]
    halves: tuple[float, ...] = ()
    dash: int = 0
    choice: Choice | None = None


def style(choices: Iterable[Choice]) -> str:
    """The rules that charts need, beside the colours --soft (text), --line (rules), --faint (what is not chosen),
    --tint and --page (backgrounds)."""
    light, dark = ("".join(f"--c{n}:{c};" for n, c in enumerate(some)) for some in (_LIGHT, _DARK))
    rules = []
    for choice in choices:
        ink = f"--ink:{_colour(choice.colour)};--on:1;--wide"
        rules.append(
            f":root:has(#show-{choice.key}:checked) .{choice.key}{{{ink}:2}}"
            f":root:has(label[for=show-{choice.key}]:hover) .{choice.key}{{{ink}:3.5}}"
            f"@supports not selector(:has(a)){{.{choice.key}{{{ink}:2}}}}\n"  # an old browser shows them all
        )
    return (
        f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        f"{_STYLE}{''.join(rules)}\n.s[style]{{--wide:2;--on:1}}\n"
    )


def chips(label: str, choices: Sequence[Choice], marks: bool = False) -> str:
    """The check boxes of ``choices``, those first that are shown. ``marks``: they stand for marks, not for lines."""
    return f"<div class='chips' role='group' aria-label='{escape(label)}'>" + "".join(
        f"<label for='show-{c.key}'><input type='checkbox' autocomplete='off' id='show-{c.key}'"
        f"{' checked' if c.shown else ''}>{_swatch(c.colour, c.dash, marks)}{escape(c.name)}</label>"
        for c in sorted(choices, key=lambda c: not c.shown)
    ) + "</div>"  # fmt: skip


def _colour(number: int) -> str:
    return f"var(--c{number})" if number >= 0 else "var(--soft)"


def _swatch(colour: int, dash: int, mark: bool = False) -> str:
    if mark:
        inside = f'<path style="fill:{_colour(colour)}" d="M10 5{_MARKS[dash % len(_MARKS)]}"/>'
    else:
        inside = (
            f'<line x1="1" x2="19" y1="5" y2="5" style="stroke:{_colour(colour)};stroke-width:2.5;'
            f'stroke-dasharray:{DASHES[dash] or "none"}"/>'
        )
    return f'<svg viewBox="0 0 20 10" aria-hidden="true">{inside}</svg>'


def line_chart(
    title: str,
    x_label: str,
    series: list[Series],
    x_ticks: list[float] | None = None,
    band: tuple[float, float, str] | None = None,
) -> str:
    """A figure: title, key, plot. Few points get dots; many (over MAX_POINTS) become means of equal
    stretches. Points that are not finite are left out, and series without points too. A single series
    needs no key, and those with a ``choice`` have ``chips``.

    Args:
        x_ticks: values to mark below the axis; round ones by default.
        band: a range to show across the plot, and its name.

    Returns:
        A ``<figure>``; the empty text where no series has a point.
    """
    series = [thinned for s in series if (thinned := _thin(s)).points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ends = [end for s in series for (_, y), half in _with_halves(s) for end in (_below(y, half), y + half)]
    ends += band[:2] if band else ()
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
    if band:
        low, high = place(x_low, band[0])[1], place(x_low, band[1])[1]
        parts.append(
            f'<rect class="band" x="{LEFT}" y="{high:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{low - high:.1f}"/>'
            f'<text x="{WIDTH - RIGHT - 6}" y="{low - 7:.1f}" text-anchor="end">{escape(band[2])}</text>'
        )
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{floor}" y2="{floor}"/>')
    for mark in x_marks:
        x = place(mark, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{floor + 17}" text-anchor="middle">{number(mark)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for s in sorted(series, key=lambda s: s.choice is None or s.choice.shown):  # what is chosen lies on top
        parts.append(_draw(s, place))
    named = [s for s in series if s.choice is None]
    key = "".join(f"<span>{_swatch(s.colour, s.dash)}{escape(s.name)}</span>" for s in named if len(named) > 1)
    # An empty one keeps the plots of a line at one height.
    return _figure(title, f'<div class="key">{key}</div>' if named else "", WIDTH, HEIGHT, parts)


def _figure(title: str, key: str, width: int, height: int, parts: list[str]) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>{key}"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _draw(s: Series, place: Callable[[float, float], tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in s.points))
    dash = f' stroke-dasharray="{DASHES[s.dash]}"' if s.dash else ""
    parts = [f'<polyline{dash} points="{path}"/>', f"<title>{escape(s.name)}</title>"]
    few = len(s.points) <= 12
    for (x, y), half in _with_halves(s)[:: 1 if few else math.ceil(len(s.points) / 10)]:
        (left, top), (_, bottom), (_, centre) = place(x, y + half), place(x, _below(y, half)), place(x, y)
        if half:
            parts.append(
                f'<path class="bar" d="M{left:.1f} {top:.1f}V{bottom:.1f}'
                f'M{left - 4:.1f} {top:.1f}h8M{left - 4:.1f} {bottom:.1f}h8"/>'
            )
        label = f"{s.name}: {y:.2f}" + (f" ± {half:.2f}" if half else "")
        if few:
            dot = f'<circle class="dot" cx="{left:.1f}" cy="{centre:.1f}" r="4">'
            parts.append(f"{dot}<title>{escape(label)}</title></circle>")
    kind = f'class="s {s.choice.key}"' if s.choice else f'class="s" style="--ink:{_colour(s.colour)}"'
    return f"<g {kind}>{''.join(parts)}</g>"


def scatter(
    title: str, places: Sequence[Sequence[float]], names: Sequence[str], groups: Sequence[Choice | None]
) -> str:
    """A square figure of marks without axes: ``places`` [N, 2], a name for each, and the group that it belongs to."""
    ends = [(min(place[axis] for place in places), max(place[axis] for place in places)) for axis in (0, 1)]
    span = max(high - low for low, high in ends) or 1.0
    parts = [f'<rect x=".5" y=".5" width="{SIDE - 1}" height="{SIDE - 1}" rx="6" fill="none" class="grid"/>']
    size = 1.0 if len(places) <= 250 else 0.75
    order = sorted(range(len(places)), key=lambda n: (group := groups[n]) is not None and group.colour >= 0)
    for n in order:
        # Both axes on one scale, what is between the ends in the middle of the plot.
        x, y = (SIDE / 2 + (SIDE - 24) * (v - sum(end) / 2) / span for v, end in zip(places[n], ends, strict=True))
        group = groups[n] or Choice("", "", -1)
        kind = f'class="s {group.key}"' if group.key else 'class="s" style="--ink:var(--c0)"'
        parts.append(
            f'<g {kind} transform="translate({x:.1f} {y:.1f}) scale({size})"><title>{escape(names[n])}</title>'
            f'<path class="mark" d="M0 0{_MARKS[group.dash % len(_MARKS)]}"/></g>'
        )
    return _figure(title, "", SIDE, SIDE, parts)


def _below(y: float, half: float) -> float:
    """The lower end of an error bar: nothing that is counted goes below zero."""
    return max(y - half, min(y, 0.0))


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
    halves = tuple(half for _, half in kept[::stretch]) if s.halves else ()
    return replace(s, points=means, halves=halves)


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
