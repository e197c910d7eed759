"""The backbone: any torchvision ResNet, cut into activations and classifier."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import stochastic_depth as drop_rows

from dist_train.config import MODELS
from dist_train.errors import UserError


class DropBranch:
    """Drop a layer's output for random images of a training batch, as a forward hook."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, layer: nn.Module, _: object, branch: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = drop_rows(branch, self.probability, "row", layer.training)
        return dropped


class Backbone(nn.Module):
    """Compute what the paper needs of a ResNet: a(x), the pooled activation before the last layer, and the fully
    connected classifier on it.

    Args:
        name: a name of ``config.MODELS``.
        num_classes: rows of the classifier.
        small_stem: whether a 3x3 convolution of stride 1, without max-pooling, stands in place of the 7x7 convolution
            of stride 2 (He et al. 2016, section 4.2).

    Attributes:
        dim: length of an activation.
        architecture: the arguments with which the same network can be built again.

    Raises:
        UserError: ``name`` is not among ``config.MODELS``.
    """

    def __init__(self, name: str, num_classes: int, small_stem: bool = False) -> None:
        super().__init__()
        if name not in MODELS:
            raise UserError(f"pretrain.model={name!r}: not a known ResNet; give one of {', '.join(MODELS)}")
        if name == "resnet10":
            self.body = ResNet(BasicBlock, [1, 1, 1, 1])
        else:
            self.body = torchvision.models.get_model(name, weights=None)
        self.dim: int = self.body.fc.in_features
        self.architecture = {"name": name, "num_classes": num_classes, "small_stem": small_stem}
        self.body.fc = nn.Identity()
        self.head = nn.Linear(self.dim, num_classes)
        if small_stem:
            self.body.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.body.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.body.maxpool = nn.Identity()

    def drop_branches(self, probability: float) -> None:
        """Drop residual branches in training from now on: stochastic depth (Huang et al. 2016).

        Args:
            probability: how likely an image is to pass the last block without its residual branch; the probability
                grows linearly from 0 at the first block.
        """
        blocks = [block for block in self.body.modules() if isinstance(block, (BasicBlock, Bottleneck))]
        for number, block in enumerate(blocks):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            # A hook and not a layer, so that the weights keep torchvision's names.
            last.register_forward_hook(DropBranch(probability * number / (len(blocks) - 1)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return activations a(x): [B, 3, H, W] -> [B, dim]."""
        activations: torch.Tensor = self.body(images)
        return activations

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits: [B, 3, H, W] -> [B, num_classes]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits
