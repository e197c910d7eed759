"""Models to change, and models not to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Class
from dist_train.classifier.network import Network, build_untrained
from dist_train.classifier.photos import Preprocess
from dist_train.config import LearnConfig
from dist_train.config.backbone import Preprocessing


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained model of φ2, with six classes of a run; it may be changed."""
    return Path(shutil.copytree(models / "phi2", tmp_path / "model"))


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of random weights, with two classes of a run and an added class; it must not be changed."""
    torch.manual_seed(0)
    rows, learn = torch.randn(2, 512), LearnConfig()
    backbone, phi = build_untrained({"name": "resnet10", "num_classes": 2, "small_stem": False}, "phi2", rows, learn)
    sample = torch.randn(6, 512).half().float(), torch.tensor([0, 1] * 3)
    preprocess = Preprocess(Preprocessing(resize=36, size=32))
    network = Network(backbone, "phi2", phi, learn, rows, sample, 0.3, preprocess).on(torch.device("cpu"))
    model = Classifier(network, [Class("cat", "n1"), Class("dog", "n2")], range(2), provenance={"seed": 0})
    model.add_activations("owl", torch.randn(2, 512))
    folder = tmp_path_factory.mktemp("untrained") / "model"
    model.save(folder)
    return folder
