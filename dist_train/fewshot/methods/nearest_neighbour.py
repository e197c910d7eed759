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

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, Support, drawn

_QUERIES = 8192  # at a time, so that memory stays bounded at 50,000 queries
_SHARES = {"10": 0.1, "1": 0.01}


class NearestNeighbour(Method):
    labels: ClassVar = {"nn": "NN + cosine", "nn10": "NN + cosine, 10% of base", "nn1": "NN + cosine, 1% of base"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base) -> None:
        self.train, self.watch = base.train, base.watch
        self.share = _SHARES.get(name.lstrip("abcdefghijklmnopqrstuvwxyz_"), 1.0)

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        """[..., C] -> [..., C] of unit length."""
        return F.normalize(activations, dim=-1)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        ends = list(pairwise(self.train.offsets))
        kept = (self.train.rows[self._kept(*pair)] for pair in self.watch(ends))
        return self._nearest(queries, (torch.from_numpy(rows).to(queries.device).float() for rows in kept), len(ends))

    def _nearest(self, queries: torch.Tensor, classes: Iterable[torch.Tensor], count: int) -> torch.Tensor:
        """Queries [Q, C] and each class's images [n, C] -> largest cosine [Q, classes]."""
        queries = self.embed(queries)
        # Made before the loop: a column kept from each turn would hold the heap's large blocks apart.
        found = queries.new_empty(len(queries), count)
        for number, rows in enumerate(classes):
            unit = self.embed(rows).T
            for part, of_part in zip(queries.split(_QUERIES), found.split(_QUERIES), strict=True):
                of_part[:, number] = (part @ unit).amax(1)
        return found

    def _kept(self, first: int, last: int) -> slice | np.ndarray:
        """The rows of a class that are kept: one at least, the same each time."""
        if self.share == 1:
            return slice(first, last)
        return drawn(first, last, max(1, round(self.share * (last - first))))

    def take(self, support: Support) -> Scorer:
        unit = self.embed(support.flatten(0, 1)).T
        return lambda queries: torch.cat([
            (self.embed(part) @ unit).unflatten(1, support.shape[:2]).amax(2) for part in queries.split(_QUERIES)
        ])  # fmt: skip


class NearestOracle(NearestNeighbour):
    """Every image of the novel classes stored too (paper, Table 2)."""

    labels: ClassVar = {"nn_oracle": "NN + cosine"}
    oracle = True
    base_as = "nn"

    def take(self, support: Support) -> Scorer:
        return lambda queries: self._nearest(queries, support, len(support))
