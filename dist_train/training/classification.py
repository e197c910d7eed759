"""The task of training a classifier on batches of images, and its exact evaluation.

The batches are on their device already; how they came there is not known here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import nn

from dist_train.config import PretrainConfig
from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context
from dist_train.training.loop import Schedule, Task
from dist_train.training.metrics import peak_memory_gib
from dist_train.training.objective import Objective, seed_step
from dist_train.training.precision import MixedPrecision, tuned_convolutions
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.window import Window


class Classification(Task):
    """Train a classifier on ``batches``, ``config.accumulate`` of them in a step.

    Args:
        steps: optimiser steps of the whole training.

    Attributes:
        batches: where ``step`` takes its batches; a subclass opens them in ``begin``.
    """

    name = "pretrain"
    sums = 3  # the loss and the hits, over images; images that were replaced
    unit = "img"
    remedy = "a lower pretrain.lr, or pretrain.clip_norm"

    def __init__(self, strategy: Strategy, config: PretrainConfig, classes: int, seed: int, steps: int) -> None:
        self.strategy, self.config, self.seed = strategy, config, seed
        self.objective = Objective(config, classes)
        self.batches: Generator[Batch] | None = None
        self.units_per_step = config.global_batch
        self.schedule = Schedule(
            steps=steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every, checkpoint_last=True,
            keep=config.keep, keep_every=config.keep_every,
        )  # fmt: skip

    def end(self) -> None:
        if self.batches is not None:
            self.batches.close()

    def step(self, step: int, window: Window, norm: bool) -> torch.Tensor | None:
        assert self.batches is not None
        strategy, pieces = self.strategy, self.config.accumulate
        for piece in range(pieces):
            batch = window.next(self.batches)
            seed_step(self.seed, step, piece, strategy.context.rank, strategy.context.device)
            with strategy.accumulating(last=piece == pieces - 1):
                loss, correct = self.loss(batch)
                strategy.backward(loss / pieces)
            self.count(step + 1, window, batch, loss, correct)
        return strategy.step(self.config.clip_norm, norm)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a batch's images, to call ``backward`` on, and how many of them are classified
        correctly; both on the device."""
        images, targets = self.objective.mix(batch.images, batch.labels)
        logits = self.strategy.forward(images)
        return self.objective.loss(logits.float(), targets), (logits.argmax(1) == batch.labels).sum()

    @torch.no_grad()
    def count(self, step: int, window: Window, batch: Batch, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Add a batch's numbers to ``window``, without asking the device for one."""
        window.add(step, loss, torch.stack([loss * len(batch.labels), correct.float()]))
        if batch.replaced:
            window.sums[2] += batch.replaced

    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        loss, correct, replaced = sums
        images = window.steps * self.config.global_batch
        data_wait = window.data_seconds / window.timed_steps
        return {
            "train/loss": loss / images,
            "train/top1(%)": 100 * correct / images,
            "time/throughput(images/s)": self.config.global_batch * window.steps_per_second,
            "time/data_wait(ms/step)": 1000 * data_wait,
            "time/compute(ms/step)": 1000 * (1 / window.steps_per_second - data_wait),
            "memory/peak(GiB)": peak_memory_gib(self.strategy.context.device),
            "data/replaced_samples": replaced,
        }

    def summary(self, values: dict[str, float]) -> dict[str, str]:
        if "eval/top1(%)" in values:
            return {"base top-1": f"{values['eval/top1(%)']:.2f}%"}
        return {"loss": f"{values['train/loss']:.3f}", "top1": f"{values['train/top1(%)']:.1f}%"}


@tuned_convolutions(False)  # the last batch is short
@torch.inference_mode()
def evaluate(
    model: nn.Module, precision: MixedPrecision, batches: Iterator[Batch], expected: int, context: Context
) -> dict[str, float]:
    """Return top-1 and top-5 in percent over all ranks' batches. All ranks call it.

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
