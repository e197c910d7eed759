"""The protocol: seeded support draws, all classes scored together, exact ranks (paper, section 4.1).

Queries are validation images of base and novel classes; supports are training images of novel classes. Every method
sees the same draws, and the supports of k shots are the first k of a draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dist_train.data.activations import Activations
from dist_train.data.shards.index import Subset
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.fewshot.method import Method, Scorer, Support

_PART = 1024
"""Queries whose scores are looked at together: 4 MB at a thousand classes."""


@dataclass(frozen=True)
class Queries:
    """Hold activations float32 [Q, C] and labels int64 [Q], counted within the base or within the novel classes."""

    activations: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Mixed:
    """Hold base and novel queries in one random order.

    Attributes:
        activations: float32 [Q, C].
        base, novel: int64, positions in ``activations`` of the base and of the novel queries, in the order of their
            ``Queries``.
    """

    activations: torch.Tensor
    base: torch.Tensor
    novel: torch.Tensor

    @classmethod
    def of(cls, base: Queries, novel: Queries) -> Mixed:
        """Mix the queries, always in the same order."""
        count, device = len(base.labels), base.activations.device
        order = np.random.RandomState(0).permutation(count + len(novel.labels))
        both = torch.cat([base.activations, novel.activations])[torch.from_numpy(order).to(device)]
        positions = torch.from_numpy(order.argsort()).to(device)
        return cls(both, positions[:count], positions[count:])


def support_rows(novel: Activations, shots: int, seed: int, draw: int) -> npt.NDArray[np.int64]:
    """Return the rows of one draw's support images, [novel classes, shots], no image twice.

    It uses ``RandomState`` because NumPy guarantees its stream, so that a draw stays the same in every version.

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
    """Check that no image is both support and query: the subsets differ, and no key is in both.

    Raises:
        UserError: the subsets are the same, or an image's key is in both.
    """
    if support.name == query.name:
        raise UserError(f"support and query are both {query.name!r} images")
    shared = np.intersect1d(support.samples["key"][support_ids], query.samples["key"][query_ids])
    if len(shared):
        raise UserError(
            f"{query.source}: image {shared[0].decode()} is in {support.name} and in {query.name}; "
            f"remove it from one and pack again"
        )


@dataclass(frozen=True)
class Draw:
    """Hold the results of one support set, in percent; only joint scoring has more than metrics.

    Attributes:
        metrics: base_top1, base_top5, novel_top1, novel_top5, harmonic, ausuc, and those of
            ``JointScorer.more_metrics``.
        seen_unseen: base top-1 at the offset of the novel scores that makes novel top-1 0, 1, ... 100%, and 0 where no
            offset does (Chao et al. 2016, section 4): float64 [101].
        forgetting: base top-1 when 0, 1, ... novel classes have been added: float64 [novel classes + 1].
        predicted: the class with the highest score, for every base and then every novel query; novel classes are
            counted after the base classes: int64 [base queries + novel queries].
    """

    metrics: dict[str, float]
    seen_unseen: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    forgetting: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    predicted: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class JointScorer:
    """Rank the true class among all classes, for one method.

    The scores of the base classes are computed once, unless supports change them; each draw adds the columns of the
    novel classes. A tie goes to the class with the lower number, base before novel, so that no draw wins by ties.

    A method gets all queries at once, base and novel ones mixed, so that neither the batch nor the position in it tells
    which is which.

    Args:
        kept: the method's base classes that are scored, in the order of ``base.labels``; None for all.
        mixed: the same queries mixed, where several methods share them.
        context: the ranks, each of which computes the base scores of its share of the queries; by default there is one.

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
        context: Context = Context(),  # noqa: B008  (it is frozen)
    ) -> None:
        self.method, self.base, self.novel = method, base, novel
        self._kept = slice(None) if kept is None else torch.tensor(kept, device=base.labels.device)
        self.mixed = Mixed.of(base, novel) if mixed is None else mixed
        if not method.moves_base:
            self._summarise(finite(shared(method.base_scores, context)(self.mixed.activations)))

    def with_method(self, method: Method) -> Self:
        """Return the scorer of another method whose ``base_scores`` are the same."""
        other = copy(self)
        other.method = method
        return other

    def _split(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of the base queries and of the novel queries, from scores of the mixed queries [Q, N]."""
        return scores[self.mixed.base], scores[self.mixed.novel]

    def _summarise(self, scores: torch.Tensor) -> None:
        """Keep what every draw needs from the base classes' scores of the mixed queries [Q, base classes]."""
        scores = scores[:, self._kept]
        self.classes = scores.shape[1]

        def of_base(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            part = scores[rows]
            return *own_and_ahead(part, labels), *part.max(1)

        def of_novel(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            part = scores[rows]
            # Top-5 needs no more than five competitors.
            return part.topk(min(5, self.classes)).values, *part.max(1)

        self._own, self._ahead, *first_of_base = by_part(of_base, self.mixed.base, self.base.labels)
        self._rivals, *first_of_novel = by_part(of_novel, self.mixed.novel)
        self._first = first_of_base, first_of_novel

    def draw(self, support: Support, order: torch.Tensor) -> Draw:
        """Score one support set; ``order``, int64 [novel classes], is that in which classes are added for
        ``forgetting``."""
        return self._draw(self.method.take(support), len(support), order)

    def draws(self, support: torch.Tensor, shots: Sequence[int], order: torch.Tensor) -> Iterator[Draw]:
        """Yield what ``draw`` returns for the first k supports of each class, for each k of ``shots``."""
        for scorer in self.method.take_first(support, shots):
            yield self._draw(scorer, len(support), order)

    def _draw(self, scorer: Scorer, novel: int, order: torch.Tensor) -> Draw:
        scores = finite(scorer(self.mixed.activations))
        if self.method.moves_base:
            classes = scores.shape[1] - novel
            self._summarise(scores[:, :classes])
            scores = scores[:, classes:]
        of_base, of_novel = self._split(scores)  # scores of novel classes
        metrics = self.more_metrics(of_base, of_novel)
        for name, rank in zip(("base", "novel"), self.ranks(of_base, of_novel), strict=True):
            for k in (1, 5):
                metrics[f"{name}_top{k}"] = 100 * (rank < k).double().mean().item()
        metrics["harmonic"] = harmonic_mean(metrics["base_top1"], metrics["novel_top1"])
        # The offset of the novel scores up to which a base query stays right, and from which a novel query is right.
        own, ahead = own_and_ahead(of_novel, self.novel.labels)
        lost = (self._own[:, 0] - of_base.amax(1))[self._ahead == 0]
        won = (self._rivals[:, 0] - own[:, 0])[ahead == 0]
        metrics["ausuc"], curve = seen_unseen(lost, won, len(self.base.labels), len(self.novel.labels))
        predicted = torch.cat([
            _winner(first, novel, self.classes) for first, novel in zip(self._first, (of_base, of_novel), strict=True)
        ])  # fmt: skip
        return Draw(metrics, curve, self._forgetting(of_base, order), predicted.cpu().numpy())

    def _forgetting(self, of_base: torch.Tensor, order: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return ``Draw.forgetting`` from the novel classes' scores of base queries [Q, novel classes]."""
        correct = self._ahead == 0
        lost = (of_base > self._own)[correct][:, order].cummax(1).values.sum(0).double()
        total = correct.sum().double()
        shares: npt.NDArray[np.float64] = (torch.cat([total[None], total - lost]) / len(self.base.labels)).cpu().numpy()
        return 100 * shares

    def ranks(self, of_base: torch.Tensor, of_novel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rank of the true class among all, from 0, of base queries and of novel queries: int64 [Q] each.

        Args:
            of_base, of_novel: the novel classes' scores [Q, novel classes] of base queries and of novel queries.
        """
        own, ahead = own_and_ahead(of_novel, self.novel.labels)
        return self._ahead + _count(of_base > self._own), _count(self._rivals >= own) + ahead

    def more_metrics(self, of_base: torch.Tensor, of_novel: torch.Tensor) -> dict[str, float]:
        """Return metrics of one protocol only, from the arguments of ``ranks``."""
        return {}


def shared(scorer: Scorer, context: Context) -> Scorer:
    """Return a scorer whose queries the ranks share; all ranks call it, with the same queries, and get all scores."""

    def score(queries: torch.Tensor) -> torch.Tensor:
        own = scorer(queries[context.rank :: context.world])
        scores = own.new_zeros(len(queries), own.shape[1])
        scores[context.rank :: context.world] = own
        return context.sum(scores)

    return scorer if context.world == 1 else score


def finite(scores: torch.Tensor) -> torch.Tensor:
    """Return the scores unchanged.

    Raises:
        UserError: they are not finite; NaN would rank the true class first.
    """
    # NaN and infinity are seen in the extremes, which are one pass without a copy.
    if scores.numel() and not torch.stack(scores.aminmax()).isfinite().all():
        raise UserError("scores are not finite (NaN, or too large)")
    return scores


def own_and_ahead(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the true class's score [Q, 1], and how many of these classes rank before it [Q]."""
    own = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    return own, _count((scores > own) | ((scores == own) & lower))


def _count(which: torch.Tensor) -> torch.Tensor:
    """Count what is true in each row: int64 [Q]."""
    # A sum in int64, the default of booleans, takes eight times as long on a CPU.
    return which.sum(1, dtype=torch.int32).long()


def by_part(function: Callable[..., tuple[torch.Tensor, ...]], *queries: torch.Tensor) -> list[torch.Tensor]:
    """Return what the function returns for all queries, computed for so many at a time as a CPU's caches hold.

    Args:
        queries: one row each, [Q, ...].
    """
    parts = zip(*(torch.split(tensor, _PART) for tensor in queries), strict=True)
    return [torch.cat(results) for results in zip(*(function(*part) for part in parts), strict=True)]


def _winner(first: Sequence[torch.Tensor], novel: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the class with the highest score [Q]; novel classes are counted after the base classes, and a tie goes to
    the lower number.

    Args:
        first: ``max(1)`` of the base classes' scores: the largest of each query, and its class.
        novel: scores of the novel classes [Q, novel classes].
        classes: number of base classes.
    """
    (largest, number), best = first, novel.max(1)
    return torch.where(best.values > largest, classes + best.indices, number)


def seen_unseen(lost: torch.Tensor, won: torch.Tensor, base: int, novel: int) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the seen-unseen curve and the area under it (AUSUC; Chao et al. 2016, section 4).

    The curve is base against novel top-1 as an offset of all novel scores goes from minus to plus infinity.

    Args:
        lost: the offset above which a base query that is right among base classes becomes wrong; a value each.
        won: the offset above which a novel query that is right among novel classes becomes right; a value each.
        base, novel: numbers of queries.

    Returns:
        The area in percent of the square, and the curve as in ``Draw.seen_unseen``.
    """
    # At the offset where a novel query becomes right, the height of the curve is the share of base queries still right.
    order = lost.double().sort().values
    still = len(order) - torch.searchsorted(order, won.double().sort().values, right=True)
    heights = np.concatenate([[len(order)], still.cpu().numpy(), np.zeros(novel - len(won))]) / base
    needed = -(-np.arange(101) * novel // 100)  # novel queries for 0, 1, ... 100 percent, rounded up
    return 100 * float(heights[1:].sum()) / novel, 100 * heights[needed]


def harmonic_mean(a: float, b: float) -> float:
    """Return the harmonic mean of two numbers; 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b else 0.0
