"""Where tests of this folder run: each body takes a device, so that what a GPU adds is the device alone."""

from __future__ import annotations

import pytest
import torch

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU always, and GPU 0 where there is one."""
    return torch.device("cuda", 0) if request.param == "cuda" else torch.device("cpu")
