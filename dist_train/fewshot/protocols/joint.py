"""The protocol: seeded support draws, all classes scored together, exact ranks (paper, section 4.1).

Queries are validation images of base and novel classes. Supports are training images of novel
classes. Every method sees the same draws, and the supports of k shots are the first k of a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dist_train.data.activations import Activations
from dist_train.data.shards.index import Subset
from dist_train.errors import UserError
from dist_train.fewshot.method import Method, Scorer, Support
from dist_train.fewshot.table_row import half_width


@dataclass(frozen=True)
class Queries:
    """Activations float32 [Q, C] and labels int64 [Q] (within base, or within novel)."""

    activations: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Mixed:
    """Base and novel queries in one drawn order: activations float32 [Q, C], and the places of both kinds in it,
    int64, in the order of their ``Queries``."""

    activations: torch.Tensor
    base: torch.Tensor
    novel: torch.Tensor

    @classmethod
    def of(cls, base: Queries, novel: Queries) -> Mixed:
        counts, device = [len(base.labels), len(novel.labels)], base.activations.device
        order = np.random.RandomState(0).permutation(sum(counts))
        both = torch.cat([base.activations, novel.activations])[torch.from_numpy(order).to(device)]
        return cls(both, *torch.from_numpy(order.argsort()).to(device).split(counts))


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


@dataclass(frozen=True)
class Draw:
    """What one support set leads to; percent.

    Attributes:
        metrics: base_top1, base_top5, novel_top1, novel_top5, harmonic, ausuc; and those of ``JointScorer.more``.
        seen_unseen: base top-1 where a number added to the novel scores makes novel top-1 0, 1, ... 100%; 0 where
            no number does (Chao et al. 2016, section 4): float64 [101].
        forgetting: base top-1 when 0, 1, ... novel classes have been added: float64 [novel classes + 1].
        predicted: the class with the highest score for every base and then every novel query, base classes
            counted first: int64 [Q base + Q novel].
    """

    metrics: dict[str, float]
    seen_unseen: npt.NDArray[np.float64]
    forgetting: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.int64]


class JointScorer:
    """Ranks of the true class among all classes, for one method.

    The base classes' part is computed once, unless supports change it; a draw adds the novel columns. A tie
    goes to the class with the lower number, base before novel, so that a draw cannot win by ties.

    A method is asked for all queries at once, base and novel ones mixed: neither the batch nor the place in it
    tells which is which.

    Raises:
        UserError: scores are not finite.
    """

    def __init__(
        self,
        method: Method,
        base: Queries,
        novel: Queries,
        kept: Sequence[int] | None = None,
        mixed: Mixed | None = None,
    ) -> None:
        """``kept``: the method's base classes that are scored, in the order of ``base.labels``; None = all.
        ``mixed``: of these queries, where several methods are asked."""
        self.method, self.base, self.novel = method, base, novel
        self._kept = slice(None) if kept is None else torch.tensor(kept, device=base.labels.device)
        self.mixed = Mixed.of(base, novel) if mixed is None else mixed
        if not method.moves_base:
            self._keep(*self._ask(method.base_scores))

    def with_method(self, method: Method) -> Self:
        """Return the scorer of another method whose ``base_scores`` are the same."""
        other = copy(self)
        other.method = method
        return other

    def _ask(self, scorer: Scorer) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the base queries and of the novel ones."""
        scores = finite(scorer(self.mixed.activations))
        return scores[self.mixed.base], scores[self.mixed.novel]

    def _keep(self, base: torch.Tensor, novel: torch.Tensor) -> None:
        """Scores of the method's base classes, for base and for novel queries."""
        self._use(base[:, self._kept], novel[:, self._kept])

    def _use(self, base: torch.Tensor, novel: torch.Tensor) -> None:
        """What a draw needs of the scores of the base classes that are scored."""
        self.classes = base.shape[1]
        self._own, self._ahead = own_and_ahead(base, self.base.labels)
        # Five competitors are all that top-5 can tell apart.
        self._rivals = novel.topk(min(5, novel.shape[1])).values
        self._first = [scores.max(1) for scores in (base, novel)]

    def draw(self, support: Support, order: torch.Tensor) -> Draw:
        """Scores of one support set; ``order`` int64 [novel classes] is that in which classes are added, for
        ``forgetting``."""
        novel, scores = self._ask(self.method.take(support))
        if self.method.moves_base:
            classes = novel.shape[1] - len(support)
            self._keep(novel[:, :classes], scores[:, :classes])
            novel, scores = novel[:, classes:], scores[:, classes:]
        base_rank, novel_rank = self.ranks(novel, scores)
        own, ahead = own_and_ahead(scores, self.novel.labels)
        found = self.more(novel, scores)
        for name, rank in (("base", base_rank), ("novel", novel_rank)):
            for k in (1, 5):
                found[f"{name}_top{k}"] = 100 * (rank < k).double().mean().item()
        found["harmonic"] = harmonic_mean(found["base_top1"], found["novel_top1"])
        # How much may be added to the novel classes' scores before, or must be until, the query is lost or won.
        lost = (self._own[:, 0] - novel.amax(1))[self._ahead == 0]
        won = (self._rivals[:, 0] - own[:, 0])[ahead == 0]
        area, curve = seen_unseen(lost, won, len(self.base.labels), len(self.novel.labels))
        found["ausuc"] = area
        taken = (novel > self._own)[self._ahead == 0][:, order].cummax(1).values.sum(0).double()
        right = (self._ahead == 0).sum().double()
        kept = torch.cat([right[None], right - taken]) / len(self.base.labels)
        predicted = torch.cat([
            _winner(first, new, self.classes) for first, new in zip(self._first, (novel, scores), strict=True)
        ])  # fmt: skip
        return Draw(found, curve, 100 * kept.cpu().numpy(), predicted.cpu().numpy())

    def ranks(self, novel: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rank of the true class among all, from 0, of base queries and of novel ones: int64 [Q] each.

        Args:
            novel, scores: scores of the novel classes, for base and for novel queries [Q, novel classes].
        """
        own, ahead = own_and_ahead(scores, self.novel.labels)
        return self._ahead + (novel > self._own).sum(1), (self._rivals >= own).sum(1) + ahead

    def more(self, novel: torch.Tensor, scores: torch.Tensor) -> dict[str, float]:
        """Metrics of one protocol only, from what ``ranks`` takes."""
        return {}


def finite(scores: torch.Tensor) -> torch.Tensor:
    """The scores. Raises UserError where they are not finite: NaN would rank the true class first."""
    if not scores.isfinite().all():
        raise UserError("scores are not finite (NaN, or too large)")
    return scores


def own_and_ahead(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The true class's score [Q, 1], and how many classes of the same kind come before it [Q]."""
    own = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return own, ((scores > own) | ((scores == own) & lower)).sum(1)


def _winner(first: Any, novel: torch.Tensor, classes: int) -> torch.Tensor:
    """The class with the highest score: the first of the base classes, or of the novel ones counted after them."""
    best = novel.max(1)
    return torch.where(best.values > first.values, classes + best.indices, first.indices)


def seen_unseen(lost: torch.Tensor, won: torch.Tensor, base: int, novel: int) -> tuple[float, npt.NDArray[np.float64]]:
    """Area under the seen-unseen curve, in percent of the square (AUSUC; Chao et al. 2016, section 4), and the
    curve: base against novel top-1 as a number added to every novel score goes from minus to plus infinity.

    Args:
        lost: for each base query that is right among base classes, the offset above which it is lost.
        won: for each novel query that is right among novel classes, the offset above which it is won.
        base, novel: numbers of queries.

    Returns:
        The area, and the curve as in ``Draw.seen_unseen``.
    """
    # Where a novel query is won, the height of the curve is the share of base queries still right.
    order = lost.double().sort().values
    still = len(order) - torch.searchsorted(order, won.double().sort().values, right=True)
    heights = np.concatenate([[len(order)], still.cpu().numpy(), np.zeros(novel - len(won))]) / base
    needed = -(-np.arange(101) * novel // 100)  # novel queries that make so many percent, rounded up
    return 100 * float(heights[1:].sum()) / novel, 100 * heights[needed]


def harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def summary(draws: Sequence[float]) -> dict[str, Any]:
    """Mean, half-width of the 95% t-interval of the mean over draws (0 for one), and the draws themselves."""
    values = np.asarray(draws, np.float64)
    return {
        "mean": float(values.mean()),
        "ci95": float(half_width(values)),
        "draws": [round(v, 6) for v in values.tolist()],
    }


def paired(draws: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Mean difference between two methods, draw by draw, and the half-width of its 95% t-interval: supports
    are the same, so what makes one draw easy cancels."""
    found = summary([a - b for a, b in zip(draws, others, strict=True)])
    return {"mean": found["mean"], "ci95": found["ci95"]}
