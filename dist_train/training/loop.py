"""The training loop and the exact evaluation. Sees batches on its device and nothing of how they came."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_train.config import PretrainConfig
from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context
from dist_train.training.finite import Losses, NonFinite
from dist_train.training.metrics import peak_memory_gib
from dist_train.training.objective import Objective, seed_step
from dist_train.training.optimizer import set_lr
from dist_train.training.precision import MixedPrecision, tuned_convolutions
from dist_train.training.strategies.strategy import Strategy


@dataclass
class Window:
    """Sums over the steps since the last log line.

    Attributes:
        sums: of this rank: loss and correct, over images; images replaced.
        losses: whether they are finite.
        steps: steps so far.
        timed: those of this start; ``data``, ``seconds``: theirs waiting for data, and altogether.
    """

    sums: torch.Tensor
    losses: Losses
    steps: int = 0
    timed: int = 0
    data: float = 0.0
    seconds: float = 0.0

    def next(self, batches: Iterator[Batch]) -> Batch:
        start = time.perf_counter()
        batch = next(batches)
        self.data += time.perf_counter() - start - batch.waited
        return batch

    def add(self, step: int, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, replaced: int) -> None:
        """A batch's numbers, without asking the device for any."""
        correct = (logits.argmax(1) == labels).sum()
        self.sums[:2] += torch.stack([loss * len(labels), correct.float()])
        if replaced:
            self.sums[2] += replaced
        self.losses.add(step, loss)

    def total(self, context: Context) -> list[float]:
        """The sums of all ranks. All ranks call it.

        Raises:
            NonFinite: a loss since the last log line was not finite.
        """
        sums: list[float] = context.sum(self.sums.clone()).tolist()
        self.losses.check(sums[0], context)
        return sums

    def clear(self) -> None:
        self.sums.zero_()
        self.steps, self.timed, self.data, self.seconds = 0, 0, 0.0, 0.0

    def save(self, context: Context) -> dict[str, Any]:
        """For a checkpoint between two log lines. All ranks call it.

        Raises:
            NonFinite: as ``total``: such weights are not saved.
        """
        self.total(context)
        return {"steps": self.steps, "sums": context.gather(self.sums.tolist())}

    @classmethod
    def restore(cls, saved: dict[str, Any] | None, context: Context) -> Window:
        """The window as it was saved; on another number of ranks its sums are rank 0's."""
        window = cls(torch.zeros(3, dtype=torch.float64, device=context.device), Losses(context.device))
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
    batches: Iterator[Batch],
    config: PretrainConfig,
    seed: int,
    start: int,
    total: int,
    rate: Callable[[int], float],
    objective: Objective,
    window: Window,
    on_log: Callable[[int, dict[str, float]], None],
    on_step: Callable[[int], None],
) -> None:
    """Optimiser steps ``start`` to ``total``; ``batches`` gives ``config.accumulate`` batches a step, and
    ``rate(step)`` the learning rate.

    The device is asked for numbers every ``log_every`` steps and before a checkpoint only.
    ``on_log(step, values)`` gets them, meaned over the window and over all ranks; ``on_step(step)``
    runs after each step (it saves, evaluates and stops). Steps count from 1 there.

    Raises:
        NonFinite: it names the first such step.
    """
    context = strategy.context
    strategy.module.train()
    began = time.perf_counter()
    for step in range(start, total):
        number = step + 1
        context.report_progress(f"pretrain: step {number} of {total}")
        lr = rate(step)
        set_lr(strategy.optimizer, lr)
        due = number % config.log_every == 0 or number % config.checkpoint_every == 0 or number == total
        norm = one_step(strategy, batches, config, seed, step, objective, window, due)
        if due:
            sums = window.total(context)
            if norm is not None and not strategy.precision.scaler.is_enabled() and not math.isfinite(norm):
                raise NonFinite(number)  # a finite loss may have such a gradient, and the weights are gone
            window.seconds += time.perf_counter() - began
            on_log(number, _values(sums, window, lr, norm, config.global_batch, strategy))
            window.clear()
            began = time.perf_counter()
        paused = time.perf_counter()
        on_step(number)
        began += time.perf_counter() - paused  # evaluation and saving are not training time


def one_step(
    strategy: Strategy,
    batches: Iterator[Batch],
    config: PretrainConfig,
    seed: int,
    step: int,
    objective: Objective,
    window: Window,
    norm: bool,
) -> torch.Tensor | None:
    """Train on ``config.accumulate`` batches, count them in ``window``, and make optimiser step ``step`` (from 0) at
    the rate that is set. Asks the device for no number.

    Returns:
        The gradient's norm before clipping, on the device, where ``norm`` or ``config.clip_norm`` wants it.
    """
    context = strategy.context
    for piece in range(config.accumulate):
        batch = window.next(batches)
        seed_step(seed, step, piece, context.rank, context.device)
        images, targets = objective.mix(batch.images, batch.labels)
        with strategy.accumulating(last=piece == config.accumulate - 1):
            logits = strategy.forward(images)
            loss = objective.loss(logits.float(), targets)
            strategy.backward(loss / config.accumulate)
        with torch.no_grad():
            window.add(step + 1, loss, logits, batch.labels, batch.replaced)
    gradient = strategy.step(config.clip_norm, norm)
    window.steps += 1
    window.timed += 1
    return gradient


def _values(
    sums: list[float], window: Window, lr: float, norm: torch.Tensor | None, global_batch: int, strategy: Strategy
) -> dict[str, float]:
    loss, correct, replaced = sums
    images = window.steps * global_batch
    return {
        "train/loss": loss / images,
        "train/top1(%)": 100 * correct / images,
        "optim/lr": lr,
        "optim/gradient_norm": float(norm) if norm is not None else math.nan,
        "optim/loss_scale": strategy.precision.loss_scale,
        "optim/skipped_steps": strategy.precision.skipped.item(),
        "time/throughput(images/s)": images / window.steps * window.timed / window.seconds,
        "time/data_wait(ms/step)": 1000 * window.data / window.timed,
        "time/compute(ms/step)": 1000 * (window.seconds - window.data) / window.timed,
        "memory/peak(GiB)": peak_memory_gib(strategy.context.device),
        "data/replaced_samples": replaced,
    }


@tuned_convolutions(False)  # the last batch is short
@torch.inference_mode()
def evaluate(
    model: nn.Module, precision: MixedPrecision, batches: Iterator[Batch], expected: int, context: Context
) -> dict[str, float]:
    """Top-1 and top-5 in percent over all ranks' batches.

    Raises:
        AssertionError: the ranks together did not see each of ``expected`` images once.
    """
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=context.device)
    for batch in batches:
        context.report_progress("evaluation of the base classes")
        with precision.autocast():
            logits = model(batch.images)
        top = logits.float().topk(min(5, logits.shape[1])).indices == batch.labels[:, None]
        sums += torch.stack([top[:, 0].sum(), top.sum(), sums.new_tensor(len(top))]).double()
    model.train()
    top1, top5, count = context.sum(sums).tolist()
    assert count == expected, f"evaluation saw {count:.0f} images, the index has {expected}"
    return {"eval/top1(%)": 100 * top1 / count, "eval/top5(%)": 100 * top5 / count}
