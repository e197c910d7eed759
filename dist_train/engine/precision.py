"""Mixed precision: autocast over float32 master weights, and a scaler for fp16."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from dist_train.config import Precision

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class MixedPrecision:
    """One object for the loop: ``autocast`` around the forward pass, ``backward``, ``step``.

    Attributes:
        scaler: scales losses in fp16; does nothing in bf16 and fp32.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.device = device
        self.dtype = _TYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if device.type == "cpu" and precision != "fp32" and not _cpu_has(precision):
            warnings.warn(
                f"this CPU emulates {precision}, many times slower than fp32: set precision to fp32", stacklevel=2
            )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients in their true size, for exchange or for their norm; before ``step``."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step (left out by the scaler where a gradient overflowed)."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)

    @property
    def loss_scale(self) -> float:
        return float(self.scaler.get_scale())


def assert_float32(model: nn.Module) -> None:
    """Master weights are float32 whatever the autocast type."""
    assert all(p.dtype == torch.float32 for p in model.parameters()), "master weights must be float32"


def _cpu_has(precision: str) -> bool:
    """Whether the CPU computes in this type itself (AMX or AVX-512 instructions; ARM's bf16)."""
    if not os.path.exists("/proc/cpuinfo"):
        return True
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    return any(flag in flags for flag in {"bf16": ("bf16",), "fp16": ("amx_fp16", "avx512_fp16")}[precision])
