"""Methods whose trained network gives each class rows of a classifier."""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.data.activations import Activations
from dist_train.fewshot.calibration import Calibration, sample
from dist_train.fewshot.method import Base, Method, Scorer, Support, trained
from dist_train.models.predictor import RowClassifier


class RowMethod(Method):
    """A class scores as the largest response of its rows: one row of a base class, up to k of a novel one.

    A ``Classifier`` (dist_train/classifier) can be made of any of them.
    """

    network: ClassVar[type[RowClassifier]]
    """What is trained: the class of all of its ``learns``."""
    calibrated: ClassVar[bool] = False
    """Whether the novel scores are calibrated (fewshot/calibration.py)."""

    def __init__(self, name: str, base: Base) -> None:
        self.rule = base.rule
        self.phi = trained(self.network, self.learned(name), base)
        self.base_rows = self.phi.base_rows(base.means)
        self.calibrate = Calibration.of(base, self.base_scores) if self.calibrated else None

    @classmethod
    def sample(cls, train: Activations, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """``calibration.sample``; of no images where the method is not calibrated."""
        if cls.calibrated:
            return sample(train, device)
        return torch.zeros(0, train.rows.shape[1], device=device), torch.zeros(0, dtype=torch.int64, device=device)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.phi.query(queries) @ self.base_rows.T

    def take(self, support: Support) -> Scorer:
        rows = self.phi.novel_rows(support, self.rule)

        def scorer(queries: torch.Tensor) -> torch.Tensor:
            return (self.phi.query(queries) @ rows.flatten(0, 1).T).unflatten(1, rows.shape[:2]).amax(2)

        return self.calibrate(scorer) if self.calibrate else scorer
