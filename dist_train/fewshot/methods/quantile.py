"""DONE: the row of a novel class is its mean activation, with the distribution of the trained rows (Hosoda et al. 2022,
arXiv 2204.13361, "Direct ONE-shot learning with quantile weight imprinting").

The j-th smallest of the C activations becomes the (j - 1/2) / C quantile of all weights of the backbone's classifier
(quantile normalisation, as in the paper's method and in ``quantile_norm`` of the code of IMPRINT, TMLR 2025), so that
the new row differs from the trained rows in order alone. Nothing is tuned. All novel classes have the same bias, the
mean of the trained ones, which the calibration makes immaterial. Of several supports the mean activation counts.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.fewshot.head import Head
from dist_train.fewshot.method import Base, Scorer, Support
from dist_train.models.products import products


class QuantileRows(Head):
    labels: ClassVar = {"quantile": "DONE: quantile imprinting"}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        weights, dim = base.rows.flatten().sort().values, base.rows.shape[1]
        # Linear interpolation, as torch.quantile has it, which refuses more than 2^24 values.
        places = (torch.arange(dim, dtype=torch.float64, device=weights.device) + 0.5) / dim * (len(weights) - 1)
        lower = places.long()
        upper = (lower + 1).clamp(max=len(weights) - 1)
        self.quantiles = weights[lower].lerp(weights[upper], (places - lower).float())

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return products(queries, self.base.rows, self.base.bias)

    def rows(self, support: Support) -> torch.Tensor:
        """Return the rows [novel classes, C] of supports [novel classes, k, C]."""
        ranks = support.mean(1).argsort(dim=1, stable=True).argsort(1)
        return self.quantiles[ranks]

    def novel_scores(self, support: Support) -> Scorer:
        rows, bias = self.rows(support), self.base.bias.mean()
        return lambda queries: products(queries, rows) + bias
