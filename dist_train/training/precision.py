"""Mixed precision: autocast over float32 master weights, and a scaler for fp16."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from dist_train.config import LearnPrecision, Precision
from dist_train.errors import UserError

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


class MixedPrecision:
    """Compute in mixed precision, in the same way under every strategy: ``autocast`` around a forward pass, ``scale``
    for the loss, ``step`` for the optimiser.

    The newest instance decides for the whole process whether GPUs round float32 products (tf32).

    Attributes:
        scaler: scales losses in fp16; does nothing in bf16 and fp32.
        skipped: float64 scalar on the device, the number of steps skipped because a scaled gradient overflowed.

    Raises:
        UserError: fp16 on a device without fp16 instructions.
    """

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.device = device
        self.dtype = TYPES[precision]
        round_products(precision == "tf32")
        if device.type == "cpu" and self.dtype != torch.float32 and not cpu_has(precision):
            if precision == "fp16":
                raise UserError("precision=fp16: this CPU has no fp16 instructions; use bf16 or fp32")
            warnings.warn("this CPU emulates bf16, slower than fp32: set precision to fp32", stacklevel=2)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.skipped = torch.zeros((), dtype=torch.float64, device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which products are computed in this precision."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss to call ``backward`` on."""
        return self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring gradients to their true size, for their norm; at most once before ``step``."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimiser's step, or skip it where a gradient overflowed; a fused optimiser does so on the device.

        A skipped step shows in the scale, which then shrinks, so the host need not wait to count it.
        """
        before = self._scale().clone() if self.scaler.is_enabled() else None
        self.scaler.step(optimizer)
        self.scaler.update()
        if before is not None:
            self.skipped += (self._scale() < before).double()

    def update_scale(self, overflow: bool) -> None:
        """Update the scale as ``step`` does, where DeepSpeed has looked at the gradients: the scaler is shown a
        gradient that overflows or does not."""
        if self.scaler.is_enabled():
            probe = torch.zeros((), device=self.device, requires_grad=True)
            probe.grad = torch.full_like(probe, float("inf") if overflow else 0.0)
            self.scaler.scale(probe)  # makes the scale, where this is the first step
            self.step(torch.optim.SGD([probe], lr=0.0))

    @property
    def loss_scale(self) -> float:
        """The scale of losses; 1 in bf16 and fp32."""
        return float(self.scaler.get_scale())

    def _scale(self) -> torch.Tensor:
        scale = self.scaler._get_scale_async()
        assert scale is not None  # the scaler is enabled, and has scaled a loss
        return scale


def round_products(allowed: bool) -> None:
    """Set whether GPUs may round the factors of float32 products to TF32 in this process.

    PyTorch's defaults differ: matrix products are exact, convolutions are not.
    """
    _round("high" if allowed else "highest", allowed)


def _round(products: str, convolutions: bool) -> None:
    # Set both of PyTorch's interfaces (the second exists since 2.9): reading the first raises where anyone has set the
    # second. And where the first forbids TF32, torch.backends.fp32_precision still decides for convolutions.
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    backends: Any = torch.backends.cudnn
    for kind in (backends.conv, backends.rnn):
        kind.fp32_precision = "tf32" if convolutions else "ieee"


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute exact float32 products in this context, within an autocast too; restore the settings after it."""
    kinds: Any = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    gpu, cpu, convolutions = (kind.fp32_precision for kind in kinds)
    products = "highest" if gpu != "tf32" else "medium" if cpu == "bf16" else "high"
    round_products(False)
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _round(products, convolutions == "tf32")


@contextmanager
def tuned_convolutions(on: bool) -> Iterator[None]:
    """Set whether cuDNN tries its algorithms on each new shape and keeps the fastest; restore the setting after the
    context.

    Worth it for shapes that come again and again: a trial takes seconds for a whole network. The choice, and with it
    the last digits, may differ from start to start.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def assert_float32(model: nn.Module) -> None:
    """Assert that weights and batch norm's statistics are float32, whatever the autocast type."""
    tensors = (*model.parameters(), *model.buffers())
    assert all(t.dtype == torch.float32 for t in tensors if t.is_floating_point()), "master weights must be float32"


def settled(precision: LearnPrecision, device: torch.device) -> Precision:
    """Return the precision that ``auto`` stands for on a device, or the precision itself."""
    if precision != "auto":
        return precision
    return "bf16" if fastest_type(device) == torch.bfloat16 else "fp32"


def fastest_type(device: torch.device) -> torch.dtype:
    """Return the type in which a device has its fastest products: bfloat16 where it has instructions for it, else
    float32. GPUs sum products of bfloat16 in float32 from now on: by default partial sums may be rounded."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if cpu_has("bf16") else torch.float32


def cpu_has(precision: Precision) -> bool:
    """Return whether the CPU has instructions for this type (AMX or AVX-512; ARM's bf16)."""
    if not os.path.exists("/proc/cpuinfo"):
        return True
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    return any(flag in flags for flag in {"bf16": ("bf16",), "fp16": ("amx_fp16", "avx512_fp16")}[precision])
