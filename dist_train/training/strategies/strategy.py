"""The contract of a strategy: how ranks train a model together.

The loop, checkpoints and evaluation see only these calls. ``ddp.py`` has PyTorch's DDP, ``deepspeed.py`` DeepSpeed's
ZeRO; ``factory.py`` picks. All keep the same checkpoints.
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
    """Train as a lone process; subclasses train as many ranks.

    Attributes:
        model: the bare model.
        module: the module that is called in training: the model, or a wrapper of it.
        average: timm's moving average of the model; None where none is kept.
        loads_on: the device on which ``load`` wants a checkpoint's tensors.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, precision: MixedPrecision, context: Context
    ) -> None:
        self.model, self.optimizer, self.precision, self.context = model, optimizer, precision, context
        self.module: nn.Module = model
        self.average: Any = None
        self.loads_on = context.device

    def keep_average(self, decay: float) -> None:
        """Keep timm's moving average of the weights and statistics from now on."""
        from timm.utils.model_ema import ModelEmaV3  # not above: its import takes seconds, and few runs need it

        self.average = ModelEmaV3(self.model, decay=decay)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, classes] in the autocast type."""
        with self.precision.autocast():
            logits: torch.Tensor = self.module(images)
        return logits

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Return the context for a forward and backward pass; ranks exchange gradients in the last pass of a step."""
        yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of ``loss``."""
        self.precision.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, clip_norm: float, norm: bool) -> torch.Tensor | None:
        """Make the optimiser's step and clear the gradients.

        Args:
            clip_norm: the gradient's largest norm; 0 = not clipped.
            norm: whether to return the norm where nothing is clipped.

        Returns:
            The gradient's norm before clipping, on the device; None where nobody asked for it.
        """
        self.precision.unscale(self.optimizer)
        total_norm = None
        if clip_norm or norm:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            total_norm = torch.nn.utils.get_total_norm(gradients)
            if clip_norm:
                torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip_norm, total_norm)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        self.update_average()
        return total_norm

    def update_average(self) -> None:
        """Take the weights of this step into the average, where one is kept."""
        if self.average is not None:
            self.average.update(self.model)

    def evaluated(self) -> nn.Module:
        """Return the model that is evaluated and goes on to the next stage: the average where one is kept, else the
        whole model. All ranks call it."""
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
        """Return the model with all its weights, the same on every rank, for evaluation and checkpoints. All ranks call
        it. Batch norm's statistics are rank 0's, as DDP broadcasts them before each forward pass."""
        self._share_buffers(self.model)
        return self.model

    def tensors(self) -> dict[str, Any]:
        """Return a checkpoint's tensors: whole ones, the same for every strategy. All ranks call it."""
        tensors = {"model": self.whole().state_dict(), "scaler": self.precision.scaler.state_dict()}
        tensors["skipped"] = {"steps": self.precision.skipped}
        if self.average is not None:
            tensors["average"] = self.evaluated().state_dict()
        return {**tensors, "optimizer": self._optimizer_state()}

    def _optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load(self, tensors: dict[str, Any]) -> None:
        """Continue from the tensors of a checkpoint, whichever strategy saved it."""
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
                group["step"] = group["step"].cpu()  # LAMB's count: timm reads it at every step, and must not wait
        self.align()

    def align(self) -> None:
        """Bring the optimiser's state to the memory format of the weights, which may have changed since it was made."""
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    state[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
