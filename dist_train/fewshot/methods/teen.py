"""TEEN: prototypes of novel classes are moved towards base classes that are like them (fewshot/towards_base.py).

- ``teen``: class mean + cosine, with moved means.
- ``phi2_teen``, ``phi_plus_teen``: each support is moved before phi2 or phi+ sees it. The predictors are those of the
  rows ``phi2`` and ``phi_plus``; they were trained on activations as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch

from dist_train.fewshot.calibration import NUMBERS, calibrated
from dist_train.fewshot.head import Head
from dist_train.fewshot.method import COSINE, Base, Method, Scorer, Support, cosine
from dist_train.fewshot.methods.phi_plus import Plus
from dist_train.fewshot.methods.predicted import Predicted
from dist_train.fewshot.towards_base import TEEN, TowardsBase


class TeenMean(Head):
    labels: ClassVar = {"teen": "TEEN: class mean towards base means"}
    scale: ClassVar = COSINE
    numbers: ClassVar = {**NUMBERS, **TEEN}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        self.move = TowardsBase(base.means, base.numbers)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return cosine(queries, self.base.means)

    def novel_scores(self, support: Support) -> Scorer:
        return partial(cosine, rows=self.move(support.mean(1)))


class TeenBeforePredictor(Method):
    labels: ClassVar = {"phi2_teen": "TEEN before φ2", "phi_plus_teen": "TEEN before φ+"}
    uses: ClassVar = {"phi2_teen": "phi2", "phi_plus_teen": "phi_plus"}
    calibrated = True
    numbers: ClassVar = {**NUMBERS, **TEEN}

    def __init__(self, name: str, base: Base) -> None:
        kind = Predicted if self.learned(name) == "phi2" else Plus
        self.predicted = calibrated(kind(self.learned(name), base), base)
        self.move = TowardsBase(base.means, base.numbers)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.predicted.base_scores(queries)

    def take(self, support: Support) -> Scorer:
        return next(self.take_first(support, [support.shape[1]]))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        length = support.norm(dim=-1, keepdim=True)  # for a predictor that does not normalise
        return self.predicted.take_first(self.move(support) * length, shots)
