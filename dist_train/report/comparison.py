"""What is compared in tables and reports: the best method, paired differences, and published rows that apply."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dist_train.fewshot.results import Interval, Metrics, Results
from dist_train.report import paper

PAIRED_METRICS = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "ausuc": "AUSUC"}
"""Metrics whose paired differences are shown -> their titles."""
LOW_SHOT_MEASURES = {
    "novel": "novel, joint",
    "novel_only": "novel-only",
    "base": "base, joint",
    "all": "all",
    "all_prior": "all with prior",
}
"""Measures of low-shot ImageNet (fewshot/protocols/low_shot.py) -> their titles."""


@dataclass(frozen=True)
class Differences:
    """Paired differences of all other methods from one.

    Attributes:
        reference: the method that the others are compared with.
        own: its own values: for each number of shots, those of PAIRED_METRICS.
        rows: other method -> its differences, in the same order.
    """

    reference: str
    own: list[Interval]
    rows: dict[str, list[Interval]]


def best_method(results: Results, shots: int | None = None, among: Collection[str] = ()) -> str:
    """Return the method with the largest harmonic mean (or base accuracy, where there are no novel classes), at the
    fewest shots by default.

    Args:
        among: names of the methods to choose from, where the results have any of them; by default those of all draws.
    """
    k, methods = shots or min(results.shots), results.methods
    most = max(result.draws for result in methods.values())
    chosen = [name for name in methods if name in among] or [n for n in methods if methods[n].draws == most]
    return max(chosen, key=lambda method: methods[method].shots[k][results.ranked_by].mean)


def paired_differences(results: Results) -> Differences:
    """Compare all methods with phi2, or with the last method where phi2 is missing."""
    reference = "phi2" if "phi2" in results.methods else list(results.methods)[-1]
    own = _paired_values(results, reference)
    rows = {}
    for method in results.methods:
        if method != reference:
            pairs = zip(_paired_values(results, method), own, strict=True)
            rows[method] = [Interval.paired(ours.draws, theirs.draws) for ours, theirs in pairs]
    return Differences(reference, own, rows)


def _paired_values(results: Results, method: str) -> list[Interval]:
    by_shots = results.methods[method].shots
    return [by_shots[k][metric] for k in results.shots for metric in PAIRED_METRICS]


def metrics_by_method(results: Results, shots: int) -> dict[str, Metrics]:
    """Return method -> metrics at a number of shots."""
    return {method: result.shots[shots] for method, result in results.methods.items()}


def published_low_shot(results: Results) -> tuple[paper.LowShotRow, ...]:
    """Return the published rows of low-shot ImageNet; none where the results are of another split or half."""
    theirs = (results.split.hash, results.split.holdout) == (paper.LOW_SHOT_SPLIT, "novel")
    return paper.LOW_SHOT if theirs else ()
