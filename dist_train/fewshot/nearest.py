"""The largest product of each query with the images of each class: exact where it decides, fast elsewhere.

A protocol looks at a query's few highest classes only (``Base.decisive``), so the classes are scored twice:

1. All classes, in the fastest type of the device. For a class with images r, their mean g and queries q,

       max_r q.r = q.g + max_r q.(r - g)

   where the last product is of factors rounded to that type. The sum of absolute products is at most the product of
   lengths (Cauchy-Schwarz), so the error is at most

       |q - q~| |r - g| + |q| |r - g - (r - g)~| + what the sums and the result are rounded by

   with ~ for a rounded vector. The lengths of what rounding takes away are measured, not assumed. The mean is taken
   away because what is left is shorter, and loses less.
2. The classes that may be among the highest, exactly: float32 products, and float64 where their own error leaves
   several images of the class in question.

A score of a class that decides is that of a float64 brute force, rounded once to float32; any other score is within the
bound above, and below all that decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from dist_train.models.products import products
from dist_train.training.precision import fastest_type

Classes = Callable[[], Iterable[torch.Tensor]]
"""Gives the images of each class in turn, float32 [images, C]; it may be called twice."""

_QUERIES = 8192  # at a time, to bound memory at 50,000 queries
_PAIRS = 4096  # of a query and an image, at a time: 64 MB at 2048 dimensions
_HALF_STEP = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""The largest relative error of rounding a number to this type."""
_SAFE = 1.02
"""Covers the errors of computing the bounds, and products of two of the errors."""


def largest_products(queries: torch.Tensor, classes: Classes, count: int, decisive: int | None) -> torch.Tensor:
    """Return the largest product of each query with the images of each class, float32 [Q, classes].

    Args:
        queries: float32 [Q, C].
        count: number of classes.
        decisive: how many of a query's highest classes must be exact and in their order; None for float32 products of
            all.
    """
    if decisive is None:
        return _all(queries, classes, count)
    if decisive < count:
        rough = Rough.of(queries, classes, count, fastest_type(queries.device))
        scores, decides = rough.decisive(decisive)
    else:
        scores, decides = queries.new_empty(len(queries), count), None
    for number, images in enumerate(classes()):
        chosen = slice(None) if decides is None else decides[:, number].nonzero()[:, 0]
        scores[chosen, number] = exact_largest(queries[chosen], images)
    return scores


@dataclass(frozen=True)
class Rough:
    """Hold scores in a fast type, and what their errors are bounded by.

    Attributes:
        queries: float32 [Q, C].
        largest: the largest product with an image that its class's mean was taken from, float32 [Q, classes].
        centres: the classes' means, float32 [classes, C].
        lengths, lost: the largest length of a rounded image of a class, without the mean, and of what rounding took
            away: float32 [classes] each.
        kind: the type.
    """

    queries: torch.Tensor
    largest: torch.Tensor
    centres: torch.Tensor
    lengths: torch.Tensor
    lost: torch.Tensor
    kind: torch.dtype

    @classmethod
    def of(cls, queries: torch.Tensor, classes: Classes, count: int, kind: torch.dtype) -> Rough:
        """Score all classes."""
        rounded = queries.to(kind)
        # Allocated before the loop: columns allocated in it would fragment the heap's large blocks.
        largest = queries.new_empty(len(queries), count)
        centres, lengths, lost = queries.new_empty(count, queries.shape[1]), *queries.new_empty(2, count)
        for number, images in enumerate(classes()):
            centres[number] = images.mean(0)
            away = images - centres[number]
            near = away.to(kind)
            lengths[number] = near.float().norm(dim=1).amax()
            lost[number] = (away - near.float()).norm(dim=1).amax()
            for chunk in _chunks(len(queries), _QUERIES):
                largest[chunk, number] = (rounded[chunk] @ near.T).amax(1).float()
        return cls(queries, largest, centres, lengths, lost, kind)

    def decisive(self, top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores [Q, classes], and whether each may be among the ``top`` highest of its query: bool."""
        scores = torch.empty_like(self.largest)
        decides = torch.empty_like(self.largest, dtype=torch.bool)
        for chunk in _chunks(len(scores), _QUERIES):
            scores[chunk] = products(self.queries[chunk], self.centres) + self.largest[chunk]
            bounds = self.bounds(chunk)
            floor = (scores[chunk] - bounds).topk(top, dim=1).values[:, -1:]
            decides[chunk] = scores[chunk] + bounds >= floor
        return scores, decides

    def bounds(self, chunk: slice) -> torch.Tensor:
        """Return bounds of the errors of these queries' scores, float32 [queries, classes]."""
        queries = self.queries[chunk]
        own_loss = (queries - queries.to(self.kind).float()).norm(dim=1, keepdim=True)
        sums = sum_error(queries) * (self.lengths + self.centres.norm(dim=1))
        bounds: torch.Tensor = own_loss * self.lengths + queries.norm(dim=1, keepdim=True) * (self.lost + sums)
        bounds = bounds + _HALF_STEP[self.kind] * self.largest[chunk].abs()
        return _SAFE * bounds + 1e-30


def sum_error(vectors: torch.Tensor) -> float:
    """Return the error of a float32 sum of C products, for vectors [..., C], relative to the sum of their sizes.

    In any order it is at most C half steps of 2^-24 (Higham 2002, section 4.2), and twice that covers the subtraction
    of the mean. GPUs may cut bits off in place of rounding, which doubles it.
    """
    return float(vectors.shape[-1] * (2.0**-22 if vectors.device.type == "cuda" else 2.0**-23))


def exact_largest(queries: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return the largest product of each query [Q, C] with the images [n, C]: float32 [Q], as from float64."""
    largest = queries.new_empty(len(queries))
    for chunk in _chunks(len(queries), _QUERIES):
        largest[chunk] = _exact_largest(queries[chunk], images)
    return largest


def _exact_largest(queries: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    scores = products(queries, images)
    error = _SAFE * sum_error(queries) * queries.norm(dim=1, keepdim=True) * images.norm(dim=1).amax()
    which, image = (scores >= scores.amax(1, keepdim=True) - 2 * error).nonzero(as_tuple=True)
    largest = torch.full((len(queries),), -torch.inf, dtype=torch.float64, device=queries.device)
    for chunk in _chunks(len(which), _PAIRS):
        exact = (queries[which[chunk]].double() * images[image[chunk]].double()).sum(1)
        largest.scatter_reduce_(0, which[chunk], exact, "amax")
    return largest.float()


def _all(queries: torch.Tensor, classes: Classes, count: int) -> torch.Tensor:
    """Return all scores from float32 products."""
    largest = queries.new_empty(len(queries), count)
    for number, images in enumerate(classes()):
        for chunk in _chunks(len(queries), _QUERIES):
            largest[chunk, number] = products(queries[chunk], images).amax(1)
    return largest


def first_largest(queries: torch.Tensor, rows: torch.Tensor, shots: Iterable[int]) -> torch.Tensor:
    """Return the largest product of each query [Q, C] with the first k rows of each class [classes, rows, C], for each
    k of ``shots``: float32 [shots, Q, classes]. All products are computed once."""
    classes, count, dim = rows.shape
    flat = rows.transpose(0, 1).reshape(-1, dim)  # support by support: the largest is over a row of classes each
    numbers = list(shots)
    largest = queries.new_empty(len(numbers), len(queries), classes)
    for chunk in _chunks(len(queries), _QUERIES):
        scores = products(queries[chunk], flat)
        by_support = scores.view(len(scores), count, classes)
        for place, k in enumerate(numbers):
            largest[place, chunk] = by_support[:, :k].amax(1)
    return largest


def _chunks(count: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` that cover ``count`` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
