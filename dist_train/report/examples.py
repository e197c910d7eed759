"""Novel classes with what a method was shown and what it answered: small images as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

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

CLASSES, SHOWN, ASKED = 8, 2, 8  # classes, supports and queries of each: what a page of some hundred kB holds
SIDE = 88  # pixels of an image


def choose(top1: Sequence[float], count: int = CLASSES) -> list[int]:
    """Numbers of ``count`` classes, from the best to the worst at equal distances: not picked by their looks."""
    order = np.argsort(-np.asarray(top1), kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))].tolist()


def answers(method: Method, support: torch.Tensor, queries: torch.Tensor, kept: Sequence[int]) -> npt.NDArray[np.int64]:
    """For each query all classes that are scored, the one with the highest score first: [..., C] -> int64
    [..., classes]; first ``kept``, the base classes that are scored, are counted, then the novel ones."""
    flat = queries.flatten(0, -2)
    scores = method.take(support)(flat)
    base = scores[:, : -len(support)] if method.moves_base else method.base_scores(flat)
    scores = torch.cat([base[:, list(kept)], scores[:, -len(support) :]], dim=1)
    order: npt.NDArray[np.int64] = scores.argsort(dim=1, descending=True, stable=True).cpu().numpy()
    return order.reshape(*queries.shape[:-1], -1)


def thumbnails(subset: Subset, ids: npt.NDArray[np.int64]) -> list[str]:
    """The middle of each image, turned as the network sees it, as a JPEG of 88 x 88 pixels; "" where it cannot be
    read."""
    source = ShardSource(subset)
    made = []
    for number, turned in zip(ids, subset.orientations(ids).tolist(), strict=True):
        try:
            made.append(thumbnail(bytes(source.read(np.array([number]))[0]), turned))
        except UserError:  # a report without a picture is better than none
            made.append("")
    source.close()
    return made


def thumbnail(encoded: bytes, turned: int) -> str:
    """One of ``thumbnails``; ``turned`` is its orientation (``images.orientation``)."""
    try:
        with open_photo(encoded) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))
            pixels = turn(upright(image, "stored"), turned)
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
) -> dict[str, Any]:
    """One class of the report.

    Args:
        number: the class.
        supports, queries: its images, of ``thumbnails``.
        orders: of ``answers``, for these queries.

    Returns:
        {"name", "top1", "supports": [URI], "queries": [{"image": URI, "answer", "rank"}]}: rank of the right class,
        from 1.
    """
    asked = [
        {"image": image, "answer": classes.names[int(order[0])], "rank": 1 + int(np.flatnonzero(order == number)[0])}
        for image, order in zip(queries, orders, strict=True)
    ]
    return {"name": classes.names[number], "top1": top1, "supports": list(supports), "queries": asked}
