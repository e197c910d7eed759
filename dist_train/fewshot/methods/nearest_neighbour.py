"""NN + cosine over stored activations (paper, section 4.1): a class scores as its nearest image.

The paper's rows at 10% and 1% keep that share of the base activations, so that a base class does not have a
thousand chances to be nearest where a novel class has k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, Support, once, sample_rows
from dist_train.fewshot.nearest import first_largest, largest_products

_SHARES = {"10": 0.1, "1": 0.01}


def unit(activations: torch.Tensor) -> torch.Tensor:
    """Return activations [..., C] as vectors of unit length."""
    return F.normalize(activations, dim=-1)


class NearestNeighbour(Method):
    """Score by the nearest image.

    Args:
        embed: takes activations [..., C], and returns vectors [..., C] of unit length.
    """

    labels: ClassVar = {"nn": "NN + cosine", "nn10": "NN + cosine, 10% of base", "nn1": "NN + cosine, 1% of base"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base, embed: Callable[[torch.Tensor], torch.Tensor] = unit) -> None:
        self.train, self.watch, self.decisive = base.train, base.watch, base.decisive
        self.share = _SHARES.get(name.lstrip("abcdefghijklmnopqrstuvwxyz_"), 1.0)
        self.embed = embed
        self.embed_queries = once(embed)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        ends = list(pairwise(self.train.offsets))

        def classes() -> Iterator[torch.Tensor]:
            for first, last in self.watch(ends):
                rows = torch.from_numpy(self.train.rows[self._kept(first, last)])
                yield self.embed(rows.to(queries.device).float())

        return largest_products(self.embed_queries(queries), classes, len(ends), self.decisive)

    def _kept(self, first: int, last: int) -> slice | np.ndarray:
        """Return the rows of a class that are kept: at least one, the same on every call."""
        if self.share == 1:
            return slice(first, last)
        return sample_rows(first, last, max(1, round(self.share * (last - first))))

    def take(self, support: Support) -> Scorer:
        return next(self.take_first(support, [support.shape[1]]))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        rows, embed = self.embed(support[:, : max(shots)]), self.embed_queries
        largest = once(lambda queries: first_largest(embed(queries), rows, shots))
        return (partial(lambda place, queries: largest(queries)[place], place) for place in range(len(shots)))


class NearestOracle(NearestNeighbour):
    """Store every image of the novel classes too (paper, Table 2)."""

    labels: ClassVar = {"nn_oracle": "NN + cosine"}
    oracle = True
    base_as = "nn"

    def take(self, support: Support) -> Scorer:
        def scorer(queries: torch.Tensor) -> torch.Tensor:
            classes = partial(map, self.embed, support)
            return largest_products(self.embed_queries(queries), classes, len(support), self.decisive)

        return scorer
