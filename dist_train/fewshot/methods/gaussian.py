"""Gaussian heads: every class is a normal distribution, and all share one covariance within classes.

Activations are centred first (``Centring``, with ``plda_power``). With Sw the covariance within the base classes and Sb
that between them:

- ``gda``, shared-covariance discriminant (Fisher 1936; Wang et al., ICLR 2024, section 3.2, for networks' features):
  w_c = Sw^-1 m_c, b_c = -m_c' Sw^-1 m_c / 2 with equal priors. They take the covariance from the few supports, with
  the identity added to it by Kubokawa & Srivastava's rule; here it comes from all base images.
- ``plda``, the two-covariance model (Ioffe, ECCV 2006, section 3; Brummer & de Villiers, Odyssey 2010): a class
  mean is drawn from N(m, Sb) and an image from N(class mean, Sw). Given k supports of mean x, the class mean has the
  posterior precision L = k Sw^-1 + Sb^-1 and the posterior mean L^-1 (k Sw^-1 x + Sb^-1 m); a query scores by its log
  density under N(posterior mean, Sw + L^-1). The fewer the supports, the wider the density and the nearer its mean to
  m. Base classes are scored by the same formula with all their images, so that both are densities of the same space,
  and comparable. ``plda_own`` adds no offset to it: the balance between old and new classes follows from k. Ioffe keeps
  the dimensions with the largest Sb; here all stay, as both covariances are shrunk.
- ``plda_rows``: the backbone's own classifier decides among base classes, and the densities d between old and new. With
  t = ``plda_temperature``, a base class scores log softmax(W a + b)_c + log sum_base exp(d / t), a novel class d / t.
  ``plda_plus`` has the base rows of phi+ in place of the backbone's classifier.

Both covariances are shrunk towards multiples of the identity, by ``within_shrinkage`` and ``between_shrinkage``: there
are fewer base classes than dimensions. tests/fewshot/test_heads.py has the formulas by direct inversion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from dist_train.fewshot.calibration import NUMBERS
from dist_train.fewshot.head import Head, centred_moments
from dist_train.fewshot.method import Base, Number, Scorer, Support, once
from dist_train.fewshot.methods.phi_plus import Uncalibrated
from dist_train.fewshot.moments import Moments, shrunk
from dist_train.models.products import products

POWER = {"plda_power": Number(0.5)}
WITHIN = {"within_shrinkage": Number(0.7)}
BETWEEN = {"between_shrinkage": Number(0.7)}
_QUERIES = 2048
"""Queries whose squares are made at a time: 16 MB at 2048 dimensions."""


@dataclass(frozen=True)
class Diagonal:
    """Coordinates in which the covariance within classes is the identity and that between classes is diagonal.

    Attributes:
        centre: float64 [C], the mean of the class means.
        basis: float64 [C, C]; coordinates are (x - centre) @ basis.
        between: float64 [C], variances of class means in these coordinates.
    """

    centre: torch.Tensor
    basis: torch.Tensor
    between: torch.Tensor

    @classmethod
    def of(cls, moments: Moments, within_shrinkage: float, between_shrinkage: float) -> Self:
        """Diagonalise both shrunk covariances together (Fukunaga 1990, section 2.3)."""
        lower = torch.linalg.cholesky(shrunk(moments.drawn, within_shrinkage))
        inner = torch.linalg.solve_triangular(lower, shrunk(moments.between, between_shrinkage), upper=False)
        values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(lower, inner.T, upper=False))
        basis = torch.linalg.solve_triangular(lower.T, vectors, upper=True)
        return cls(moments.centre, basis, values.clamp(min=1e-6))

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """Return float32 coordinates [..., C] of activations [..., C]."""
        return products(activations - self.centre.to(activations.dtype), self.basis.to(activations.dtype).T)


class Gaussian(Head):
    """Prepare the coordinates, and the classes' means in them."""

    labels: ClassVar = {}
    numbers: ClassVar = {**NUMBERS, **POWER, **WITHIN, **BETWEEN}

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        power, *strengths = (base.numbers[key] for key in (*POWER, *WITHIN, *BETWEEN))
        self.centring, moments = centred_moments(base, power)
        key = f"coordinates, power={power}, shrinkages={strengths}"
        self.space: Diagonal = base.shared(key, lambda: Diagonal.of(moments, *strengths))
        self.means, self.counts = self.space(moments.means.float()), moments.counts.float()
        self.between = self.space.between.float()
        self.of_queries = once(self.coordinates)

    def coordinates(self, activations: torch.Tensor) -> torch.Tensor:
        """Return [..., C] for activations [..., C]."""
        return self.space(self.centring(activations))


class Discriminant(Gaussian):
    labels: ClassVar = {"gda": "Shared-covariance discriminant"}

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return _products(self.of_queries(queries), self.means)

    def novel_scores(self, support: Support) -> Scorer:
        means = self.coordinates(support).mean(1)
        return lambda queries: _products(self.of_queries(queries), means)


class Posterior(Gaussian):
    labels: ClassVar = {"plda": "Two-covariance posterior"}

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return self.densities(self.of_queries(queries), self.means, self.counts)

    def novel_scores(self, support: Support) -> Scorer:
        means = self.coordinates(support).mean(1)
        counts = means.new_full((len(means),), support.shape[1])
        return lambda queries: self.densities(self.of_queries(queries), means, counts)

    def densities(self, coordinates: torch.Tensor, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the log density [Q, N] of queries under each class, but for a constant that all classes share.

        In these coordinates Sw is the identity, Sb diagonal and m zero. With s of Sb's diagonal, the posterior variance
        of a class mean is v = s / (1 + k s), its mean k v x, and the density's variance 1 + v (Ioffe 2006, section 3).

        Args:
            coordinates: of the queries, [Q, C].
            means: of the classes' images, [N, C].
            counts: how many images each class has, k above: [N].
        """
        linear, quadratic, constant = density_rows(self.between, means, counts)
        # In parts, as the memory of all squares would take longer than the products.
        return torch.cat([
            products(part, linear, constant).add_(products(part.square(), quadratic))
            for part in torch.split(coordinates, _QUERIES)
        ])  # fmt: skip


def density_rows(
    between: torch.Tensor, means: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return L [N, C], Q [N, C] and b [N], by which the log densities of coordinates x are x L' + x^2 Q' + b.

    Args:
        between: variances of class means, [C].
        means, counts: see ``Posterior.densities``.
    """
    posterior = between / (1 + counts[:, None] * between)  # variances of the class means, [N, C]
    centres, precisions = counts[:, None] * posterior * means, 1 / (1 + posterior)
    constant = -0.5 * (centres.square() * precisions - precisions.log()).sum(1)
    return centres * precisions, -0.5 * precisions, constant


class OwnOffset(Posterior):
    labels: ClassVar = {"plda_own": "Two-covariance posterior, own offset"}
    calibrated = False

    def take(self, support: Support) -> Scorer:
        return self.novel_scores(support)


class BesideRows(Posterior):
    labels: ClassVar = {"plda_rows": "Two-covariance posterior beside the backbone's classifier"}
    numbers: ClassVar = {**Posterior.numbers, "plda_temperature": Number(15.0)}

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        return super().base_scores(queries).logsumexp(1, keepdim=True) + self.logits(queries).log_softmax(1)

    def logits(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the scores [Q, base classes] that decide among base classes."""
        return products(queries, self.base.rows, self.base.bias)

    def densities(self, coordinates: torch.Tensor, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the log densities [Q, N], divided by the temperature."""
        return super().densities(coordinates, means, counts) / self.base.numbers["plda_temperature"]


class BesidePlus(BesideRows):
    labels: ClassVar = {"plda_plus": "Two-covariance posterior beside φ+'s base rows"}
    uses: ClassVar = {"plda_plus": "phi_plus"}
    share: ClassVar[float] = 0.0
    """The share of phi+'s response in a novel class's score, for models of the method (classifier/posterior.py)."""

    def __init__(self, name: str, base: Base) -> None:
        super().__init__(name, base)
        self.plus = Uncalibrated("phi_plus", base)

    def logits(self, queries: torch.Tensor) -> torch.Tensor:
        return self.plus.base_scores(queries)


def _products(coordinates: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Return the discriminant's scores [Q, N] in coordinates whose covariance within classes is the identity."""
    return products(coordinates, means, -0.5 * means.square().sum(1))
