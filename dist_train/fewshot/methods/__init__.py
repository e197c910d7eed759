"""The rows of the table, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations
from dist_train.fewshot.methods.class_mean import ClassMean
from dist_train.fewshot.methods.nearest_neighbour import NearestNeighbour
from dist_train.fewshot.methods.predicted import Predicted
from dist_train.fewshot.protocol import Method


@dataclass(frozen=True)
class Prepared:
    """What a method may use of the base classes.

    Attributes:
        train: stored activations of base training images.
        means: float32 [base classes, C], on the device.
        learn: folder of the trained predictors, and the options they were trained with.
    """

    train: Activations
    means: torch.Tensor
    learn: Path
    options: LearnConfig


def make(name: str, prepared: Prepared) -> Method:
    """The method of a name in ``config.METHODS``."""
    if name == "nn":
        return NearestNeighbour(prepared)
    if name == "mean":
        return ClassMean(prepared)
    return Predicted(prepared, name)
