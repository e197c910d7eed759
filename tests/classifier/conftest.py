"""A model to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "phi2", tmp_path / "model"))
