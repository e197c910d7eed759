"""Compare heads on pseudo-novel classes: every method at every number of shots, all calibrated.

    python tools/compare_heads.py runs/draw1 runs/draw2 runs/draw3 [--methods phi_plus plda ...] [--draws 20]
        [--shots 1 2 3 5] [--try plda_temperature=3,10,30 ...] [--out heads.md]

Each RUN must have been made with ``--data.holdout pseudo-novel``, each with other pseudo-novel classes, and have
learned what the methods need. ``--try`` scores a method once for each value of an option; several options give all
combinations. Every method's novel scores get an offset as those of phi+ do (fewshot/calibration.py), at the same cost
but for ``phi_plus_plda``, which has its own; AUSUC does not depend on it.

Differences from phi+ are between the same supports. Their 95% t-interval is over all support draws of all runs; in
brackets is in how many runs the mean difference is above zero, unless it is in none or in all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pseudo_novel import open_joint_scoring

from dist_train.distributed import context as contexts
from dist_train.errors import UserError
from dist_train.fewshot import methods
from dist_train.fewshot.calibration import calibrated
from dist_train.fewshot.protocols.joint import JointScorer
from dist_train.fewshot.results import Interval
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import format_mean, markdown_head, markdown_row
from dist_train.stages.scoring import JointScoring

Values = dict[str, dict[str, list[list[float]]]]
"""Number of shots -> metric -> for each run, its value in each draw."""
REFERENCE = "phi_plus"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--methods", nargs="+", default=None, help="by default all that are no oracle and are learned")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--try", nargs="+", default=[], dest="tried", metavar="OPTION=VALUE,VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tried = {key: [float(v) for v in values.split(",")] for key, values in (part.split("=") for part in options.tried)}
    measured: dict[str, Values] = {}
    with contexts.start() as context, torch.inference_mode():
        for folder in options.runs:
            _, joint = open_joint_scoring(parser, folder, options, context)
            for name in options.methods or comparable(joint):
                for label, numbers in variants(name, tried):
                    began = time.perf_counter()
                    add(measured.setdefault(label, {}), score(name, numbers, joint))
                    print(f"{folder.name}: {label}: {time.perf_counter() - began:.0f} s", flush=True)
            if options.out:  # after each run, as the next takes minutes
                options.out.write_text(table(measured) + "\n", encoding="utf-8")
                options.out.with_suffix(".json").write_text(json.dumps(measured))
    print(table(measured))


def comparable(joint: JointScoring) -> list[str]:
    """Return the methods that are no oracle, take frozen activations, and whose predictors the run has learned."""
    frozen = {name: methods.METHODS[name] for name in methods.FROZEN}
    needed = {name: kind.learned(name) for name, kind in frozen.items() if not kind.oracle}
    learned = {name for name in methods.LEARNED if (joint.base.learn / name / "final").is_dir()}
    return [name for name, source in needed.items() if source not in methods.LEARNED or source in learned]


def variants(name: str, tried: dict[str, list[float]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what a method is called with each combination of the values that are tried, and the values."""
    own = [key for key in tried if key in methods.options_of(name, {})]
    for values in itertools.product(*(tried[key] for key in own)):
        numbers = dict(zip(own, values, strict=True))
        yield ", ".join([methods.LABELS[name], *(f"{key}={value:g}" for key, value in numbers.items())]), numbers


def score(name: str, numbers: dict[str, float], joint: JointScoring) -> dict[str, dict[str, list[float]]]:
    """Return the metrics of a calibrated method: number of shots -> metric -> its value in each draw."""
    base = replace(joint.base, numbers={**joint.base.numbers, **numbers})
    scorer = JointScorer(calibrated(methods.make(name, base), base), joint.base_queries, joint.novel_queries)
    values: dict[str, dict[str, list[float]]] = {str(k): {m: [] for m in PAIRED_METRICS} for k in joint.config.shots}
    for draw in joint.supports:
        for k in joint.config.shots:
            support = joint.load(joint.novel_train.rows[joint.supports[draw]])[:, :k]
            metrics = scorer.draw(support, joint.orders[draw]).metrics
            for metric in PAIRED_METRICS:
                values[str(k)][metric].append(metrics[metric])
    return values


def add(measured: Values, values: dict[str, dict[str, list[float]]]) -> None:
    """Add the values of one run."""
    for k, metrics in values.items():
        for metric, draws in metrics.items():
            measured.setdefault(k, {}).setdefault(metric, []).append(draws)


def table(measured: dict[str, Values]) -> str:
    """Return markdown tables of two numbers of shots each: the first variant of phi+, and the others as differences."""
    reference = next((label for label in measured if label.startswith(methods.LABELS[REFERENCE])), next(iter(measured)))
    shots, lines = list(measured[reference]), []
    for pair in (shots[start : start + 2] for start in range(0, len(shots), 2)):
        lines += markdown_head([f"{k}-shot {title}" for k in pair for title in PAIRED_METRICS.values()], [""])
        own = [measured[reference][k][metric] for k in pair for metric in PAIRED_METRICS]
        lines.append(markdown_row([reference, *(format_mean(Interval.of(_flat(runs))) for runs in own)]))
        for label, values in measured.items():
            if label != reference:
                theirs = [values[k][metric] for k in pair for metric in PAIRED_METRICS]
                lines.append(markdown_row([label, *map(_difference, theirs, own)]))
        lines.append("")
    return "\n".join(lines)


def _flat(runs: Sequence[Sequence[float]]) -> list[float]:
    return [value for draws in runs for value in draws]


def _difference(runs: list[list[float]], others: list[list[float]]) -> str:
    """Return the mean difference with its interval, and in how many runs it is above zero, unless in none or all."""
    differences = [np.subtract(a, b).tolist() for a, b in zip(runs, others, strict=True)]
    above = sum(np.mean(draws) > 0 for draws in differences)
    text = format_mean(Interval.of(_flat(differences)), "+")
    return text if above in (0, len(runs)) else f"{text} ({above})"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
