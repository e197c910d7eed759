"""What a classifier consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig, Rule
from dist_train.errors import UserError
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.backbone import Backbone
from dist_train.models.predictor import RowClassifier
from dist_train.training.precision import round_products

RULES = get_args(Rule)


@dataclass(frozen=True)
class Class:
    """One class of a model.

    Attributes:
        name: what predictions say; no two classes have the same.
        wnid: of a class that came with the run, "" for one that was added.
        photos: how many it was added from; 0 for one that came with the run.
        added: the day, "2026-11-25"; "" for one that came with the run.
    """

    name: str
    wnid: str = ""
    photos: int = 0
    added: str = ""


@dataclass(frozen=True)
class Prediction:
    """An answer: the class, and its share of a softmax over all classes."""

    name: str
    wnid: str
    probability: float


@dataclass(frozen=True)
class Network:
    """What training has made, and does not change when classes do.

    Attributes:
        backbone: from images to activations.
        method: a name in ``evaluate.methods``, of a ``RowMethod``.
        phi: its trained network.
        learn: what that was built with.
        base_rows: [base classes, dim].
        sample: activations and labels that calibrate, [N, dim] and [N]; empty where the method is not calibrated.
        cost: see ``Calibration``.
        preprocess: from pixels to images.
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
        """Images that are computed at a time: 32 of 256 x 256 pixels, and fewer of larger ones."""
        return max(1, min(32, 32 * 256**2 // self.preprocess.size**2))

    def on(self, device: torch.device) -> Network:
        """The same on a device, its modules (these ones) frozen and in evaluation mode. From then on GPUs compute exact
        float32 products in this process, as for the tables."""
        round_products(False)
        for module in (self.backbone, self.phi, self.preprocess):
            module.eval().requires_grad_(False).to(device)
        self.backbone.to(memory_format=torch.channels_last)
        images, labels = (tensor.to(device) for tensor in self.sample)
        return replace(self, base_rows=self.base_rows.to(device), sample=(images, labels))


@dataclass(frozen=True)
class Head:
    """The classifier that follows from the classes: class ``c`` scores as the largest product of the query with the
    rows whose ``owner`` is c, plus ``offset[c]``."""

    rows: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor

    @property
    def linear(self) -> bool:
        """Whether every class has one row."""
        return len(self.rows) == len(self.offset)

    def scores(self, query: torch.Tensor) -> torch.Tensor:
        """Queries [B, dim] -> [B, classes]. What an export follows too."""
        responses = query @ self.rows.T
        if self.linear:
            return responses + self.offset
        best = responses.new_full((responses.shape[0], self.offset.shape[0]), -torch.inf)
        owner = self.owner.expand(responses.shape[0], -1)
        return best.scatter_reduce(1, owner, responses, "amax") + self.offset


def build_untrained(
    architecture: Mapping[str, Any], method: str, means: torch.Tensor, learn: LearnConfig
) -> tuple[Backbone, RowClassifier]:
    """The modules of a ``Network``, whose weights are to be loaded."""
    backbone, kind = Backbone(**architecture), row_method(method)
    return backbone, kind.network.build(kind.learned(method), means, backbone.head.weight.detach(), learn)


def row_method(name: str) -> type[RowMethod]:
    """The method of a name, of those that a classifier can be made of.

    Raises:
        UserError: it is none.
    """
    kind = METHODS.get(name)
    if kind is None or not issubclass(kind, RowMethod):
        names = [name for name, kind in METHODS.items() if issubclass(kind, RowMethod)]
        raise UserError(f"method {name!r}: a classifier is made of one of {', '.join(names)}")
    return kind
