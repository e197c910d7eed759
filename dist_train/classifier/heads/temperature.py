"""The temperature: what scores are divided by, so that their softmax gives probabilities."""

from __future__ import annotations

import numpy as np
import torch


def best_temperature(scores: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> tuple[float, float]:
    """Return the lowest log loss of photos that were not fitted on, and the temperature that gives it; 1 where all
    scores are the same, or where a score is not finite, with which the loss is infinite.

    The N photos' labels count as right with the probability (N + 1) / (N + 2) (Platt 1999, section 2.2): else photos
    without an error, however few, would make every answer certain.

    Args:
        scores: [N, classes].
        labels: int64 [N], of one photo or more.
        weights: of the photos, [N]; they add up to 1.
    """
    from scipy.optimize import minimize_scalar  # not above: its import takes half a second, and answers need none

    spread = float(scores.std(correction=0))
    if not np.isfinite(spread):
        return float("inf"), 1.0
    photos, doubt = torch.arange(len(labels), device=labels.device), 1 / (len(labels) + 2)

    def loss(log_temperature: float) -> float:
        shares = (scores * float(np.exp(-log_temperature))).log_softmax(1)
        right = shares[photos, labels]
        others = (shares.sum(1) - right) / max(shares.shape[1] - 1, 1)
        return -float((weights * ((1 - doubt) * right + doubt * others)).sum())

    if not spread:
        return loss(0.0), 1.0
    centre = float(np.log(spread))
    best = minimize_scalar(loss, bounds=(centre - 6, centre + 2), method="bounded", options={"xatol": 1e-3})
    return float(best.fun), float(np.exp(best.x))
