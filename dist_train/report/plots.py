"""The report's charts, from the results and the numbers in ``evaluate/figures``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dist_train.fewshot.methods import METHODS
from dist_train.report import svg
from dist_train.report.svg import Choice, Series, line_chart, scatter
from dist_train.report.wording import display_name

OTHER = "other"


def method_choices(results: Mapping[str, Any]) -> dict[str, Choice]:
    """A line's look for each method. Up to 8 have a colour each and are shown. Of more, 8 are shown at first: phi2,
    then the best of each kind (a class in fewshot/methods) by the harmonic mean at the fewest shots, then others."""
    methods, k = results["methods"], str(min(results["shots"]))
    ranked = sorted(methods, key=lambda name: -methods[name][k]["harmonic"]["mean"])
    best = {METHODS.get(name, name): name for name in reversed(ranked)}.values()
    first = [*(n for n in ranked if n == "phi2"), *(n for n in ranked if n in best), *ranked]
    shown = set(list(dict.fromkeys(first))[: svg.COLOURS])
    others = [name for name in methods if name not in shown]
    number = {name: n for n, name in enumerate(name for name in methods if name in shown)}
    number |= {name: svg.COLOURS + n for n, name in enumerate(others)}  # dashed
    return {
        name: Choice(f"m{n}", display_name(name), n % svg.COLOURS, n // svg.COLOURS % len(svg.DASHES), name in shown)
        for name, n in sorted(number.items(), key=lambda item: list(methods).index(item[0]))
    }


def group_choices(maps: Mapping[str, Any]) -> dict[str, Choice]:
    """A mark's look for each group of classes, the largest first; none where there are no groups."""
    groups = [entry["group"] for entry in maps.get("classes", []) if entry["group"]]
    ranked = sorted(set(groups), key=lambda group: (group == OTHER, -groups.count(group), group))
    return {
        group: Choice(f"g{n}", group, -1 if group == OTHER else n % svg.COLOURS, 0 if group == OTHER else n)
        for n, group in enumerate(ranked)
    }


def against_shots(results: Mapping[str, Any], choices: Mapping[str, Choice]) -> str:
    shots: list[int] = sorted(results["shots"])
    plots = []
    for metric, title in (
        ("novel_top1", "Novel top-1 (%)"),
        ("base_top1", "Base top-1 (%)"),
        ("harmonic", "Harmonic mean (%)"),
        ("ausuc", "Area under the seen-unseen curve (%)"),
    ):
        series = []
        for method, by_shots in results["methods"].items():
            values = [by_shots[str(k)][metric] for k in shots]
            points = tuple((float(k), v["mean"]) for k, v in zip(shots, values, strict=True))
            series.append(_of(method, points, choices, tuple(v["ci95"] for v in values)))
        plots.append(line_chart(title, "images a class", series, [float(k) for k in shots]))
    return "".join(plots)


def old_and_new(results: Mapping[str, Any], choices: Mapping[str, Choice]) -> str:
    """At the fewest shots: base against novel accuracy, and what the base classes lose as novel ones come."""
    k = str(min(results["shots"]))
    mean = {method: by_shots[k] for method, by_shots in (results.get("curves") or {}).items()}
    plots = []
    for curve, title, x_label in (
        ("seen_unseen", f"Seen-unseen, {k}-shot: base top-1 (%)", "novel top-1 (%) as novel scores are raised"),
        ("forgetting", f"Forgetting, {k}-shot: base top-1 (%)", "novel classes added"),
    ):
        series = []
        for method, curves in mean.items():
            values = curves[curve]
            if curve == "seen_unseen":  # which ends where no offset gets further
                values = values[: 1 + max((n for n, y in enumerate(values) if y), default=0)]
            halves = tuple(curves.get(f"{curve}_ci95", ())[: len(values)])
            series.append(_of(method, tuple((float(x), y) for x, y in enumerate(values)), choices, halves))
        plots.append(line_chart(title, x_label, series))
    return "".join(plots)


def training(curves: Mapping[str, Any], choices: Mapping[str, Choice]) -> str:
    rows = curves.get("pretrain") or []
    plots = [
        line_chart("Backbone: loss", "step", [_curve(rows, "train/loss", "training", 0)]),
        line_chart(
            "Backbone: base top-1 (%)",
            "step",
            [_curve(rows, "train/top1(%)", "training", 0), _curve(rows, "eval/top1(%)", "validation", 1)],
        ),
        line_chart("Backbone: learning rate", "step", [_curve(rows, "optim/lr", "learning rate", 0)]),
    ]
    learn = curves.get("learn") or {}
    for tag, title in (("train/loss", "Predictors: loss"), ("eval/base_top1(%)", "Predictors: base top-1 (%)")):
        looks = [choices.get(method, Choice("", "", n % svg.COLOURS)) for n, method in enumerate(learn)]
        series = [
            _curve(rows, tag, display_name(method), look.colour, look.dash)
            for look, (method, rows) in zip(looks, learn.items(), strict=True)
        ]
        plots.append(line_chart(title, "step", series))
    return "".join(plots)


def class_maps(maps: Mapping[str, Any], choices: Mapping[str, Choice]) -> str:
    """The maps side by side (paper, Figure 2), on which a class has one mark."""
    entries = maps["classes"]
    names = [f"{entry['name']} ({entry['group']})" if entry["group"] else entry["name"] for entry in entries]
    groups = [choices.get(entry["group"]) for entry in entries]
    return "".join(scatter(what[:1].upper() + what[1:], places, names, groups) for what, places in maps["maps"].items())


def channels(figures: Mapping[str, Any]) -> str:
    """Channel impact (paper, Figure 5), and the diagonal of phi1 against the paper's range."""
    plots = []
    impact = {what: entry for what, entry in (figures.get("channels") or {}).items() if "sorted" in entry}
    series = [Series(what, n % svg.COLOURS, _line(entry["sorted"])) for n, (what, entry) in enumerate(impact.items())]
    plots.append(line_chart("Channel impact: mean |w|", "channels, sorted", series))
    if found := figures.get("diagonal"):
        low, high = found["paper"]
        band = (low, high, f"the paper's range, {low} to {high}")
        series = [Series("diagonal of φ1's weight", 0, _line(found["sorted"]))]
        plots.append(line_chart("Diagonal of φ1", "channels, sorted", series, band=band))
    return "".join(plots)


def _line(values: list[float]) -> tuple[tuple[float, float], ...]:
    return tuple((float(n), value) for n, value in enumerate(values))


def _of(
    method: str, points: tuple[tuple[float, float], ...], choices: Mapping[str, Choice], halves: tuple[float, ...] = ()
) -> Series:
    choice = choices[method]
    return Series(choice.name, choice.colour, points, halves, choice.dash, choice)


def _curve(rows: Iterable[Mapping[str, float]], tag: str, name: str, colour: int, dash: int = 0) -> Series:
    points = tuple((float(row["step"]), float(row[tag])) for row in rows if row.get(tag) is not None)
    return Series(name, colour, points, dash=dash)
