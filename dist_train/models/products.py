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
_COPIED = 2**22
"""Numbers of the queries that are copied at a time: 16 MB, whose memory is used again for the next. A copy of all would
take as long as the product of a few rows, most of it for new memory."""


def products(queries: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return the products [..., N] of queries [..., C] with rows [N, C], plus a bias [N]."""
    if _suits_onednn(queries, rows) and onednn_is_faster():
        return _by_onednn(queries, rows, bias)
    return F.linear(queries, rows, bias)


def _by_onednn(queries: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return what ``products`` does. oneDNN computes with copies of its factors."""
    flat, rows, own = queries.flatten(0, -2), rows.to_mkldnn(), None if bias is None else bias.to_mkldnn()
    found = [
        F.linear(part.to_mkldnn(), rows, own).to_dense() for part in torch.split(flat, max(1, _COPIED // flat.shape[1]))
    ]
    joined = found[0] if len(found) == 1 else torch.cat(found)
    return joined.view(*queries.shape[:-1], -1)


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
