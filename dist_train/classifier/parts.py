"""What a classifier consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig
from dist_train.errors import UserError
from dist_train.fewshot.methods import METHODS
from dist_train.fewshot.row_method import RowMethod
from dist_train.models.backbone import Backbone
from dist_train.models.predictor import RowClassifier

RULES = ("max", "mean", "rows")


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
        architecture: arguments of ``Backbone``: name, num_classes, small_stem.
        method: a name in ``evaluate.methods``, of a ``RowMethod``.
        phi: its trained network.
        learn: what that was built with.
        base_rows: [base classes, dim].
        sample: activations and labels that calibrate, [N, dim] and [N]; empty where the method is not calibrated.
        cost: see ``Calibration``.
        preprocess: from pixels to images.
    """

    backbone: Backbone
    architecture: dict[str, Any]
    method: str
    phi: RowClassifier
    learn: LearnConfig
    base_rows: torch.Tensor
    sample: tuple[torch.Tensor, torch.Tensor]
    cost: float
    preprocess: Preprocess


@dataclass(frozen=True)
class Head:
    """The classifier that follows from the classes: class ``c`` scores as the largest product of the query with the
    rows whose ``owner`` is c, plus ``offset[c]``."""

    rows: torch.Tensor
    owner: torch.Tensor
    offset: torch.Tensor


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
