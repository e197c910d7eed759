"""Methods whose trained network gives each class one or more rows of a linear classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch

from dist_train.data.activations import Activations
from dist_train.fewshot.calibration import Calibration, sample
from dist_train.fewshot.method import Base, Method, Scorer, Support, load_trained, once
from dist_train.fewshot.nearest import first_largest
from dist_train.models.predictor import RowClassifier
from dist_train.models.products import products


class RowMethod(Method):
    """Score a class by the largest response of its rows: a base class has one row, a novel class up to k.

    A ``Classifier`` (dist_train/classifier) can be made from any of these methods.
    """

    network: ClassVar[type[RowClassifier]]
    """The network that is trained: the class of all its ``learns``."""

    def __init__(self, name: str, base: Base) -> None:
        self.rule = base.rule
        self.phi = load_trained(self.network, self.learned(name), base)
        self.query = once(self.phi.query)
        self.base_rows = self.phi.base_rows(base.means)
        self.calibrate = Calibration.from_base(base, self.base_scores, self.cost) if self.calibrated else None

    @classmethod
    def sample(cls, train: Activations, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``calibration.sample``, or no images where the method is not calibrated."""
        if cls.calibrated:
            return sample(train, device)
        return torch.zeros(0, train.rows.shape[1], device=device), torch.zeros(0, dtype=torch.int64, device=device)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return products(self.query(queries), self.base_rows)

    def take(self, support: Support) -> Scorer:
        return next(self.take_first(support, [support.shape[1]]))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        rows = self.phi.novel_rows(support[:, : max(shots)], self.rule)
        if rows.shape[1] < max(shots) and len(shots) > 1:  # a row is made from all k supports: for each k another
            yield from super().take_first(support, shots)
            return
        query = self.query
        largest = once(lambda queries: first_largest(query(queries), rows, shots))
        for place in range(len(shots)):
            scorer = partial(lambda place, queries: largest(queries)[place], place)
            yield self.calibrate(scorer) if self.calibrate else scorer
