"""The two-covariance posterior in a model from a run: ``plda_plus`` and ``phi_plus_plda`` (fewshot/methods/gaussian.py,
ensemble.py), as rows of a linear classifier on a longer query.

A model adds a class by a row, and its head is a product of rows with a query (head.py). The log density of a class is a
product too, of the coordinates of an activation and their squares (``density_rows``). What remains is a number that all
base classes share: with s the responses of their rows and d the densities, divided by the temperature t, a base class
scores s_c - log sum exp(s) + log sum exp(d), and so s_c + g. With w the share of phi+ in a novel class's score,

    query       [q        x             x^2           (1 - w) g    1          ]
    base row    [row      0             0             1            0          ]
    novel row   [w row    (1 - w) L/t   (1 - w) Q/t   0            (1 - w) b/t]

so that w = 0 is ``plda_plus``, and w = 1/2 the average of it and phi+. The one offset of the novel rows is that of the
calibration of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from dist_train.fewshot.head import Centring
from dist_train.fewshot.methods.gaussian import BesidePlus, Diagonal, density_rows

_NAMES = ("sphere", "centre", "basis", "between", "means", "counts")
POSTERIOR_TENSORS = tuple(f"posterior.{name}" for name in _NAMES)
"""Names of the tensors of a posterior in a model's file of the network, and the order of ``Posterior``'s."""


class Coordinates(nn.Module):
    """Map activations to the coordinates of ``Gaussian`` (fewshot/methods/gaussian.py).

    Args:
        power: ``plda_power``.
        sphere: the centre of ``Centring``, [dim].
        centre, basis, between: of ``Diagonal``, [dim], [dim, dim] and [dim].
    """

    def __init__(
        self, power: float, sphere: torch.Tensor, centre: torch.Tensor, basis: torch.Tensor, between: torch.Tensor
    ) -> None:
        super().__init__()
        self.power = power
        self.sphere, self.centre, self.basis, self.between = map(nn.Buffer, (sphere, centre, basis, between))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Return [..., dim] for activations [..., dim]."""
        space = Diagonal(self.centre, self.basis, self.between)
        return space(Centring(self.sphere, self.power)(activations))


@dataclass(frozen=True)
class Posterior:
    """Hold what a model keeps of the densities of its run's classes.

    Attributes:
        share: of phi+ in a novel class's score, from 0 to 1.
        temperature: ``plda_temperature``.
        coordinates: in which they are densities.
        means: of the run's classes, in these coordinates, [classes, dim].
        counts: training images of each of them, [classes].
    """

    share: float
    temperature: float
    coordinates: Coordinates
    means: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def of(cls, method: BesidePlus, share: float) -> Self:
        """Return what a method has prepared from the run's base classes."""
        numbers, space = method.base.numbers, method.space
        prepared = (method.centring.centre, space.centre.float(), space.basis.float(), method.between, method.means,
                    method.counts)  # fmt: skip
        # In the order of a file, whose products round alike.
        tensors = {name: part.contiguous() for name, part in zip(POSTERIOR_TENSORS, prepared, strict=True)}
        return cls.from_tensors(tensors, share, numbers["plda_power"], numbers["plda_temperature"])

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], share: float, power: float, temperature: float) -> Self:
        """Return the posterior of tensors by their names in ``POSTERIOR_TENSORS``."""
        *space, means, counts = (tensors[name] for name in POSTERIOR_TENSORS)
        return cls(share, temperature, Coordinates(power, *space), means, counts)

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors as a model folder has them."""
        space = self.coordinates
        kept = (space.sphere, space.centre, space.basis, space.between, self.means, self.counts)
        return dict(zip(POSTERIOR_TENSORS, kept, strict=True))

    def on(self, device: torch.device) -> Self:
        """Return the same on a device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self.from_tensors(tensors, self.share, self.coordinates.power, self.temperature)

    def novel_rows(self, rows: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """Return rows [n, 1, length] of longer queries.

        Args:
            rows: phi+'s, [n, 1, dim].
            photos: activations [n, k, dim] of the photos that they are of.
        """
        means = self.coordinates(photos).mean(1)
        counts = means.new_full((len(means),), photos.shape[1])
        linear, quadratic, constant = (
            part / self.temperature for part in density_rows(self.coordinates.between, means, counts)
        )
        parts = [linear, quadratic, torch.zeros_like(constant)[:, None], constant[:, None]]
        densities = (1 - self.share) * torch.cat(parts, 1)
        return torch.cat([self.share * rows, densities[:, None]], 2)


def longer_length(dim: int) -> int:
    """Return the length of longer queries of activations [dim]."""
    return 3 * dim + 2


class LongQuery(nn.Module):
    """Make longer queries for some classes of a run.

    Args:
        posterior: of all classes of the run.
        kept: these classes.
        rows: phi+'s rows of these classes, [classes, dim].
    """

    def __init__(self, posterior: Posterior, kept: Sequence[int], rows: torch.Tensor) -> None:
        super().__init__()
        self.share, self.coordinates = posterior.share, posterior.coordinates
        means, counts = posterior.means[list(kept)], posterior.counts[list(kept)]
        densities = density_rows(self.coordinates.between, means, counts)
        parts = (part / posterior.temperature for part in densities)
        self.linear, self.quadratic, self.constant = map(nn.Buffer, parts)
        self.rows = nn.Buffer(rows)

    def base_rows(self) -> torch.Tensor:
        """Return the rows [classes, length] of the run's classes."""
        classes, dim = self.rows.shape
        zeros = self.rows.new_zeros(classes, 1)
        return torch.cat([self.rows, zeros.expand(-1, 2 * dim), zeros + 1, zeros], 1)

    def forward(self, queries: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """Return longer queries [N, length] from phi+'s [N, dim] and the activations [N, dim]."""
        x = self.coordinates(activations)
        squares, ones = x.square(), torch.ones_like(x[:, :1])
        level = torch.zeros_like(ones)
        if len(self.rows):  # else there are no base classes that it could be the level of
            densities = x @ self.linear.T + squares @ self.quadratic.T + self.constant
            level = densities.logsumexp(1, keepdim=True) - (queries @ self.rows.T).logsumexp(1, keepdim=True)
        return torch.cat([queries, x, squares, (1 - self.share) * level, ones], 1)
