"""Our own backbones, trained from scratch, cut into activations and classifier: any torchvision ResNet, and two
networks of the few-shot literature."""

from __future__ import annotations

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import stochastic_depth as drop_rows

from dist_train.config import MODELS
from dist_train.config.checks import typed
from dist_train.errors import UserError
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.cosine import with_cosine_classifier


class DropBranch:
    """Drop a layer's output for random images of a training batch, as a forward hook."""

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def __call__(self, layer: nn.Module, _: object, branch: torch.Tensor) -> torch.Tensor:
        dropped: torch.Tensor = drop_rows(branch, self.probability, "row", layer.training)
        return dropped


def untrained(name: str, num_classes: int, small_stem: bool = False, classifier: str = "linear") -> Backbone:
    """Return an untrained network.

    Args:
        name: a name of ``config.MODELS``.
        num_classes: rows of the classifier.
        small_stem: whether a 3x3 convolution of stride 1, without max-pooling, stands in place of a ResNet's 7x7
            convolution of stride 2 (He et al. 2016, section 4.2).
        classifier: ``linear`` or ``cosine``, as ``pretrain.classifier``.

    Raises:
        UserError: ``name`` is not among ``config.MODELS``.
    """
    if name not in MODELS:
        raise UserError(f"pretrain.model={typed(name)}: not a known network; give one of {', '.join(MODELS)}")
    body, dim = _conv4() if name == "conv4" else _resnet(name, small_stem)
    backbone = Backbone(body, dim, num_classes, {"name": name, "small_stem": small_stem})
    return with_cosine_classifier(backbone) if classifier == "cosine" else backbone


def _conv4() -> tuple[nn.Module, int]:
    """Return the network of Vinyals et al. (2016, section 4.1): four times a 3x3 convolution of 64 channels, batch
    norm, ReLU and 2x2 max-pooling. Where they flatten, the mean over places is taken, as a ResNet does, so that an
    activation has 64 numbers whatever the size of the images."""
    blocks = [
        nn.Sequential(nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2))
        for channels in (3, 64, 64, 64)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64


def _resnet(name: str, small_stem: bool) -> tuple[nn.Module, int]:
    few_shot = name == "resnet10"  # which torchvision does not have
    body = ResNet(BasicBlock, [1, 1, 1, 1]) if few_shot else torchvision.models.get_model(name, weights=None)
    dim: int = body.fc.in_features
    body.fc = nn.Identity()
    if small_stem:
        body.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(body.conv1.weight, mode="fan_out", nonlinearity="relu")
        body.maxpool = nn.Identity()
    return body, dim


def drop_branches(body: nn.Module, probability: float) -> None:
    """Drop residual branches of a ResNet in training from now on: stochastic depth (Huang et al. 2016).

    Args:
        probability: how likely an image is to pass the last block without its residual branch; the probability
            grows linearly from 0 at the first block.
    """
    blocks = [block for block in body.modules() if isinstance(block, (BasicBlock, Bottleneck))]
    for number, block in enumerate(blocks):
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        # A hook and not a layer, so that the weights keep torchvision's names.
        last.register_forward_hook(DropBranch(probability * number / (len(blocks) - 1)))
