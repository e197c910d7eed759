"""Ridge regression on frozen activations: one-hot targets, in closed form, with the same weight for every class.

Minimises, over W and b, the sum over classes of the mean squared error of ``W a + b`` on the class's unit
activations, plus ``ridge_weight`` |W|^2 (Hastie et al., The Elements of Statistical Learning, 3.4.1; Bertinetto et
al. 2019 use it as the last layer for few shots). A novel class adds its supports to the sums and a column to the
targets, so that it changes all rows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Number, Scorer, Support, once
from dist_train.models.products import products


class Ridge(Method):
    labels: ClassVar = {"ridge": "Ridge regression"}
    moves_base = True
    scale: ClassVar = COSINE  # targets from 0 to 1, as wide as cosines
    numbers: ClassVar = {"ridge_weight": Number(10.0)}

    def __init__(self, name: str, base: Base) -> None:
        self.extended = once(_extended)
        self.weight, device = base.numbers["ridge_weight"], base.means.device
        self.gram = torch.zeros(base.means.shape[1] + 1, base.means.shape[1] + 1, dtype=torch.float64, device=device)
        # Allocated before the loop: small tensors allocated in it would fragment the heap (by 10 GB).
        self.targets = torch.empty(len(base.means), len(self.gram), dtype=torch.float64, device=device)
        for number, (first, last) in enumerate(base.watch(list(pairwise(base.train.offsets)))):
            rows = _extended(torch.from_numpy(base.train.rows[first:last]).to(device).float())
            self.gram += (products(rows.T, rows.T) / len(rows)).double()
            self.targets[number] = rows.mean(0)

    def take(self, support: Support) -> Scorer:
        rows = _extended(support).double()
        gram = self.gram + torch.einsum("nkc,nkd->cd", rows, rows) / rows.shape[1]
        gram.diagonal()[:-1] += self.weight  # not the bias
        targets = torch.cat([self.targets, rows.mean(1)])
        solved = torch.cholesky_solve(targets.T, torch.linalg.cholesky(gram)).float().T
        return lambda queries: products(self.extended(queries), solved)


def _extended(activations: torch.Tensor) -> torch.Tensor:
    """Return activations [..., C] as unit vectors with a 1 appended for the bias: [..., C + 1]."""
    return F.pad(F.normalize(activations, dim=-1), (0, 1), value=1.0)
