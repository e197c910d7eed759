"""A classifier by cosine, for the training of a backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.models.backbones.backbone import Backbone

SCALE = 20.0
"""Factor of the cosines before the softmax: 1 / temperature, of 0.05 (Kornblith et al. 2021, appendix A.1: "cosine
softmax")."""


class CosineClassifier(nn.Linear):
    """Compute logits as scaled cosines between activations and rows, without a bias.

    In training it also follows the mean length of an activation, as batch norm follows its statistics; ``linear`` needs
    it.

    Args:
        dim: length of an activation.
        num_classes: number of rows.
    """

    length: torch.Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, num_classes, bias=False)
        self.register_buffer("length", torch.tensor(0.0))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return logits: [B, dim] -> [B, num_classes]."""
        if self.training:
            self._follow(activations.detach())
        return SCALE * F.linear(F.normalize(activations, dim=1), F.normalize(self.weight, dim=1))

    @torch.no_grad()
    def _follow(self, activations: torch.Tensor) -> None:
        length = activations.float().norm(dim=1).mean()
        self.length.copy_(torch.where(self.length > 0, self.length.lerp(length, 0.1), length))

    @torch.no_grad()
    def linear(self) -> nn.Linear:
        """Return the linear classifier, with a bias of zero, that puts the classes in the same order, and gives an
        activation of the mean length the same logits."""
        rows, dim = self.weight.shape
        linear = nn.Linear(dim, rows, device=self.weight.device)
        linear.weight.copy_(F.normalize(self.weight, dim=1) * (SCALE / self.length))
        linear.bias.zero_()
        return linear


def with_cosine_classifier(backbone: Backbone) -> Backbone:
    """Put a new ``CosineClassifier`` in the place of a backbone's classifier, and return the backbone."""
    backbone.head = CosineClassifier(backbone.dim, backbone.head.out_features)
    backbone.architecture["classifier"] = "cosine"
    return backbone


def with_linear_classifier(backbone: Backbone) -> Backbone:
    """Make a backbone's ``CosineClassifier`` linear, if it has it, and return the backbone: what follows the training
    knows linear classifiers alone."""
    if isinstance(backbone.head, CosineClassifier):
        backbone.head = backbone.head.linear()
        backbone.architecture.pop("classifier")
    return backbone
