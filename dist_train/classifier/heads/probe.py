"""Logistic regression on activations."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from dist_train.classifier.heads.contract import Background, Fit, FittedHead, Sample, eigenvectors
from dist_train.distributed.pool import tell_share

STRENGTHS = (0.001, 0.01, 0.1)
"""Inverse regularisations C that are tried, for activations of variance 1."""

FOLDS = 5
_DIRECTIONS = 256
_SEED = 0


class Probe(FittedHead):
    """Fit scikit-learn's LogisticRegression, every class with the same weight, however many photos it has.

    To leave every photo out would take a fit a photo. Instead, each class's photos are dealt to 5 folds, and each
    fold is scored by a fit on the others; so the estimate is of fits on four fifths of the photos. All fits are made in
    the 256 directions in which the activations vary most, which takes a fifth of the time.
    """

    title = "logistic probe"
    judged_by = "5-fold cross-validation"

    def fits(self, sample: Sample, background: Background | None, strength: float | None) -> Iterable[Fit]:
        centre = sample.activations.mean(0)
        basis = eigenvectors((sample.activations - centre).T @ (sample.activations - centre))[1][:, -_DIRECTIONS:]
        turned = (sample.activations - centre) @ basis
        scale = float(sample.activations.std(0, correction=0).mean()) or 1.0
        x, y = (turned / scale).float().cpu().numpy(), sample.labels.cpu().numpy()
        folds, strengths = _folds(y), STRENGTHS if strength is None else (strength,)
        for number, c in enumerate(strengths):
            held_out = np.zeros((len(x), len(sample.counts)))
            for fold in range(FOLDS):
                inside = folds != fold
                rows, offset = _regress(x[inside], y[inside], c)
                held_out[~inside] = x[~inside] @ rows.T + offset
                tell_share((number + (fold + 1) / (FOLDS + 1)) / len(strengths))
            tensors = [torch.from_numpy(array).to(basis) for array in (*_regress(x, y, c), held_out)]
            long_rows = tensors[0] @ basis.T / scale
            yield Fit(long_rows, tensors[1] - long_rows @ centre, False, tensors[2], c)


def _folds(labels: np.ndarray) -> np.ndarray:
    """Return the fold of each photo, [N]; -1 for the only photo of a class, which every fit needs."""
    folds, rng = np.full(len(labels), -1), np.random.default_rng(_SEED)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        if len(places) > 1:
            folds[places] = np.arange(len(places)) % FOLDS
    return folds


def _regress(x: np.ndarray, y: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [classes, dim] and offsets [classes]."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # for products this small, threads wait for each other: five times the CPU time on two
        fit = LogisticRegression(C=c, class_weight="balanced", max_iter=300, tol=1e-3).fit(x, y)
    if len(fit.classes_) > 2:
        return fit.coef_, fit.intercept_
    # Of two classes scikit-learn gives a single row, the second's less the first's.
    return np.concatenate([-fit.coef_, fit.coef_]) / 2, np.concatenate([-fit.intercept_, fit.intercept_]) / 2
