"""The optimiser and its learning rate, a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def sgd(model: nn.Module, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; no weight decay on norms and biases (Goyal et al. 2017,
    He et al. 2019: everything of one dimension). The rate is set before each step. Fused: it leaves a
    step out by the scaler's word on the device, without a host's reading it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=momentum > 0, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def warmup_cosine(step: int, total: int, warmup: int, peak: float) -> float:
    """Rate of step 0..total-1: linear from ``peak / warmup`` to ``peak``, then half a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def release_steps(step: int, total: int, peak: float) -> float:
    """The release's rate: 1e-3, 5e-4, 1e-4, 1e-5 from epochs 0, 50, 120, 175 of 200, as shares of
    ``peak`` and of ``total``."""
    share = step / total
    factor = next(f for start, f in ((0.875, 0.01), (0.6, 0.1), (0.25, 0.5), (0.0, 1.0)) if share >= start)
    return peak * factor
