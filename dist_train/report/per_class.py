"""Accuracy and confusions of each class, from counts of how often a class was taken for another.

``evaluate/rows/METHOD.npz`` keeps the counts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int32]
"""int32 [classes, classes]: truth, prediction; base classes first; summed over draws."""
Role = Literal["base", "novel"]


@dataclass(frozen=True)
class ClassList:
    """All classes that are scored together, base before novel: wnids and names; ``base`` counts the base classes."""

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    base: int

    def role(self, number: int) -> Role:
        """Return whether the class of this number is a base or a novel class."""
        return "base" if number < self.base else "novel"


@dataclass(frozen=True)
class ClassAccuracy:
    """What the images of one class were taken for.

    Attributes:
        answers: images times draws.
        top1: percent of the answers that are right.
        other_role: percent of the answers that name a novel class for a base class, or a base class for a novel one.
        taken_for: the most frequent wrong answer; "" for none.
        taken_for_share: percent of the answers that give it.
    """

    wnid: str
    name: str
    role: Role
    answers: int
    top1: float
    other_role: float
    taken_for: str
    taken_for_share: float


COLUMNS = ("method", "shots", *(field.name for field in fields(ClassAccuracy)))
"""Columns of ``per_class.csv``."""


@dataclass(frozen=True)
class Confusion:
    """A pair of classes; ``share`` is the percent of the truth's images that get this answer."""

    truth: str
    answer: str
    answer_role: Role
    share: float


@dataclass(frozen=True)
class ClassReport:
    """All classes as one method classifies them at one number of shots; ``confusions`` by the role of the truth."""

    method: str
    shots: int
    rows: list[ClassAccuracy]
    confusions: dict[Role, list[Confusion]]

    def to_json(self) -> dict[str, Any]:
        """Return the report as ``figures/classes.json`` has it."""
        return asdict(self)


def accuracy_per_class(counts: Counts, classes: ClassList) -> list[ClassAccuracy]:
    """Return the accuracy of each class, in the order of the classes."""
    rows = []
    for number, row in enumerate(counts.astype(np.int64)):
        answers, wrong = max(int(row.sum()), 1), row.copy()
        wrong[number] = 0
        other = row[classes.base :] if number < classes.base else row[: classes.base]
        most = int(wrong.argmax())
        rows.append(
            ClassAccuracy(
                wnid=classes.wnids[number],
                name=classes.names[number],
                role=classes.role(number),
                answers=int(row.sum()),
                top1=_percent(row[number], answers),
                other_role=_percent(other.sum(), answers),
                taken_for=classes.names[most] if wrong[most] else "",
                taken_for_share=_percent(wrong[most], answers),
            )
        )
    return rows


def confusions(counts: Counts, classes: ClassList, most: int = 12) -> dict[Role, list[Confusion]]:
    """Return the ``most`` frequent confusions for images of base and of novel classes, most frequent first."""
    pairs: dict[Role, list[Confusion]] = {}
    parts: list[tuple[Role, range]] = [
        ("base", range(classes.base)), ("novel", range(classes.base, len(counts)))
    ]  # fmt: skip
    for role, truths in parts:
        pairs[role] = [
            Confusion(classes.names[truth], classes.names[answer], classes.role(answer), round(percent, 2))
            for truth, answer, percent in most_confused(counts, truths, most)
        ]
    return pairs


def most_confused(counts: Counts, truths: Sequence[int], most: int) -> list[tuple[int, int, float]]:
    """Return the ``most`` frequent confusions for images of these classes, most frequent first.

    Returns:
        truth, answer, and the percent of the truth's images that get it.
    """
    share = 100 * counts[list(truths)] / np.maximum(counts[list(truths)].sum(1, keepdims=True), 1)
    share[np.arange(len(truths)), list(truths)] = 0
    order = np.argsort(-share.ravel(), kind="stable")[:most]
    return [
        (truths[row], answer, percent)
        for row, answer, percent in zip(
            *(part.tolist() for part in divmod(order, len(counts))), share.ravel()[order].tolist(), strict=True
        )
        if percent > 0
    ]


def wilson(percent: float, count: float) -> tuple[float, float]:
    """Return the ends of the 95% interval of a percentage of ``count`` images (Wilson 1927), within 0 to 100.

    For a mean over classes, ``count`` is the number of images whose share would vary as much:
    ``heads.choice.mean_accuracy``.
    """
    z, share = 1.96, percent / 100
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def with_interval(percent: float, low: float, high: float) -> str:
    """Return a percentage with the ends of its 95% interval, as texts have it: "90.0% (95% interval 59.6 to 98.2%)"."""
    return f"{percent:.1f}% (95% interval {low:.1f} to {high:.1f}%)"


def csv_text(parts: Iterable[tuple[str, str, Sequence[ClassAccuracy]]]) -> str:
    """Return ``per_class.csv`` from (method, number of shots or "all" for an oracle, accuracies)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for method, shots, rows in parts:
        writer.writerows({"method": method, "shots": shots, **vars(row)} for row in rows)
    return out.getvalue()


def _percent(part: Any, whole: int) -> float:
    return round(100 * int(part) / whole, 2)
