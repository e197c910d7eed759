"""How ranks train one model together. The loop, precision, checkpoints and evaluation see only these calls.

``DataParallel`` is PyTorch's DDP; DeepSpeed's ZeRO is in ``zero``. Both keep the same checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dist_train.distributed.context import Context
from dist_train.training.precision import MixedPrecision


class Strategy:
    """A lone process, and what all strategies share.

    Attributes:
        module: what is called in training.
        model: the bare model.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: MixedPrecision, context: Context
    ) -> None:
        self.model, self.optimizer, self.precision, self.context = model, optimizer, precision, context
        self.module: nn.Module = model
        self.average: Any = None
        self.loads_on = context.device  # where a checkpoint's tensors are wanted

    def keep_average(self, decay: float) -> None:
        """From now on, a moving average of the weights and statistics, by timm."""
        from timm.utils import ModelEmaV3  # not above: it takes seconds, and few want it

        self.average = ModelEmaV3(self.model, decay=decay)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] in the autocast type."""
        with self.precision.autocast():
            return self.module(images)

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients are exchanged in the last one only."""
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.precision.scale(loss).backward()

    def step(self, clip_norm: float, norm: bool) -> torch.Tensor | None:
        """The optimiser's step, and gradients cleared.

        Args:
            clip_norm: the gradient's largest norm; 0 = as it is.
            norm: whether the norm is wanted where nothing is clipped.

        Returns:
            The gradient's norm before clipping, on the device, where it was wanted.
        """
        self.precision.unscale(self.optimizer)
        found = None
        if clip_norm or norm:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            found = torch.nn.utils.get_total_norm(gradients)
            if clip_norm:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip_norm, found)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.update_average()
        return found

    def update_average(self) -> None:
        if self.average is not None:
            self.average.update(self.model)

    def evaluated(self) -> nn.Module:
        """What is evaluated and goes on to the next stage: the average where one is kept, else the whole
        model. All ranks call it."""
        if self.average is None:
            return self.whole()
        self._share_buffers(self.average.module)
        averaged: nn.Module = self.average.module
        return averaged

    def _share_buffers(self, model: nn.Module) -> None:
        if self.context.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def whole(self) -> nn.Module:
        """The model with all its weights on this rank, the same on every rank: for evaluation and
        checkpoints. Batch norm's statistics are rank 0's, as DDP takes them before each forward pass.
        All ranks call it."""
        self._share_buffers(self.model)
        return self.model

    def tensors(self) -> dict[str, Any]:
        """What ``load`` takes: full tensors, the same for every strategy. All ranks call it."""
        found = {"model": self.whole().state_dict(), "scaler": self.precision.scaler.state_dict()}
        found["skipped"] = {"steps": self.precision.skipped}
        if self.average is not None:
            found["average"] = self.evaluated().state_dict()
        return {**found, "optimizer": self._optimizer_state()}

    def _optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load(self, tensors: dict[str, Any]) -> None:
        """Continue from a checkpoint of any strategy."""
        self.precision.scaler.load_state_dict(tensors["scaler"])
        self.precision.skipped.copy_(tensors["skipped"]["steps"])
        if self.average is not None:
            self.average.module.load_state_dict(tensors["average"])
        self._load(tensors["model"], tensors["optimizer"])

    def _load(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        for group in self.optimizer.param_groups:
            if torch.is_tensor(group.get("step")):
                group["step"] = group["step"].cpu()  # LAMB's count: timm reads it at every step, without waiting there
        self.align()

    def align(self) -> None:
        """The optimiser's state in the memory format of the weights, which it may be older than."""
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
