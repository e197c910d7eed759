"""The sums of a training between two log lines, and the watch for numbers that are not finite.

Everything is summed on the device: the host reads a number only for a log line, a checkpoint or an evaluation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context


class NonFinite(Exception):
    """The loss or the weights of ``step`` are not finite numbers."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def check_weights(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Refuse weights that must not be saved or evaluated. Waits for the device.

    Raises:
        NonFinite: a weight is not a finite number; names ``step``.
    """
    if not torch.stack([t.isfinite().all() for t in weights.values() if t.is_floating_point()]).all():
        raise NonFinite(step)


class Window:
    """Sum a task's numbers over the steps since the last log line.

    Attributes:
        sums: float64 [size], this rank's sums, on the device; the first is that of the losses.
        steps: optimiser steps in the window.
        timed_steps: those of ``steps`` that this process has made; the others were restored from a checkpoint.
        seconds: time that ``timed_steps`` took, without logging, evaluation and saving.
        data_seconds: the part of ``seconds`` that was spent waiting for data.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)
        self._first_bad_step = torch.full((), math.inf, device=device)
        self.clear()

    def clear(self) -> None:
        """Begin anew, after a log line."""
        self.sums.zero_()
        self.steps, self.timed_steps, self.seconds, self.data_seconds = 0, 0, 0.0, 0.0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, and count the time that the training waited for it."""
        start = time.perf_counter()
        batch = next(batches)
        self.data_seconds += time.perf_counter() - start - batch.waited
        return batch

    def add(self, step: int, loss: torch.Tensor, sums: torch.Tensor) -> None:
        """Add a forward pass of ``step`` (from 1), without asking the device for a number.

        Args:
            loss: a scalar; the first step whose loss is not finite is remembered.
            sums: what to add to the first elements of ``self.sums``.
        """
        self.sums[: sums.numel()] += sums
        self._first_bad_step = torch.where(loss.isfinite(), self._first_bad_step, self._first_bad_step.clamp(max=step))

    def end_step(self, seconds: float) -> None:
        """Count an optimiser step that took ``seconds``."""
        self.steps += 1
        self.timed_steps += 1
        self.seconds += seconds

    @property
    def steps_per_second(self) -> float:
        """The rate of this process's steps in the window."""
        return self.timed_steps / self.seconds

    def total(self, context: Context) -> list[float]:
        """Return the sums over all ranks. All ranks call it.

        Raises:
            NonFinite: a loss in the window was not finite; names the first such step.
        """
        sums: list[float] = context.sum(self.sums.clone()).tolist()
        if not math.isfinite(sums[0]):
            raise NonFinite(int(min(context.gather(self._first_bad_step.item()))))
        return sums

    def state(self, context: Context) -> dict[str, Any] | None:
        """Return what a checkpoint keeps between two log lines; None right after a log line. All ranks call it.

        Raises:
            NonFinite: as in ``total``: such weights are not saved.
        """
        if not self.steps:
            return None
        self.total(context)
        return {"steps": self.steps, "sums": context.gather(self.sums.tolist())}

    def load_state(self, saved: dict[str, Any] | list[Any] | None, step: int, context: Context) -> None:
        """Continue a window that ``state`` returned at ``step``; on another number of ranks, rank 0 takes all sums."""
        if saved is None:
            return
        if isinstance(saved, list):  # learn's form before version 0.2: the step of the last log line, a loss per rank
            saved = {"steps": step - saved[0], "sums": [[loss] for loss in saved[1]]}
        self.steps = saved["steps"]
        by_rank = torch.tensor(saved["sums"], dtype=torch.float64)
        if len(by_rank) == context.world:
            self.sums += by_rank[context.rank].to(self.sums.device)
        elif context.main:
            self.sums += by_rank.sum(0).to(self.sums.device)
