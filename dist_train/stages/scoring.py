"""Score methods: prepare each from the base classes, show it supports, count its answers to the queries.

Only this module and the modules that it imports can change a number of a row (stages/row_code.py). Tables and pages are
made from rows in stages/evaluate.py and reporting.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from dist_train.data.activations import Activations, load
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.method import Method
from dist_train.fewshot.methods import LABELS, METHODS, make, open_base
from dist_train.fewshot.part import Confusions, Part
from dist_train.fewshot.protocols.episodes import accuracy, draw_episode, supports_and_queries
from dist_train.fewshot.protocols.joint import (
    Draw,
    JointScorer,
    Mixed,
    Queries,
    assert_disjoint,
    finite,
    own_and_ahead,
    support_rows,
)
from dist_train.fewshot.protocols.low_shot import LowShotScorer
from dist_train.training.precision import round_products

if TYPE_CHECKING:
    from dist_train.runs.run import Run

NO_SHOTS = "0"
"""The number of shots of rows without novel classes."""


class Scoring(ABC):
    """Score methods one by one, each on the same supports and queries; ranks share the draws.

    Args:
        network: folder with the activations of a network of the rows' own; None: those of the frozen backbone.

    Attributes:
        base: what methods may use of the base classes.
        folder: where the tables of activations are.
        num_draws: draws of a row.
        labels: int64 [queries], classes of the queries; empty for episodes.
        num_classes: classes that queries may be taken for; 0 for episodes.
        later: the rows that are scored after the next, which may take its trainings.
    """

    def __init__(self, run: Run, context: Context, network: Path | None = None) -> None:
        self.config, self.context = run.config.evaluate, context
        round_products(False)  # an earlier stage of this process may have allowed it
        # Tables look at the five highest classes; a prior over base and novel classes at the scores of all.
        looked_at = None if run.split.halves else 5
        self.base = replace(open_base(run.config, *load_head(run.dir, context.device)), decisive=looked_at)
        self.folder = network or run.dir / "extract"
        if network:
            self.base = replace(self.base, train=load(network, "base_train"))
        self.num_draws = self.config.draws
        self.later: Sequence[str] = ()
        self.labels: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.num_classes = 0

    def draws_of(self, name: str) -> range:
        """Return the numbers of all draws of a method's row; an oracle, which is shown all images, has one."""
        return range(1 if METHODS[name].oracle else self.num_draws)

    def score(self, name: str, stop: StopFlag, bar: tqdm[Any], numbers: Sequence[int] | None = None) -> Part:
        """Return what draws of a method's row find. All ranks call it, with the same numbers, and get the same.

        Args:
            numbers: the draws; None: all draws of the row. Where the run is to stop, the last of them are missing.

        Raises:
            Stopped: the run is to stop before the first draw.
            UserError: scores are not finite.
        """
        began = time.perf_counter()
        numbers = self.draws_of(name) if numbers is None else numbers
        if not numbers:
            return Part()
        keep = self._are_kept(name)
        results = self._scored(name, self.prepare(name, stop, keep=keep))
        draws: dict[str, dict[int, Draw]] = {}
        confusions: Confusions = {}
        for number in self._turns(name, numbers, stop, bar):
            for k, draw in results(number):
                if draw.predicted.size:
                    counts = count_confusions(self.labels, draw.predicted, self.num_classes)
                    confusions[k] = confusions[k] + counts if k in confusions else counts
                # Predictions are counted; ranks need not exchange them.
                draws.setdefault(k, {})[number] = replace(draw, predicted=np.zeros(0, np.int64))
        if not keep:
            self.base.trainings.pop(_trained_as(name), None)
        found = Part.join(self.context.gather(Part(draws, confusions)))
        return replace(found, seconds=time.perf_counter() - began)

    @abstractmethod
    def _scored(self, name: str, method: Method) -> Callable[[int], Iterator[tuple[str, Draw]]]:
        """Return a function that yields the results of a draw of the method, by number of shots."""

    def _are_kept(self, name: str) -> bool:
        """Return whether a later row takes the row's trainings."""
        return False  # episodes have too many

    def prepare(self, name: str, stop: StopFlag, *, keep: bool = False) -> Method:
        """Make a method from the base classes, with progress and a chance to stop."""
        self.context.report_progress(f"evaluate {name}: base classes")
        return make(name, replace(self.base, watch=partial(self._watch, name, stop), keep=keep))

    def _watch(self, name: str, stop: StopFlag, classes: Sequence[Any]) -> Iterator[Any]:
        """Yield the items of a method's loop over the base classes (``Base.watch``), under a bar below that of the
        draws."""
        bar = progress_bar(len(classes), f"{LABELS[name]}: base classes", "class", self.context.main)
        bar.leave = False
        try:
            for number, item in enumerate(classes):
                if stop.agreed():
                    raise Stopped(f"evaluate: stopped in {name}; what is complete is kept")
                self.context.report_progress(f"evaluate {name}: base class {number} of {len(classes)}")
                yield item
                bar.update()
        finally:
            bar.close()

    def _turns(self, name: str, numbers: Sequence[int], stop: StopFlag, bar: tqdm[Any]) -> Iterator[int]:
        """Yield this rank's share of these draws, until the run is to stop.

        Every rank takes the same number of turns, because at each they agree on whether to stop.
        """
        rank, world = self.context.rank, self.context.world
        for first in range(0, len(numbers), world):
            if stop.agreed_now():
                return
            turn = numbers[first : first + world]
            if rank < len(turn):
                self.context.report_progress(f"evaluate {name}: draw {turn[rank]}")
                yield turn[rank]
            bar.update(len(turn))

    def load(self, rows: np.ndarray) -> torch.Tensor:
        """Return stored activations as float32 on the device."""
        return torch.from_numpy(rows.astype(np.float32)).to(self.context.device)

    def _queries(self, table: Activations) -> Queries:
        """Return a table's activations and labels on the device."""
        return Queries(self.load(table.rows), torch.from_numpy(table.labels).to(self.context.device))


def _trained_as(name: str) -> str:
    """Return the row whose trainings for sets of supports the row ``name`` takes: its own, or another's."""
    return METHODS[name].trains_as or name


@contextmanager
def naming(method: str) -> Iterator[None]:
    """Add the method's name and the remedy to errors of scorers; the line is the same on all ranks, whichever draw
    failed."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"evaluate: {method}: {error}; lower its rate in evaluate.options, or correct the method"
        ) from None


class JointScoring(Scoring):
    """Score all classes together.

    Where only some of the base classes are scored (a split by halves), methods still know them all; the scores and
    queries of the others are dropped, as in the code of Gidaris & Komodakis.

    Attributes:
        novel_train: stored activations of the images from which supports are drawn.
        base_queries, novel_queries: validation images of the scored base classes, and of the novel classes.
        labels: int64 [queries], classes of the base and then the novel queries; novel classes are counted after the
            scored base classes.
        supports: draw -> rows in ``novel_train`` [novel classes, most shots].
        orders: draw -> the order in which novel classes are added for ``Draw.forgetting``, int64 [novel classes].
    """

    def __init__(self, run: Run, context: Context, network: Path | None = None) -> None:
        super().__init__(run, context, network)
        self.novel_train = load(self.folder, "novel_train")
        base_val, novel_val = (load(self.folder, f"{role}_val") for role in ("base", "novel"))
        for table in () if run.features else (base_val, novel_val):  # features have no keys
            assert_disjoint(run.shards["train"], self.novel_train.ids, run.shards["val"], table.ids)
        self.base_queries, self.novel_queries = map(self._queries, (base_val.select(run.kept), novel_val))
        novel_labels = self.novel_queries.labels + len(run.kept)
        self.labels = torch.cat([self.base_queries.labels, novel_labels]).cpu().numpy()
        scorer = partial(LowShotScorer, kept=run.kept) if run.split.halves else JointScorer
        mixed = Mixed.of(self.base_queries, self.novel_queries)
        self._make_scorer = partial(scorer, mixed=mixed, context=context)
        self._shared_scorers: dict[str, JointScorer] = {}
        seed, novel = self.config.seed, len(run.novel)
        self.num_classes = len(run.kept) + novel
        draws = range(self.num_draws)
        self.supports = {d: support_rows(self.novel_train, max(self.config.shots), seed, d) for d in draws}
        self.orders = {
            d: torch.from_numpy(np.random.RandomState([seed, d]).permutation(novel)).to(context.device) for d in draws
        }

    def _are_kept(self, name: str) -> bool:
        return _trained_as(name) in map(_trained_as, self.later)

    def _scored(self, name: str, method: Method) -> Callable[[int], Iterator[tuple[str, Draw]]]:
        return partial(self._drawn, self._scorer(name, method), name)

    def _scorer(self, name: str, method: Method) -> JointScorer:
        """Return a scorer for the method, with its base scores: those of an earlier row where ``base_as`` names it."""
        same_as = vars(type(method)).get("base_as")  # a class's own, not inherited
        if same_as in self._shared_scorers:
            return self._shared_scorers[same_as].with_method(method)
        with naming(name):
            scorer = self._make_scorer(method, self.base_queries, self.novel_queries)
        if any(METHODS[other].base_as == name for other in self.config.methods):
            self._shared_scorers[name] = scorer
        return scorer

    def _drawn(self, scorer: JointScorer, name: str, number: int) -> Iterator[tuple[str, Draw]]:
        """Yield a draw's results by number of shots; an oracle is shown all images, class by class."""
        order, rows, ends = self.orders[number], self.novel_train.rows, self.novel_train.offsets
        with naming(name):
            if scorer.method.oracle:
                images: Any = [self.load(rows[first:last]) for first, last in pairwise(ends)]
                yield "all", scorer.draw(images, order)
                return
            support = self.load(rows[self.supports[number]])
            for k, draw in zip(self.config.shots, scorer.draws(support, self.config.shots, order), strict=True):
                yield str(k), draw


def count_confusions(
    labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int32]:
    """Count how often each class was taken for which: int32 [classes, classes], from two arrays [queries]."""
    pairs = np.bincount(labels * classes + predicted, minlength=classes**2)
    return pairs.astype(np.int32).reshape(classes, classes)


class BaseScoring(Scoring):
    """Score the base classes alone, where the split has no novel classes: nothing is drawn, and rank 0 scores.

    The row of an oracle is empty: there is nothing that it could be shown.

    Attributes:
        queries: validation images of the base classes.
    """

    def __init__(self, run: Run, context: Context, network: Path | None = None) -> None:
        super().__init__(run, context, network)
        self.queries = self._queries(load(self.folder, "base_val"))
        self.labels, self.num_classes = self.queries.labels.cpu().numpy(), len(run.base)

    def draws_of(self, name: str) -> range:
        return range(0 if METHODS[name].oracle else 1)

    def _scored(self, name: str, method: Method) -> Callable[[int], Iterator[tuple[str, Draw]]]:
        return lambda number: self._once(name, method)

    def _once(self, name: str, method: Method) -> Iterator[tuple[str, Draw]]:
        with naming(name):
            scores = self._scores(method)
        rank = own_and_ahead(scores, self.queries.labels)[1]
        metrics = {f"base_top{k}": 100 * (rank < k).double().mean().item() for k in (1, 5)}
        yield NO_SHOTS, Draw(metrics, predicted=scores.argmax(1).cpu().numpy())

    def _scores(self, method: Method) -> torch.Tensor:
        """Return the scores of the queries [Q, base classes]."""
        activations = self.queries.activations
        if method.moves_base:
            return finite(method.take(activations.new_zeros(0, 1, activations.shape[1]))(activations))
        return finite(method.base_scores(activations))


class EpisodeScoring(Scoring):
    """Score a few novel classes at a time, alone (fewshot/protocols/episodes.py).

    Attributes:
        novel_train: stored activations of the images from which episodes are drawn.
    """

    def __init__(self, run: Run, context: Context) -> None:
        super().__init__(run, context)
        self.novel_train = load(run.dir / "extract", "novel_train")

    def _scored(self, name: str, method: Method) -> Callable[[int], Iterator[tuple[str, Draw]]]:
        return partial(self._episode, name, method)

    def _episode(self, name: str, method: Method, number: int) -> Iterator[tuple[str, Draw]]:
        """Yield an episode's accuracy by number of shots."""
        images = draw_episode(self.novel_train.offsets, self.config.ways, self.config.seed, number)
        for k in self.config.shots:
            with naming(name):
                yield str(k), Draw({"accuracy": self._accuracy(method, images, k)})

    def _accuracy(self, method: Method, images: list[np.ndarray], shots: int) -> float:
        """Return the accuracy of a method in one episode, in percent."""
        config = self.config
        released = config.protocol == "released"
        supports, queries = supports_and_queries(images, shots, max(config.shots), config.queries, released)
        labels = torch.arange(len(queries)).repeat_interleave(torch.tensor([len(rows) for rows in queries]))
        activations = self.load(self.novel_train.rows[np.concatenate(queries)])
        support = self.load(self.novel_train.rows[supports])
        return accuracy(method, support, activations, labels.to(activations.device))
