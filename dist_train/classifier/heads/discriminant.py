"""Linear discriminant with a shrunken covariance that all classes share."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample, eigenvectors

SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Shares of the multiple of the identity in the covariance that are tried."""


class Discriminant(FittedHead):
    """Classify by Gaussians with one covariance and equal priors (Hastie et al., The Elements of Statistical Learning,
    4.3 and 4.18): with S the covariance within classes, the row of a class of mean m is P m and its offset -m'Pm / 2,
    where P is the inverse of (1 - s) S + s tr(S)/dim I.

    m'Pm of the mean of n photos is too large, in expectation by tr(P S) / n, and is reduced by that, else a class of
    few photos would lose to a class of many. tr(P S) is measured on photos that were left out of P and m.

    Scores of left-out photos are exact, and cost no more than a few products: leaving a photo out changes S by a
    matrix of rank one (Sherman & Morrison 1950), and in the basis of S's eigenvectors all shrinkages are diagonal.
    """

    title = "discriminant"

    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        freedom = sample.freedom + (background.freedom if background else 0)
        if freedom < 2:
            return
        own = Background.of(sample).scatter
        values, basis = eigenvectors(own + background.scatter if background else own)
        turned = Sample(sample.activations @ basis, sample.labels, sample.counts)
        for shrinkage in SHRINKAGES if strength is None else (strength,):
            yield _fit(turned, values.clamp(min=0), freedom, shrinkage, basis)


def _fit(sample: Sample, scatter: torch.Tensor, freedom: int, shrinkage: float, basis: torch.Tensor) -> Fit:
    """Return the fit of one shrinkage.

    Args:
        sample: activations in the basis of eigenvectors.
        scatter: the eigenvalues of the scatter within classes, [dim].
        freedom: its degrees of freedom.
        shrinkage: s, see ``Discriminant``.
        basis: the eigenvectors, [dim, dim].
    """
    means, dim = sample.means(), len(scatter)
    precision = freedom / ((1 - shrinkage) * scatter + shrinkage * scatter.sum() / dim)
    held_out, spread = _without_each(sample, means, scatter, freedom, shrinkage)
    rows = means * precision
    offset = -((rows * means).sum(1) - spread / sample.counts) / 2
    return Fit(rows @ basis.T, offset, False, held_out, shrinkage)


def _without_each(
    sample: Sample, means: torch.Tensor, scatter: torch.Tensor, freedom: int, shrinkage: float
) -> tuple[torch.Tensor, float]:
    """Return the scores [N, classes] of each photo by the discriminant without it, and tr(P S); arguments as for
    ``_fit``.

    Without a photo that differs by d from its class's mean of n photos, the scatter is smaller by n/(n-1) dd' and that
    mean by d/(n-1). The inverse of a diagonal A less g dd' is A^-1 + A^-1 d d' A^-1 g / (1 - g d'A^-1 d).
    """
    x, labels, dim = sample.activations, sample.labels, len(scatter)
    photos, n = torch.arange(len(x)), sample.counts[labels]
    d = x - means[labels]
    rest = (n - 1).clamp(min=1)
    g = torch.where(n > 1, n / rest, 0.0)
    trace = scatter.sum() - g * d.square().sum(1)
    # The inverse without the photo's own matrix of rank one, diagonal for each photo: [N, dim].
    inverse = (freedom - 1) / ((1 - shrinkage) * scatter + shrinkage * trace[:, None] / dim)
    g = g * (1 - shrinkage) / (freedom - 1)
    scaled = d * inverse
    dd, xd, dm = (scaled * d).sum(1), (scaled * x).sum(1), scaled @ means.T
    factor = g / (1 - g * dd)
    xm = (x * inverse) @ means.T + (factor * xd)[:, None] * dm
    mm = inverse @ means.square().T + factor[:, None] * dm.square()
    grown = 1 + factor * dd
    xd, dd, dm_own = xd * grown, dd * grown, dm[photos, labels] * grown
    xm[photos, labels] -= xd / rest
    mm[photos, labels] += dd / rest.square() - 2 * dm_own / rest
    spread = float((dd * n / rest)[sample.judged].mean()) if bool(sample.judged.any()) else float(dim)
    counts = sample.counts.expand(len(x), -1).clone()
    counts[photos, labels] = rest
    return xm - (mm - spread / counts) / 2, spread
