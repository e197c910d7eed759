"""Class separation of the activations of runs, beside what their heads recognise: what pretraining does to new classes.

    python tools/class_separation.py runs/smooth01 runs/smooth0 ... [--method phi_plus] [--shots 1]

The runs have the same classes and draws, and are compared with the first draw by draw.

The index is R^2 = 1 - d_within / d_total of Kornblith et al. (NeurIPS 2021, "Why Do Better Loss Functions Lead to Less
Transferable Features?"): d is 1 - cosine, averaged over all pairs of images of a class and then over classes, or over
all pairs of images of all pairs of classes. An image is a pair with itself too, and classes weigh the same. 1: all
images of a class have one direction; 0: classes are not apart. They find that losses that raise it also raise the
accuracy on the classes of the training, and lower that of new ones on frozen activations.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from dist_train.data.activations import Activations, load
from dist_train.errors import UserError, counted
from dist_train.fewshot.results import Interval, Metrics, Results
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import format_mean, markdown_head, markdown_row
from dist_train.report.wording import display_name

TABLES = {"base_train": "base, training", "base_val": "base, validation", "novel_val": "novel, validation"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs with extract and evaluate")
    parser.add_argument("--method", default="phi_plus", help="whose figures stand beside; default: phi_plus")
    parser.add_argument("--shots", type=int, default=1)
    options = parser.parse_args(arguments)
    separations, results, metrics = [], [], []
    for run in options.runs:
        try:
            separations.append([separation(load(run / "extract", name)) for name in TABLES])
            results.append(Results.read(run / "evaluate" / "results.json"))
            metrics.append(results[-1].methods[options.method].shots[options.shots])
        except KeyError as error:
            parser.error(f"{run}: its table has no {error}; give another --method or --shots")
        except (OSError, ValueError, UserError) as error:
            parser.error(f"{run}: {error}; finish its extract and evaluate")
        if _draws(results[-1]) != _draws(results[0]):
            parser.error(
                f"{run}: its draws of supports are not those of {options.runs[0]}; take runs of one data.split, "
                "data.holdout, evaluate.seed, evaluate.draws and evaluate.shots"
            )
    names = [run.name for run in options.runs]
    title = f"{display_name(options.method)} at {counted(options.shots, 'shot')}"
    print("\n".join(tables(names, separations, metrics, title)))


def tables(
    names: Sequence[str], separations: Sequence[Sequence[float]], metrics: Sequence[Metrics], title: str
) -> list[str]:
    """Return the lines of the table, and of the differences of all runs from the first.

    Args:
        names: of the runs.
        separations: of each run, by TABLES.
        metrics: of each run.
        title: what the metrics are of.
    """
    figures = markdown_head([*(f"R², {table}" for table in TABLES.values()), *PAIRED_METRICS.values()], ["run"])
    differences = markdown_head(list(PAIRED_METRICS.values()), ["run"])
    for name, separated, own in zip(names, separations, metrics, strict=True):
        cells = [f"{value:.3f}" for value in separated]
        figures.append(markdown_row([name, *cells, *(format_mean(own[metric]) for metric in PAIRED_METRICS)]))
    for name, own in zip(names[1:], metrics[1:], strict=True):
        paired = [Interval.paired(own[metric].draws, metrics[0][metric].draws) for metric in PAIRED_METRICS]
        differences.append(markdown_row([name, *(format_mean(value, sign="+") for value in paired)]))
    note = f"{title}, percent; mean ± half-width of the 95% t-interval over draws of supports."
    if len(names) == 1:
        return [*figures, "", note]
    heading = f"Paired differences from {names[0]}, draw by draw, in points:"
    return [*figures, "", note, "", heading, "", *differences]


def _draws(results: Results) -> tuple[object, ...]:
    """Return what decides about the supports of the draws."""
    return results.split, results.shards, results.seed, results.draws, results.shots


def separation(table: Activations) -> float:
    """Return R^2 of a table.

    The mean cosine of all pairs of two classes is the product of their means of unit vectors: one pass is enough.
    """
    means = np.empty((len(table.offsets) - 1, table.rows.shape[1]))
    for number, (first, last) in enumerate(pairwise(table.offsets)):
        rows = table.rows[first:last].astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        means[number] = (rows / np.maximum(lengths, 1e-12)).mean(0)
    within = 1 - (means**2).sum(1).mean()
    total = 1 - (means.mean(0) ** 2).sum()
    return float(1 - within / total)


if __name__ == "__main__":
    main()
