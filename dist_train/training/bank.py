"""What predictors are trained on: the base activations, and the rows that a step reads of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dist_train.data.activations import Activations
from dist_train.data.loading.augment import uniforms
from dist_train.distributed.context import Context

DRAW_AHEAD = 64
"""Steps whose random numbers are drawn and sent to the device together."""


class Bank:
    """Hold the base activations where they are used: whole on a GPU, memory-mapped on a CPU.

    Attributes:
        train: float16 [N, C].
        first, count: int64 [classes], each class's first row and number of rows.
        means, head: float32 [classes, C], the mean activations and the backbone's own classifier.
        labels: int64 [this rank's queries], the classes whose queries this rank classifies in a step.
        val, val_labels: float32 [Q, C] and int64 [Q], this rank's share of the validation images, for the base accuracy
            that is logged.
        queries: number of validation images of all ranks.
    """

    def __init__(
        self, train: Activations, val: Activations, means: np.ndarray, head: torch.Tensor, context: Context
    ) -> None:
        device = context.device
        self.device = device
        self.train = torch.from_numpy(train.rows).to(device)
        self.first = torch.from_numpy(train.offsets[:-1]).to(device)
        self.count = torch.from_numpy(np.diff(train.offsets)).to(device)
        self.means = torch.from_numpy(np.asarray(means)).to(device)
        self.head = head.to(device)
        mine = slice(context.rank, None, context.world)
        self.labels = torch.arange(len(self.count), device=device)[mine]
        self.val = torch.from_numpy(val.rows[mine].astype(np.float32)).to(device)
        self.val_labels = torch.from_numpy(val.labels[mine]).to(device)
        self.queries = len(val.ids)

    def draw(self, seed: int, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw for ``DRAW_AHEAD`` steps from ``step``, as a pure function of (seed, step, class): the same on any
        number of ranks, and after a resume.

        Returns:
            Each [steps, classes]: a number in [0, 1) that decides whether a single row stands for the class in place of
            its mean, that row, and the query's row.
        """
        classes = len(self.count)
        steps = np.repeat(np.arange(step, step + DRAW_AHEAD, dtype=np.int64), classes)
        labels = np.tile(np.arange(classes, dtype=np.int64), DRAW_AHEAD)
        drawn = uniforms(seed, steps, labels, 3).reshape(DRAW_AHEAD, classes, 3)
        u = torch.from_numpy(drawn).to(self.device, non_blocking=True)
        support, query = (self.first + (u[..., k] * self.count).long() for k in (1, 2))
        return u[..., 0], support, query


@dataclass(frozen=True)
class StepRows:
    """Hold what predictors are shown in a step.

    Attributes:
        chance: [classes], a predictor is shown a single image of a class where this is at least its ``p_mean``.
        supports: float32 [classes, C], that image of each class. Where no predictor is shown it, it may be another.
        queries: float32 [this rank's queries, C].
    """

    chance: torch.Tensor
    supports: torch.Tensor
    queries: torch.Tensor


class StepReader:
    """Read each step's rows once, for all predictors that are trained side by side.

    Args:
        seed: seed of the draws.

    Attributes:
        p_mean: the lowest of the predictors.
    """

    def __init__(self, bank: Bank, seed: int) -> None:
        self.bank, self.seed, self.p_mean = bank, seed, 1.0
        self._block, self._step = -1, -1

    def read(self, step: int) -> StepRows:
        """Return the rows of ``step`` (from 0)."""
        if step != self._step:
            block = step - step % DRAW_AHEAD
            if block != self._block:
                self._block, self._drawn = block, self.bank.draw(self.seed, block)
            self._step, self._rows = step, self._gather(*(numbers[step - block] for numbers in self._drawn))
        return self._rows

    def _gather(self, chance: torch.Tensor, support: torch.Tensor, query: torch.Tensor) -> StepRows:
        bank = self.bank
        # A row that is not used is read all the same: take one that is read anyway.
        supports = bank.train[torch.where(chance >= self.p_mean, support, query)].float()
        return StepRows(chance, supports, bank.train[query[bank.labels]].float())
