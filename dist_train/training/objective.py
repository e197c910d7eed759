"""The objective of a batch: mixed images, their targets, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_train.config import PretrainConfig


class Objective:
    """Mix a batch and compute its loss.

    Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) are torchvision's, on the device; a batch gets either. The
    loss is cross entropy, or timm's binary cross entropy (Wightman et al. 2021). Images are mixed with others of the
    same rank's share of the batch, as in timm and torchvision's references.
    """

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        self.smoothing = config.label_smoothing
        self._mix: Callable[..., Any] | None = None
        if config.mixup or config.cutmix:
            from torchvision.transforms import v2  # not above: its import takes seconds

            kinds = [(v2.MixUp, config.mixup), (v2.CutMix, config.cutmix)]
            self._mix = v2.RandomChoice([kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha])
        self._bce: nn.Module | None = None
        if config.loss == "bce":
            from timm.loss.binary_cross_entropy import BinaryCrossEntropy

            self._bce = BinaryCrossEntropy(smoothing=0.0, target_threshold=config.bce_threshold)

    def mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and their targets: labels [B], or the share of each class [B, classes].

        Draws from torch's generator of the CPU, which ``seed_step`` seeds for each step.
        """
        if self._mix is None:
            return images, labels
        images, targets = self._mix(images, labels)
        return images, targets

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the batch, of float32 logits [B, classes]."""
        if self._bce is not None:
            loss: torch.Tensor = self._bce(logits, targets)
            return loss
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)


def seed_step(seed: int, step: int, piece: int, rank: int, device: torch.device) -> None:
    """Seed torch for a pass of a step, so that its random numbers (mixing, stochastic depth) are a function of these
    arguments and a resumed run draws the same."""
    state = np.random.SeedSequence((seed, step, piece, rank)).generate_state(1, np.uint64)
    number = int(state[0] >> np.uint64(1))
    # Not torch.manual_seed, which takes 0.1 to 0.3 ms: it formats the stack for kinds of device that are not there.
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
