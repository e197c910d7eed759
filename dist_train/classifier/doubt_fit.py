"""Fit to known photos when a model is not sure, so that probabilities mean something.

Known photos are photos of the model's classes that its head was not fitted on, because they were left out in turn or
are images that the training did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.classifier.doubt import Doubt
from dist_train.classifier.heads.temperature import best_temperature

PASS = 0.95
"""Share of known photos that are to pass the thresholds; each class counts by how frequent it is taken to be."""


@dataclass(frozen=True)
class Known:
    """Known photos as the model sees them.

    Attributes:
        scores: of all classes, [N, classes].
        nearness: the cosine of each photo to the nearest class mean, [N].
        labels: the place of each photo's class, int64 [N].
    """

    scores: torch.Tensor
    nearness: torch.Tensor
    labels: torch.Tensor


def fitted_doubt(known: Known, temperature: float | None = None, frequency: torch.Tensor | None = None) -> Doubt:
    """Return the doubt that fits known photos: 95% of them pass both thresholds, each of which shuts out as many as
    the other does.

    Args:
        known: photos.
        temperature: where it is known already; None: it is fitted.
        frequency: how much the photos of each class count together, float64 [classes]; None: all the same.
    """
    usable = known.scores.isfinite().all(1) & known.nearness.isfinite()  # of equal photos they may not be
    known = Known(known.scores[usable], known.nearness[usable], known.labels[usable])
    if not len(known.labels):
        return Doubt(temperature or 1.0)
    weights = _weights(known.labels, frequency)
    if temperature is None:
        _, temperature = best_temperature(known.scores, known.labels, weights)
    probability = (known.scores.double() / temperature).softmax(1).amax(1)
    nearness = known.nearness.double()
    # A photo falls below a threshold by the smaller of its two ranks.
    by_probability, by_nearness = (_shares(values, weights, True) for values in (probability, nearness))
    ranks = torch.minimum(by_probability, by_nearness)
    cut = ranks[_shares(ranks, weights, False) <= 1 - PASS].max()
    # A step below, so that no known photo is as low as the 0th: a threshold there would let all photos pass.
    percentiles = (np.floor(1e6 * np.percentile(nearness.cpu().numpy(), np.arange(101))) - 1) / 1e6
    threshold, nearest = float(probability[by_probability >= cut].min()), float(nearness[by_nearness >= cut].min())
    return Doubt(temperature, threshold, float(np.interp(nearest, percentiles, np.arange(101))),
               tuple(percentiles.tolist()))  # fmt: skip


def directions(photos: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the class means by which nearness is measured, scaled to length 1: [classes, dim].

    Args:
        photos: activations [k, dim] of the photos of each class, at least one.
    """
    return F.normalize(torch.stack([F.normalize(own, dim=1).mean(0) for own in photos]), dim=1)


def _weights(labels: torch.Tensor, frequency: torch.Tensor | None) -> torch.Tensor:
    """Return the weight of each photo, float64 [N], so that classes weigh by their frequency; they add up to 1."""
    weights = (1.0 if frequency is None else frequency[labels]) / labels.bincount().double()[labels]
    return weights / weights.sum()


def _shares(values: torch.Tensor, weights: torch.Tensor, equal: bool) -> torch.Tensor:
    """Return for each value [N] the weight of the values below it; with ``equal``, of those that equal it too."""
    ordered, order = values.sort()
    below = F.pad(weights[order].cumsum(0), (1, 0))
    return below[torch.searchsorted(ordered, values.contiguous(), right=equal)]
