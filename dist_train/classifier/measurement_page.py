"""The page about a measurement: one self-contained file, with the pictures of the worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.measuring import BINS, Confusion, MeasuredPhoto, Measurement
from dist_train.errors import UserError
from dist_train.names import spelt
from dist_train.report.chart import Label, LineChart, Series, line_chart
from dist_train.report.examples import SIDE
from dist_train.report.page import templates

MISTAKES = 24
"""Wrong answers that are shown with their pictures."""
_MATRIX = 30  # classes that a confusion matrix fits on a page
_LISTED = 12  # confusions that are listed


@dataclass(frozen=True)
class Mistake:
    """A wrong answer with its picture, a data: URI; "" where there is none."""

    photo: MeasuredPhoto
    picture: str


@dataclass(frozen=True)
class Matrix:
    """How many photos of each class (rows) got each answer (columns).

    Attributes:
        names: of the classes, of the rows and of the columns.
        counts: [classes][classes].
        shares: the same as a percentage of the row's photos.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


def measurement_html(
    measurement: Measurement, pictures: Mapping[str, str], title: str, facts: Mapping[str, Any]
) -> str:
    """Return the page, which needs no file beside itself.

    Args:
        measurement: what is shown.
        pictures: name of a photo -> its picture as a data: URI, for the worst mistakes.
        title: of the page.
        facts: to show, where the numbers come from.
    """
    return (
        templates()
        .get_template("measurement.html")
        .render(
            m=measurement,
            title=title,
            bins=BINS,
            rows=sorted(measurement.per_class, key=lambda entry: entry.top1),
            matrix=confusion_matrix(measurement),
            confusions=measurement.confusions[:_LISTED],
            mistakes=[
                Mistake(replace(photo, photo=spelt(photo.photo)), pictures.get(photo.photo, ""))
                for photo in measurement.worst(MISTAKES)
            ],
            reliability=_reliability(measurement),
            curve=_threshold_curve(measurement),
            facts=facts,
        )
    )


def confusion_matrix(measurement: Measurement) -> Matrix | None:
    """Return the matrix of the classes that are asked for or answered; None where these are too many for a page."""
    names = [entry.name for entry in measurement.per_class]
    names += sorted({pair.answer for pair in measurement.confusions} - set(names))
    if len(names) > _MATRIX:
        return None
    counts = np.zeros((len(names), len(names)), int)
    right = {entry.name: round(entry.top1 * entry.photos / 100) for entry in measurement.per_class}
    for pair in (*measurement.confusions, *(Confusion(name, name, count, 0.0) for name, count in right.items())):
        counts[names.index(pair.truth), names.index(pair.answer)] = pair.photos
    counts = counts[: len(measurement.per_class)]  # a class without photos has no row
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return Matrix(tuple(names), tuple(map(tuple, counts.tolist())), tuple(map(tuple, shares.tolist())))


def pictures_of(model: Classifier, measurement: Measurement) -> dict[str, str]:
    """Return the pictures of the worst mistakes, for ``measurement_html``, from the files that the photos are named by;
    none of a file that cannot be read any more."""
    pictures = {}
    for photo in measurement.worst(MISTAKES):
        try:
            pixels = model.pixels(Path(photo.photo)).cpu().permute(1, 2, 0).contiguous().numpy()
        except UserError:
            continue
        out = io.BytesIO()
        ImageOps.fit(Image.fromarray(pixels), (2 * SIDE, 2 * SIDE)).save(out, "JPEG", quality=80)
        pictures[photo.photo] = "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
    return pictures


def _reliability(measurement: Measurement) -> LineChart | None:
    points = tuple((bin.said, bin.right) for bin in measurement.bins)
    series = [Series(Label("as often right as said", -1, 1), ((0.0, 0.0), (100.0, 100.0))),
              Series(Label("this model", 0), points)]  # fmt: skip
    return line_chart("Right (%)", "said (%)", series, (0, 20, 40, 60, 80, 100))


def _threshold_curve(measurement: Measurement) -> LineChart | None:
    points = tuple((point.answered, point.right) for point in reversed(measurement.curve))
    return line_chart("Right (%) of the answers given", "answered (%)", [Series(Label("this model", 0), points)])
