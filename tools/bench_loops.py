"""Make the loops that ``bench_step`` measures beside this trainer: a bare PyTorch loop, and timm's own.

Each function makes a model with its optimiser and returns ``steps(count)``, which trains it on the same batch again and
again. ``args`` holds the options of ``bench_step``, ``setting`` a row of its matrix.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from dist_train.data.loading.loader import Batch

if TYPE_CHECKING:
    from bench_step import Setting

LR = 0.01  # the rate of all loops: small, for the same batch comes again and again
Steps = Callable[[int], None]


def autocast(args: argparse.Namespace, device: torch.device) -> Any:
    """Return the autocast of the precision that is asked for."""
    kind = torch.bfloat16 if args.precision == "bf16" else torch.float32
    return torch.autocast(device.type, kind, enabled=args.precision == "bf16")


def bare(args: argparse.Namespace, setting: Setting, batch: Batch) -> Steps:
    """Return the bare loop, with nothing of this project."""
    device = batch.images.device
    if args.model == "resnet10":  # torchvision does not name it
        model: nn.Module = ResNet(BasicBlock, [1, 1, 1, 1], args.classes)
    else:
        model = torchvision.models.get_model(args.model, weights=None, num_classes=args.classes)
    model = model.to(device, memory_format=setting.memory_format).train()  # type: ignore[call-overload]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True, fused=True)
    called = torch.compile(model, dynamic=False) if setting.compiled else model
    images, labels = batch.images, batch.labels

    def steps(count: int) -> None:
        for _ in range(count):
            with autocast(args, device):
                loss = F.cross_entropy(called(images), labels, label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def timms(args: argparse.Namespace, setting: Setting, batch: Batch) -> Steps:
    """Return the step of timm's train.py (1.0), without its meters and its EMA."""
    import timm
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2

    device = batch.images.device
    model: nn.Module = timm.create_model(args.model, num_classes=args.classes)
    model = model.to(device, memory_format=setting.memory_format).train()  # type: ignore[call-overload]
    optimizer = create_optimizer_v2(model, opt="sgd", lr=LR, weight_decay=1e-4, momentum=0.9)
    called = torch.compile(model, dynamic=False) if setting.compiled else model
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1).to(device)
    images, labels = batch.images, batch.labels

    def steps(count: int) -> None:
        for _ in range(count):
            with autocast(args, device):
                loss = loss_of(called(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps
