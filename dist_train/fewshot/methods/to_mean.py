"""phi2 behind a second network that maps one activation to the class mean (the release's README).

The second network has two layers like phi2's, which start as the identity. It learns to map an image to the unit mean
of its class, and gets no gradient from the classification. phi2 is trained as usual, but where a class is represented
by one image, its input is the second network's output.
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from dist_train.config import LearnConfig
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.predictor import Predictor, layers, through


class ToMean(Predictor):
    means: torch.Tensor

    def __init__(self, means: torch.Tensor, config: LearnConfig) -> None:
        super().__init__("phi2", means.shape[1], config)
        self.second = layers(2, means.shape[1], config)
        self.register_buffer("means", F.normalize(means, dim=1), persistent=False)

    @classmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        return cls(means, config)

    def to_mean(self, activations: torch.Tensor) -> torch.Tensor:
        """Return unit estimates [..., dim] of the class means for activations of single images [..., dim]."""
        return F.normalize(through(self.second, F.normalize(activations, dim=-1)).float(), dim=-1)

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, statistics: torch.Tensor, single: torch.Tensor
    ) -> torch.Tensor:
        # The queries are single images too, so the second network is trained on all of them.
        distance = (self.to_mean(queries) - self.means[labels]).square().sum()
        length = statistics.norm(dim=1, keepdim=True)  # for a phi2 that does not normalise
        estimated = self.to_mean(statistics).detach() * length
        return distance + super().loss(queries, labels, torch.where(single[:, None], estimated, statistics), single)

    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        return super().novel_rows(self.to_mean(supports) * supports.norm(dim=-1, keepdim=True), rule)


class BehindToMean(RowMethod):
    network = ToMean
    labels: ClassVar = {"phi2mean": "φ2 of a predicted mean"}
    learns: ClassVar = {"phi2mean": ToMean}
