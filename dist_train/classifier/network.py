"""The part of a classifier that training has made, and that stays as it is when classes come and go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig
from dist_train.errors import UserError
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.backbones import Backbone, build
from dist_train.models.predictor import RowClassifier
from dist_train.training.precision import round_products


@dataclass(frozen=True)
class Network:
    """A trained backbone and predictor, with what else training has left for new classes.

    Attributes:
        backbone: maps images to activations.
        method: a name in ``evaluate.methods``, of a ``RowMethod``.
        phi: the trained network of the method, which maps activations to rows.
        learn: the configuration that ``phi`` was built with.
        base_rows: the rows of the run's classes, [base classes, dim].
        sample: activations and labels for the calibration, [N, dim] and [N]; empty where the method has none.
        cost: see ``Calibration``.
        preprocess: maps pixels to images.
    """

    backbone: Backbone
    method: str
    phi: RowClassifier
    learn: LearnConfig
    base_rows: torch.Tensor
    sample: tuple[torch.Tensor, torch.Tensor]
    cost: float
    preprocess: Preprocess

    @property
    def batch(self) -> int:
        """Images per batch: 32 of 256 x 256 pixels, and fewer of larger ones."""
        return max(1, min(32, 32 * 256**2 // self.preprocess.spec.size**2))

    def on(self, device: torch.device) -> Network:
        """Return the network on a device. Its modules are moved, not copied, frozen and put into evaluation mode; from
        then on GPUs compute exact float32 products in this process, as they do for the tables."""
        round_products(False)
        for module in (self.backbone, self.phi, self.preprocess):
            module.eval().requires_grad_(False).to(device)
        self.backbone.to(memory_format=torch.channels_last)
        activations, labels = (tensor.to(device) for tensor in self.sample)
        return replace(self, base_rows=self.base_rows.to(device), sample=(activations, labels))


def build_untrained(
    architecture: Mapping[str, Any], method: str, means: torch.Tensor, learn: LearnConfig
) -> tuple[Backbone, RowClassifier]:
    """Return the modules of a ``Network``, whose weights are still to be loaded.

    Args:
        architecture: arguments of ``Backbone``.
        method: a name in ``evaluate.methods``.
        means: class means [base classes, dim], for their shape.
        learn: the configuration of the method's network.
    """
    backbone, kind = build(architecture), row_method(method)
    return backbone, kind.network.build(kind.learned(method), means, backbone.head.weight.detach(), learn)


def row_method(name: str) -> type[RowMethod]:
    """Return the method of that name, which must give rows, as a classifier is made of these.

    Raises:
        UserError: there is no such method, or it gives no rows.
    """
    kind = METHODS.get(name)
    if kind is None or not issubclass(kind, RowMethod):
        names = [name for name, kind in METHODS.items() if issubclass(kind, RowMethod)]
        raise UserError(f"method {name!r}: a classifier is made of one of {', '.join(names)}")
    return kind
