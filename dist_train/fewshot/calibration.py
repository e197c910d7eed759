"""An offset added to all novel scores, so that old and new classes compete fairly (calibrated stacking, Chao et
al. 2016, section 3.2).

Chao et al. choose the offset by validation on unseen classes. Here it is computed for each set of supports: it is the
largest offset at which the novel classes win no more than a given share of the base training images that were
classified correctly. This needs no further classes, and works for any method's scores and any number of shots. The
share grows with the proportion of novel classes among all classes, so that a single added class may not win as many
images as a hundred may; its factor, the cost, is chosen once, on pseudo-novel classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch

from dist_train.data.activations import Activations
from dist_train.fewshot.method import Base, Method, Number, Scorer, Support, sample_rows
from dist_train.fewshot.moments import to_float

NUMBERS = {"calibration_cost": Number(0.3)}  # tools/choose_calibration.py
_PER_CLASS = 20  # base training images of each class that the offset is computed from


class Calibration:
    """Calibrate the novel scores of one method.

    Args:
        images: activations [N, C] of base training images.
        labels: int64 [N], their classes.
        scores: their base scores by the method, [N, base classes].
        cost: the share of the correctly classified images that the novel classes may win if they were all classes;
            where one class in ten is novel, they may win a tenth of it.

    Attributes:
        correct: bool [N], which of the images were classified correctly.
        images: those images.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor, cost: float) -> None:
        self.correct = scores.argmax(1) == labels
        self.images, self.own_scores = images[self.correct], scores[self.correct].amax(1)
        self.cost, self.num_base = cost, scores.shape[1]

    @classmethod
    def from_base(
        cls, base: Base, base_scores: Callable[[torch.Tensor], torch.Tensor], cost: str = Method.cost
    ) -> Calibration:
        """Take the images from the base classes, and the cost from ``evaluate.options``.

        Args:
            base_scores: from queries [Q, C] to [Q, base classes].
            cost: ``Method.cost``.
        """
        images, labels = sample(base.train, base.means.device)
        return cls(images, labels, base_scores(images), base.numbers[cost])

    def offset(self, largest: torch.Tensor, num_novel: int) -> float:
        """Return what may be added to the scores of ``num_novel`` classes.

        Args:
            largest: [images], the largest novel score of each of ``self.images``.
        """
        margins = (self.own_scores - largest).sort().values
        winnable = int(self.cost * num_novel / (self.num_base + num_novel) * len(margins))
        return margins[min(winnable, len(margins) - 1)].item() if len(margins) else 0.0

    def __call__(self, scorer: Scorer) -> Scorer:
        """Return a scorer of the same novel scores, plus their offset."""
        scores = scorer(self.images)
        offset = self.offset(scores.amax(1), scores.shape[1])
        return lambda queries: scorer(queries) + offset


def calibrated(method: Method, base: Base) -> Method:
    """Return the method with calibrated novel scores: itself where it calibrates them.

    Args:
        method: any but an oracle.
        base: what it was made from.
    """
    return method if method.calibrated else Calibrated(method, base)


class Calibrated(Method):
    """Another method, with an offset on its novel scores.

    Where supports move the base classes, the offset is computed from their moved scores.

    Args:
        method: any but an oracle that calibrates its own scores.
        base: what it was made from.
    """

    calibrated = True
    numbers: ClassVar = NUMBERS

    def __init__(self, method: Method, base: Base) -> None:
        self.method, self.base = method, base
        self.moves_base, self.scale = method.moves_base, method.scale  # type: ignore[misc]

    @cached_property
    def _sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        return sample(self.base.train, self.base.means.device)

    @cached_property
    def _calibration(self) -> Calibration:
        return Calibration.from_base(self.base, self.method.base_scores, self.cost)

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.method.base_scores(queries)

    def take(self, support: Support) -> Scorer:
        return self._calibrated(self.method.take(support), len(support))

    def take_first(self, support: torch.Tensor, shots: Sequence[int]) -> Iterator[Scorer]:
        return (self._calibrated(scorer, len(support)) for scorer in self.method.take_first(support, shots))

    def _calibrated(self, scorer: Scorer, novel: int) -> Scorer:
        """Return the method's scorer of so many novel classes, plus their offset."""
        classes = len(self.base.means)
        if not self.moves_base:
            return self._calibration(scorer)
        if not novel:
            return scorer
        images, labels = self._sample
        scores = scorer(images)
        calibration = Calibration(images, labels, scores[:, :classes], self.base.numbers[self.cost])
        offset = calibration.offset(scores[calibration.correct, classes:].amax(1), novel)
        offsets = scores.new_zeros(scores.shape[1])
        offsets[classes:] = offset
        return lambda queries: scorer(queries) + offsets


def sample(train: Activations, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the base training images that the offset is computed from: float32 [N, C], and their classes int64 [N]."""
    kept = [sample_rows(first, last, _PER_CLASS) for first, last in pairwise(train.offsets)]
    images = to_float(train.rows[np.concatenate(kept)], device)
    labels = torch.from_numpy(np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])).to(device)
    return images, labels
