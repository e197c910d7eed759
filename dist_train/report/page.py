"""``report.html``: the results of a run on one page, which needs no file beside itself.

Python prepares the data, ``templates/`` has the words around them. Each section of the page is a template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dist_train.errors import counted
from dist_train.fewshot.protocols.low_shot import PRIOR
from dist_train.fewshot.results import Metrics, Results
from dist_train.report import paper, plots, tables
from dist_train.report.chart import Label
from dist_train.report.class_vectors import NEIGHBOURS, ChannelImpact, ClassMaps, Diagonal
from dist_train.report.comparison import best_method, metrics_by_method, paired_differences
from dist_train.report.examples import Examples
from dist_train.report.own_classes import OwnClasses
from dist_train.report.per_class import ClassReport
from dist_train.report.plots import TrainingCurves
from dist_train.report.wording import (
    describe_backbone,
    describe_fewer_draws,
    describe_figures,
    display_name,
    footnote,
)

_LISTED = 8
"""Classes in each list of the best and of the worst."""


@dataclass(frozen=True)
class Pictures:
    """What a report shows beside accuracy. What is None or empty has no section.

    Attributes:
        channels: kind of vector -> impact.
        own: of a run on one's own photos: the page speaks of these first.
    """

    maps: ClassMaps | None = None
    channels: Mapping[str, ChannelImpact] = field(default_factory=dict)
    diagonal: Diagonal | None = None
    classes: ClassReport | None = None
    examples: Examples | None = None
    own: OwnClasses | None = None


@dataclass(frozen=True)
class Section:
    """A section of the page: the name of its template in ``templates/sections``, and the template's variables."""

    title: str
    template: str
    variables: dict[str, Any]


@dataclass(frozen=True)
class Headline:
    """The best method at the fewest shots (``comparison.best_method``), and the better of the two baselines beside it,
    if any."""

    shots: int
    best: str
    metrics: Metrics
    baseline: str | None
    baseline_metrics: Metrics | None


def report_html(
    results: Results,
    training: TrainingCurves,
    provenance: Mapping[str, Any],
    pictures: Pictures = Pictures(),
) -> str:
    """Return the page.

    Args:
        provenance: facts to show; a value that is a mapping is shown on one line. ``config`` has the keys of the
            configuration that differ from the default.
    """
    methods, groups = plots.method_labels(results), plots.group_labels(pictures.maps)
    sections = [
        _own_classes(results, pictures.own),
        _accuracy(results),
        _low_shot(results),
        _oracles(results),
        _differences(results),
        _examples(results, pictures.examples),
        _curves(results, methods),
        _maps(pictures.maps, groups),
        _channels(pictures),
        _classes(results, pictures.classes),
        _training(training, methods),
        _provenance(results, provenance),
    ]
    rendered = [
        (section.title, templates().get_template(f"sections/{section.template}.html").render(section.variables))
        for section in sections
        if section
    ]
    return (
        templates()
        .get_template("report.html")
        .render(
            results=results,
            headline=_headline(results),
            own=pictures.own,
            backbone=describe_backbone(results),
            sections=rendered,
            check_boxes=[*methods.values(), *groups.values()],
        )
    )


@cache
def templates() -> Environment:
    """Return the templates of this folder, with their filters."""
    environment = Environment(
        loader=PackageLoader("dist_train.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        px=_pixels, decimals=_decimals, display_name=display_name, counted=counted, join_values=_join_values
    )
    return environment


def _pixels(place: float) -> str:
    return f"{place:.1f}"


def _decimals(value: float, count: int = 1) -> str:
    return f"{value:,.{count}f}"


def _join_values(value: Any) -> str:
    """Write a fact on one line: "torch 2.14 · numpy 2.4" for a mapping, "a, b" for a list."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _headline(results: Results) -> Headline:
    shots = min(results.shots)
    metrics = metrics_by_method(results, shots)
    best = best_method(results)
    baselines = [name for name in ("nn", "mean") if name in metrics and name != best]
    baseline = max(baselines, key=lambda name: metrics[name][results.ranked_by].mean, default=None)
    return Headline(shots, best, metrics[best], baseline, metrics[baseline] if baseline else None)


def _own_classes(results: Results, own: OwnClasses | None) -> Section | None:
    return Section("Your classes", "own_classes", {"results": results, **own.variables()}) if own else None


def _accuracy(results: Results) -> Section:
    no_images = "Features have no images, so that no examples are shown." if results.samples == "features" else ""
    notes = (describe_figures(results), footnote(results.methods), describe_fewer_draws(results), no_images)
    return Section(
        "Accuracy",
        "accuracy",
        {
            "table": tables.accuracy_table(results),
            "note": " ".join(filter(None, notes)),
            "paper_table": None if results.base_only else tables.paper_table(),
            "paper": paper,
        },
    )


def _low_shot(results: Results) -> Section | None:
    metrics = next(iter(metrics_by_method(results, results.shots[0]).values()))
    if "all_top5" not in metrics:
        return None
    return Section("Low-shot ImageNet", "low_shot", {"table": tables.low_shot_table(results), "prior": PRIOR})


def _oracles(results: Results) -> Section | None:
    if not results.oracles:
        return None
    return Section("Oracles: all images of the novel classes", "oracles", {"table": tables.oracle_table(results)})


def _differences(results: Results) -> Section | None:
    if results.base_only:
        return None
    differences = paired_differences(results)
    if not differences.rows:
        return None
    table = tables.difference_table(results, differences)
    return Section(f"Differences from {display_name(differences.reference)}", "differences", {"table": table})


def _examples(results: Results, examples: Examples | None) -> Section | None:
    if not examples or not examples.classes:
        return None
    return Section("Examples of novel classes", "examples", {"examples": examples, "classes": results.classes})


def _curves(results: Results, labels: Mapping[str, Label]) -> Section | None:
    if results.base_only:
        return None
    charts = [*plots.accuracy_charts(results, labels), *plots.joint_curve_charts(results, labels)]
    return Section("Curves", "curves", {"labels": list(labels.values()), "charts": charts})


def _maps(maps: ClassMaps | None, labels: Mapping[str, Label]) -> Section | None:
    if not maps:
        return None
    count = len(maps.classes)
    (first, _), *others = maps.neighbours.items()
    variables = {
        "plots": plots.class_map_plots(maps, labels),
        "labels": list(labels.values()),
        "first": first,
        "shared": [(kind, share / 100 * NEIGHBOURS) for kind, share in others],
        "neighbours": NEIGHBOURS,
        # Among fewer classes nearly all are neighbours, and the share says nothing.
        "by_chance": NEIGHBOURS**2 / (count - 1) if count > 3 * NEIGHBOURS else None,
    }
    return Section("Classes as activations and as classifiers", "maps", variables)


def _channels(pictures: Pictures) -> Section | None:
    charts = plots.channel_charts(pictures.channels, pictures.diagonal)
    if not charts:
        return None
    variables = {
        "charts": charts,
        "channels": pictures.channels,
        "diagonal": pictures.diagonal,
        "paper_channels": paper.CHANNELS,
    }
    return Section("Channels", "channels", variables)


def _classes(results: Results, classes: ClassReport | None) -> Section | None:
    if not classes:
        return None
    novel, base = (
        sorted((row for row in classes.rows if row.role == role), key=lambda row: -row.top1)
        for role in ("novel", "base")
    )
    losers = [row for row in sorted(base, key=lambda row: -row.other_role) if row.other_role > 0]
    half = min(_LISTED, -(-len(novel) // 2))  # no class is among the best and the worst, but the one in the middle
    variables = {
        "method": classes.method,
        "shots": classes.shots,
        "draws": results.methods[classes.method].draws,
        "best_novel": novel[:half],
        "worst_novel": novel[::-1][:half],
        "novel_confusions": classes.confusions["novel"][:_LISTED],
        "worst_base": base[::-1][:_LISTED],
        "losers": losers[:_LISTED],
        "base_confusions": classes.confusions["base"][:_LISTED],
        "all_classes": [*novel, *base],
    }
    return Section("Class by class", "classes", variables)


def _training(curves: TrainingCurves, labels: Mapping[str, Label]) -> Section | None:
    charts = plots.training_charts(curves, labels)
    return Section("Training", "training", {"charts": charts}) if charts else None


def _provenance(results: Results, provenance: Mapping[str, Any]) -> Section:
    own = {
        "command": results.command,
        "commit": results.commit,
        "split": vars(results.split),
        results.samples: results.shards,
        "draws": results.draws,
        "interval": results.interval,
    }
    facts = {**own, **provenance}
    config = facts.pop("config", {})
    return Section(
        "Where the numbers come from", "provenance", {"facts": facts, "config": config, "seconds": results.seconds}
    )
