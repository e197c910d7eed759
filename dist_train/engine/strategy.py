"""How ranks train one model together. Today DDP; the loop sees only these few calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dist_train.context import Context


class Strategy:
    """Wraps a model for all ranks; a lone process needs no wrapper.

    Attributes:
        module: the model to call in training.
        model: the bare model, for evaluation and checkpoints.
    """

    def __init__(self, model: nn.Module, context: Context) -> None:
        self.model = model
        self.context = context
        self.module: nn.Module = model
        if context.world > 1:
            devices = [context.device.index] if context.device.type == "cuda" else None
            self.module = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients are exchanged in the last one only."""
        ddp = self.module if isinstance(self.module, DistributedDataParallel) else None
        with nullcontext() if last or ddp is None else ddp.no_sync():
            yield

    def sync_buffers(self) -> None:
        """Rank 0's batch norm statistics for all, as DDP does before each forward pass: what is
        evaluated and what is saved is then the same model on every rank."""
        if self.context.world > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)


def sum_gradients(model: nn.Module, context: Context) -> None:
    """Sum of all ranks' gradients, in place, in one exchange. For small models whose ranks already
    scale their losses by their share of the whole."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if context.world > 1 and gradients:
        flat = torch.cat([g.flatten() for g in gradients])
        context.sum(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
