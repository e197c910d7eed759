"""TEEN's calibration of prototypes: what few images say of a class is moved towards the base classes that are like it
(Wang et al., NeurIPS 2023, "Few-Shot Class-Incremental Learning via Training-Free Prototype Calibration", section 4.2;
``soft_calibration`` in their code).

The temperature is theirs. Their weight of the base classes is 0.1 on CIFAR-100 and 0.5 on CUB; 0.3 lies between, and
was not tuned. Their weights and directions are of rows of a classifier that was trained by cosine, and then replaced by
class means; here there are only the means.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from dist_train.fewshot.method import Number

TEEN: dict[str, Number] = {"teen_weight": Number(0.3), "teen_temperature": Number(16.0)}


class TowardsBase:
    """Move prototypes p of length 1 to (1 - a) p + a unit(sum_b w_b p_b), with w = softmax_b(tau p . p_b).

    Args:
        means: class means of the base classes, [base classes, C]; their unit vectors are the p_b.
        numbers: a is ``teen_weight``, tau ``teen_temperature``.
    """

    def __init__(self, means: torch.Tensor, numbers: Mapping[str, float]) -> None:
        self.base = F.normalize(means, dim=1)
        self.weight, self.temperature = numbers["teen_weight"], numbers["teen_temperature"]

    def weights(self, prototypes: torch.Tensor) -> torch.Tensor:
        """Return how alike each base class is: w [..., base classes] for prototypes [..., C] of any length."""
        return torch.softmax(self.temperature * F.normalize(prototypes, dim=-1) @ self.base.T, dim=-1)

    def __call__(self, prototypes: torch.Tensor) -> torch.Tensor:
        """Return moved prototypes [..., C] for prototypes [..., C] of any length."""
        towards = F.normalize(self.weights(prototypes) @ self.base, dim=-1)
        return (1 - self.weight) * F.normalize(prototypes, dim=-1) + self.weight * towards
