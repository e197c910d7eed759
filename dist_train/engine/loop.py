"""The training loop and the exact evaluation. Sees batches on its device and nothing of how they came."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import PretrainConfig
from dist_train.context import Context
from dist_train.data.loader import Batch
from dist_train.engine.metrics import peak_memory_gib
from dist_train.engine.optim import set_lr, warmup_cosine
from dist_train.engine.precision import MixedPrecision
from dist_train.engine.strategy import Strategy
from dist_train.errors import UserError


@dataclass
class Window:
    """Sums over the steps since the last log line.

    Attributes:
        sums: of this rank: loss and correct, over images; images replaced.
        steps: steps so far.
        timed: those of this start; ``data``, ``total``: their seconds waiting for data, and altogether.
    """

    sums: torch.Tensor
    steps: int = 0
    timed: int = 0
    data: float = 0.0
    total: float = 0.0

    def next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self.data += time.perf_counter() - start
        return batch

    def clear(self) -> None:
        self.sums.zero_()
        self.steps, self.timed, self.data, self.total = 0, 0, 0.0, 0.0

    def save(self, context: Context) -> dict[str, Any]:
        """For a checkpoint between two log lines. All ranks call it."""
        return {"steps": self.steps, "sums": context.gather(self.sums.tolist())}

    @classmethod
    def restore(cls, saved: dict[str, Any] | None, context: Context) -> Window:
        """The window as it was saved; on another number of ranks its sums are rank 0's."""
        window = cls(torch.zeros(3, dtype=torch.float64, device=context.device))
        if saved:
            window.steps = saved["steps"]
            parts = torch.tensor(saved["sums"], dtype=torch.float64)
            if len(parts) == context.world:
                window.sums += parts[context.rank].to(context.device)
            elif context.main:
                window.sums += parts.sum(0).to(context.device)
        return window


def train(
    strategy: Strategy,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    batches: Iterator[Batch],
    config: PretrainConfig,
    start: int,
    total: int,
    warmup: int,
    window: Window,
    on_log: Callable[[int, dict[str, float]], None],
    on_step: Callable[[int], None],
) -> None:
    """Optimiser steps ``start`` to ``total``; ``batches`` gives ``config.accumulate`` batches a step.

    The device is asked for numbers every ``log_every`` steps and before a checkpoint only.
    ``on_log(step, values)`` gets them, meaned over the window and over all ranks; ``on_step(step)``
    runs after each step (it saves, evaluates and stops). Steps count from 1 there.

    Raises:
        UserError: the loss is not finite.
    """
    context = strategy.context
    strategy.module.train()
    began = time.perf_counter()
    for step in range(start, total):
        context.doing(f"pretrain: step {step + 1} of {total}")
        lr = warmup_cosine(step, total, warmup, config.lr)
        set_lr(optimizer, lr)
        for piece in range(config.accumulate):
            batch = window.next(batches)
            with strategy.accumulating(last=piece == config.accumulate - 1):
                with precision.autocast():
                    logits = strategy.module(batch.images)
                    loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=config.label_smoothing)
                precision.backward(loss / config.accumulate)
            with torch.no_grad():
                correct = (logits.argmax(1) == batch.labels).sum()
                window.sums[:2] += torch.stack([loss * len(batch.labels), correct.float()])
                if batch.replaced:
                    window.sums[2] += batch.replaced
        precision.unscale(optimizer)
        number = step + 1
        window.steps += 1
        window.timed += 1
        due = number % config.log_every == 0 or number % config.checkpoint_every == 0 or number == total
        norm = _gradient_norm(strategy.model) if due else None
        precision.step(optimizer)
        if due:
            loss_sum, correct_sum, replaced = context.sum(window.sums).tolist()
            images = window.steps * config.global_batch
            window.total += time.perf_counter() - began
            if not math.isfinite(loss_sum):
                raise UserError(
                    f"loss is {loss_sum / images} at step {number}: lower pretrain.lr, or use precision bf16"
                )
            on_log(number, _values(loss_sum, correct_sum, replaced, images, window, lr, norm, precision, context))
            window.clear()
            began = time.perf_counter()
        paused = time.perf_counter()
        on_step(number)
        began += time.perf_counter() - paused  # evaluation and saving are not training time


def _values(
    loss: float,
    correct: float,
    replaced: float,
    images: float,
    window: Window,
    lr: float,
    norm: torch.Tensor | None,
    precision: MixedPrecision,
    context: Context,
) -> dict[str, float]:
    return {
        "train/loss": loss / images,
        "train/top1(%)": 100 * correct / images,
        "optim/lr": lr,
        "optim/gradient_norm": float(norm) if norm is not None else math.nan,
        "optim/loss_scale": precision.loss_scale,
        "time/throughput(images/s)": images / window.steps * window.timed / window.total,
        "time/data_wait(ms/step)": 1000 * window.data / window.timed,
        "time/compute(ms/step)": 1000 * (window.total - window.data) / window.timed,
        "memory/peak(GiB)": peak_memory_gib(context.device),
        "data/replaced_samples": replaced,
    }


def _gradient_norm(model: nn.Module) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


@torch.inference_mode()
def evaluate(
    strategy: Strategy, precision: MixedPrecision, batches: Iterator[Batch], expected: int
) -> dict[str, float]:
    """Top-1 and top-5 in percent over all ranks' batches.

    Raises:
        AssertionError: the ranks together did not see each of ``expected`` images once.
    """
    strategy.sync_buffers()
    model, context = strategy.model, strategy.context
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=context.device)
    for batch in batches:
        context.doing("evaluation of the base classes")
        with precision.autocast():
            logits = model(batch.images)
        top = logits.float().topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        sums += torch.stack([top[:, 0].sum(), top.sum(), sums.new_tensor(len(top))]).double()
    model.train()
    top1, top5, count = context.sum(sums).tolist()
    assert count == expected, f"evaluation saw {count:.0f} images, the index has {expected}"
    return {"eval/top1(%)": 100 * top1 / count, "eval/top5(%)": 100 * top5 / count}
