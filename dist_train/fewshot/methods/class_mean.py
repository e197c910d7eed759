"""Cosine to the class mean (nearest class mean), a baseline without learning."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch

from dist_train.fewshot.method import COSINE, Base, Method, Scorer, cosine


class ClassMean(Method):
    labels: ClassVar = {"mean": "Class mean + cosine"}
    scale: ClassVar = COSINE

    def __init__(self, name: str, base: Base) -> None:
        self.means = base.means

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return cosine(queries, self.means)

    def take(self, support: torch.Tensor) -> Scorer:
        return partial(cosine, rows=support.mean(1))
