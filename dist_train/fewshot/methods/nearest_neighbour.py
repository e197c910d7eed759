"""NN + cosine over stored activations (paper, section 4.1): a class scores as its nearest image.

The paper's rows at 10% and 1% keep that share of the base activations, so that a base class has not a
thousand chances to be nearest where a novel one has k.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.fewshot.method import Base, Method, Scorer, Support

_QUERIES = 8192  # at a time, so that memory stays bounded at 50,000 queries
_SHARES = {"10": 0.1, "1": 0.01}


class NearestNeighbour(Method):
    labels: ClassVar = {"nn": "NN + cosine", "nn10": "NN + cosine, 10% of base", "nn1": "NN + cosine, 1% of base"}

    def __init__(self, name: str, base: Base) -> None:
        self.train, self.watch = base.train, base.watch
        self.share = _SHARES.get(name.lstrip("abcdefghijklmnopqrstuvwxyz_"), 1.0)

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., C] of unit length."""
        return F.normalize(activations, dim=-1)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        kept = (self.train.rows[self._kept(*ends)] for ends in self.watch(list(pairwise(self.train.offsets))))
        return self._nearest(queries, (torch.from_numpy(rows).to(queries.device).float() for rows in kept))

    def _nearest(self, queries: torch.Tensor, classes: Iterable[torch.Tensor]) -> torch.Tensor:
        """Queries [Q, C] and each class's images [n, C] -> largest cosine [Q, classes]."""
        parts = self.embed(queries).split(_QUERIES)
        columns = []
        for rows in classes:
            unit = self.embed(rows).T
            columns.append(torch.cat([(part @ unit).amax(1) for part in parts]))
        return torch.stack(columns, dim=1)

    def _kept(self, first: int, last: int) -> slice | np.ndarray:
        """The rows of a class that are kept: one at least, the same each time."""
        if self.share == 1:
            return slice(first, last)
        count = max(1, round(self.share * (last - first)))
        return first + np.sort(np.random.RandomState(first).permutation(last - first)[:count])

    def take(self, support: Support) -> Scorer:
        return lambda queries: self._nearest(queries, support)


class NearestOracle(NearestNeighbour):
    """Every image of the novel classes stored too (paper, Table 2)."""

    labels: ClassVar = {"nn_oracle": "NN + cosine"}
    oracle = True
