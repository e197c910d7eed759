"""phi1, phi2, phi2*: every row predicted from activations (paper, section 3.4).

Base rows come from the class means; a novel class with k supports scores as the maximum of the k
responses, or by another ``evaluate.rule``. The trained classifier of the backbone is not used.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.engine import checkpoint
from dist_train.errors import UserError
from dist_train.fewshot.method import Base, Method, Scorer
from dist_train.models.predictor import Predictor


class Predicted(Method):
    labels: ClassVar = {"phi1": "φ1", "phi2": "φ2", "phi2star": "φ2*"}

    def __init__(self, name: str, base: Base) -> None:
        means, self.rule = base.means, base.rule
        folder = base.learn / name / "final"
        if not folder.is_dir():
            raise UserError(
                f"{folder}: {name} is not trained; run learn with it in learn.methods, or leave it out of evaluate"
            )
        saved = checkpoint.load(folder, means.device)
        self.phi = Predictor(name, means.shape[1], base.options).to(means.device)
        self.phi.load_state_dict(saved.tensors["model"])
        self.phi.eval().requires_grad_(False)
        self.base_rows = self.phi(means)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.phi.query(queries) @ self.base_rows.T

    def take(self, support: torch.Tensor) -> Scorer:
        if self.rule == "max":
            rows = self.phi(support.flatten(0, 1))
            return lambda queries: (self.phi.query(queries) @ rows.T).unflatten(1, support.shape[:2]).amax(2)
        rows = self.phi(support.mean(1)) if self.rule == "mean" else self.phi(support).mean(1)
        return lambda queries: self.phi.query(queries) @ rows.T
