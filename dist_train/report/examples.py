"""Novel classes with the images that a method was shown and its answers to others, as small pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from dist_train.data.images.orientation import turn
from dist_train.data.images.photos import open_photo
from dist_train.data.images.pillow import upright
from dist_train.data.shards.index import Subset
from dist_train.data.shards.source import ShardSource
from dist_train.errors import UserError
from dist_train.fewshot.method import Method
from dist_train.report.per_class import ClassList

# As much as a page of a few hundred kB holds.
CLASSES = 8
SUPPORTS = 2
"""Support images shown of each class."""
QUERIES = 8
"""Queries shown of each class."""
SIDE = 88
"""Pixels on each side of a thumbnail."""


@dataclass(frozen=True)
class Query:
    """A query with its answer.

    Attributes:
        image: a thumbnail, as a data: URI; "" where the image cannot be read.
        answer: name of the class with the highest score.
        rank: rank of the right class, from 1.
    """

    image: str
    answer: str
    rank: int


@dataclass(frozen=True)
class Example:
    """A novel class; ``top1`` is its accuracy over all draws in percent, ``supports`` are thumbnails."""

    name: str
    top1: float
    supports: list[str]
    queries: list[Query]


@dataclass(frozen=True)
class Examples:
    """Examples of several classes, answered by one method at one number of shots."""

    method: str
    shots: int
    classes: list[Example]


def spread_choice(top1: Sequence[float], count: int = CLASSES) -> list[int]:
    """Choose ``count`` classes from the best to the worst at equal distances, so not by their looks."""
    order = np.argsort(-np.asarray(top1), kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [int(number) for number in order[places]]


def rank_classes(
    method: Method, support: torch.Tensor, queries: torch.Tensor, kept: Sequence[int]
) -> npt.NDArray[np.int64]:
    """Return for each query the classes that are scored, by falling score.

    Args:
        support: [novel classes, shots, C]; [0, 1, C] without novel classes.
        queries: [..., C].
        kept: the base classes that are scored.

    Returns:
        int64 [..., classes]: classes are counted from 0, those of ``kept`` first, then the novel ones.
    """
    flat, novel = queries.flatten(0, -2), len(support)
    scores = method.take(support)(flat) if novel or method.moves_base else flat.new_zeros(len(flat), 0)
    first = scores.shape[1] - novel
    base = scores[:, :first] if method.moves_base else method.base_scores(flat)
    scores = torch.cat([base[:, list(kept)], scores[:, first:]], dim=1)
    order: npt.NDArray[np.int64] = scores.argsort(dim=1, descending=True, stable=True).cpu().numpy()
    return order.reshape(*queries.shape[:-1], -1)


def thumbnails(subset: Subset, ids: npt.NDArray[np.int64]) -> list[str]:
    """Return a thumbnail of each image, turned as the network sees it; "" where an image cannot be read."""
    source = ShardSource(subset)
    pictures = []
    for sample, orientation in zip(ids, subset.orientations(ids).tolist(), strict=True):
        try:
            pictures.append(thumbnail(bytes(source.read(np.array([sample]))[0]), orientation))
        except UserError:  # a report without a picture is better than none
            pictures.append("")
    source.close()
    return pictures


def thumbnail(encoded: bytes, orientation: int) -> str:
    """Return the middle of an image as a data: URI of a JPEG of 88 x 88 pixels; "" where it cannot be decoded.

    Args:
        orientation: as the index has it (data/images/orientation.py).
    """
    try:
        with open_photo(encoded) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            pixels = turn(upright(image, "stored"), orientation)
            small = ImageOps.fit(Image.fromarray(np.ascontiguousarray(pixels)), (SIDE, SIDE))
    except Exception:  # Pillow raises nearly anything on a damaged file
        return ""
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def example(
    classes: ClassList,
    number: int,
    top1: float,
    supports: Sequence[str],
    queries: Sequence[str],
    orders: npt.NDArray[np.int64],
) -> Example:
    """Return the example of the class ``number``.

    Args:
        supports, queries: thumbnails.
        orders: what ``rank_classes`` returned for these queries.
    """
    answered = [
        Query(image, classes.names[int(order[0])], 1 + int(np.flatnonzero(order == number)[0]))
        for image, order in zip(queries, orders, strict=True)
    ]
    return Example(classes.names[number], top1, list(supports), answered)
