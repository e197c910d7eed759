"""The page about a model of photos alone: how it classified photos that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_train.report.page import templates
from dist_train.report.per_class import ClassAccuracy, ClassList, Counts, accuracy_per_class, confusions


@dataclass(frozen=True)
class HeadRow:
    """A head that was tried.

    Attributes:
        name: as people call it.
        accuracy: percent of held-out photos, the mean over classes, each of which counts by how frequent it is taken to
            be.
        low, high: the ends of its 95% interval.
        judged_by: how photos were held out.
        chosen: whether the model has it.
    """

    name: str
    accuracy: float
    low: float
    high: float
    judged_by: str
    chosen: bool


def photos_html(
    names: Sequence[str],
    photos: Sequence[int],
    answers: Counts,
    heads: Sequence[HeadRow],
    facts: Mapping[str, Any],
    by_photos: bool = False,
) -> str:
    """Return the page, which needs no file beside itself.

    Args:
        names: of the classes.
        photos: of each class.
        answers: how often held-out photos of each class got each answer, [classes, classes].
        heads: those that were tried; none where no photo could be held out.
        facts: to show, where the numbers come from.
        by_photos: whether classes are taken to be as frequent as their photos; else all the same.
    """
    classes = ClassList(tuple(names), tuple(names), len(names))
    rows = [
        (row, count) for row, count in zip(accuracy_per_class(np.asarray(answers), classes), photos, strict=True)
        if row.answers
    ]  # fmt: skip
    return (
        templates()
        .get_template("photos.html")
        .render(
            chosen=next((head for head in heads if head.chosen), None),
            heads=heads,
            rows=sorted(rows, key=_by_accuracy),
            confusions=confusions(np.asarray(answers), classes)["base"],
            photos=sum(photos),
            classes=len(names),
            alone=[name for name, count in zip(names, photos, strict=True) if count == 1],
            facts=facts,
            by_photos=by_photos,
        )
    )


def _by_accuracy(row: tuple[ClassAccuracy, int]) -> float:
    return row[0].top1
