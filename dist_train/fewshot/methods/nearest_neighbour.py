"""NN + cosine over stored activations (paper, section 4.1): a class scores as its nearest image.

The paper's rows at 10% and 1% keep that share of the base activations, so that a base class has not a
thousand chances to be nearest where a novel one has k.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.fewshot.method import Base, Method, Scorer, cosine

_QUERIES = 8192  # at a time, so that memory stays bounded at 50,000 queries
_SHARES = {"nn": 1.0, "nn10": 0.1, "nn1": 0.01}


class NearestNeighbour(Method):
    labels: ClassVar = {"nn": "NN + cosine", "nn10": "NN + cosine, 10% of base", "nn1": "NN + cosine, 1% of base"}

    def __init__(self, name: str, base: Base) -> None:
        self.train, self.share = base.train, _SHARES[name]

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(queries, dim=1)
        scores = queries.new_empty(len(queries), len(self.train.offsets) - 1)
        for label, (first, last) in enumerate(zip(self.train.offsets[:-1], self.train.offsets[1:], strict=True)):
            rows = torch.from_numpy(self.train.rows[self._kept(label, first, last)]).to(queries.device).float()
            rows = F.normalize(rows, dim=1)
            for start in range(0, len(unit), _QUERIES):
                part = slice(start, start + _QUERIES)
                scores[part, label] = (unit[part] @ rows.T).amax(1)
        return scores

    def _kept(self, label: int, first: int, last: int) -> slice | np.ndarray:
        """The rows of a class that are kept: one at least, the same each time."""
        if self.share == 1:
            return slice(first, last)
        count = max(1, round(self.share * (last - first)))
        return first + np.sort(np.random.RandomState([0, label]).permutation(last - first)[:count])

    def take(self, support: torch.Tensor) -> Scorer:
        return lambda queries: cosine(queries, support.flatten(0, 1)).unflatten(1, support.shape[:2]).amax(2)
