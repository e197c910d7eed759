"""Whether losses and weights are finite numbers, without a host's waiting at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from dist_train.distributed.context import Context


class NonFinite(Exception):
    """The loss or the weights of ``step`` are not finite numbers."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Losses:
    """Watches a rank's losses; which step's was the first that is not finite stays on the device."""

    def __init__(self, device: torch.device) -> None:
        self._bad = torch.full((), math.inf, device=device)

    def add(self, step: int, loss: torch.Tensor) -> None:
        self._bad = torch.where(loss.isfinite(), self._bad, self._bad.clamp(max=step))

    def check(self, total: float, context: Context) -> None:
        """Raises NonFinite where ``total``, a sum over all ranks' losses, is not finite. All ranks call it."""
        if not math.isfinite(total):
            raise NonFinite(int(min(context.gather(self._bad.item()))))


def check_weights(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Raises NonFinite where what is to be saved or evaluated is not finite. Waits for the device."""
    if not torch.stack([t.isfinite().all() for t in weights.values() if t.is_floating_point()]).all():
        raise NonFinite(step)
