"""The end of chapter 4: from results to the report, the numbers behind its pictures, and TensorBoard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config import STAGES, Config, DrawConfig, PackConfig, to_dict
from dist_train.data.activations import Activations, load
from dist_train.distributed.context import Context
from dist_train.fewshot.method import Base
from dist_train.fewshot.methods import LEARNED, METHODS, make
from dist_train.fewshot.methods.predicted import Predicted
from dist_train.files import write_text
from dist_train.report import class_vectors, examples, per_class
from dist_train.report.comparison import best_method
from dist_train.report.page import report_html
from dist_train.report.per_class import ClassList
from dist_train.report.wording import display_name
from dist_train.runs.run import Run
from dist_train.runs.stage import facts_of
from dist_train.training import metrics

_PROJECTED = 64
"""Dimensions of the vectors in TensorBoard's projector: their principal components. 1000 classes take 1.4 MB."""


def report(
    run: Run, results: dict[str, Any], facts: dict[str, Any], base: Base, support: np.ndarray, context: Context
) -> None:
    """Of joint scoring: ``figures/*.json``, ``per_class.csv``, ``report.html``, and the projector of TensorBoard.

    Args:
        results: as in ``results.json``.
        facts: of ``provenance``.
        base: what methods are made from.
        support: rows of the first draw's support images in ``novel_train`` [novel classes, shots].
    """
    folder = run.dir / "evaluate"
    context.report_progress("evaluate: pictures")
    scored = (*run.scored, *run.novel)
    listed = ClassList(scored, tuple(run.shards.synsets.names(scored)), len(run.scored))
    vectors = _vectors(run, base)
    with torch.inference_mode():
        best = _per_class(folder, results, listed)
        found = {
            "maps": _maps(run, vectors),
            "channels": class_vectors.channel_impact({what: v for what, v in vectors.items() if what != _MEANS}),
            "diagonal": _diagonal(run, base),
            "classes": best,
            "examples": _examples(run, results, best["rows"], base, support, listed),
        }
    (folder / "figures").mkdir(exist_ok=True)
    for name, values in found.items():
        if values and name != "examples":  # which are images
            write_text(folder / "figures" / f"{name}.json", json.dumps(values) + "\n")
    facts = {**facts, "stages": _durations(run, results), "config": differences(run.config)}
    write_text(folder / "report.html", report_html(results, curves(run.dir), facts, found))
    _projector(folder / "tb" / "classes", vectors, found["maps"])


_MEANS, _ROWS = "mean activations", "trained rows"


def _vectors(run: Run, base: Base) -> dict[str, np.ndarray]:
    """Of the base classes [classes, C]: means, the backbone's rows, and those that predictors make of the means."""
    found = {_MEANS: base.means, _ROWS: base.rows}
    for name in run.config.evaluate.methods:
        if name in LEARNED and issubclass(METHODS[name], Predicted):
            found[f"rows of {display_name(name)}"] = make(name, base).base_rows  # type: ignore[attr-defined]
    return {what: rows.float().cpu().numpy() for what, rows in found.items()}


def _maps(run: Run, vectors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, trained rows, and rows by phi2, or else by the last predictor."""
    predicted = [what for what in vectors if what not in (_MEANS, _ROWS)]
    wanted = f"rows of {display_name('phi2')}"
    shown = [_MEANS, _ROWS, *([wanted] if wanted in predicted else predicted[-1:])]
    names, groups = (of(run.base) for of in (run.shards.synsets.names, run.shards.synsets.groups))
    return class_vectors.class_maps({what: vectors[what] for what in shown}, list(run.base), names, groups)


def _diagonal(run: Run, base: Base) -> dict[str, Any]:
    if "phi1" not in run.config.evaluate.methods:
        return {}
    weight = make("phi1", base).phi.layers[0].weight  # type: ignore[attr-defined]
    return class_vectors.diagonal(weight.float().cpu().numpy())


def _per_class(folder: Path, results: dict[str, Any], listed: ClassList) -> dict[str, Any]:
    """``per_class.csv`` of all methods; returns what the report shows of the best one."""
    best, fewest = best_method(results), str(min(results["shots"]))
    parts, shown = list[tuple[str, str, list[dict[str, Any]]]](), dict[str, Any]()
    for method in (*results["methods"], *results.get("oracles", {})):
        with np.load(folder / "rows" / f"{method}.npz") as confusions:
            for shots in confusions.files:
                counts = confusions[shots]
                rows = per_class.per_class(counts, listed)
                parts.append((method, shots, rows))
                if (method, shots) == (best, fewest):
                    shown = {"method": best, "shots": int(fewest), "rows": rows}
                    shown["confusions"] = per_class.confusions(counts, listed)
    write_text(folder / "per_class.csv", per_class.csv_text(parts))
    return shown


def _examples(
    run: Run, results: dict[str, Any], rows: list[dict[str, Any]], base: Base, support: np.ndarray, listed: ClassList
) -> dict[str, Any]:
    """Of some novel classes: supports of the first draw, first queries, and the best method's answers to them."""
    best, shots, device = best_method(results), min(results["shots"]), base.means.device
    seen, asked = load(run.dir / "extract", "novel_train"), load(run.dir / "extract", "novel_val")
    chosen = examples.choose([row["top1"] for row in rows[listed.base :]])
    queries = asked.offsets[chosen][:, None] + np.arange(min(examples.ASKED, np.diff(asked.offsets).min()))

    def activations(table: Activations, places: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(table.rows[places].astype(np.float32)).to(device)

    supports = activations(seen, support[:, :shots])
    answers = examples.answers(make(best, base), supports, activations(asked, queries), run.kept)
    train, val = run.shards["train"], run.shards["val"]
    shown = seen.ids[support[chosen][:, : min(shots, examples.SHOWN)]]
    return {
        "method": best,
        "shots": shots,
        "classes": [
            examples.example(
                listed, listed.base + number, rows[listed.base + number]["top1"],
                examples.thumbnails(train, images), examples.thumbnails(val, others), orders,
            )
            for number, images, others, orders in zip(chosen, shown, asked.ids[queries], answers, strict=True)
        ],
    }  # fmt: skip


def curves(folder: Path) -> dict[str, Any]:
    """The training curves of a run, as rows of metrics.jsonl."""
    learn = sorted(path.parent.name for path in (folder / "learn").glob("*/metrics.jsonl"))
    return {
        "pretrain": metrics.read_metrics(folder / "pretrain" / "metrics.jsonl"),
        "learn": {method: metrics.read_metrics(folder / "learn" / method / "metrics.jsonl") for method in learn},
    }


def differences(config: Config) -> dict[str, Any]:
    """What a configuration sets otherwise than by default, as ``section.key: value``."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            inner = isinstance(value, Mapping) and value
            found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
        return found

    default = {"pack": None, "pack.draw": None, **flat(to_dict(replace(Config(), pack=PackConfig(draw=DrawConfig()))))}
    return {key: value for key, value in flat(to_dict(config)).items() if key not in default or default[key] != value}


def _durations(run: Run, results: dict[str, Any]) -> dict[str, str]:
    """What each stage took, as it has noted in done.json; learn's from its rates."""
    found: dict[str, str] = {}
    for stage in STAGES:
        done = facts_of(run.dir / stage)
        seconds = done.get(
            "seconds", sum(run.config.learn.steps / rate for rate in done.get("iterations_per_s", {}).values())
        )
        if stage == "evaluate":
            seconds = sum(results["seconds"].values())
        found[stage] = f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
    return found


def tensorboard(folder: Path, results: dict[str, Any]) -> None:
    """Accuracy against shots (the step); of joint scoring also the seen-unseen curve (the step is novel top-1 in
    percent) and the forgetting curve (the step is the number of novel classes)."""
    shutil.rmtree(folder, ignore_errors=True)  # all of it is written anew
    for method, by_shots in results["methods"].items():
        writer = metrics.SummaryWriter(str(folder / method))
        for shots, values in by_shots.items():
            for metric, value in values.items():
                writer.add_scalar(f"fewshot/{metric}(%)", value["mean"], int(shots))
        for shots, by_curve in results.get("curves", {}).get(method, {}).items():
            for curve, step in (("seen_unseen", "novel top-1, %"), ("forgetting", "novel classes")):
                for x, y in enumerate(by_curve[curve]):
                    writer.add_scalar(f"{curve}, {shots}-shot/base_top1(%) by step ({step})", y, x)
        writer.close()


def _projector(folder: Path, vectors: Mapping[str, np.ndarray], maps: Mapping[str, Any]) -> None:
    """The base classes' vectors, with names and groups."""
    if not maps:
        return
    writer = metrics.SummaryWriter(str(folder))
    labels = [[" ".join(entry[key].split()) for key in ("name", "wnid", "group")] for entry in maps["classes"]]
    for what in maps["maps"]:
        writer.add_embedding(_components(vectors[what]), labels, tag=what, metadata_header=["name", "wnid", "group"])
    writer.close()


def _components(rows: np.ndarray) -> np.ndarray:
    """Unit rows [N, C] on their first 64 principal components."""
    unit = class_vectors.unit(rows)
    left, scale, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    components: np.ndarray = (left * scale)[:, :_PROJECTED].round(4)
    return components
