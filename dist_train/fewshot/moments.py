"""Means of the base classes and covariances within and between them, from one pass over the stored activations.

Every class has the same weight, however many images it has. Matrices are products of centred rows in float32, summed
over the classes in float64; memory holds one class's rows, the means and two matrices [dim, dim] in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch

from dist_train.data.activations import Activations
from dist_train.models.products import products

Watch = Callable[[Sequence[int]], Iterable[int]]
Ints = npt.NDArray[np.int64]
_LEAST_VARIANCE = 1e-9
"""In place of none: a single image a class has no variance within classes."""


@dataclass(frozen=True)
class Moments:
    """Hold first and second moments of the base classes.

    Attributes:
        means: float64 [classes, dim].
        within: the mean over classes of the covariance of a class's images (a mean over n images, not n - 1, as
            scikit-learn's discriminant has it), float64 [dim, dim].
        counts: images of each class, float64 [classes].
    """

    means: torch.Tensor
    within: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(
        cls,
        table: Activations,
        device: torch.device,
        watch: Watch = iter,
        left_out: Ints | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Self:
        """Compute them from a table, class by class.

        Args:
            watch: wraps the loop over the classes; it may show progress.
            left_out: rows of the table that do not count.
            transform: from activations [n, dim] to what the moments are of, [n, dim]; None: the activations.
        """
        classes, dim = len(table.offsets) - 1, table.rows.shape[1]
        means = torch.zeros(classes, dim, dtype=torch.float64, device=device)
        within = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        counts = torch.zeros(classes, dtype=torch.float64, device=device)
        kept = np.ones(len(table.rows), bool)
        kept[left_out if left_out is not None else []] = False
        for number in watch(range(classes)):
            first, last = table.offsets[number : number + 2]
            rows = to_float(table.rows[first:last][kept[first:last]], device)
            rows = rows if transform is None else transform(rows)
            means[number], counts[number] = rows.double().mean(0), len(rows)
            centred = rows - means[number].float()  # float32 is enough about the mean
            within += products(centred.T, centred.T).double() / (len(rows) * classes)
        return cls(means, within, counts)

    @property
    def centre(self) -> torch.Tensor:
        """The mean of the class means, float64 [dim]."""
        return self.means.mean(0)

    @property
    def spread(self) -> torch.Tensor:
        """The covariance of the class means as they were measured, float64 [dim, dim]."""
        apart = self.means - self.centre
        return apart.T @ apart / len(apart)

    @property
    def share(self) -> torch.Tensor:
        """The mean over classes of 1 / n for n images: by this share of the covariance that images are drawn with, the
        one about their own mean is smaller, and the one of measured means is larger than that of true ones."""
        return (1 / self.counts).mean()

    @property
    def freedom(self) -> torch.Tensor:
        """The degrees of freedom of ``within``, a sum over classes of covariances with n - 1 each (Satterthwaite 1946);
        0 where every class has one image."""
        parts = (self.counts - 1) / self.counts
        return parts.sum().square() / (parts / self.counts).sum().clamp(min=_LEAST_VARIANCE)

    @property
    def drawn(self) -> torch.Tensor:
        """The covariance within a class that images are drawn with, float64 [dim, dim]: without bias, and, where it has
        fewer degrees of freedom than dimensions, shrunk.

        From f degrees of freedom, f < dim, it has f directions, each dim / f times too long: a single class of two
        images would make one direction of dim all that varies. So it counts by f / dim, and its mean variance in all
        directions by the rest.
        """
        unbiased = self.within / (1 - self.share).clamp(min=_LEAST_VARIANCE)
        known = float(self.freedom) / len(unbiased)
        return unbiased if known >= 1 else shrunk(unbiased, 1 - known)

    @property
    def between(self) -> torch.Tensor:
        """The covariance between classes, float64 [dim, dim]: that of the measured means, less what the finite number
        of images adds to it (for the same n of all classes as in Ioffe 2006, figure 2)."""
        return self.spread - self.drawn * self.share


def shrunk(covariance: torch.Tensor, strength: float) -> torch.Tensor:
    """Return (1 - s) S + s v I, where v is the mean variance of S, [dim, dim]; as scikit-learn's
    ``LinearDiscriminantAnalysis(shrinkage=s)`` has it.

    Args:
        strength: s, from 0 to 1.
    """
    return (1 - strength) * covariance + strength * mean_variance(covariance) * identity_like(covariance)


def mean_variance(covariance: torch.Tensor) -> torch.Tensor:
    """Return the mean of the diagonal, a scalar above zero."""
    return covariance.diagonal().mean().clamp(min=_LEAST_VARIANCE)


def identity_like(matrix: torch.Tensor) -> torch.Tensor:
    """Return the identity [dim, dim] of the matrix's type and device."""
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def to_float(rows: npt.NDArray[np.float16], device: torch.device) -> torch.Tensor:
    """Return stored rows as float32 on the device."""
    return torch.from_numpy(rows.astype(np.float32)).to(device)
