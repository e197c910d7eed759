"""Write the report of an evaluation: gather the numbers behind its pictures, classes, examples and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config import NETWORK_OF, Config, DrawConfig, PackConfig, to_dict
from dist_train.data.activations import load
from dist_train.fewshot.method import Base
from dist_train.fewshot.methods import FROZEN, LEARNED, METHODS, make
from dist_train.fewshot.methods.predicted import Predicted
from dist_train.fewshot.results import Results
from dist_train.files import write_text
from dist_train.report import class_vectors, examples, per_class
from dist_train.report.class_vectors import Array, ClassMaps, Diagonal
from dist_train.report.comparison import best_method
from dist_train.report.examples import Examples
from dist_train.report.page import Pictures, report_html
from dist_train.report.per_class import ClassAccuracy, ClassList, ClassReport
from dist_train.report.plots import TrainingCurves
from dist_train.report.tensorboard import write_projector
from dist_train.report.wording import display_name
from dist_train.runs.run import Run
from dist_train.runs.stage import read_done
from dist_train.stages.own_photos import is_of_own_photos, own_classes
from dist_train.stages.scoring import BaseScoring, JointScoring
from dist_train.training.metrics import read_metrics

_MEANS, _ROWS = "mean activations", "trained rows"


def write_report(run: Run, results: Results, facts: Mapping[str, Any], scoring: JointScoring | BaseScoring) -> None:
    """Write ``figures/*.json``, ``per_class.csv``, ``report.html`` and TensorBoard's projector, for joint scoring.

    Args:
        facts: what ``provenance`` returned.
        scoring: what the rows were computed with.
    """
    folder = run.dir / "evaluate"
    scoring.context.report_progress("evaluate: pictures")
    wnids = (*run.scored, *run.novel)
    classes = ClassList(wnids, tuple(run.samples.synsets.names(wnids)), len(run.scored))
    vectors = _class_vectors(run, scoring.base)
    with torch.inference_mode():
        best = _write_per_class(folder, results, classes)
        channels = {title: class_vectors.channel_impact(rows) for title, rows in vectors.items() if title != _MEANS}
        pictures = Pictures(
            maps=_maps(run, vectors),
            channels={**channels, "paper": class_vectors.PAPER_IMPACT},
            diagonal=_diagonal(run, scoring.base),
            classes=best,
            examples=_examples(run, results, best.rows, scoring, classes),
            own=own_classes(run, results, scoring, classes) if is_of_own_photos(run) else None,
        )
    _write_figures(folder / "figures", pictures)
    facts = {**facts, "stages": _durations(run, results), "config": changed_keys(run.config)}
    write_text(folder / "report.html", report_html(results, training_curves(run.dir), facts, pictures))
    if pictures.maps:
        write_projector(folder / "tb" / "classes", vectors, pictures.maps)


def _write_figures(folder: Path, pictures: Pictures) -> None:
    """Write the numbers behind the pictures, but not the examples, which are images."""
    folder.mkdir(exist_ok=True)
    figures = {
        "maps": pictures.maps and pictures.maps.to_json(),
        "channels": {title: impact.to_json() for title, impact in pictures.channels.items()},
        "diagonal": pictures.diagonal and pictures.diagonal.to_json(),
        "classes": pictures.classes and pictures.classes.to_json(),
        "more_photos": pictures.own and pictures.own.curve and pictures.own.curve.to_json(),
    }
    for name, values in figures.items():
        if values:
            write_text(folder / f"{name}.json", json.dumps(values) + "\n")


def _class_vectors(run: Run, base: Base) -> dict[str, Array]:
    """Return title -> vectors of the base classes [classes, C]: their means, the backbone's rows, and the rows that
    each predictor makes of the means."""
    vectors = {_MEANS: base.means, _ROWS: base.rows}
    for name in run.config.evaluate.methods:
        if name in LEARNED and issubclass(METHODS[name], Predicted):
            vectors[f"rows of {display_name(name)}"] = _predicted(name, base).base_rows
    return {title: rows.float().cpu().numpy() for title, rows in vectors.items()}


def _predicted(name: str, base: Base) -> Predicted:
    method = make(name, base)
    assert isinstance(method, Predicted)
    return method


def _maps(run: Run, vectors: Mapping[str, Array]) -> ClassMaps | None:
    """Map the means, the trained rows, and the rows by phi2, or else by the last predictor."""
    by_predictors = [title for title in vectors if title not in (_MEANS, _ROWS)]
    by_phi2 = f"rows of {display_name('phi2')}"
    titles = [_MEANS, _ROWS, *([by_phi2] if by_phi2 in by_predictors else by_predictors[-1:])]
    synsets = run.samples.synsets
    names, groups = synsets.names(run.base), synsets.groups(run.base)
    return class_vectors.map_classes({title: vectors[title] for title in titles}, run.base, names, groups)


def _diagonal(run: Run, base: Base) -> Diagonal | None:
    if "phi1" not in run.config.evaluate.methods:
        return None
    weight = _predicted("phi1", base).phi.get_parameter("layers.0.weight")
    return class_vectors.diagonal(weight.float().cpu().numpy())


def _write_per_class(folder: Path, results: Results, classes: ClassList) -> ClassReport:
    """Write ``per_class.csv`` for all methods; return what the report shows for the best of those on the frozen
    backbone, on which its pictures are made."""
    best, fewest = best_method(results, among=FROZEN), min(results.shots)
    tables, shown = [], None
    for method in (*results.methods, *results.oracles):
        with np.load(folder / "rows" / f"{method}.npz") as confusions:
            for shots in confusions.files:
                counts = confusions[shots]
                rows = per_class.accuracy_per_class(counts, classes)
                tables.append((method, shots, rows))
                if (method, shots) == (best, str(fewest)):
                    shown = ClassReport(best, fewest, rows, per_class.confusions(counts, classes))
    write_text(folder / "per_class.csv", per_class.csv_text(tables))
    assert shown is not None  # the best method has a row at every number of shots
    return shown


def _examples(
    run: Run, results: Results, rows: Sequence[ClassAccuracy], scoring: JointScoring | BaseScoring, classes: ClassList
) -> Examples | None:
    """Return, for some novel classes, supports of the first draw, first queries, and the best method's answers; None
    where there are no novel classes, no images, or no method on the frozen backbone."""
    best, shots = best_method(results, among=FROZEN), min(results.shots)
    if isinstance(scoring, BaseScoring) or run.features or best in NETWORK_OF:
        return None
    support, novel_train = scoring.supports[0], scoring.novel_train
    novel_val = load(run.dir / "extract", "novel_val")
    chosen = examples.spread_choice([row.top1 for row in rows[classes.base :]])
    queries = novel_val.offsets[chosen][:, None] + np.arange(min(examples.QUERIES, np.diff(novel_val.offsets).min()))
    orders = examples.rank_classes(
        make(best, scoring.base),
        scoring.load(novel_train.rows[support[:, :shots]]),
        scoring.load(novel_val.rows[queries]),
        run.kept,
    )
    train, val = run.shards["train"], run.shards["val"]
    shown = novel_train.ids[support[chosen][:, : min(shots, examples.SUPPORTS)]]
    cards = [
        examples.example(
            classes, classes.base + number, rows[classes.base + number].top1,
            examples.thumbnails(train, support_ids), examples.thumbnails(val, query_ids), order,
        )
        for number, support_ids, query_ids, order in zip(chosen, shown, novel_val.ids[queries], orders, strict=True)
    ]  # fmt: skip
    return Examples(best, shots, cards)


def training_curves(folder: Path) -> TrainingCurves:
    """Return the training curves of a run, as rows of metrics.jsonl."""
    learned = sorted(path.parent.name for path in (folder / "learn").glob("*/metrics.jsonl"))
    return TrainingCurves(
        pretrain=read_metrics(folder / "pretrain" / "metrics.jsonl"),
        learn={method: read_metrics(folder / "learn" / method / "metrics.jsonl") for method in learned},
    )


def changed_keys(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration that differ from their defaults, as {"section.key": value}."""
    default = _flat(to_dict(replace(Config(), pack=PackConfig(draw=DrawConfig()))))
    default |= {"pack": None, "pack.draw": None}
    return {key: value for key, value in _flat(to_dict(config)).items() if key not in default or default[key] != value}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with "section.key" for keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _durations(run: Run, results: Results) -> dict[str, str]:
    """Return how long each stage took, from its done.json; learn's from its rates, evaluate's from its rows."""
    durations: dict[str, str] = {}
    for stage in run.config.stages:
        done = read_done(run.dir / stage)
        rates = done.get("iterations_per_s", {}).values()
        seconds = done.get("seconds", sum(run.config.learn.steps / rate for rate in rates))
        if stage == "evaluate":
            seconds = sum(results.seconds.values())
        durations[stage] = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return durations
