"""phi+: phi1 for the novel classes, beside base rows that are trained with it.

It differs from the paper's phi1 in five ways, each measured in docs/results/studies.md on pseudo-novel classes:

- base classes have rows of their own, which start as the backbone's classifier and are trained together with phi, so
  that what a thousand images tell about a class need not pass through the map that novel classes need;
- scores are cosines times a fixed temperature: a learned temperature, or the norm of the query, grows until the base
  images are memorised;
- the learning rate is larger and falls to zero, and there is no weight decay;
- k supports give one row, the unit mean of their k rows, instead of k rows of which the largest response counts;
- novel scores are calibrated (fewshot/calibration.py).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import LearnConfig
from dist_train.fewshot import calibration
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.predictor import RowClassifier, layers, through

TEMPERATURE = 20.0  # chosen on pseudo-novel classes, as is all of ``own``


class PhiPlus(RowClassifier):
    own: ClassVar = {"lr": 0.1, "schedule": "cosine", "weight_decay": 0.0}

    def __init__(self, rows: torch.Tensor, config: LearnConfig) -> None:
        super().__init__()
        self.rows = nn.Parameter(F.normalize(rows, dim=1))
        self.layers = layers(1, rows.shape[1], config)

    @classmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        return cls(rows, config)

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        return TEMPERATURE * F.normalize(activations, dim=-1)

    def forward(self, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
        rows = F.normalize(self.rows, dim=1)
        return torch.where(single[:, None], self.novel(statistics).to(rows.dtype), rows)

    def novel(self, supports: torch.Tensor) -> torch.Tensor:
        """Return the unit rows [..., dim] of activations of single images [..., dim]."""
        return F.normalize(through(self.layers, F.normalize(supports, dim=-1)).float(), dim=-1)

    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.rows, dim=1)

    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        """Return one row for each class; ``rule`` has no effect."""
        return F.normalize(self.novel(supports).mean(-2, keepdim=True), dim=-1)


class Plus(RowMethod):
    network = PhiPlus
    labels: ClassVar = {"phi_plus": "φ+"}
    learns: ClassVar = {"phi_plus": PhiPlus}
    numbers = calibration.NUMBERS
    calibrated = True


class Uncalibrated(Plus):
    """Score as phi+ before its calibration, for methods that calibrate the whole of which phi+ is a part."""

    labels: ClassVar = {}
    calibrated = False
