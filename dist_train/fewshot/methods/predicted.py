"""phi1, phi2, phi2*: every row predicted from activations (paper, section 3.4).

Base rows come from the class means; a novel class with k supports scores as the maximum of the k
responses, or by another ``evaluate.rule``. The trained classifier of the backbone is not used.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from dist_train.fewshot.method import Base, Method, Scorer, Support, trained
from dist_train.models.predictor import Predictor


class Predicted(Method):
    labels: ClassVar = {"phi1": "φ1", "phi2": "φ2", "phi2star": "φ2*"}
    learns: ClassVar = dict.fromkeys(labels, Predictor)

    def __init__(self, name: str, base: Base) -> None:
        self.rule = base.rule
        self.phi = trained(Predictor, name, base)
        self.base_rows = self.phi(base.means)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.phi.query(queries) @ self.base_rows.T

    def take(self, support: Support) -> Scorer:
        if self.rule == "max":
            rows = self.phi(support.flatten(0, 1))
            return lambda queries: (self.phi.query(queries) @ rows.T).unflatten(1, support.shape[:2]).amax(2)
        rows = self.phi(support.mean(1)) if self.rule == "mean" else self.phi(support).mean(1)
        return lambda queries: self.phi.query(queries) @ rows.T
