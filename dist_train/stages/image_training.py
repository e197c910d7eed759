"""Train on images: what the training of the backbone and those of the stage ``networks`` share."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch

from dist_train.config import DataConfig, Preprocessing, PretrainConfig
from dist_train.data.loading.loader import Batch, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.errors import UserError, counted, verifying
from dist_train.training.classification import Classification
from dist_train.training.optimizer import learning_rate
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.window import Window


@dataclass(frozen=True)
class TrainingImages:
    """Hold what decides the batches of a training.

    Attributes:
        view: the images and their classes.
        order: which of them form each global batch.
        data: crops, augmentations and the loader's options.
        preprocessing: of the network.
    """

    view: View
    order: Order
    data: DataConfig
    preprocessing: Preprocessing

    def batches(self, context: Context, numbers: range, accumulate: int) -> Generator[Batch]:
        """Make this rank's share of the global batches ``numbers``, in ``accumulate`` pieces each."""
        return train_batches(self.view, self.order, self.data, context, numbers, accumulate, self.preprocessing)


class ImageTraining(Classification):
    """Train on images for ``config.epochs``, and count those that were replaced.

    Attributes:
        images: what the batches are made of.
        replaced: images that could not be decoded and were replaced, over all starts of the run.
    """

    def __init__(self, images: TrainingImages, strategy: Strategy, config: PretrainConfig, seed: int) -> None:
        steps = images.order.steps(config.epochs)
        super().__init__(strategy, config, len(images.view.classes), seed, steps)
        self.images = images
        self.warmup = round(config.warmup_epochs * len(images.view) / config.global_batch)
        self.replaced = 0.0

    def begin(self, start: int) -> None:
        numbers = range(start, self.schedule.steps)
        self.batches = self.images.batches(self.strategy.context, numbers, self.config.accumulate)

    def lr(self, step: int) -> float:
        return learning_rate(step, self.schedule.steps, self.warmup, self.config.epochs, self.config)

    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        values, view = super().values(step, sums, window), self.images.view
        self.replaced += values["data/replaced_samples"]
        values["data/replaced_samples"] = self.replaced
        values["progress/epoch"] = step * self.config.global_batch / len(view)
        if view.subset.cache:
            context = self.strategy.context
            retries = torch.tensor([float(view.subset.cache.retries)], device=context.device)
            values["data/download_retries"] = context.sum(retries).item()
        seen = step * self.config.global_batch
        check_bad_fraction(self.replaced, seen, view, self.images.data.max_bad_fraction)
        return values

    def state(self, step: int) -> dict[str, Any]:
        return {"replaced": self.replaced}

    def load_state(self, state: dict[str, Any]) -> None:
        self.replaced = state["replaced"]


def check_bad_fraction(replaced: float, seen: int, view: View, limit: float) -> None:
    """Stop a training that replaces too many images.

    Args:
        seen: images of the training so far; counted as an epoch's at least.

    Raises:
        UserError: more than ``limit`` (``data.max_bad_fraction``) of them were replaced.
    """
    share = replaced / max(seen, len(view))
    if share > limit:
        raise UserError(
            f"data.max_bad_fraction={limit:g}: replaced {counted(replaced, 'image')}, {share:.2%} of those seen; "
            f"the log names them; {verifying(view.subset.source)}"
        )
