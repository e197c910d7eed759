"""What more photos would bring: the accuracy of a head that is fitted to a part of the training images.

The head is linear and in closed form (closed_form.py), on the activations that the run has stored. The network is the
same at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train.data.activations import Activations
from dist_train.fewshot import closed_form
from dist_train.fewshot.results import Interval
from dist_train.fewshot.table_row import half_width

FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the training images of each class that a head is fitted to."""
DRAWS = 5
"""Draws of the images that are kept, at every share but all."""
MOST = 200_000
"""Training images of a run that gets a curve, at most: half of them are copied in memory, 0.4 GB at 2048 dimensions."""

Job = tuple[float, int]
"""A share of the images, and the number of a draw."""


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy in percent at a number of images a class: the mean over classes, where these have several."""

    images: float
    accuracy: Interval


@dataclass(frozen=True)
class LearningCurve:
    """Accuracy against the number of images a class.

    Attributes:
        points: by rising number of images, two or more.
        gain: difference of the last two points, in points of a percentage.
        novel: whether it is that of novel classes, over numbers of shots; else that of the base classes.
    """

    points: tuple[CurvePoint, ...]
    gain: Interval
    novel: bool

    def to_json(self) -> dict[str, Any]:
        """Return the curve as ``figures/more_photos.json`` has it."""
        points = [{"images": point.images, **point.accuracy.to_json()} for point in self.points]
        return {"classes": "novel" if self.novel else "base", "points": points, "gain": self.gain.to_json()}


def curve_of_shots(accuracies: Sequence[tuple[int, Interval]]) -> LearningCurve | None:
    """Return the curve of the novel classes from a method's accuracy by number of shots, with the draws; None for
    fewer than two numbers. The gain is paired, draw by draw."""
    if len(accuracies) < 2:
        return None
    points = tuple(CurvePoint(float(k), accuracy) for k, accuracy in sorted(accuracies, key=lambda pair: pair[0]))
    return LearningCurve(points, Interval.paired(points[-1].accuracy.draws, points[-2].accuracy.draws), novel=True)


def curve_of_images(
    train: Activations,
    val: Activations,
    device: torch.device,
    seed: int,
    watch: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> LearningCurve | None:
    """Fit heads to shares of the training images of each class, and measure each on all validation images.

    The kind and the strength of a head are chosen by cross-validation on the training images of the first draw of its
    share. A point's interval is over the draws; that of the gain is over validation images, each with its mean over
    draws, because chance in these is the larger part.

    Args:
        watch: wraps the loop over the fits; it may show progress.

    Returns:
        None where no class has two images, or there are more than ``MOST`` images.
    """
    counts = np.diff(train.offsets)
    if counts.max() < 2 or len(train.rows) > MOST:
        return None
    shares = {int(_kept(counts, share).sum()): share for share in FRACTIONS}  # of shares with the same images the last
    queries = torch.from_numpy(val.rows.astype(np.float32)).to(device)
    labels = torch.from_numpy(val.labels).to(device)
    right: dict[float, list[npt.NDArray[np.bool_]]] = {}
    choices: dict[float, tuple[str, float]] = {}
    jobs = [(share, draw) for share in shares.values() for draw in range(DRAWS if share < 1 else 1)]
    for share, draw in watch(jobs):
        table = train if share == 1 else _part(train, share, seed, draw)
        if draw == 0:
            fitted = closed_form.fit(table, device)
            choices[share] = fitted.kind, fitted.strength
        rows, bias = closed_form.solve(table, device, *choices[share])
        right.setdefault(share, []).append(((queries @ rows.T + bias).argmax(1) == labels).cpu().numpy())
    points = tuple(
        CurvePoint(float(_kept(counts, share).mean()), Interval.of([100 * float(r.mean()) for r in draws]))
        for share, draws in right.items()
    )
    last, before = (np.mean(right[share], axis=0) for share in list(right)[:-3:-1])
    difference = 100 * (last - before)
    return LearningCurve(points, Interval(float(difference.mean()), float(half_width(difference))), novel=False)


def _kept(counts: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Return how many images of each class make up a share: at least one."""
    return np.maximum(1, np.round(share * counts)).astype(np.int64)


def _part(table: Activations, share: float, seed: int, draw: int) -> Activations:
    """Return a share of each class's images, as a copy; a larger share of the same draw has those of a smaller one."""
    numbers = np.random.RandomState([seed, draw])
    counts = np.diff(table.offsets)
    kept = _kept(counts, share)
    places = np.concatenate([
        first + np.sort(numbers.permutation(count)[:own])
        for first, count, own in zip(table.offsets[:-1], counts, kept, strict=True)
    ])  # fmt: skip
    return Activations(table.rows[places], table.ids[places], np.concatenate([[0], np.cumsum(kept)]))
