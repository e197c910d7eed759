"""The devices of this folder's tests: each test takes a device, so a GPU adds nothing but the device."""

from __future__ import annotations

import pytest
import torch

ON_CPU = pytest.param("cpu", marks=pytest.mark.long)
"""Shows that a test of this folder is sound, where there is no GPU; other folders test the same code on the CPU."""
CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@pytest.fixture(params=[ON_CPU, CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Return the CPU, and GPU 0 where there is a GPU."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")
