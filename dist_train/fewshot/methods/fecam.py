"""C-FeCAM: a covariance for each class; those of novel classes come from base classes that are like them (Goswami et
al., NeurIPS 2023, FeCAM, section 3; Goswami et al., CVPRW 2024, arXiv 2404.06622).

Compared with the authors' code, and not with the second paper's text: ``Learner.replace_fc`` of
``models/adam_adapter.py`` and ``BaseLearner`` of ``models/base.py`` (dipamgoswami/FSCIL-Calibration), which this
follows, and ``BaseLearner`` of ``models/base.py`` (dipamgoswami/FeCAM).

A class scores minus the squared Mahalanobis distance to its mean, by the correlation matrix of its covariance plus
``fecam_ridge`` times the identity. A novel class has TEEN's mean, and the covariance sum_b w_b Sigma_b + Sigma_n, with
TEEN's weights w_b and the covariance Sigma_n of its supports.

It differs from their papers and code in these ways:

- A thousand matrices of 2048 dimensions would be 17 GB. Distances are therefore taken in the 256 coordinates that tell
  the base classes apart best, in which the covariance within classes is the identity on average (``Diagonal``).
- The ridge is in units of that, and a first guess. FeCAM adds once the mean variance (its code adds to ResNets'
  covariances twice), and 100 times for few images; C-FeCAM adds 100. FeCAM's second term, a multiple of the mean
  covariance of two dimensions, is left out, as that mean is near zero here.
- Power, length and centre are those of ``Centring``, so ``plda_power``. FeCAM has the power 0.5 too, but none on vision
  transformers; C-FeCAM has none, and neither has a centre.
- Covariances are of the vectors that distances are taken between, and of base classes means over n images, not n - 1.
  In ``_mahalanobis`` of both, distances are between unit vectors, but covariances are of activations at their length.
- They scale all means to length 1, as the queries. About a centre the mean of unit vectors is much shorter; here it
  stays so, and TEEN's mean, a direction, gets the mean length of the base classes' means.
- TEEN's weight is ``teen_weight``; they have 0.1 (CIFAR-100: 0.25). Their code takes ``corrcoef`` of the covariance
  matrix, the correlations of its columns; here it is the matrix divided by the deviations, as FeCAM's paper has it.

The covariance of a single support is zero; their five images are the fewest that they try.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch

from dist_train.fewshot.head import centred_moments
from dist_train.fewshot.method import Base, Number, Scorer, Support
from dist_train.fewshot.methods.gaussian import Gaussian
from dist_train.fewshot.moments import to_float
from dist_train.fewshot.towards_base import TEEN, TowardsBase
from dist_train.models.products import products

_DIMENSIONS = 256
_CLASSES, _COLUMNS, _QUERIES = 64, 64, 2048
"""Classes, columns of their roots and queries of one product: 32 MB of results, about what caches hold."""


class ClassCovariances(Gaussian):
    labels: ClassVar = {"fecam": "C-FeCAM"}
    numbers: ClassVar = {**Gaussian.numbers, **TEEN, "fecam_ridge": Number(3.0)}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        self.ridge, self.move = base.numbers["fecam_ridge"], TowardsBase(base.means, base.numbers)
        kept = min(_DIMENSIONS, self.means.shape[1])
        self.best = self.between.topk(kept).indices
        self.means = self.means[:, self.best]
        self.length = centred_moments(base, base.numbers["plda_power"])[1].means.norm(dim=1).mean().float()
        self.identity = torch.eye(kept, device=self.means.device)
        # Allocated before the loop: tensors allocated in it would fragment the heap.
        self.covariances = self.means.new_empty(len(self.means), kept, kept)
        self.roots = torch.empty_like(self.covariances)
        for number, (first, last) in enumerate(base.watch(list(pairwise(base.train.offsets)))):
            points = self.coordinates(to_float(base.train.rows[first:last], self.means.device))
            self.covariances[number] = _scatter(points) / len(points)
            self.roots[number] = self.root(self.covariances[number])

    def coordinates(self, activations: torch.Tensor) -> torch.Tensor:
        return self.of_centred(self.centring(activations))

    def of_centred(self, centred: torch.Tensor) -> torch.Tensor:
        """Return coordinates [..., d] of centred activations [..., C] of any length."""
        return self.space(centred)[..., self.best]

    def root(self, covariance: torch.Tensor) -> torch.Tensor:
        """Return R of the inverse R R' of the correlation matrix, for covariances [..., d, d]: upper triangular."""
        covariance = covariance + self.ridge * self.identity
        deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        lower = torch.linalg.cholesky(covariance / deviation[..., :, None] / deviation[..., None, :])
        inverse: torch.Tensor = torch.linalg.solve_triangular(lower, self.identity, upper=False)
        return inverse.mT

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return _distances(self.of_queries(queries), self.means, self.roots)

    def novel_scores(self, support: Support) -> Scorer:
        prototypes = support.mean(1)
        means = self.of_centred(self.length * self.centring(self.move(prototypes)))
        own = _scatter(self.coordinates(support)) / max(support.shape[1] - 1, 1)
        likely = self.move.weights(prototypes) @ self.covariances.flatten(1)
        roots = self.root(likely.view_as(own) + own)
        return lambda queries: _distances(self.of_queries(queries), means, roots)


def _scatter(points: torch.Tensor) -> torch.Tensor:
    """Return the sums of outer products about the mean, [..., d, d], of points [..., n, d]."""
    apart = points - points.mean(-2, keepdim=True)
    return apart.mT @ apart


def _distances(coordinates: torch.Tensor, means: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """Return minus the squared distances [Q, N] of queries [Q, d] to means [N, d]; roots [N, d, d] as in ``root``.

    The roots of several classes are one product, and of each only blocks that are not zero are multiplied.
    """
    scores, dim = coordinates.new_zeros(len(coordinates), len(means)), means.shape[1]
    for start in range(0, len(means), _CLASSES):
        some = slice(start, start + _CLASSES)
        moved_means = (means[some, None] @ roots[some])[:, 0]
        for first in range(0, dim, _COLUMNS):
            last = min(first + _COLUMNS, dim)
            block = roots[some, :last, first:last].mT.reshape(-1, last)  # [classes x columns, last]
            offset = -moved_means[:, first:last].flatten()
            for at in range(0, len(scores), _QUERIES):
                queries = coordinates[at : at + _QUERIES, :last]
                moved = products(queries, block, offset).view(len(queries), -1, last - first)
                scores[at : at + _QUERIES, some] -= torch.linalg.vector_norm(moved, dim=2).square()
    return scores
