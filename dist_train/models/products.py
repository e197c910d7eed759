"""Exact float32 products, as fast as the CPU computes them.

PyTorch's ``@`` calls MKL, which on AMD's CPUs uses half the width of AVX-512. oneDNN, which PyTorch has for
convolutions and compiled models, uses all of it and takes half the time (docs/results/evaluate.md). Both sum float32
products in float32, in different orders.
"""

from __future__ import annotations

import os
from functools import cache

import torch
import torch.nn.functional as F

_LEAST = 2**24
"""Multiplications of a product below which the call itself counts."""


def products(queries: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the products [..., N] of queries [..., C] with rows [N, C], plus a bias [N]."""
    if _suits_onednn(queries, rows) and onednn_is_faster():
        own = None if bias is None else bias.to_mkldnn()
        return F.linear(queries.to_mkldnn(), rows.to_mkldnn(), own).to_dense()
    return F.linear(queries, rows, bias)


def _suits_onednn(queries: torch.Tensor, rows: torch.Tensor) -> bool:
    """Return whether the product is large, on the CPU, in float32 (not in an autocast), and without a gradient, which
    this call of oneDNN does not have."""
    if torch.is_autocast_enabled("cpu") or (torch.is_grad_enabled() and (queries.requires_grad or rows.requires_grad)):
        return False
    kinds = {(tensor.device.type, tensor.dtype) for tensor in (queries, rows)}
    return kinds == {("cpu", torch.float32)} and queries.numel() * len(rows) >= _LEAST


@cache
def onednn_is_faster() -> bool:
    """Return whether this is a CPU of AMD with AVX-512, and PyTorch has oneDNN."""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not wide or not os.path.exists("/proc/cpuinfo"):
        return False
    with open("/proc/cpuinfo") as file:
        return "AuthenticAMD" in file.read()
