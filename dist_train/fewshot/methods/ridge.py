"""Ridge regression on frozen activations: one-hot targets, closed form, every class of the same weight.

Minimises, over W and b, the sum over classes of the mean squared error of ``W a + b`` on the class's unit
activations, plus ``ridge_weight`` |W|^2 (Hastie et al., The Elements of Statistical Learning, 3.4.1; as a
last layer for few shots in Bertinetto et al. 2019). A novel class adds its supports to the sums and a column
to the targets, so all rows change with it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F

from dist_train.fewshot.method import COSINE, Base, Method, Number, Scorer, Support


class Ridge(Method):
    labels: ClassVar = {"ridge": "Ridge regression"}
    moves_base = True
    scale: ClassVar = COSINE  # targets from 0 to 1, as wide as cosines
    numbers: ClassVar = {"ridge_weight": Number(10.0)}

    def __init__(self, name: str, base: Base) -> None:
        self.weight, device = base.numbers["ridge_weight"], base.means.device
        self.gram = torch.zeros(base.means.shape[1] + 1, base.means.shape[1] + 1, dtype=torch.float64, device=device)
        # Made before the loop: one small tensor kept from each turn holds the heap's large blocks apart (10 GB).
        self.targets = torch.empty(len(base.means), len(self.gram), dtype=torch.float64, device=device)
        for number, (first, last) in enumerate(base.watch(list(pairwise(base.train.offsets)))):
            rows = _extended(torch.from_numpy(base.train.rows[first:last]).to(device).float())
            self.gram += (rows.T @ rows / len(rows)).double()
            self.targets[number] = rows.mean(0)

    def take(self, support: Support) -> Scorer:
        rows = _extended(support).double()
        gram = self.gram + torch.einsum("nkc,nkd->cd", rows, rows) / rows.shape[1]
        gram.diagonal()[:-1] += self.weight  # not the bias
        targets = torch.cat([self.targets, rows.mean(1)])
        solved = torch.cholesky_solve(targets.T, torch.linalg.cholesky(gram)).float()
        return lambda queries: _extended(queries) @ solved


def _extended(activations: torch.Tensor) -> torch.Tensor:
    """Unit activations and a one for the bias: [..., C] -> [..., C + 1]."""
    return F.pad(F.normalize(activations, dim=-1), (0, 1), value=1.0)
