"""Cosine to the class mean (nearest class mean): the baseline without learning."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from dist_train.fewshot.methods import Prepared


class ClassMean:
    def __init__(self, prepared: Prepared) -> None:
        self.means = F.normalize(prepared.means, dim=1)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return F.normalize(queries, dim=1) @ self.means.T

    def novel_scores(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        return F.normalize(queries, dim=1) @ F.normalize(support.mean(1), dim=1).T
