"""Which charts the report has: accuracy, curves of joint scoring, training, maps of the classes, channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.results import Results
from dist_train.report.chart import (
    COLOURS,
    DASHES,
    Band,
    Label,
    LineChart,
    Point,
    ScatterPlot,
    Series,
    line_chart,
    scatter_plot,
)
from dist_train.report.class_vectors import ChannelImpact, ClassMaps, Diagonal
from dist_train.report.comparison import metrics_by_method
from dist_train.report.wording import display_name

_OTHER = "other"  # the group of classes that belong to no other group
MetricRows = Sequence[Mapping[str, Any]]
"""Rows of a metrics.jsonl: tag -> value, and ``step``."""


@dataclass(frozen=True)
class TrainingCurves:
    """Rows of the metrics.jsonl of pretrain, and of learn for each method."""

    pretrain: MetricRows = ()
    learn: Mapping[str, MetricRows] = field(default_factory=dict)


def method_labels(results: Results) -> dict[str, Label]:
    """Return a label for each method; check boxes show and hide them.

    Up to 8 methods have a colour each and are shown. Of more, 8 are shown at first: phi2, then the best method of
    each kind (a class in fewshot/methods) by ``Results.ranked_by`` at the fewest shots, then the best of the others.
    The rest is dashed.
    """
    metrics = metrics_by_method(results, min(results.shots))
    ranked = sorted(metrics, key=lambda name: -metrics[name][results.ranked_by].mean)
    best_of_kind = {METHODS.get(name, name): name for name in reversed(ranked)}.values()
    first = [name for name in ranked if name == "phi2"] + [name for name in ranked if name in best_of_kind]
    shown = set(list(dict.fromkeys([*first, *ranked]))[:COLOURS])
    solid = [name for name in metrics if name in shown]
    dashed = [name for name in metrics if name not in shown]
    numbers = {name: number for number, name in enumerate(solid)}
    numbers |= {name: COLOURS + number for number, name in enumerate(dashed)}
    return {
        name: Label(
            display_name(name),
            colour=numbers[name] % COLOURS,
            pattern=numbers[name] // COLOURS % len(DASHES),
            key=f"m{numbers[name]}",
            shown=name in shown,
        )
        for name in metrics
    }


def group_labels(maps: ClassMaps | None) -> dict[str, Label]:
    """Return a label for each group of classes, the largest group first; check boxes show and hide them."""
    counts = Counter(entry.group for entry in maps.classes if entry.group) if maps else Counter[str]()
    ranked = sorted(counts, key=lambda group: (group == _OTHER, -counts[group], group))
    labels = {}
    for number, group in enumerate(ranked):
        colour, mark = (-1, 0) if group == _OTHER else (number % COLOURS, number)
        labels[group] = Label(group, colour, mark, f"g{number}")
    return labels


def accuracy_charts(results: Results, labels: Mapping[str, Label]) -> list[LineChart]:
    """Draw accuracy against the number of shots."""
    shots = sorted(results.shots)
    charts = []
    for metric, title in (
        ("novel_top1", "Novel top-1 (%)"),
        ("base_top1", "Base top-1 (%)"),
        ("harmonic", "Harmonic mean (%)"),
        ("ausuc", "Area under the seen-unseen curve (%)"),
    ):
        series = []
        for method, result in results.methods.items():
            values = [result.shots[k][metric] for k in shots]
            points = tuple((float(k), value.mean) for k, value in zip(shots, values, strict=True))
            series.append(Series(labels[method], points, tuple(value.half_width for value in values)))
        charts.append(line_chart(title, "images a class", series, [float(k) for k in shots]))
    return _present(charts)


def joint_curve_charts(results: Results, labels: Mapping[str, Label]) -> list[LineChart]:
    """Draw the seen-unseen and the forgetting curve at the fewest shots."""
    k = min(results.shots)
    seen_unseen, forgetting = [], []
    for method, result in results.methods.items():
        if k in result.curves:
            curves = result.curves[k]
            values = curves.seen_unseen.mean
            end = 1 + max((n for n, value in enumerate(values) if value), default=0)  # no offset gets further
            seen_unseen.append(Series(labels[method], _points(values[:end]), curves.seen_unseen.ci95[:end]))
            forgetting.append(Series(labels[method], _points(curves.forgetting.mean), curves.forgetting.ci95))
    return _present([
        line_chart(f"Seen-unseen, {k}-shot: base top-1 (%)", "novel top-1 (%) as novel scores are raised", seen_unseen),
        line_chart(f"Forgetting, {k}-shot: base top-1 (%)", "novel classes added", forgetting),
    ])  # fmt: skip


def training_charts(curves: TrainingCurves, labels: Mapping[str, Label]) -> list[LineChart]:
    """Draw the training of the backbone and of the predictors; a predictor has its method's look."""
    training, validation = Label("training", 0), Label("validation", 1)
    rows = curves.pretrain
    top1 = [_curve(rows, "train/top1(%)", training), _curve(rows, "eval/top1(%)", validation)]
    charts = [
        line_chart("Backbone: loss", "step", [_curve(rows, "train/loss", training)]),
        line_chart("Backbone: base top-1 (%)", "step", top1),
        line_chart("Backbone: learning rate", "step", [_curve(rows, "optim/lr", Label("learning rate", 0))]),
    ]
    looks = {
        method: replace(labels.get(method, Label("", n % COLOURS)), name=display_name(method), key="", shown=True)
        for n, method in enumerate(curves.learn)
    }
    for tag, title in (("train/loss", "Predictors: loss"), ("eval/base_top1(%)", "Predictors: base top-1 (%)")):
        series = [_curve(rows, tag, looks[method]) for method, rows in curves.learn.items()]
        charts.append(line_chart(title, "step", series))
    return _present(charts)


def class_map_plots(maps: ClassMaps, labels: Mapping[str, Label]) -> list[ScatterPlot]:
    """Draw the maps (paper, Figure 2); a class has the same mark on each."""
    names = [f"{entry.name} ({entry.group})" if entry.group else entry.name for entry in maps.classes]
    groups = [labels.get(entry.group) for entry in maps.classes]
    return [
        scatter_plot(kind[:1].upper() + kind[1:], places, names, groups) for kind, places in maps.maps.items()
    ]  # fmt: skip


def channel_charts(channels: Mapping[str, ChannelImpact], diagonal: Diagonal | None) -> list[LineChart]:
    """Draw the channel impact (paper, Figure 5), and φ1's diagonal against the paper's range."""
    impacts = [(kind, impact.sorted) for kind, impact in channels.items() if impact.sorted]
    series = [Series(Label(kind, number % COLOURS), _points(values)) for number, (kind, values) in enumerate(impacts)]
    charts = [line_chart("Channel impact: mean |w|", "channels, sorted", series)]
    if diagonal:
        low, high = diagonal.paper
        band = Band(low, high, f"the paper's range, {low} to {high}")
        values = [Series(Label("diagonal of φ1's weight", 0), _points(diagonal.sorted))]
        charts.append(line_chart("Diagonal of φ1", "channels, sorted", values, band=band))
    return _present(charts)


def _present(charts: Iterable[LineChart | None]) -> list[LineChart]:
    return [chart for chart in charts if chart]


def _points(values: Iterable[float]) -> tuple[Point, ...]:
    return tuple((float(number), value) for number, value in enumerate(values))


def _curve(rows: MetricRows, tag: str, label: Label) -> Series:
    return Series(label, tuple((float(row["step"]), float(row[tag])) for row in rows if row.get(tag) is not None))
