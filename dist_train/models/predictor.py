"""The predictors that ``learn`` trains: from a class's activations to its row of a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import LearnConfig
from dist_train.models.products import products

_LAYERS = {"phi1": 1, "phi2": 2, "phi2star": 2}


class RowPredictor(nn.Module, ABC):
    """Predict a class's row from a statistic of its activations.

    It is trained on the base classes. In every step each class is represented by a statistic, which is its mean
    activation or a single activation, and by a query; the rows of the statistics must classify the queries (paper,
    section 3.2).
    """

    own: ClassVar[dict[str, Any]] = {}
    """Options of ``learn`` that the predictor sets itself."""

    @classmethod
    @abstractmethod
    def build(cls, name: str, means: torch.Tensor, rows: torch.Tensor, config: LearnConfig) -> Self:
        """Return the predictor before its training.

        Args:
            name: the method, as in ``learn.methods``.
            means, rows: the base classes' mean activations and the backbone's own rows, both [classes, dim].
        """

    @abstractmethod
    def forward(self, statistics: torch.Tensor, single: torch.Tensor) -> torch.Tensor:
        """Return rows [classes, dim] of statistics [classes, dim].

        Must compute the same shapes whatever ``single`` is, and give the host no number: ``learn.cuda_graph`` records
        it.

        Args:
            single: bool [classes], whether the statistic is a single activation and not a mean.
        """

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        """Return query activations [..., dim] in the form that is multiplied with the rows."""
        return activations

    def loss(
        self, queries: torch.Tensor, labels: torch.Tensor, statistics: torch.Tensor, single: torch.Tensor
    ) -> torch.Tensor:
        """Return the cross-entropy over all classes (paper, equation 5), summed over the queries [Q, dim] of ``labels``
        [Q]."""
        logits = self.query(queries) @ self(statistics, single).T
        return F.cross_entropy(logits.float(), labels, reduction="sum")


class RowClassifier(RowPredictor):
    """Predict rows that are a classifier: a class's score is the largest product of its rows with the query.

    ``dist-train adapt`` makes models of these predictors.
    """

    @abstractmethod
    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        """Return the rows of the base classes from their means, both [classes, dim]."""

    @abstractmethod
    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        """Return the rows [..., r, dim] of novel classes from k supports of each [..., k, dim]. r is k, a row for each
        support alone, or 1.

        Args:
            rule: ``evaluate.rule``.
        """


def layers(count: int, dim: int, config: LearnConfig) -> nn.ModuleList:
    """Return ``count`` fully connected layers dim -> dim; by default they start as the identity, as in the authors'
    release."""
    linears = [nn.Linear(dim, dim, bias=config.bias) for _ in range(count)]
    for layer in linears:
        if config.identity_init:
            nn.init.eye_(layer.weight)
        if config.bias:
            nn.init.zeros_(layer.bias)
    return nn.ModuleList(linears)


def through(linears: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` after all layers, with a ReLU between consecutive layers."""
    for number, layer in enumerate(linears):
        assert isinstance(layer, nn.Linear)
        x = F.relu(x) if number else x
        x = layer(x) if layer.weight.requires_grad else products(x, layer.weight, layer.bias)
    return x


class Predictor(RowClassifier):
    """Predict rows as the paper does (section 3.3): phi1 is a fully connected layer, phi2 two with a ReLU between;
    phi2* is phi2 trained on means only.

    Where the paper is silent, ``LearnConfig``'s defaults follow the authors' MiniImageNet release: L2-normalised input
    and output, identity initialisation, zero biases, raw query.
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
        """Return the classifier rows [..., dim] of statistics [..., dim], means and single activations alike."""
        rows = through(self.layers, F.normalize(statistics, dim=-1) if self.normalise_input else statistics)
        return F.normalize(rows.float(), dim=-1) if self.normalise_output else rows.float()

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        return F.normalize(activations, dim=-1) if self.normalise_query else activations

    def base_rows(self, means: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self(means)
        return rows

    def novel_rows(self, supports: torch.Tensor, rule: str) -> torch.Tensor:
        if rule == "mean":
            supports = supports.mean(-2, keepdim=True)
        rows: torch.Tensor = self(supports)
        if rule in ("max", "mean"):
            return rows
        row = rows.mean(-2, keepdim=True)  # shorter than the rows, where base rows have length 1
        return F.normalize(row, dim=-1) if self.normalise_output else row
