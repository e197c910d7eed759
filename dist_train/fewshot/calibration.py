"""A number added to all novel scores, so that old and new classes compete fairly (calibrated stacking, Chao et
al. 2016, section 3.2).

Where they choose it by validation on unseen classes, here it is found for each set of supports: the largest
number at which the novel classes take away only so many of the base training images that are classified right.
So it needs no other class, and fits any method's scores and any number of shots. What they may take is in
proportion to how many of all classes they are, so that a single class that is added may not take what a hundred
may; the proportion is chosen once, on pseudo-novel classes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from dist_train.data.activations import Activations
from dist_train.fewshot.method import Base, Number, Scorer, drawn

NUMBERS = {"calibration_cost": Number(0.3)}  # tools/choose_calibration.py
_PER_CLASS = 20  # base training images asked, of each class


class Calibration:
    """Of a method's scores.

    Args:
        images: activations [N, C] of base training images.
        labels: int64 [N].
        base_scores: the method's, from queries [Q, C] to scores [Q, base classes].
        cost: the share of the images that are right which the novel classes may take, if they were all classes;
            of one class in ten they may take a tenth of it.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        base_scores: Callable[[torch.Tensor], torch.Tensor],
        cost: float,
    ) -> None:
        scores = base_scores(images)
        right = scores.argmax(1) == labels
        self.images, self.own = images[right], scores[right].amax(1)
        self.cost, self.base = cost, scores.shape[1]

    @classmethod
    def of(cls, base: Base, base_scores: Callable[[torch.Tensor], torch.Tensor]) -> Calibration:
        return cls(*sample(base.train, base.means.device), base_scores, base.numbers["calibration_cost"])

    def number(self, largest: torch.Tensor, novel: int) -> float:
        """What may be added to the scores of so many novel classes, of which ``largest`` [images] are each image's."""
        margins = (self.own - largest).sort().values
        may = int(self.cost * novel / (self.base + novel) * len(margins))
        return margins[min(may, len(margins) - 1)].item() if len(margins) else 0.0

    def __call__(self, scorer: Scorer) -> Scorer:
        """The same scores, plus the number."""
        scores = scorer(self.images)
        number = self.number(scores.amax(1), scores.shape[1])
        return lambda queries: scorer(queries) + number


def sample(train: Activations, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The base training images that are asked: float32 [N, C], and their classes int64 [N]."""
    kept = [drawn(first, last, _PER_CLASS) for first, last in pairwise(train.offsets)]
    images = torch.from_numpy(train.rows[np.concatenate(kept)].astype(np.float32)).to(device)
    labels = torch.from_numpy(np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])).to(device)
    return images, labels
