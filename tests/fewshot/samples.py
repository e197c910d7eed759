"""Activations, bases and methods for tests of methods and scorers."""

from __future__ import annotations

import numpy as np
import torch

from dist_train.data.activations import Activations
from dist_train.fewshot import methods
from dist_train.fewshot.method import Base, Method, Scorer


def activations(counts: list[int], dim: int = 5, seed: int = 0) -> Activations:
    rows = np.random.default_rng(seed).random((sum(counts), dim)).astype(np.float16)
    return Activations(rows, np.arange(len(rows)), np.concatenate([[0], np.cumsum(counts)]))


def prepare(train: Activations | None, **given: object) -> Base:
    """Return what methods get from the base classes, with the values that a test gives."""
    return Base(**{"train": train, "means": None, "rows": None, "bias": None, "learn": None, "options": None,
                   "rule": "max", "numbers": methods.NUMBERS, **given})  # type: ignore[arg-type]  # fmt: skip


class Fixed(Method):
    """Answer with given scores; the first activation of a query is its row in them."""

    def __init__(self, base: torch.Tensor, novel: torch.Tensor, moves_base: bool = False, scale: float = 1.0) -> None:
        self.base, self.novel = base, novel
        self.moves_base, self.scale = moves_base, scale  # type: ignore[misc]

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.base[queries[:, 0].long()]

    def take(self, support: torch.Tensor) -> Scorer:
        scores = torch.cat([self.base, self.novel], 1) if self.moves_base else self.novel
        return lambda queries: scores[queries[:, 0].long()]
