"""C-RanPAC: ridge regression on random features, in which a novel class counts by draws around its moved mean
(McDonnell et al., NeurIPS 2023, RanPAC; Goswami et al., CVPRW 2024, arXiv 2404.06622).

Compared with the authors' code, not with the papers' text: ``Learner.replace_fc`` and ``optimise_ridge_parameter`` of
``models/ranpac.py`` (dipamgoswami/FSCIL-Calibration), which this follows, and of ``RanPAC.py`` (RanPAC/RanPAC).

h = relu(a R) for a unit activation a and a fixed normal matrix R [C, M]. With one-hot targets y, W = (sum h h' + lambda
I)^-1 sum h y'. A novel class enters the sums by draws with TEEN's mean and the covariance 0.5 sum_b w_b Sigma_b + 0.5
Sigma_n; its weights w_b are TEEN's. lambda is the power of ten with the smallest squared error on every fifth base
image, and is chosen once, as in C-RanPAC; RanPAC chooses it anew from every task's images.

It differs from C-RanPAC's code in these ways:

- The network stays as it is; theirs is first adapted to the base classes.
- Classes weigh the same, as the base has a thousand images where a novel class has one.
- Activations have length 1, and TEEN's weights are of cosines; theirs are as the network gives them, and a mean moves
  towards sum_b w_b p_b at any length. TEEN's mean, a direction, gets the mean length of the base classes' means. Its
  weight is ``teen_weight``; they have 0.1 (CIFAR-100: 0.25).
- The powers of ten, theirs from 10 to 10^8, are in units of the mean of the sum's diagonal, so that they do not depend
  on lengths.
- Sigma_b is not stored for every class: a draw takes the difference of a base image from its class's mean, the class by
  w_b, and that of a support from their mean. They have these covariances exactly, but are not normal.
- M is 2,000 by default and the draws of a class are 100, where they have 10,000 and 800: memory and time rise by the
  square of M.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Number, Scorer, Support, once
from dist_train.fewshot.moments import identity_like, to_float
from dist_train.fewshot.towards_base import TEEN, TowardsBase
from dist_train.models.products import products

_POWERS = range(-6, 2)
_HELD_OUT = 5  # every fifth image chooses lambda


class RandomFeatures(Method):
    labels: ClassVar = {"ranpac": "C-RanPAC"}
    moves_base = True
    scale: ClassVar = COSINE  # targets from 0 to 1
    numbers: ClassVar = {
        **TEEN, "ranpac_features": Number(2000, whole=True), "ranpac_draws": Number(100, whole=True)
    }  # fmt: skip

    def __init__(self, name: str, base: Base) -> None:
        self.base, self.move = base, TowardsBase(base.means, base.numbers)
        self.draws, size = int(base.numbers["ranpac_draws"]), int(base.numbers["ranpac_features"])
        device, (classes, dim) = base.means.device, base.means.shape
        self.projection = projection = torch.randn(dim, size, generator=torch.Generator().manual_seed(0)).to(device)
        self.query_features = once(lambda queries: F.relu(products(F.normalize(queries, dim=1), projection.T)))
        kept, held_out = (_Sums.zeros(size, classes, device) for _ in range(2))
        self.means = torch.empty(classes, dim, device=device)
        for number, (first, last) in enumerate(base.watch(list(pairwise(base.train.offsets)))):
            unit = F.normalize(to_float(base.train.rows[first:last], device), dim=1)
            self.means[number] = unit.mean(0)
            features, apart = self.features(unit), torch.arange(len(unit), device=device) % _HELD_OUT == _HELD_OUT - 1
            kept.add(features[~apart], number, len(unit))
            held_out.add(features[apart], number, len(unit))
        self.ridge = min((10.0**power for power in _POWERS), key=lambda ridge: held_out.error(kept.solve(ridge)))
        self.sums = kept.plus(held_out.gram, kept.targets + held_out.targets)

    def features(self, unit: torch.Tensor) -> torch.Tensor:
        """Return random features [..., M] of unit activations [..., C]."""
        return F.relu(products(unit, self.projection.T))

    def take(self, support: Support) -> Scorer:
        features = self.features(self.drawn(support))
        flat, targets = features.flatten(0, 1), torch.cat([self.sums.targets, features.double().mean(1)])
        rows = self.sums.plus((products(flat.T, flat.T) / self.draws).double(), targets).solve(self.ridge).float()
        return lambda queries: products(self.query_features(queries), rows)

    def drawn(self, support: Support) -> torch.Tensor:
        """Return draws [novel classes, draws, C] that stand for the images of novel classes."""
        unit, device = F.normalize(support, dim=-1), support.device
        means, rng = unit.mean(1), np.random.RandomState(0)
        length = self.means.norm(dim=1).mean()  # a single image has length 1, and the mean of a class is shorter
        moved: torch.Tensor = F.normalize(self.move(means), dim=-1) * length
        weights = self.move.weights(means).cpu().double().numpy()
        offsets, (likely, rows) = self.base.train.offsets, np.empty((2, len(support), self.draws), np.int64)
        for number, of_class in enumerate(weights):
            likely[number] = drawn = rng.choice(len(of_class), self.draws, p=of_class / of_class.sum())
            rows[number] = offsets[drawn] + (rng.random_sample(self.draws) * np.diff(offsets)[drawn]).astype(np.int64)
        images = F.normalize(to_float(self.base.train.rows[rows], device), dim=-1)
        apart = images - self.means[torch.from_numpy(likely).to(device)]
        k = support.shape[1]
        picked = torch.from_numpy(rng.randint(0, k, (len(support), self.draws))).to(device)
        own = (unit - means[:, None]) * math.sqrt(k / max(k - 1, 1))
        own = own.gather(1, picked[..., None].expand(-1, -1, own.shape[2]))
        return moved[:, None] + math.sqrt(0.5) * (apart + own)


@dataclass(frozen=True)
class _Sums:
    """Hold sum h h', float64 [M, M], and sum h y', float64 [classes, M], where each class weighs 1 in all."""

    gram: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def zeros(cls, size: int, classes: int, device: torch.device) -> Self:
        gram, targets = (torch.zeros(n, size, dtype=torch.float64, device=device) for n in (size, classes))
        return cls(gram, targets)

    def add(self, features: torch.Tensor, number: int, count: int) -> None:
        """Add some images [n, M] of class ``number``, which has ``count`` images."""
        self.gram.add_((products(features.T, features.T) / count).double())
        self.targets[number] += features.double().sum(0) / count

    def plus(self, gram: torch.Tensor, targets: torch.Tensor) -> _Sums:
        """Return the sums with another sum h h', and with other targets."""
        return _Sums(self.gram + gram, targets)

    def solve(self, ridge: float) -> torch.Tensor:
        """Return W, float64 [classes, M]; infinite where sums in float32 leave no positive definite matrix."""
        gram = self.gram + ridge * self.gram.diagonal().mean() * identity_like(self.gram)
        lower, failed = torch.linalg.cholesky_ex(gram)
        return torch.cholesky_solve(self.targets.T, lower).T.masked_fill(failed > 0, torch.inf)

    def error(self, rows: torch.Tensor) -> float:
        """Return the squared error of rows W on these images, but for what all W share."""
        if not rows.isfinite().all():
            return math.inf
        return float(((rows @ self.gram) * rows).sum() - 2 * (rows * self.targets).sum())
