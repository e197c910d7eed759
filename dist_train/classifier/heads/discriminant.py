"""Linear discriminant with a shrunken covariance that all classes share, and class means drawn to their centre."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample, eigenvectors

SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)
"""Shares of the multiple of the identity in the covariance that are tried."""


class Discriminant(FittedHead):
    """Classify by Gaussians with one covariance and equal priors (Hastie et al., The Elements of Statistical Learning,
    4.3 and 4.18), whose means are drawn from a Gaussian too: the two-covariance model (Ioffe 2006).

    With S the covariance within classes, photos lie around the mean of their class with the covariance
    V = (1 - s) S + s tr(S)/dim I, and class means around a centre c with V^2 / r: classes differ along the directions
    in which photos of a class do, by more than in proportion (docs/results/photos.md has what was tried). Given n
    photos of mean m, the mean of their class is expected at c + V (V + r/n I)^-1 (m - c). So its row is
    w = (V + r/n I)^-1 (m - c), and its offset -w'V w / 2 - w'c: the fewer photos, the larger the ridge, and the closer
    to the centre a mean is drawn, most so along the directions in which it is mostly chance.

    r is measured (``_ridge``), c is the likeliest centre (generalised least squares), and s is chosen by photos that
    are left out. Their scores are exact, but for r, tr(S) and the weights of the means in c, which take V from all
    photos. They cost no more than a few products: leaving a photo out changes S by a matrix of rank one (Sherman &
    Morrison 1950), and in the basis of S's eigenvectors all covariances are diagonal.
    """

    title = "discriminant"

    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        freedom = sample.freedom + (background.freedom if background else 0)
        if freedom < 2:
            return
        own = Background.of(sample).scatter
        values, basis = eigenvectors(own + background.scatter if background else own)
        if not bool(values.any()):  # photos of a class are all the same
            return
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
    identity = shrinkage * scatter.mean() / freedom
    within = (1 - shrinkage) * scatter / freedom + identity
    # The covariance with a degree of freedom less, and what a photo's difference takes of it when it is left out.
    fewer, taken = (1 - shrinkage) * scatter / (freedom - 1) + identity, (1 - shrinkage) / (freedom - 1)
    means = sample.means()
    ridge = _ridge(sample, means, within, fewer, taken)
    inverse = 1 / (within + ridge / sample.counts[:, None])
    centre = (inverse * means).sum(0) / inverse.sum(0)
    rows = inverse * (means - centre)
    offset = -(rows.square() @ within) / 2 - rows @ centre
    return Fit(rows @ basis.T, offset, False, _without_each(sample, means, fewer, taken, ridge), shrinkage)


def _ridge(
    sample: Sample, means: torch.Tensor, within: torch.Tensor, fewer: torch.Tensor, taken: float
) -> torch.Tensor:
    """Return r, with which class means vary as much as they are seen to, by an analysis of variance of classes of
    unequal sizes (Searle, Casella & McCulloch, Variance Components, 1992, chapter 3).

    Of N photos in K classes of n, the sum of n d'V^-1 d over the differences d of the class means from the mean of all
    photos is expected at (N - sum n^2 / N) tr(V) / r + (K - 1) tr(V^-1 S), where the second part is chance. That is
    measured on photos that were left out of V and m. At most half of the sum is put down to it, so that classes differ.

    Args:
        sample: activations in the basis of eigenvectors.
        means: of the classes, [classes, dim].
        within: the diagonal of V, [dim].
        fewer, taken: V without the photo x of a class of n photos and mean m is the diagonal ``fewer``, less ``taken``
            times n/(n-1) (x-m)(x-m)'.
    """
    counts, judged, chance = sample.counts, sample.judged, float(len(within))
    if bool(judged.any()):
        n = counts[sample.labels[judged]]
        squares = (sample.activations - means[sample.labels])[judged].square() @ (1 / fewer)
        grown = n / (n - 1) * squares
        chance = float((grown / (1 - taken * grown)).mean())
    total = counts.sum()
    seen = (counts * ((means - counts @ means / total).square() @ (1 / within))).sum()
    between = torch.maximum(seen - (len(means) - 1) * chance, seen / 2) / (total - counts.square().sum() / total)
    return within.sum() / between.clamp(min=1e-9)


def _without_each(
    sample: Sample, means: torch.Tensor, fewer: torch.Tensor, taken: float, ridge: torch.Tensor
) -> torch.Tensor:
    """Return the scores [N, classes] of each photo by the discriminant without it; arguments as for ``_ridge``.

    Without a photo that differs by d from its class's mean of n photos, that mean is smaller by d/(n-1), and counts
    less in the centre.
    """
    inverse = 1 / (fewer + ridge / sample.counts[:, None])
    squared, weighted = inverse.square() * fewer, inverse * means
    scores = []
    for start in range(0, len(sample.labels), 4096):  # so that memory is bounded
        x, labels = sample.activations[start : start + 4096], sample.labels[start : start + 4096]
        d, n = x - means[labels], sample.counts[labels]
        rest = (n - 1).clamp(min=1)
        own, inverse_own = means[labels] - d / rest[:, None], 1 / (fewer + ridge / rest[:, None])
        centre = weighted.sum(0) - weighted[labels] + inverse_own * own
        centre /= inverse.sum(0) - inverse[labels] + inverse_own
        x, own, dc = x - centre, own - centre, d * centre
        lost = torch.where(n > 1, taken * n / rest, 0.0)
        xm, xd = x @ weighted.T - (x * centre) @ inverse.T, (x * d) @ inverse.T
        dm, dd = d @ weighted.T - dc @ inverse.T, d.square() @ inverse.T
        mm = (means.square() * squared).sum(1) - 2 * centre @ (means * squared).T + centre.square() @ squared.T
        md, ddf = d @ (means * squared).T - dc @ squared.T, d.square() @ squared.T
        these = _score((xm, xd, dm, dd, mm, md, ddf), lost[:, None])
        pairs, by = ((x, own), (x, d), (d, own), (d, d)), inverse_own.square() * fewer
        products = [(p * q * inverse_own).sum(1) for p, q in pairs]
        products += [(p * q * by).sum(1) for p, q in ((own, own), (own, d), (d, d))]
        these[torch.arange(len(n)), labels] = _score(products, lost)
        scores.append(these)
    return torch.cat(scores)


def _score(products: Sequence[torch.Tensor], lost: torch.Tensor) -> torch.Tensor:
    """Return x'w - w'V w / 2, with V = F - lost dd' and w = (V + R)^-1 m, of diagonal F and R.

    With A the inverse of F + R, w is A (m + a d), where a = lost d'Am / (1 - lost d'Ad).

    Args:
        products: x'Am, x'Ad, d'Am, d'Ad, m'AFAm, m'AFAd, d'AFAd.
        lost: a number for each.
    """
    xm, xd, dm, dd, mm, md, ddf = products
    a = lost * dm / (1 - lost * dd)
    return xm + a * xd - (mm + 2 * a * md + a.square() * ddf - lost * (dm + a * dd).square()) / 2
