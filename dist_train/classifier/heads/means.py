"""Heads of class means of unit activations: the nearest mean, and imprinting."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample


class NearestMean(FittedHead):
    """Classify by the nearest class mean: the score is minus the squared distance, without the part that all classes
    share (Mensink et al. 2013, equation 1).

    The mean of n photos lies further from the origin than the class's own mean does, in expectation by 1/n of the
    variance within a class. That much is taken off its squared length, else a class of few photos would lose to a class
    of many.
    """

    title = "class mean"

    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        sample = sample.unit()
        queries, counts, means = sample.activations, sample.counts, sample.means()
        own, n = means[sample.labels], counts[sample.labels]
        squares = (queries - own).square().sum(1) * n / (n - 1).clamp(min=1)  # what the photo adds to the scatter
        scatter = (queries - own).square().sum()
        length = means.square().sum(1)
        variance = scatter / max(sample.freedom, 1)
        offset = variance / counts - length

        variances = (scatter - squares)[:, None] / max(sample.freedom - 1, 1)
        held_out = 2 * queries @ means.T - length + variances / counts
        means_without = _means_without(own, queries, n)
        own_scores = 2 * (queries * means_without).sum(1) - means_without.square().sum(1)
        held_out[torch.arange(len(n)), sample.labels] = own_scores + variances[:, 0] / (n - 1).clamp(min=1)
        yield Fit(2 * means, offset, True, held_out)


class Imprinting(FittedHead):
    """Classify by the cosine to the mean of unit activations (Qi, Brown & Lowe 2018, section 3.2)."""

    title = "imprinting"

    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        sample = sample.unit()
        queries, means = sample.activations, sample.means()
        rows = F.normalize(means, dim=1)
        held_out = queries @ rows.T
        without = F.normalize(_means_without(means[sample.labels], queries, sample.counts[sample.labels]), dim=1)
        held_out[torch.arange(len(queries)), sample.labels] = (queries * without).sum(1)
        yield Fit(rows, rows.new_zeros(len(rows)), True, held_out)


def _means_without(own: torch.Tensor, queries: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Return the mean of each photo's class without that photo, [N, dim].

    Args:
        own: the mean of its class, [N, dim].
        queries: the photos, [N, dim].
        n: photos of its class, [N].
    """
    return own - (queries - own) / (n - 1).clamp(min=1)[:, None]
