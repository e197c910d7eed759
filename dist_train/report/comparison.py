"""Which methods, metrics and published rows are compared with each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_train.fewshot.protocols.joint import paired
from dist_train.report import paper

PAIRED_METRICS = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "ausuc": "AUSUC"}

LOW_SHOT_MEASURES = {
    "novel": "novel, joint",
    "novel_only": "novel-only",
    "base": "base, joint",
    "all": "all",
    "all_prior": "all with prior",
}
"""Low-shot ImageNet's measures (fewshot/protocols/low_shot.py) -> their titles."""


def best_method(results: Mapping[str, Any]) -> str:
    """The one with the largest harmonic mean at the fewest shots."""
    k = str(min(results["shots"]))
    return max(results["methods"], key=lambda method: results["methods"][method][k]["harmonic"]["mean"])


def paired_differences(results: Mapping[str, Any]) -> tuple[str, dict[str, list[dict[str, float]]]]:
    """The method that the others are compared with (phi2, or else the last), and for each of the others the
    paired differences from it: of every number of shots the metrics of ``PAIRED_METRICS``."""
    methods = results["methods"]
    rival = "phi2" if "phi2" in methods else list(methods)[-1]
    rows = {}
    for method in (m for m in methods if m != rival):
        pairs = [(methods[method][str(k)][metric], methods[rival][str(k)][metric])
                 for k in results["shots"] for metric in PAIRED_METRICS]  # fmt: skip
        rows[method] = [paired(ours["draws"], theirs["draws"]) for ours, theirs in pairs]
    return rival, rows


def published_low_shot(results: Mapping[str, Any]) -> tuple[paper.LowShotRow, ...]:
    """The rows that results can be compared with: none where the split, or its half, is another."""
    split = results["split"]
    theirs = (split["hash"], split.get("holdout")) == (paper.LOW_SHOT_SPLIT, "novel")
    return tuple(paper.LOW_SHOT) if theirs else ()
