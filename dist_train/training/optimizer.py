"""The optimisers, and their learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from dist_train.config import LearnConfig, PretrainConfig


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups without weight decay for norms and biases, which are the parameters of one dimension
    (Goyal et al. 2017, He et al. 2019)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def sgd(groups: list[dict[str, Any]], momentum: float, nesterov: bool = True) -> torch.optim.SGD:
    """Return SGD whose rate is set before each step. It is fused: it skips a step by the scaler's flag on the device,
    which the host need not read."""
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov and momentum > 0, fused=True)
    if momentum:
        # PyTorch (2.14) makes this buffer without filling it, and a first step that is skipped does not fill it.
        for group in groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return optimizer


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that ``pretrain.optimizer`` names: PyTorch's SGD, or timm's LAMB (You et al. 2020) or LARS
    (You et al. 2017), which adapt the rate of each layer. They do not clip gradients; ``pretrain.clip_norm`` does."""
    if config.init:
        from dist_train.training.finetuning import layer_groups  # not above: torchvision, which it needs, takes seconds

        groups = layer_groups(model, config)  # type: ignore[arg-type]
    else:
        groups = decay_groups(model, config.weight_decay)
    if config.optimizer == "sgd":
        return sgd(groups, config.momentum)
    from timm.optim.lamb import Lamb
    from timm.optim.lars import Lars

    if config.optimizer == "lamb":
        return Lamb(groups, lr=0.0, max_grad_norm=None)
    return Lars(groups, lr=0.0, momentum=config.momentum, nesterov=config.momentum > 0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of all groups, times a group's ``lr_scale``; in place where it is a tensor, which a CUDA graph
    reads."""
    for group in optimizer.param_groups:
        rate = lr * group.get("lr_scale", 1.0)
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def peak_lr(config: PretrainConfig) -> float:
    """Return the peak rate for the whole batch: ``config.lr`` itself, or ``config.lr`` for 256 images scaled by the
    linear rule (Goyal et al. 2017) or the square-root rule (Krizhevsky 2014; You et al. 2020 for LAMB)."""
    power = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[config.lr_scaling]
    return float(config.lr * (config.global_batch / 256) ** power)


def learning_rate(step: int, total: int, warmup: int, epochs: float, config: PretrainConfig) -> float:
    """Return the rate of step 0..total-1 of a training of ``epochs`` epochs: linear from ``peak / warmup`` to the peak,
    then half a cosine or a line to zero, or a tenth at each milestone."""
    peak = peak_lr(config)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "step":
        return float(peak * 0.1 ** sum(step >= total * mark / epochs for mark in config.milestones))
    share = (step - warmup) / max(1, total - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * share)) if config.schedule == "cosine" else 1 - share)


def predictor_rate(step: int, total: int, config: LearnConfig) -> float:
    """Return ``learn``'s rate at step 0..total-1: constant, half a cosine to zero, or the schedule of the authors'
    release: 1e-3, 5e-4, 1e-4, 1e-5 from epochs 0, 50, 120, 175 of 200, as shares of ``learn.lr`` and of ``total``."""
    share = step / total
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * share))
    if config.schedule == "release":
        return config.lr * next(
            f for start, f in ((0.875, 0.01), (0.6, 0.1), (0.25, 0.5), (0.0, 1.0)) if share >= start
        )
    return config.lr
