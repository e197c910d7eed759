"""When a model is not sure: its probability, and how familiar a photo looks.

The familiarity of a photo rests on its cosine to the nearest class mean; what was tried beside it is in
docs/results/unknown.md. ``doubt_fit`` fits both to known photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Doubt:
    """Tell sure answers from unsure ones. Without known photos all answers are sure, and all photos familiar.

    Attributes:
        temperature: what scores are divided by to become probabilities (Guo et al. 2017); 1 where the head is divided
            by it already.
        threshold: the probability, from 0 to 1, below which an answer is not sure.
        familiar: the familiarity, from 0 to 100, below which an answer is not sure.
        percentiles: the 0th to 100th percentile of the known photos' nearness; empty where there are none.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    familiar: float = 0.0
    percentiles: tuple[float, ...] = ()

    def sure(self, probability: float, familiarity: float) -> bool:
        """Return whether an answer of this probability is sure, for a photo of this familiarity."""
        return probability >= self.threshold and familiarity >= self.familiar

    def familiarity(self, nearness: npt.NDArray[np.floating[Any]]) -> list[float]:
        """Return the percentage of known photos with less nearness, of each [B]."""
        if not self.percentiles:
            return [100.0] * len(nearness)
        percent: list[float] = np.interp(nearness.astype(np.float64), self.percentiles, np.arange(101)).tolist()
        return percent
