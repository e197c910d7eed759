"""What ``learn`` trains: from activations of classes to rows of a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import LearnConfig

_LAYERS = {"phi1": 1, "phi2": 2, "phi2star": 2}


class RowPredictor(nn.Module, ABC):
    """Rows from statistics, trained on the base classes.

    In every step each class is represented by one statistic, its mean activation or a single one, and by
    one query; rows are made of the statistics and must classify the queries (paper, section 3.2).
    """

    own: ClassVar[dict[str, Any]] = {}
    """Keys of ``learn`` that it sets itself."""

    @classmethod
    @abstractmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        """Before training: of the base classes' means and of the backbone's own rows, both [classes, dim]."""

    @abstractmethod
    def forward(self, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
        """Statistics [classes, dim], those where ``single`` (bool [classes]) is true of one image -> rows [classes,
        dim]. Of the same shapes whatever is single, and without a number for the host: see ``learn.cuda_graph``."""

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        """Query activations [..., dim] as they meet the rows."""
        return activations

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, statistics: torch.Tensor, single: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy over all classes (paper, equation 5), summed over the queries [Q, dim] of ``labels`` [Q]."""
        logits = self.query(queries) @ self(statistics, single).T
        return F.cross_entropy(logits.float(), labels, reduction="sum")


class RowClassifier(RowPredictor):
    """A ``RowPredictor`` whose rows are a classifier: a class scores as the largest of its rows' products with the
    query. These are what ``dist-train adapt`` makes models of."""

    @abstractmethod
    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        """Rows of the base classes, of their means: both [classes, dim]."""

    @abstractmethod
    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        """k supports of each class [..., k, dim] -> its rows [..., r, dim]; r is k or 1. ``rule``: see
        ``evaluate.rule``."""


def layers(count: int, dim: int, config: LearnConfig) -> nn.ModuleList:
    """Fully connected layers dim -> dim; the identity at first, as in the release, by ``LearnConfig``'s default."""
    made = nn.ModuleList(nn.Linear(dim, dim, bias=config.bias) for _ in range(count))
    for layer in made:
        if config.identity_init:
            nn.init.eye_(layer.weight)
        if config.bias:
            nn.init.zeros_(layer.bias)
    return made


def through(made: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """One layer after the other, with a ReLU between."""
    for number, layer in enumerate(made):
        x = layer(F.relu(x) if number else x)
    return x


class Predictor(RowClassifier):
    """phi1 = one fully connected layer, phi2 = two with a ReLU between (paper, section 3.3); phi2* is phi2
    trained on means only.

    Where the paper is silent, ``LearnConfig``'s defaults follow the authors' MiniImageNet release:
    L2-normalised input and output, identity initialisation, zero biases, raw query.
    """

    def __init__(self, method: str, dim: int, config: LearnConfig) -> None:
        super().__init__()
        if method == "phi2star":
            self.own = {"p_mean": 1.0}  # type: ignore[misc]
        self.normalise_input = config.normalise_input
        self.normalise_output = config.normalise_output
        self.normalise_query = config.normalise_query
        self.layers = layers(_LAYERS[method], dim, config)

    @classmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        return cls(name, means.shape[1], config)

    def forward(self, statistics: torch.Tensor, single: torch.Tensor | None = None) -> torch.Tensor:
        """Statistics [..., dim] -> classifier rows [..., dim]; means and single images alike."""
        rows = through(self.layers, F.normalize(statistics, dim=-1) if self.normalise_input else statistics)
        return F.normalize(rows.float(), dim=-1) if self.normalise_output else rows.float()

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        return F.normalize(activations, dim=-1) if self.normalise_query else activations

    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        return self(means)

    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        if rule == "max":
            return self(supports)
        if rule == "mean":
            return self(supports.mean(-2, keepdim=True))
        row = self(supports).mean(-2, keepdim=True)  # shorter than its parts, where base rows have length 1
        return F.normalize(row, dim=-1) if self.normalise_output else row
