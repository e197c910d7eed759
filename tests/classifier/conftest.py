"""Models to change, and models not to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fixtures.random_models import random_classifier

from dist_train.classifier.answer import Class


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained model of φ2, with six classes of a run; it may be changed."""
    return Path(shutil.copytree(models / "phi2", tmp_path / "model"))


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of random weights, with two classes of a run and an added class; it must not be changed."""
    model = random_classifier("conv4", 64, [Class("cat", "n1"), Class("dog", "n2")])
    model.add_activations("owl", torch.randn(2, 64))
    folder = tmp_path_factory.mktemp("untrained") / "model"
    model.save(folder)
    return folder
