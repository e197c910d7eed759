"""Choose the cost of a method's calibration on pseudo-novel classes: what each cost gains and loses beside another row.

    python tools/choose_calibration.py runs/draw1 runs/draw2 runs/draw3 [--method phi_plus] [--beside phi2]
        [--draws 100] [--shots 1 2 3] [--costs 0.2 0.3 ...]

Each RUN must have been made with ``--data.holdout pseudo-novel``, each with other pseudo-novel classes, and must have
learned what both rows need. The other row keeps the run's own cost, where it has one. Differences are between the
same draws, image by image over all runs, with one standard error over images: other classes have other images, which
an interval over draws does not cover. The choice is the largest cost (the best for novel classes) at which base top-1
is above that of the other row by more than one standard error at every number of shots: the one-standard-error rule
of Breiman et al. (1984).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pseudo_novel import open_joint_scoring

from dist_train.distributed import context as contexts
from dist_train.errors import UserError
from dist_train.fewshot import methods
from dist_train.fewshot.protocols.joint import JointScorer
from dist_train.report.markdown import markdown_head, markdown_row
from dist_train.stages.scoring import JointScoring

CorrectShares = dict[int, tuple[np.ndarray, np.ndarray]]
"""Number of shots -> share of draws in which each base image and each novel image is correct, [images] each."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the choice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    calibrated = [name for name, kind in methods.METHODS.items() if kind.calibrated]
    parser.add_argument("--method", default="phi_plus", choices=calibrated, metavar="METHOD")
    parser.add_argument("--beside", default="phi2", choices=list(methods.METHODS), metavar="METHOD")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--costs", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
    options = parser.parse_args(arguments)
    if min(options.costs) <= 0:
        parser.error(f"--costs {min(options.costs):g}: must be above 0")
    costs, other = sorted(options.costs), methods.LABELS[options.beside]
    with contexts.start() as context, torch.inference_mode():
        scored = []
        for run in options.runs:
            try:
                _, joint = open_joint_scoring(parser, run, options, context)
            except (UserError, ValueError) as error:
                parser.error(str(error))
            beside = correct_shares(joint, options.beside, joint.base.numbers[methods.METHODS[options.beside].cost])
            scored.append((beside, [correct_shares(joint, options.method, cost) for cost in costs]))
    titles = [f"{k}-shot {role} top-1" for k in options.shots for role in ("base", "novel")]
    print("\n".join(markdown_head(titles, ["cost"])))
    own = [np.concatenate([beside[k][role] for beside, _ in scored]) for k in options.shots for role in (0, 1)]
    print(markdown_row([other, *(f"{100 * shares.mean():.2f}" for shares in own)]))
    chosen = None
    for place, cost in enumerate(costs):
        differences = [
            _mean(np.concatenate([of_costs[place][k][role] - beside[k][role] for beside, of_costs in scored]))
            for k in options.shots
            for role in (0, 1)
        ]
        cells = (f"{mean:+.2f} ± {error:.2f}" for mean, error in differences)
        print(markdown_row([f"{methods.LABELS[options.method]}, {cost:g}", *cells]))
        if all(mean > error for mean, error in differences[::2]):
            chosen = cost
    print(f"\nchosen: {chosen}")


def correct_shares(joint: JointScoring, name: str, cost: float) -> CorrectShares:
    """Score a method at one calibration cost."""
    base = replace(joint.base, numbers={**joint.base.numbers, methods.METHODS[name].cost: cost})
    scorer = JointScorer(methods.make(name, base), joint.base_queries, joint.novel_queries)
    shares: CorrectShares = {}
    for k in joint.config.shots:
        correct = np.zeros(len(joint.labels))
        for draw in joint.supports:
            support = joint.load(joint.novel_train.rows[joint.supports[draw]])[:, :k]
            correct += scorer.draw(support, joint.orders[draw]).predicted == joint.labels
        base_images, novel_images = np.split(correct / len(joint.supports), [len(joint.base_queries.labels)])
        shares[k] = base_images, novel_images
    return shares


def _mean(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean difference in points, with its standard error over images."""
    return 100 * differences.mean(), 100 * differences.std(ddof=1) / len(differences) ** 0.5


if __name__ == "__main__":
    main()
