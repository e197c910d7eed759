"""Ablation of phi+ on pseudo-novel classes: each variant leaves out, replaces or adds one part.

    python tools/ablate_phi_plus.py runs/pseudo [--draws 100] [--shots 1 3]

RUN must have been made with ``--data.holdout pseudo-novel`` and have its activations. Every variant is trained as by
``learn`` (minutes each on a CPU) and kept in RUN/ablation; the table is printed as markdown.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from pseudo_novel import open_joint_scoring
from torch import nn

from dist_train.config import LearnConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.methods import LEARNED
from dist_train.fewshot.methods.attention import Attention
from dist_train.fewshot.methods.phi_plus import TEMPERATURE, PhiPlus, Plus
from dist_train.fewshot.protocols.joint import JointScorer
from dist_train.fewshot.results import Interval
from dist_train.models.predictor import layers
from dist_train.report.comparison import PAIRED_METRICS
from dist_train.report.markdown import format_mean, markdown_head, markdown_row
from dist_train.runs.run import Run
from dist_train.stages import learn
from dist_train.stages.scoring import JointScoring
from dist_train.training.bank import StepReader

Draws = dict[int, dict[str, list[float]]]
"""Number of shots -> metric -> its value in each draw."""


class FixedRows(PhiPlus):
    def __init__(self, rows: torch.Tensor, config: LearnConfig) -> None:
        super().__init__(rows, config)
        self.rows.requires_grad_(False)


class LearnedTemperature(PhiPlus):
    def __init__(self, rows: torch.Tensor, config: LearnConfig) -> None:
        super().__init__(rows, config)
        self.temperature = nn.Parameter(torch.tensor(TEMPERATURE))

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        return self.temperature * F.normalize(activations, dim=-1)


class Constant(PhiPlus):
    own: ClassVar = {**PhiPlus.own, "schedule": "constant"}


class PapersRate(PhiPlus):
    own: ClassVar = {}


class TwoLayers(PhiPlus):
    def __init__(self, rows: torch.Tensor, config: LearnConfig) -> None:
        super().__init__(rows, config)
        self.layers = layers(2, rows.shape[1], config)


class WithAttention(PhiPlus):
    def __init__(self, rows: torch.Tensor, config: LearnConfig) -> None:
        super().__init__(rows, config)
        self.attention = Attention(rows)

    def novel(self, supports: torch.Tensor) -> torch.Tensor:
        attended = self.attention.novel(supports.flatten(0, -2)).view_as(supports)
        return F.normalize(super().novel(supports) + attended, dim=-1)


class LargestResponse(PhiPlus):
    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        return self.novel(supports)


class Uncalibrated(Plus):
    calibrated = False


VARIANTS: dict[str, tuple[type[PhiPlus], type[Plus]]] = {
    "φ+": (PhiPlus, Plus),
    "not calibrated": (PhiPlus, Uncalibrated),
    "largest of k responses": (LargestResponse, Plus),
    "base rows fixed": (FixedRows, Plus),
    "temperature learned": (LearnedTemperature, Plus),
    "rate constant": (Constant, Plus),
    "rate and decay of φ1": (PapersRate, Plus),
    "two layers": (TwoLayers, Plus),
    "attention added": (WithAttention, Plus),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 3])
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with contexts.start() as context:
        run, joint = open_joint_scoring(parser, options.run, options, context)
        print(table({name: measure(*VARIANTS[name], run, joint, context) for name in VARIANTS}))


def measure(network: type[PhiPlus], method: type[Plus], run: Run, joint: JointScoring, context: Context) -> Draws:
    """Train a variant, unless it is trained already, and score it."""
    folder = run.dir / "ablation" / network.__name__
    if not (folder / "phi_plus" / "final").is_dir():
        LEARNED["phi_plus"] = network
        bank, stop = learn.open_bank(run, context), StopFlag(context)
        task = learn.PredictorTraining("phi_plus", StepReader(bank, run.config.seed), run.config.learn, context)
        learn.train({folder / "phi_plus": task}, {}, stop)
    method.network = network
    draws: Draws = {k: {metric: [] for metric in PAIRED_METRICS} for k in run.config.evaluate.shots}
    with torch.inference_mode():
        scorer = JointScorer(
            method("phi_plus", replace(joint.base, learn=folder)), joint.base_queries, joint.novel_queries
        )
        for number in joint.supports:
            support = joint.load(joint.novel_train.rows[joint.supports[number]])
            for k in draws:
                metrics = scorer.draw(support[:, :k], joint.orders[number]).metrics
                for metric in PAIRED_METRICS:
                    draws[k][metric].append(metrics[metric])
    return draws


def table(by_variant: dict[str, Draws]) -> str:
    """Return a markdown table of phi+ and of the paired differences of the other variants from it."""
    (name, plus), *others = by_variant.items()
    heads = [f"{k}-shot {title}" for k in plus for title in PAIRED_METRICS.values()]
    lines = markdown_head(heads, [""])
    own = [Interval.of(plus[k][metric]) for k in plus for metric in PAIRED_METRICS]
    lines.append(markdown_row([name, *(format_mean(v) for v in own)]))
    for name, draws in others:
        differences = [Interval.paired(draws[k][metric], plus[k][metric]) for k in plus for metric in PAIRED_METRICS]
        lines.append(markdown_row([name, *(format_mean(v, "+") for v in differences)]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
