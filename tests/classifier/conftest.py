"""Models to change, and models not to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Class
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.classifier.predicted import PredictedHead, untrained_predictor
from dist_train.config import LearnConfig
from dist_train.config.backbone import Preprocessing
from dist_train.models.backbones import build


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained model of φ2, with six classes of a run; it may be changed."""
    return Path(shutil.copytree(models / "phi2", tmp_path / "model"))


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of random weights, with two classes of a run and an added class; it must not be changed."""
    return random_model("conv4", 64, tmp_path_factory.mktemp("untrained") / "model")


@pytest.fixture(scope="session")
def untrained_resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return such a model with a ResNet, which tells photos apart untrained; it must not be changed."""
    return random_model("resnet10", 512, tmp_path_factory.mktemp("untrained-resnet") / "model")


def random_model(name: str, dim: int, folder: Path) -> Path:
    torch.manual_seed(0)
    rows, learn, device = torch.randn(2, dim), LearnConfig(), torch.device("cpu")
    backbone = build({"name": name, "num_classes": 2, "small_stem": False})
    phi = untrained_predictor("phi2", rows, backbone, learn)
    sample = torch.randn(6, dim).half().float(), torch.tensor([0, 1] * 3)
    maker = PredictedHead("phi2", phi, learn, rows, sample, 0.3).on(device)
    network = Network(backbone, Preprocess(Preprocessing(resize=36, size=32))).on(device)
    model = Classifier(network, maker, [Class("cat", "n1"), Class("dog", "n2")], range(2), {"seed": 0})
    model.add_activations("owl", torch.randn(2, dim))
    model.save(folder)
    return folder
