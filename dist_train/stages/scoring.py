"""The rows of the table: each method is prepared from the base classes, shown supports, and its answers are counted.

All that can change a number of a row is this module and what it imports, and nothing else is
(dist_train/stages/row_code.py). What is made of rows, tables and pages, is in stages/evaluate.py and conclude.py.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.fewshot.method import Method
from dist_train.fewshot.methods import LABELS, METHODS, make, open_base
from dist_train.fewshot.protocols.episodes import accuracy, draw_episode, parts
from dist_train.fewshot.protocols.joint import (
    Draw,
    JointScorer,
    Mixed,
    Queries,
    assert_disjoint,
    averaged,
    support_rows,
)
from dist_train.fewshot.protocols.low_shot import LowShotScorer
from dist_train.training import checkpoint
from dist_train.training.precision import round_products

if TYPE_CHECKING:
    from dist_train.runs.run import Run


class Examiner(ABC):
    """What all methods are asked: the same supports and queries."""

    def __init__(self, run: Run, context: Context) -> None:
        self.config, self.context = run.config.evaluate, context
        round_products(False)  # whatever the stages before have computed in
        head = checkpoint.load(run.dir / "pretrain" / "final", context.device).tensors["model"]
        self.prepared = open_base(run.config, head["head.weight"], head["head.bias"])
        self.bank = load(run.dir / "extract", "novel_train")
        self.mine = range(context.rank, self.config.draws, context.world)

    @abstractmethod
    def sit(self, name: str, stop: StopFlag, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One method's row: {"shots": {k: {metric: [draws], ...}}, "curves": {k: ``averaged``}, "seconds"}, where
        an oracle has "all" for k; and how often each class was taken for which, by k: int32 [classes, classes],
        summed over draws.

        Raises:
            Stopped: told to leave.
            UserError: scores are not finite.
        """

    def prepare(self, name: str, stop: StopFlag) -> Method:
        self.context.report_progress(f"evaluate {name}: base classes")
        return make(name, replace(self.prepared, watch=partial(self._watched, name, stop)))

    def _watched(self, name: str, stop: StopFlag, parts: Sequence[Any]) -> Iterator[Any]:
        """``Base.watch``: a bar of its own below that of the draws."""
        bar = progress_bar(len(parts), f"{LABELS[name]}: base classes", "class", self.context.main)
        bar.leave = False
        try:
            for number, part in enumerate(parts):
                if stop.agreed():
                    raise Stopped(f"evaluate: left in {name}; the methods before it are kept")
                self.context.report_progress(f"evaluate {name}: base class {number} of {len(parts)}")
                yield part
                bar.update()
        finally:
            bar.close()

    def draws(self, name: str, stop: StopFlag, oracle: bool = False) -> Iterator[int]:
        """This rank's draws, as many turns on each rank: they ask together whether to stop."""
        for turn in range(1 if oracle else -(-self.config.draws // self.context.world)):
            if stop.agreed_now():
                raise Stopped(f"evaluate: left in {name}; the methods before it are kept")
            if turn < len(self.mine) and (self.context.main or not oracle):
                self.context.report_progress(f"evaluate {name}: draw {self.mine[turn]}")
                yield self.mine[turn]

    def load(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows.astype(np.float32)).to(self.context.device)


@contextmanager
def named(method: str) -> Iterator[None]:
    """The method in what scorers refuse; the same on all ranks, whichever draw it was."""
    try:
        yield
    except UserError as error:
        raise UserError(f"evaluate: {method}: {error}; lower its rate in evaluate.options, or mend it") from None


class Exam(Examiner):
    """All classes scored together. Where not all base classes are scored (a split by halves), methods know them all
    the same, and the scores and queries of the others are dropped, as Gidaris & Komodakis' code does."""

    def __init__(self, run: Run, context: Context) -> None:
        super().__init__(run, context)
        tables = {role: load(run.dir / "extract", f"{role}_val") for role in ("base", "novel")}
        for table in tables.values():
            assert_disjoint(run.shards["train"], self.bank.ids, run.shards["val"], table.ids)
        kept = run.kept
        scorer = partial(LowShotScorer, kept=kept) if run.split.halves else JointScorer
        self.asked: dict[str, JointScorer] = {}
        self.base, self.novel = (
            Queries(self.load(table.rows), torch.from_numpy(table.labels).to(context.device))
            for table in (tables["base"].select(kept), tables["novel"])
        )
        self.scorer = partial(scorer, mixed=Mixed.of(self.base, self.novel))
        self.truth = torch.cat([self.base.labels, self.novel.labels + len(kept)]).cpu().numpy()
        seed, novel = self.config.seed, len(run.novel)
        self.classes = len(kept) + novel
        self.supports = {d: support_rows(self.bank, max(self.config.shots), seed, d) for d in self.mine}
        self.orders = {
            d: torch.from_numpy(np.random.RandomState([seed, d]).permutation(novel)).to(context.device)
            for d in self.mine
        }

    def sit(self, name: str, stop: StopFlag, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        began = time.perf_counter()
        method = self.prepare(name, stop)
        scorer = self._scorer(name, method)
        found: dict[str, dict[int, Draw]] = {}
        confusions: dict[str, np.ndarray] = {}
        for draw in self.draws(name, stop, method.oracle):
            for k, support in self._supports(draw, method.oracle):
                with named(name):
                    one = scorer.draw(support, self.orders[draw])
                found.setdefault(k, {})[draw] = replace(one, predicted=np.zeros(0, np.int64))
                count = self.classes
                taken = np.bincount(self.truth * count + one.predicted, minlength=count**2).astype(np.int32)
                confusions[k] = confusions.get(k, 0) + taken.reshape(count, count)
            bar.update(len(self.mine) if method.oracle else 1)
        every = self.context.gather((found, confusions))
        shots = list(found)
        draws = {k: [one for _, one in sorted(x for part, _ in every for x in part.get(k, {}).items())] for k in shots}
        row = {
            "shots": {k: {metric: [one.metrics[metric] for one in some] for metric in some[0].metrics}
                      for k, some in draws.items()},
            "curves": {k: averaged(some) for k, some in draws.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        return row, {k: sum(part[k] for _, part in every if k in part) for k in shots}

    def _scorer(self, name: str, method: Method) -> JointScorer:
        """Its base scores are computed, unless they are those of a row before."""
        like = vars(type(method)).get("base_as")  # not that of a class it is derived from
        if like in self.asked:
            return self.asked[like].of(method)
        with named(name):
            scorer = self.scorer(method, self.base, self.novel)
        if any(METHODS[other].base_as == name for other in self.config.methods):
            self.asked[name] = scorer
        return scorer

    def _supports(self, draw: int, oracle: bool) -> Iterator[tuple[str, Any]]:
        """Of one draw, by number of shots; or all images, class by class."""
        if oracle:
            ends = zip(self.bank.offsets[:-1], self.bank.offsets[1:], strict=True)
            yield "all", [self.load(self.bank.rows[first:last]) for first, last in ends]
            return
        support = self.load(self.bank.rows[self.supports[draw]])
        for k in self.config.shots:
            yield str(k), support[:, :k]


class EpisodeExam(Examiner):
    """A few novel classes at a time, alone (fewshot/protocols/episodes.py)."""

    def sit(self, name: str, stop: StopFlag, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        began, config = time.perf_counter(), self.config
        method = self.prepare(name, stop)
        found: dict[int, dict[str, float]] = {}
        for number in self.draws(name, stop):
            images = draw_episode(self.bank.offsets, config.ways, config.seed, number)
            with named(name):
                found[number] = {str(k): self._score(method, images, k) for k in config.shots}
            bar.update(1)
        merged = {n: one for part in self.context.gather(found) for n, one in part.items()}
        accuracies = {str(k): {"accuracy": [merged[n][str(k)] for n in sorted(merged)]} for k in config.shots}
        return {"shots": accuracies, "curves": {}, "seconds": round(time.perf_counter() - began, 1)}, {}

    def _score(self, method: Method, images: list[np.ndarray], shots: int) -> float:
        config = self.config
        supports, queries = parts(images, shots, max(config.shots), config.queries, config.protocol == "released")
        labels = torch.arange(len(queries)).repeat_interleave(torch.tensor([len(rows) for rows in queries]))
        asked = self.load(self.bank.rows[np.concatenate(queries)])
        return accuracy(method, self.load(self.bank.rows[supports]), asked, labels.to(asked.device))
