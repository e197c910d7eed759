"""The protocol: seeded support draws, all classes scored together, exact ranks (paper, section 4.1).

Queries are validation images of base and novel classes. Supports are training images of novel
classes. Every method sees the same draws, and the supports of k shots are the first k of a draw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats

from dist_train.data.activations import Activations
from dist_train.data.shards import Subset
from dist_train.errors import UserError

METRICS = ("base_top1", "base_top5", "novel_top1", "novel_top5", "harmonic")


class Method(Protocol):
    """One row of the table. Made once from the base activations; scores of one query are comparable
    over all classes, base and novel."""

    def base_scores(self, queries: torch.Tensor) -> torch.Tensor:
        """[Q, C] -> [Q, base classes]."""

    def novel_scores(self, queries: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        """Queries [Q, C] and support [novel classes, k, C] -> [Q, novel classes]."""


@dataclass(frozen=True)
class Queries:
    """Activations float32 [Q, C] and labels int64 [Q] (within base, or within novel)."""

    activations: torch.Tensor
    labels: torch.Tensor


def support_rows(novel: Activations, shots: int, seed: int, draw: int) -> npt.NDArray[np.int64]:
    """Rows of the support images of one draw: [novel classes, shots], no image twice.

    ``RandomState`` because NumPy freezes its stream: a draw stays what it was.

    Raises:
        UserError: a class has fewer images than shots.
    """
    counts = np.diff(novel.offsets)
    if counts.min() < shots:
        raise UserError(f"evaluate.shots: {shots} shots, but a novel class has only {counts.min()} training images")
    rows = [
        first + np.random.RandomState([seed, draw, number]).permutation(count)[:shots]
        for number, (first, count) in enumerate(zip(novel.offsets[:-1], counts, strict=True))
    ]
    return np.stack(rows).astype(np.int64)


def assert_disjoint(support: Subset, support_ids: npt.NDArray[Any], query: Subset, query_ids: npt.NDArray[Any]) -> None:
    """No image is support and query: other subsets, and no key in both.

    Raises:
        UserError: an image's key is in both.
    """
    if support.name == query.name:
        raise UserError(f"support and query are both {query.name!r} images")
    both = np.intersect1d(support.samples["key"][support_ids], query.samples["key"][query_ids])
    if len(both):
        raise UserError(
            f"{query.source}: image {both[0].decode()} is in {support.name} and in {query.name}; "
            f"remove it from one and pack again"
        )


class JointScorer:
    """Ranks of the true class among all classes, for one method.

    The base classes' part is computed once; a draw adds the novel columns. A tie goes to the class
    with the lower number, base before novel, so that a draw cannot win by ties.
    """

    def __init__(self, method: Method, base: Queries, novel: Queries) -> None:
        self.method, self.base, self.novel = method, base, novel
        scores = method.base_scores(base.activations)
        own = scores.gather(1, base.labels[:, None])
        lower = torch.arange(scores.shape[1], device=scores.device) < base.labels[:, None]
        self.own = own
        self.ahead = ((scores > own) | ((scores == own) & lower)).sum(1)
        # Five competitors are all that top-5 can tell apart.
        scores = method.base_scores(novel.activations)
        self.rivals = scores.topk(min(5, scores.shape[1])).values

    def draw(self, support: torch.Tensor) -> dict[str, float]:
        """Percentages for one support set, float32 [novel classes, k, C]."""
        novel = self.method.novel_scores(self.base.activations, support)
        base_rank = self.ahead + (novel > self.own).sum(1)
        scores = self.method.novel_scores(self.novel.activations, support)
        own = scores.gather(1, self.novel.labels[:, None])
        lower = torch.arange(scores.shape[1], device=scores.device) < self.novel.labels[:, None]
        novel_rank = (self.rivals >= own).sum(1) + ((scores > own) | ((scores == own) & lower)).sum(1)
        found = {}
        for name, rank in (("base", base_rank), ("novel", novel_rank)):
            for k in (1, 5):
                found[f"{name}_top{k}"] = 100 * (rank < k).double().mean().item()
        return {**found, "harmonic": harmonic_mean(found["base_top1"], found["novel_top1"])}


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def summary(draws: Sequence[float]) -> dict[str, Any]:
    """Mean, half-width of the 95% t-interval of the mean over draws, and the draws themselves."""
    values = np.asarray(draws, np.float64)
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return {"mean": float(values.mean()), "ci95": float(half), "draws": [round(v, 6) for v in values.tolist()]}
