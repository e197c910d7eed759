"""What a batch is trained on: mixed images, their targets, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import PretrainConfig


class Objective:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), one of them a batch, by torchvision on the
    device; cross entropy, or binary cross entropy by timm (Wightman et al. 2021).

    Images are mixed with others of the same rank's part of the batch, as everywhere.
    """

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        self.smoothing = config.label_smoothing
        self._mix: Callable[..., Any] | None = None
        if config.mixup or config.cutmix:
            from torchvision.transforms import v2  # not above: it takes seconds

            ways = [(v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)]
            self._mix = v2.RandomChoice([way(alpha=alpha, num_classes=classes) for way, alpha in ways if alpha])
        self._bce: nn.Module | None = None
        if config.loss == "bce":
            from timm.loss import BinaryCrossEntropy

            self._bce = BinaryCrossEntropy(smoothing=0.0, target_threshold=config.bce_threshold)

    def mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and targets: labels [B], or the share of each class [B, classes]. Random by torch's
        generator of the CPU, which is seeded for each step."""
        if self._mix is None:
            return images, labels
        images, targets = self._mix(images, labels)
        return images, targets

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean over the batch, of float32 logits [B, classes]."""
        if self._bce is not None:
            loss: torch.Tensor = self._bce(logits, targets)
            return loss
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)


def seed_step(seed: int, step: int, piece: int, rank: int, device: torch.device) -> None:
    """Makes what torch draws in a step (mixing, stochastic depth) a function of these numbers, so that a
    resumed run draws the same."""
    state = np.random.SeedSequence((seed, step, piece, rank)).generate_state(1, np.uint64)
    number = int(state[0] >> np.uint64(1))
    # As torch.manual_seed, without its 0.1 to 0.3 ms: for kinds of device that are not there it formats the stack.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
