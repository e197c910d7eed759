"""The choice of a head and of its strength by photos that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dist_train.classifier.head import Estimate
from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample
from dist_train.classifier.heads.discriminant import Discriminant
from dist_train.classifier.heads.means import Imprinting, NearestMean
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
        fit: its rows, offsets and scores of held-out photos, divided by the temperature.
        temperature: by which the fit's own scores were divided, so that probabilities of held-out photos are right.
        head: its name in ``HEADS``.
        estimates: of all heads that were tried, the simplest first; empty where no photo could be held out.
    """

    fit: Fit
    temperature: float
    head: str
    estimates: tuple[Estimate, ...]


def choose(
    sample: Sample, heads: Sequence[str], strength: float | None = None, background: Background | None = None
) -> Choice:
    """Fit heads to photos, and return the head that classifies held-out photos best: by the mean of the classes'
    accuracies, so that a class of few photos counts as much as a class of many. Of equal heads the simplest is taken.

    The strength of each head is the one whose probabilities of held-out photos are best (the lowest mean over classes
    of the log loss), as accuracies of few photos are equal too often. The accuracy of the best of several is a little
    too high an estimate of itself.

    Args:
        sample: photos of two classes or more.
        heads: names in ``HEADS`` to choose among, the simplest first.
        strength: the only one to try; None: all of each head.
        background: what other images tell.
    """
    chosen: tuple[float, float, Fit, str] | None = None  # accuracy, temperature, fit, name
    estimates: list[Estimate] = []
    for name in heads:
        judged = [(*_judge(fit, sample), fit) for fit in HEADS[name].fits(sample, background, strength)]
        if not judged:
            continue
        _, temperature, fit = min(judged, key=lambda entry: entry[0])
        right = fit.held_out.argmax(1) == sample.labels
        accuracy, low, high = balanced_accuracy(right[sample.judged], sample.labels[sample.judged])
        if bool(sample.judged.any()):
            estimates.append(Estimate(name, fit.strength, accuracy, low, high, HEADS[name].judged_by))
        if chosen is None or accuracy > chosen[0]:
            chosen = accuracy, temperature, fit, name
    if chosen is None:
        raise UserError(
            f"--head {heads[0]}: needs photos of a class that differ, three of one class, or two of each of two; "
            "add some, or take --head mean",
            "photos.few",
        )
    _, temperature, fit, name = chosen
    rows, offset, held_out = (tensor / temperature for tensor in (fit.rows, fit.offset, fit.held_out))
    tempered = Fit(rows, offset, fit.unit, held_out, fit.strength)
    return Choice(tempered, temperature, name, tuple(estimates))


def balanced_accuracy(right: torch.Tensor, labels: torch.Tensor) -> tuple[float, float, float]:
    """Return the mean over classes of the percentage of photos that are right, and the ends of its 95% interval; 0, 0
    and 100 without a photo.

    The interval is Wilson's, which stays within 0 to 100, at the effective number of photos (Kish 1965): as many as
    give a single share the variance of this mean. That is of all classes, each binomial at (right + 1) / (photos + 2),
    so that a class without an error does not count as certain; where all are as large and as hard, it is all photos.

    Args:
        right: bool [N].
        labels: the class of each photo, int64 [N].
    """
    counts = labels.bincount().double()
    there = counts > 0
    counts, sums = counts[there], labels[right].bincount(minlength=len(counts)).double()[there]
    if not len(counts):
        return 0.0, 0.0, 100.0
    mean, smooth = 100 * float((sums / counts).mean()), (sums + 1) / (counts + 2)
    variance = (smooth * (1 - smooth) / counts).sum() / len(counts) ** 2
    return mean, *wilson(mean, float(smooth.mean() * (1 - smooth.mean()) / variance))


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
