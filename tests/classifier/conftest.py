"""Models to change, and models not to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fixtures.random_models import random_classifier

from dist_train.classifier.head import Class


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
    model = random_classifier(name, dim, [Class("cat", "n1"), Class("dog", "n2")])
    model.add_activations("owl", torch.randn(2, dim))
    model.save(folder)
    return folder
