"""Choose the cost of phi+'s calibration on pseudo-novel classes: what each cost gains and loses relative to phi2.

    python tools/choose_calibration.py runs/pseudo [--draws 100] [--shots 1 2 3] [--costs 0.2 0.3 ...]

RUN must have been made with ``--data.holdout pseudo-novel`` and have phi2 and phi_plus learned. Differences are between
the same draws, image by image, with one standard error over images: other classes have other images, which an interval
over draws does not cover. The choice is the largest cost (the best for novel classes) at which base top-1 is above that
of phi2 by more than one standard error at every number of shots: the one-standard-error rule of Breiman et al. (1984).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ablate_phi_plus import open_joint_scoring

from dist_train.distributed import context as contexts
from dist_train.fewshot import methods
from dist_train.fewshot.protocols.joint import JointScorer
from dist_train.report.markdown import markdown_head, markdown_row
from dist_train.stages.scoring import JointScoring

CorrectShares = dict[int, np.ndarray]
"""Number of shots -> share of draws in which each image is correct [images], base images before novel images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--costs", type=float, nargs="+", default=[0.2, 0.25, 0.3, 0.35, 0.4, 0.5])
    options = parser.parse_args()
    with contexts.start() as context, torch.inference_mode():
        _, joint = open_joint_scoring(parser, options, context)
        phi2, base = correct_shares(joint, "phi2", 0.0), len(joint.base_queries.labels)
        titles = [f"{k}-shot {role} top-1" for k in options.shots for role in ("base", "novel")]
        print("\n".join(markdown_head(titles, ["cost"])))
        print(
            markdown_row(
                ["φ2", *(f"{100 * part.mean():.2f}" for k in options.shots for part in np.split(phi2[k], [base]))]
            )
        )
        chosen = None
        for cost in sorted(options.costs):
            plus = correct_shares(joint, "phi_plus", cost)
            differences = [_mean(part) for k in options.shots for part in np.split(plus[k] - phi2[k], [base])]
            print(
                markdown_row([f"φ+, {cost:g}", *(f"{mean:+.2f} ± {error:.2f}" for mean, error in differences)]),
                flush=True,
            )
            if all(mean > error for mean, error in differences[::2]):
                chosen = cost
    print(f"\nchosen: {chosen}")


def correct_shares(joint: JointScoring, name: str, cost: float) -> CorrectShares:
    """Score a method at one calibration cost."""
    base = replace(joint.base, numbers={**joint.base.numbers, "calibration_cost": cost})
    scorer = JointScorer(methods.make(name, base), joint.base_queries, joint.novel_queries)
    shares: CorrectShares = {}
    for draw in joint.own_draws:
        for k in joint.config.shots:
            support = joint.load(joint.novel_train.rows[joint.supports[draw]])[:, :k]
            correct = scorer.draw(support, joint.orders[draw]).predicted == joint.labels
            shares[k] = shares.get(k, 0) + correct / len(joint.own_draws)
    return shares


def _mean(differences: np.ndarray) -> tuple[float, float]:
    """Return the mean difference in points, with its standard error over images."""
    return 100 * differences.mean(), 100 * differences.std(ddof=1) / len(differences) ** 0.5


if __name__ == "__main__":
    main()
