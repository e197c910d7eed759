"""The predictor phi: from an activation statistic to a row of classifier weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import LearnConfig

_LAYERS = {"phi1": 1, "phi2": 2, "phi2star": 2}


class Predictor(nn.Module):
    """phi1 = one fully connected layer, phi2 = two with a ReLU between (paper, section 3.3).

    Where the paper is silent, ``LearnConfig``'s defaults follow the authors' MiniImageNet release:
    L2-normalised input and output, identity initialisation, zero biases, raw query.
    """

    def __init__(self, method: str, dim: int, config: LearnConfig) -> None:
        super().__init__()
        self.normalise_input = config.normalise_input
        self.normalise_output = config.normalise_output
        self.normalise_query = config.normalise_query
        self.layers = nn.ModuleList(nn.Linear(dim, dim, bias=config.bias) for _ in range(_LAYERS[method]))
        for layer in self.layers:
            if config.identity_init:
                nn.init.eye_(layer.weight)
            if config.bias:
                nn.init.zeros_(layer.bias)

    def forward(self, statistics: torch.Tensor) -> torch.Tensor:
        """Statistics [..., dim] -> classifier rows [..., dim]."""
        rows = F.normalize(statistics, dim=-1) if self.normalise_input else statistics
        for number, layer in enumerate(self.layers):
            rows = layer(F.relu(rows) if number else rows)
        return F.normalize(rows.float(), dim=-1) if self.normalise_output else rows.float()

    def query(self, activations: torch.Tensor) -> torch.Tensor:
        """Query activations [..., dim] as they meet the rows."""
        return F.normalize(activations, dim=-1) if self.normalise_query else activations
