"""phi1, phi2, phi2*: every row predicted from activations (paper, section 3.4).

Base rows come from the class means; a novel class with k supports scores as the maximum of the k
responses. The trained classifier of the backbone is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dist_train.engine import checkpoint
from dist_train.errors import UserError
from dist_train.models.predictor import Predictor

if TYPE_CHECKING:
    from dist_train.fewshot.methods import Prepared


class Predicted:
    def __init__(self, prepared: Prepared, method: str) -> None:
        means = prepared.means
        folder = prepared.learn / method / "final"
        if not folder.is_dir():
            raise UserError(
                f"{folder}: {method} is not trained; run learn with it in learn.methods, or leave it out of evaluate"
            )
        saved = checkpoint.load(folder, means.device)
        self.phi = Predictor(method, means.shape[1], prepared.options).to(means.device)
        self.phi.load_state_dict(saved.tensors["model"])
        self.phi.eval().requires_grad_(False)
        self.base_rows = self.phi(means)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.phi.query(queries) @ self.base_rows.T

    def novel_scores(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        rows = self.phi(support.flatten(0, 1))
        return (self.phi.query(queries) @ rows.T).unflatten(1, support.shape[:2]).amax(2)
