"""Methods whose trained network gives each class one or more rows of a linear classifier."""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.data.activations import Activations
from dist_train.fewshot.calibration import Calibration, sample
from dist_train.fewshot.method import Base, Method, Scorer, Support, load_trained
from dist_train.models.predictor import RowClassifier


class RowMethod(Method):
    """Score a class by the largest response of its rows: a base class has one row, a novel class up to k.

    A ``Classifier`` (dist_train/classifier) can be made from any of these methods.
    """

    network: ClassVar[type[RowClassifier]]
    """The network that is trained: the class of all its ``learns``."""
    calibrated: ClassVar[bool] = False
    """Whether the novel scores are calibrated (fewshot/calibration.py)."""

    def __init__(self, name: str, base: Base) -> None:
        self.rule = base.rule
        self.phi = load_trained(self.network, self.learned(name), base)
        self.base_rows = self.phi.base_rows(base.means)
        self.calibrate = Calibration.from_base(base, self.base_scores) if self.calibrated else None

    @classmethod
    def sample(cls, train: Activations, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``calibration.sample``, or no images where the method is not calibrated."""
        if cls.calibrated:
            return sample(train, device)
        return torch.zeros(0, train.rows.shape[1], device=device), torch.zeros(0, dtype=torch.int64, device=device)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.phi.query(queries) @ self.base_rows.T

    def take(self, support: Support) -> Scorer:
        rows = self.phi.novel_rows(support, self.rule)

        def scorer(queries: torch.Tensor) -> torch.Tensor:
            responses = self.phi.query(queries) @ rows.flatten(0, 1).T  # [Q, novel classes x rows of each]
            return responses.view(len(queries), *rows.shape[:2]).amax(2)

        return self.calibrate(scorer) if self.calibrate else scorer
