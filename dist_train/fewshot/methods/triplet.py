"""Triplet loss on the last layer: NN + cosine on an embedding that is trained to bring the images of a class together
(paper, Table 1).

The paper trains the whole network from the pretrained weights (triplet_network.py). Here the embedding is one layer on
the frozen activations, which starts as the identity. In every step each class has an anchor and a positive, and its
negative is the nearest positive of another class (the hardest in the batch: Hermans et al. 2017, section 2).
"""

from __future__ import annotations

from typing import ClassVar, Self

import torch
import torch.nn.functional as F

from dist_train.config import LearnConfig
from dist_train.fewshot.method import Base, load_trained
from dist_train.fewshot.methods.nearest_neighbour import NearestNeighbour
from dist_train.models.predictor import RowPredictor, layers, through

_MARGIN = 0.2
"""Between cosines. Schroff et al. 2015 (sections 3.1, 3.3) have 0.2 between squared distances of unit vectors, which
are 2 - 2 cos: half as much."""


class Triplet(RowPredictor):
    own: ClassVar = {"p_mean": 0.0}

    def __init__(self, dim: int, config: LearnConfig) -> None:
        super().__init__()
        self.layers = layers(1, dim, config)

    @classmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        return cls(means.shape[1], config)

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [..., dim], of unit length, of activations [..., dim]."""
        return F.normalize(through(self.layers, F.normalize(activations, dim=-1)).float(), dim=-1)

    def forward(self, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
        return self.query(statistics)

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, statistics: torch.Tensor, single: torch.Tensor
    ) -> torch.Tensor:
        cosines = self.query(queries) @ self(statistics, single).T
        same = cosines.gather(1, labels[:, None])
        others = cosines.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
        return F.relu(_MARGIN + others - same).sum()


class TripletNetwork(NearestNeighbour):
    labels: ClassVar = {
        "triplet": "Triplet (last layer)",
        "triplet10": "Triplet (last layer), 10% of base",
        "triplet1": "Triplet (last layer), 1% of base",
    }
    learns: ClassVar = {"triplet": Triplet}
    uses: ClassVar = {"triplet10": "triplet", "triplet1": "triplet"}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base, load_trained(Triplet, "triplet", base).query)
