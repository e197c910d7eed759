"""Rows of a linear classifier in closed form, from stored activations: for a network that has no row for a class.

There are two kinds, both of the classes' means m_c and their covariances, with the same weight for every class:

- ``discriminant``: shared-covariance discriminant analysis (Fisher 1936), w_c = S^-1 m_c, b_c = -m_c' S^-1 m_c / 2.
  S = (1 - s) S_within + s v I is shrunk as by scikit-learn's ``LinearDiscriminantAnalysis(shrinkage=s)``.
- ``ridge``: least squares on one-hot targets, w_c = (S_total + s v I)^-1 (m_c - m) / C (Hastie et al. 2009, section
  4.2).

v is the mean variance of a dimension, within classes or in total. Kind and strength s are those with the most right
answers for held-out images, in cross-validation. Both say which class is the likeliest, and not how sure that is; so
the scores are multiplied by the factor with the smallest cross entropy on the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dist_train.data.activations import Activations
from dist_train.fewshot.moments import Moments, identity_like, mean_variance, shrunk, to_float

STRENGTHS = {
    "discriminant": (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0),  # 1: the nearest class mean
    "ridge": (0.001, 0.01, 0.1, 1.0, 10.0),
}
_FACTORS = tuple(2.0 ** (k / 2) for k in range(-16, 25))
_FOLDS = 3
_HELD_OUT = 30
"""Images of a class that are held out in a fold, at most: 900 classes have 27,000, enough for 0.3 points."""


@dataclass(frozen=True)
class ClosedForm:
    """Hold rows in closed form, and how they were chosen.

    Attributes:
        rows, bias: float32 [classes, dim] and [classes], on the CPU.
        kind, strength, factor: the choice.
        top1: accuracy in percent on held-out images, the mean over the folds.
    """

    rows: torch.Tensor
    bias: torch.Tensor
    kind: str
    strength: float
    factor: float
    top1: float

    def facts(self) -> dict[str, Any]:
        """Return the choice as JSON."""
        return {
            "rows": f"in closed form ({self.kind})",
            "strength": self.strength,
            "factor": round(self.factor, 6),
            "cross_validated_top1": round(self.top1, 2),
        }


def fit(table: Activations, device: torch.device, watch: Callable[[Sequence[int]], Iterable[int]] = iter) -> ClosedForm:
    """Fit rows to all activations of a table.

    The table is read class by class, ``_FOLDS`` + 1 times; memory holds two matrices [dim, dim] in float64.

    Args:
        watch: wraps the loop over the classes; it may show progress.
    """
    folds = [_Fold.of(table, number, device, watch) for number in range(_FOLDS)]
    candidates = [(kind, strength) for kind, strengths in STRENGTHS.items() for strength in strengths]
    top1 = {choice: float(np.mean([fold.top1(*choice) for fold in folds])) for choice in candidates}
    kind, strength = max(candidates, key=lambda choice: top1[choice])
    losses = torch.stack([fold.losses(kind, strength) for fold in folds]).mean(0)
    factor = _FACTORS[int(losses.argmin())]
    rows, bias = rows_of(Moments.of(table, device, watch), kind, strength)
    rows, bias = (factor * rows).float().cpu(), (factor * bias).float().cpu()
    return ClosedForm(rows, bias, kind, strength, factor, top1[kind, strength])


def solve(table: Activations, device: torch.device, kind: str, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and biases of a kind and strength that are known, float32 [classes, dim] and [classes], not scaled
    to probabilities."""
    rows, bias = rows_of(Moments.of(table, device), kind, strength)
    return rows.float(), bias.float()


def rows_of(moments: Moments, kind: str, strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and biases, float64 [classes, dim] and [classes]."""
    centre = moments.centre
    apart = moments.means - centre
    if kind == "discriminant":
        matrix = shrunk(moments.within, strength)
        rows = torch.cholesky_solve(apart.T, torch.linalg.cholesky(matrix)).T
        return rows, -0.5 * (apart * rows).sum(1) - rows @ centre
    total = moments.within + moments.spread
    matrix = total + strength * mean_variance(total) * identity_like(total)
    rows = torch.cholesky_solve(apart.T, torch.linalg.cholesky(matrix)).T / len(apart)
    return rows, 1 / len(rows) - rows @ centre


@dataclass(frozen=True)
class _Fold:
    """Hold what a fold was fitted to, and its held-out activations [N, dim] with their classes [N]."""

    moments: Moments
    activations: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(
        cls,
        table: Activations,
        number: int,
        device: torch.device,
        watch: Callable[[Sequence[int]], Iterable[int]],
    ) -> _Fold:
        """Hold out every third image of each class; a class of one image keeps it."""
        ends = zip(table.offsets[:-1], table.offsets[1:], strict=True)
        held_out = np.concatenate(
            [np.arange(first + number, last, _FOLDS)[: _HELD_OUT if last - first > 1 else 0] for first, last in ends]
        )
        labels = torch.from_numpy(table.labels[held_out]).to(device)
        return cls(Moments.of(table, device, watch, held_out), to_float(table.rows[held_out], device), labels)

    def logits(self, kind: str, strength: float) -> torch.Tensor:
        """Return the scores of the held-out images, float32 [N, classes]."""
        rows, bias = rows_of(self.moments, kind, strength)
        return self.activations @ rows.float().T + bias.float()

    def top1(self, kind: str, strength: float) -> float:
        """Return the accuracy on the held-out images in percent; 0 where there are none."""
        if not len(self.labels):
            return 0.0
        return 100 * (self.logits(kind, strength).argmax(1) == self.labels).float().mean().item()

    def losses(self, kind: str, strength: float) -> torch.Tensor:
        """Return the cross entropy on the held-out images for each of ``_FACTORS``."""
        if not len(self.labels):
            return torch.zeros(len(_FACTORS))
        logits = self.logits(kind, strength)
        return torch.stack([F.cross_entropy(factor * logits, self.labels) for factor in _FACTORS]).cpu()
