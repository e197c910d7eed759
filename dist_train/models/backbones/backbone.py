"""What a backbone is: a network from images to activations, with a linear classifier on them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Backbone(nn.Module):
    """Compute what the paper needs of a network: a(x), the activation before the last layer, and the fully connected
    classifier on it.

    The weights are named ``body.*`` and ``head.*``, with the body's names as its library has them.

    Attributes:
        body: maps images [B, 3, H, W] to activations [B, dim].
        head: the linear classifier, [num_classes] rows; none where nothing is classified.
        dim: length of an activation.
        architecture: what ``backbones.build`` makes the same network of again, as JSON has it.
    """

    def __init__(self, body: nn.Module, dim: int, num_classes: int, architecture: Mapping[str, Any]) -> None:
        super().__init__()
        self.body, self.dim = body, dim
        self.architecture = {**architecture}
        self.set_head(num_classes)

    def set_head(self, num_classes: int) -> None:
        """Put a new classifier of ``num_classes`` rows in place, with PyTorch's initial values."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.head = nn.Linear(self.dim, num_classes)
        self.architecture["num_classes"] = num_classes

    def layers(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Return the parameters layer by layer from the images to the activations, with each layer's name in the body.

        A block of a network is a layer ("layer1.0", "blocks.3"), and so is each convolution outside of blocks. What
        has no matrix of its own, such as a norm, belongs to the layer before it; tokens and position embeddings of a
        ViT belong to its first layer. The classifier is not among them.
        """
        layers: list[tuple[str, list[nn.Parameter]]] = []
        waiting: list[nn.Parameter] = []  # parameters before the first layer
        for name, parameters, is_layer in _walk(self.body, ""):
            if is_layer:
                layers.append((name, waiting + parameters))
                waiting = []
            elif layers:
                layers[-1][1].extend(parameters)
            else:
                waiting += parameters
        return layers

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation. Modules whose parameters are all frozen stay in evaluation: the statistics
        of their batch norms are as frozen as their weights."""
        super().train(mode)
        for module in self.body.modules():
            parameters = list(module.parameters(recurse=False))
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return activations a(x): [B, 3, H, W] -> [B, dim]."""
        activations: torch.Tensor = self.body(images)
        return activations

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits: [B, 3, H, W] -> [B, num_classes]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, list[nn.Parameter], bool]]:
    """Yield name, parameters, and whether it is a layer, of each part of a network that is no stack of blocks."""
    own = list(module.parameters(recurse=False))
    if own:
        yield prefix, own, False
    for name, child in module.named_children():
        if type(child) in _CONTAINERS or any(_is_stack(part) for part in (child, *child.children())):
            yield from _walk(child, f"{prefix}{name}.")
        elif parameters := list(child.parameters()):
            yield f"{prefix}{name}", parameters, any(parameter.ndim > 1 for parameter in parameters)


def _is_stack(module: nn.Module) -> bool:
    """Tell whether a module is a row of blocks of the same kind, as the stages of all these networks are."""
    children = list(module.children())
    composed = all(any(True for _ in child.children()) for child in children)
    return len(children) > 1 and composed and len({type(child) for child in children}) == 1
