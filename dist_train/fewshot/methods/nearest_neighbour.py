"""NN + cosine over stored activations (paper, section 4.1): a class scores as its nearest image.

The paper's rows at 10% and 1% keep that share of the base activations, so that a base class does not have a
thousand chances to be nearest where a novel class has k.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, Support, sample_rows

_QUERIES = 8192  # at a time, to bound memory at 50,000 queries
_SHARES = {"10": 0.1, "1": 0.01}


class NearestNeighbour(Method):
    labels: ClassVar = {"nn": "NN + cosine", "nn10": "NN + cosine, 10% of base", "nn1": "NN + cosine, 1% of base"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base) -> None:
        self.train, self.watch = base.train, base.watch
        self.share = _SHARES.get(name.lstrip("abcdefghijklmnopqrstuvwxyz_"), 1.0)

    def embed(self, activations: torch.Tensor) -> torch.Tensor:
        """Return activations [..., C] as vectors [..., C] of unit length."""
        return F.normalize(activations, dim=-1)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        ends = list(pairwise(self.train.offsets))
        kept = (self.train.rows[self._kept(*pair)] for pair in self.watch(ends))
        return self._nearest(queries, (torch.from_numpy(rows).to(queries.device).float() for rows in kept), len(ends))

    def _nearest(self, queries: torch.Tensor, classes: Iterable[torch.Tensor], count: int) -> torch.Tensor:
        """Return the largest cosine [Q, classes] between queries [Q, C] and the images [n, C] of each class."""
        queries = self.embed(queries)
        # Allocated before the loop: columns allocated in it would fragment the heap's large blocks.
        largest = queries.new_empty(len(queries), count)
        for number, rows in enumerate(classes):
            unit = self.embed(rows).T
            for start in range(0, len(queries), _QUERIES):
                chunk = slice(start, start + _QUERIES)
                largest[chunk, number] = (queries[chunk] @ unit).amax(1)
        return largest

    def _kept(self, first: int, last: int) -> slice | np.ndarray:
        """Return the rows of a class that are kept: at least one, the same on every call."""
        if self.share == 1:
            return slice(first, last)
        return sample_rows(first, last, max(1, round(self.share * (last - first))))

    def take(self, support: Support) -> Scorer:
        unit = self.embed(support.flatten(0, 1)).T
        classes, shots = support.shape[:2]

        def scorer(queries: torch.Tensor) -> torch.Tensor:
            chunks = (queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES))
            return torch.cat([(self.embed(chunk) @ unit).view(-1, classes, shots).amax(2) for chunk in chunks])

        return scorer


class NearestOracle(NearestNeighbour):
    """Store every image of the novel classes too (paper, Table 2)."""

    labels: ClassVar = {"nn_oracle": "NN + cosine"}
    oracle = True
    base_as = "nn"

    def take(self, support: Support) -> Scorer:
        return lambda queries: self._nearest(queries, support, len(support))
