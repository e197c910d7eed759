"""A model without a run: random weights."""

from __future__ import annotations

import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.parts import Class, Network
from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig
from dist_train.models.backbone import Backbone
from dist_train.models.predictor import Predictor


def random_model(backbone: str, classes: int, resize: int = 64) -> Classifier:
    torch.manual_seed(0)
    architecture = {"name": backbone, "num_classes": classes, "small_stem": False}
    network, learn = Backbone(**architecture).eval().requires_grad_(False), LearnConfig()  # type: ignore[arg-type]
    phi = Predictor("phi2", network.dim, learn).eval().requires_grad_(False)
    sample = (torch.zeros(0, network.dim), torch.zeros(0, dtype=torch.int64))
    rows = torch.randn(classes, network.dim)
    parts = Network(network, architecture, "phi2", phi, learn, rows, sample, 0.5, Preprocess(resize, resize))
    return Classifier(parts, [Class(f"class {n}", f"n{n:08d}") for n in range(classes)], range(classes))
