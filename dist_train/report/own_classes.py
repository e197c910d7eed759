"""What the report says first to the owner of the photos: each class, what is confused, and what more photos bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.fewshot.learning_curve import LearningCurve
from dist_train.report.chart import Label, LineChart, Series, line_chart
from dist_train.report.per_class import ClassList, Counts, accuracy_per_class, wilson

PAIRS = 8
"""Confused pairs that are shown."""
PICTURES = 3
"""Photos that are shown of each class of a pair."""


@dataclass(frozen=True)
class OwnClass:
    """What the validation photos of a class were taken for.

    Attributes:
        new: whether it is a novel class.
        learned: training photos that the answers rest on.
        photos: validation photos.
        right: percent of them that are named right, the mean over draws.
        low, high: the 95% interval of ``right`` for so many photos (Wilson).
        taken_for, taken_for_share: the most frequent wrong answer, "" for none, and the percent that get it.
    """

    name: str
    new: bool
    learned: int
    photos: int
    right: float
    low: float
    high: float
    taken_for: str
    taken_for_share: float


@dataclass(frozen=True)
class ConfusedPair:
    """A class that is taken for another, with thumbnails of validation photos of both.

    Attributes:
        share: percent of the truth's photos that get this answer.
        mistaken: of the truth: photos that got this answer, or the class's first.
        seen: whether ``mistaken`` are known to have got this answer.
        others: of the answer: the class's first.
    """

    truth: str
    answer: str
    share: float
    mistaken: list[str]
    seen: bool
    others: list[str]


@dataclass(frozen=True)
class OwnClasses:
    """The classes of a run on one's own photos, as one method names them.

    Attributes:
        method: name in ``evaluate.methods``.
        shots: photos that it has seen of each novel class; 0 where there are none.
        right: percent of all validation photos that are named right.
        classes: the worst first.
        curve: what more photos would bring; None where that is not known.
        trained_here: whether the run trained the network on the photos of its base classes.
    """

    method: str
    shots: int
    right: float
    classes: list[OwnClass]
    pairs: list[ConfusedPair]
    curve: LearningCurve | None
    trained_here: bool

    @property
    def photos(self) -> int:
        """The number of validation photos."""
        return sum(entry.photos for entry in self.classes)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of ``right`` for so many photos (Wilson)."""
        return wilson(self.right, self.photos)

    def variables(self) -> dict[str, Any]:
        """Return the variables of the section's template."""
        return {"own": self, "chart": self.curve and _chart(self.curve), "finding": self.curve and finding(self.curve)}


def own_class_rows(counts: Counts, classes: ClassList, learned: Sequence[int], draws: int) -> list[OwnClass]:
    """Return what became of the photos of each class, the worst first.

    Args:
        counts: summed over ``draws`` draws.
        learned: training photos of each class.
    """
    rows = []
    for row, own in zip(accuracy_per_class(counts, classes), learned, strict=True):
        photos = row.answers // draws
        interval = wilson(row.top1, photos) if photos else (0.0, 100.0)
        rows.append(
            OwnClass(row.name, row.role == "novel", own, photos, row.top1, *interval, row.taken_for,
                     row.taken_for_share)
        )  # fmt: skip
    return sorted(rows, key=lambda row: row.right)


def right_share(counts: Counts) -> float:
    """Return the percent of all photos that are named right."""
    return 100 * float(np.trace(counts)) / max(int(counts.sum()), 1)


def finding(curve: LearningCurve) -> str:
    """Say in a sentence what the last doubling, or the last step, of the photos brought. It claims nothing of numbers
    of photos that were not tried."""
    before, last = (f"{point.images:.3g}" for point in curve.points[-2:])
    kind = "each new class" if curve.novel else "each class"
    gain, half = curve.gain.mean, curve.gain.half_width
    numbers = f"95% interval {gain - half:+.1f} to {gain + half:+.1f}"
    start = f"With {last} photos of {kind} in place of {before}"
    if gain - half > 0:
        return (f"{start}, {gain:.1f} points more are named right ({numbers}): the curve is still rising, so more "
                "photos are worth trying.")  # fmt: skip
    if gain + half < 0:
        return f"{start}, {-gain:.1f} points fewer are named right ({numbers}): more photos alone do not help here."
    return (f"{start}, the share that is named right changes by {gain:+.1f} points ({numbers}), which may be chance: "
            "more photos of this kind are not known to help.")  # fmt: skip


def _chart(curve: LearningCurve) -> LineChart | None:
    points = tuple((point.images, point.accuracy.mean) for point in curve.points)
    halves = tuple(point.accuracy.half_width for point in curve.points)
    kind, unit = ("New classes", "new class") if curve.novel else ("All classes", "class")
    ticks = [round(x, 1) for x, _ in points]
    return line_chart(
        f"{kind}: right (%)", f"photos of each {unit}", [Series(Label("right", 0), points, halves)], ticks
    )
