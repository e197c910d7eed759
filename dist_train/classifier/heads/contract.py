"""What a head of photos alone is fitted on, and what a fit gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Sample:
    """Hold activations of photos with their classes.

    Attributes:
        activations: float64 [N, dim].
        labels: the class of each photo, int64 [N].
        counts: photos of each class, float64 [classes]; every class has at least one.
    """

    activations: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, by_class: Sequence[torch.Tensor]) -> Sample:
        """Return the sample of activations [photos, dim] of each class."""
        counts = torch.tensor([len(activations) for activations in by_class], device=by_class[0].device)
        labels = torch.arange(len(by_class), device=counts.device).repeat_interleave(counts)
        return cls(torch.cat(list(by_class)).double(), labels, counts.double())

    @property
    def judged(self) -> torch.Tensor:
        """Whether a photo's class has other photos, bool [N]: only then can it be held out."""
        return self.counts[self.labels] > 1

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the variance within classes: photos less classes."""
        return len(self.labels) - len(self.counts)

    def unit(self) -> Sample:
        """Return the sample with every activation scaled to length 1."""
        return Sample(F.normalize(self.activations, dim=1), self.labels, self.counts)

    def means(self) -> torch.Tensor:
        """Return the mean activation of each class, [classes, dim]."""
        sums = self.activations.new_zeros(len(self.counts), self.activations.shape[1])
        return sums.index_add_(0, self.labels, self.activations) / self.counts[:, None]


@dataclass(frozen=True)
class Background:
    """Hold how the activations of other images vary within their classes.

    Attributes:
        scatter: the sum over images of the outer product of their differences from the mean of their class,
            float64 [dim, dim].
        freedom: degrees of freedom: images less classes.
    """

    scatter: torch.Tensor
    freedom: int

    @classmethod
    def of(cls, sample: Sample) -> Background:
        """Return what a sample of other classes tells."""
        differences = sample.activations - sample.means()[sample.labels]
        return cls(differences.T @ differences, sample.freedom)


@dataclass(frozen=True)
class Fit:
    """Hold a linear classifier and how it scores each photo when it is fitted without that photo.

    Attributes:
        rows: float64 [classes, dim].
        offset: float64 [classes], added to the products.
        unit: whether queries are scaled to length 1 before they are multiplied.
        held_out: scores of the photos, float64 [N, classes]; without meaning where ``Sample.judged`` is false.
        strength: of the regularisation, in the head's own measure; None where it has none.
    """

    rows: torch.Tensor
    offset: torch.Tensor
    unit: bool
    held_out: torch.Tensor
    strength: float | None = None


class FittedHead(ABC):
    """Fit the classes' rows and offsets to photos.

    Attributes:
        title: what people call it.
        judged_by: how the scores of held-out photos come about.
    """

    title: ClassVar[str]
    judged_by: ClassVar[str] = "leave-one-out"

    @abstractmethod
    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        """Return a fit for each strength that is tried, from weak to strong; nothing where it cannot be fitted.

        Args:
            sample: photos of two classes or more.
            background: what other images tell, where there are any.
            strength: the only one to try; None: all of them.
        """


def eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues [dim] and eigenvectors [dim, dim] of a symmetric matrix."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # LAPACK's routine on two busy cores takes four times as long with two threads
        values, basis = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    return values, basis
