"""Batch normalisation folded into convolutions: the same activations, or the network as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dist_train.models.backbones import build
from dist_train.models.folding import folded

LIBRARY = {"classifier": None, "num_classes": 0}


def _norms(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())


def _randomised(module: nn.Module) -> nn.Module:
    """Give every normalisation statistics and factors that matter."""
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.running_var, layer.weight):
                values.data.uniform_(0.5, 1.5, generator=generator)
            for values in (layer.running_mean, layer.bias):
                values.data.normal_(0, 0.2, generator=generator)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("architecture", "left"),  # normalisations that follow a stem of several layers, and stay
    [
        ({"name": "resnet10", "num_classes": 5, "small_stem": True}, 0),
        ({"source": "timm", "name": "efficientnet_lite0", **LIBRARY}, 0),
        ({"source": "timm", "name": "resnet10t", **LIBRARY}, 1),
        ({"source": "torchvision", "name": "mobilenet_v3_small", **LIBRARY}, 0),
    ],
)
def test_the_activations_stay(architecture: dict[str, object], left: int) -> None:
    body = _randomised(build(architecture).body)
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    faster = folded(body)
    assert faster is not body and _norms(faster) == left < _norms(body)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(faster(images), body(images), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


def test_a_network_without_batch_normalisation_is_returned_as_it_is() -> None:
    body = build({"source": "timm", "name": "convnext_atto", **LIBRARY}).body.eval()
    assert folded(body) is body


class _Crossed(nn.Module):
    """Uses its layers in another order than the order in which it has them."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.other = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.other(images)) + self.convolution(images)).mean((2, 3))


def test_a_network_whose_layers_lie_in_another_order_is_returned_as_it_is() -> None:
    body = _randomised(_Crossed())
    assert folded(body) is body


def test_a_network_that_is_not_finite_is_returned_as_it_is() -> None:
    body = _randomised(_Crossed())
    body.norm.running_mean.fill_(torch.nan)
    assert folded(body) is body
