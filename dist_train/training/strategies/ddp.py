"""PyTorch's own strategies: DistributedDataParallel, and gradients that are summed after the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_train.distributed.context import Context
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.strategy import Strategy


class SummedGradients(Strategy):
    """Sum the ranks' gradients in one exchange after the backward pass, for small models whose ranks already scale
    their losses by their share of the whole.

    Not a DDP communication hook: DDP follows its own ``forward``, of which every parameter must be part, and averages;
    a predictor trains by its ``loss``, has parameters that a step may leave alone, and fits one bucket.
    """

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.context.world > 1 and gradients:
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            self.context.sum(flat)
            sizes = [gradient.numel() for gradient in gradients]
            for gradient, total in zip(gradients, torch.split(flat, sizes), strict=True):
                gradient.copy_(total.view_as(gradient))


class DataParallel(Strategy):
    """Train by PyTorch's DistributedDataParallel.

    Args:
        channels_last: whether weights and convolutions use this memory format.
        compiled: whether forward and backward pass go through ``torch.compile``; evaluation does not.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: MixedPrecision,
        context: Context,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, optimizer, precision, context)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            model.to(memory_format=torch.channels_last)
            self.align()
        if compiled:
            # Compiled within DDP, PyTorch cuts the graph at DDP's buckets: a bucket is exchanged while the backward
            # graphs of the later buckets run.
            self.module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
        if context.world > 1:
            devices = [context.device.index] if context.device.type == "cuda" else None
            self.module = DistributedDataParallel(self.module, device_ids=devices, gradient_as_bucket_view=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The loader's images are channels_last; convolutions take the format where either side has it.
        return super().forward(images.contiguous(memory_format=self.memory_format))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        if last or not isinstance(self.module, DistributedDataParallel):
            yield
        else:
            with self.module.no_sync():
                yield
