"""The choice of a head and of its strength by photos that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dist_train.classifier.head import Estimate
from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample
from dist_train.classifier.heads.discriminant import Discriminant
from dist_train.classifier.heads.means import Imprinting, NearestMean
from dist_train.classifier.heads.prior import frequencies
from dist_train.classifier.heads.probe import Probe
from dist_train.classifier.heads.temperature import best_temperature
from dist_train.errors import UserError
from dist_train.report.per_class import wilson

HEADS: dict[str, FittedHead] = {
    "mean": NearestMean(), "imprint": Imprinting(), "lda": Discriminant(), "probe": Probe(),
}  # fmt: skip
"""The heads by name, the simplest first."""


@dataclass(frozen=True)
class Choice:
    """Hold the head that was chosen.

    Attributes:
        fit: its rows, offsets and scores of held-out photos, as the softmax takes them: see ``_answering``.
        head: its name in ``HEADS``.
        estimates: of all heads that were tried, the simplest first; empty where no photo could be held out.
    """

    fit: Fit
    head: str
    estimates: tuple[Estimate, ...]


def choose(
    sample: Sample,
    heads: Sequence[str],
    strength: float | None = None,
    background: Background | None = None,
    prior: str = "equal",
) -> Choice:
    """Fit heads to photos, and return the head that classifies held-out photos best: by the mean of the classes'
    accuracies, each of which counts by how frequent its class is taken to be. By the prior "equal" a class of few
    photos counts as much as a class of many. Of equal heads the simplest is taken.

    The strength of each head is the one whose probabilities of held-out photos, before the prior, are best (the lowest
    mean over classes of the log loss), as accuracies of few photos are equal too often. The accuracy of the best of
    several is a little too high an estimate of itself.

    Args:
        sample: photos of two classes or more.
        heads: names in ``HEADS`` to choose among, the simplest first.
        strength: the only one to try; None: all of each head.
        background: what other images tell.
        prior: how frequent the classes are taken to be, one of ``prior.PRIORS``. It is that of the answers, so that it
            holds for a photo that is left out as for any other: the photo still counts as one of its class.
    """
    frequency = frequencies(prior, sample.counts)
    chosen: tuple[float, Fit, str] | None = None  # accuracy, fit, name
    estimates: list[Estimate] = []
    for name in heads:
        judged = [(*_judge(fit, sample), fit) for fit in HEADS[name].fits(sample, background, strength)]
        if not judged:
            continue
        _, temperature, fit = min(judged, key=lambda entry: entry[0])
        fit = _answering(fit, temperature, frequency)
        right = fit.held_out.argmax(1) == sample.labels
        accuracy, low, high = mean_accuracy(right[sample.judged], sample.labels[sample.judged], frequency)
        if bool(sample.judged.any()):
            estimates.append(Estimate(name, fit.strength, accuracy, low, high, HEADS[name].judged_by))
        if chosen is None or accuracy > chosen[0]:
            chosen = accuracy, fit, name
    if chosen is None:
        raise UserError(
            f"--head {heads[0]}: needs photos of a class that differ, three of one class, or two of each of two; "
            "add some, or take --head mean",
            "photos.few",
        )
    _, fit, name = chosen
    return Choice(fit, name, tuple(estimates))


def mean_accuracy(
    right: torch.Tensor, labels: torch.Tensor, frequency: torch.Tensor | None = None
) -> tuple[float, float, float]:
    """Return the mean over classes of the percentage of photos that are right, and the ends of its 95% interval; 0, 0
    and 100 without a photo.

    The interval is Wilson's, which stays within 0 to 100, at the effective number of photos (Kish 1965): as many as
    give a single share the variance of this mean. That is of all classes, each binomial at (right + 1) / (photos + 2),
    so that a class without an error does not count as certain; where all are as large and as hard, it is all photos.

    Args:
        right: bool [N].
        labels: the class of each photo, int64 [N].
        frequency: by which each class counts, float64 [classes]; None: all the same.
    """
    counts = labels.bincount().double()
    there = counts > 0
    shares = torch.ones_like(counts) if frequency is None else frequency[: len(counts)]
    counts, sums = counts[there], labels[right].bincount(minlength=len(counts)).double()[there]
    if not len(counts):
        return 0.0, 0.0, 100.0
    shares = shares[there] / shares[there].sum()
    mean, smooth = 100 * float((shares * sums / counts).sum()), (sums + 1) / (counts + 2)
    variance, likely = (shares.square() * smooth * (1 - smooth) / counts).sum(), (shares * smooth).sum()
    return mean, *wilson(mean, float(likely * (1 - likely) / variance))


def _answering(fit: Fit, temperature: float, frequency: torch.Tensor) -> Fit:
    """Return a fit whose softmax gives the answers: its scores divided by the temperature, with which probabilities of
    held-out photos are right where all classes are as frequent, and the logarithms of the frequencies [classes]."""
    rows, offset, held_out = (tensor / temperature for tensor in (fit.rows, fit.offset, fit.held_out))
    return Fit(rows, offset + frequency.log(), fit.unit, held_out + frequency.log(), fit.strength)


def _judge(fit: Fit, sample: Sample) -> tuple[float, float]:
    """Return the log loss of held-out photos at the best temperature, and that temperature; without a photo that can be
    held out, the temperature at which the scores' deviation is 1."""
    judged = sample.judged
    if not bool(judged.any()):
        return 0.0, float(fit.held_out.std()) or 1.0
    weights = 1 / sample.counts[sample.labels[judged]]
    return best_temperature(fit.held_out[judged], sample.labels[judged], weights / weights.sum())


def answer_counts(scores: torch.Tensor, sample: Sample) -> torch.Tensor:
    """Return how often held-out photos of each class got each answer, int64 [classes, classes]."""
    classes, judged = len(sample.counts), sample.judged
    pairs = sample.labels[judged] * classes + scores[judged].argmax(1)
    return pairs.bincount(minlength=classes**2).view(classes, classes)
