"""What a backbone is: a network from images to activations, with a linear classifier on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Backbone(nn.Module):
    """Compute what the paper needs of a network: a(x), the activation before the last layer, and the fully connected
    classifier on it.

    The weights are named ``body.*`` and ``head.*``, with the body's names as its library has them.

    Attributes:
        body: maps images [B, 3, H, W] to activations [B, dim].
        head: the linear classifier, [num_classes] rows.
        dim: length of an activation.
        architecture: what ``backbones.build`` makes the same network of again, as JSON has it.
    """

    def __init__(self, body: nn.Module, dim: int, num_classes: int, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.body, self.dim = body, dim
        self.head = nn.Linear(dim, num_classes)
        self.architecture = {**architecture, "num_classes": num_classes}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return activations a(x): [B, 3, H, W] -> [B, dim]."""
        activations: torch.Tensor = self.body(images)
        return activations

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits: [B, 3, H, W] -> [B, num_classes]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits
