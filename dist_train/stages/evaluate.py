"""Chapter 4: all classes scored together, or episodes; the table and the report."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.context import Context
from dist_train.data.activations import load
from dist_train.data.files import write_text
from dist_train.data.pool import progress_bar
from dist_train.engine import checkpoint
from dist_train.engine.preempt import Stopped, Stopper
from dist_train.errors import UserError
from dist_train.fewshot import episodes, lowshot
from dist_train.fewshot.episodes import accuracy, draw_episode, parts, spread
from dist_train.fewshot.lowshot import LowShotScorer
from dist_train.fewshot.method import Method
from dist_train.fewshot.methods import LABELS, METHODS, make, open_base
from dist_train.fewshot.protocol import (
    Draw,
    JointScorer,
    Mixed,
    Queries,
    assert_disjoint,
    averaged,
    summary,
    support_rows,
)
from dist_train.fewshot.table import table_markdown
from dist_train.stages.common import Run, Stage, log
from dist_train.stages.conclude import report, tensorboard
from dist_train.stages.provenance import provenance
from dist_train.stages.rows import MADE, Rows, is_shown


def run(run: Run, context: Context, stop: Stopper, redo: bool = False) -> None:
    """Score ``evaluate.methods`` at ``evaluate.shots`` over ``evaluate.draws`` support draws; leaves
    ``results.json``, ``table.md`` and, of joint scoring, ``report.html``. Ranks share the draws.

    Each method's row is kept as soon as it is complete (stages/rows.py), so a stage that was interrupted, or is
    given more methods or other numbers of one, computes what is missing.

    Raises:
        Stopped: told to leave; the rows that are complete stay.
        UserError: a method's scores are not finite.
    """
    stage = Stage(run, "evaluate", context, redo)
    config, kept = run.config.evaluate, Rows(stage.folder, run.config.evaluate)
    found = {name: kept.read(name) if context.main else None for name in config.methods}
    todo = context.gather([name for name, row in found.items() if row is None])[0]
    if context.gather(not todo and is_shown(stage.folder, config))[0]:
        if context.main:
            kept.older({name: row for name, row in found.items() if row})
        return stage.rest()
    stage.reopen()
    if context.main:
        for name in MADE:  # of other rows than there will be
            (stage.folder / name).unlink(missing_ok=True)
    exam = (Exam if config.protocol == "joint" else EpisodeExam)(run, context)
    if todo:
        bar = progress_bar(len(todo) * len(exam.mine), "evaluate", "draw", context.main)
        for name in todo:
            bar.set_postfix_str(LABELS[name])
            with torch.inference_mode():
                row, confusions = exam.sit(name, stop, bar)
            if context.main:
                found[name] = kept.write(name, row, confusions)
        bar.close()
        context.barrier("evaluate-rows")
    if context.main:
        rows = {name: row for name, row in found.items() if row}
        _conclude(run, exam, stage.folder, rows, kept.older(rows), context)
    stage.finish(methods=config.methods)


class Examiner(ABC):
    """What all methods are asked: the same supports and queries."""

    def __init__(self, run: Run, context: Context) -> None:
        self.config, self.context = run.config.evaluate, context
        head = checkpoint.load(run.dir / "pretrain" / "final", context.device).tensors["model"]
        self.prepared = open_base(run.config, head["head.weight"], head["head.bias"])
        self.bank = load(run.dir / "extract", "novel_train")
        self.mine = range(context.rank, self.config.draws, context.world)

    @abstractmethod
    def sit(self, name: str, stop: Stopper, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One method's row: {"shots": {k: {metric: [draws], ...}}, "curves": {k: ``averaged``}, "seconds"}, where
        an oracle has "all" for k; and how often each class was taken for which, by k: int32 [classes, classes],
        summed over draws.

        Raises:
            Stopped: told to leave.
            UserError: scores are not finite.
        """

    def prepare(self, name: str, stop: Stopper) -> Method:
        self.context.doing(f"evaluate {name}: base classes")
        return make(name, replace(self.prepared, watch=partial(self._watched, name, stop)))

    def _watched(self, name: str, stop: Stopper, parts: Sequence[Any]) -> Iterator[Any]:
        """``Base.watch``: a bar of its own below that of the draws."""
        bar = progress_bar(len(parts), f"{LABELS[name]}: base classes", "class", self.context.main)
        bar.leave = False
        try:
            for number, part in enumerate(parts):
                if stop.agreed():
                    raise Stopped(f"evaluate: left in {name}; the methods before it are kept")
                self.context.doing(f"evaluate {name}: base class {number} of {len(parts)}")
                yield part
                bar.update()
        finally:
            bar.close()

    def draws(self, name: str, stop: Stopper, oracle: bool = False) -> Iterator[int]:
        """This rank's draws, as many turns on each rank: they ask together whether to stop."""
        for turn in range(1 if oracle else -(-self.config.draws // self.context.world)):
            if stop.agreed_now():
                raise Stopped(f"evaluate: left in {name}; the methods before it are kept")
            if turn < len(self.mine) and (self.context.main or not oracle):
                self.context.doing(f"evaluate {name}: draw {self.mine[turn]}")
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

    def sit(self, name: str, stop: Stopper, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
    """A few novel classes at a time, alone (fewshot/episodes.py)."""

    def sit(self, name: str, stop: Stopper, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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


def _conclude(
    run: Run, exam: Examiner, folder: Path, rows: dict[str, dict[str, Any]], older: dict[str, str], context: Context
) -> None:
    """From the rows: results.json, table, report, TensorBoard."""
    config, facts = run.config.evaluate, provenance(run, context)
    joint, released = config.protocol == "joint", config.protocol == "released"
    average = summary if joint else partial(spread, released=released)
    values = {
        name: {k: {metric: average(draws) for metric, draws in found.items()} for k, found in row["shots"].items()}
        for name, row in rows.items()
    }
    unit = "support draws" if joint else "episodes"
    results: dict[str, Any] = {
        "protocol": config.protocol,
        "methods": {name: found for name, found in values.items() if not METHODS[name].oracle},
        "oracles": {name: found["all"] for name, found in values.items() if METHODS[name].oracle},
        "curves": {name: row["curves"] for name, row in rows.items() if not METHODS[name].oracle},
        "seconds": {name: row["seconds"] for name, row in rows.items()},
        "shots": config.shots,
        "draws": config.draws,
        "interval": f"standard deviation over {unit}" if released else f"95% t-interval over {unit}",
        "queries": {role: len(run.view("val", kind)) for role, kind in (("base", "scored"), ("novel", "novel"))},
        "classes": {"base": len(run.scored), "novel": len(run.novel)},
        "split": facts["split"],
        "shards": facts["shards"],
        "seed": config.seed,
        "rule": config.rule,
        "options": config.options,
        "commit": facts["commit"],
        "older": older,
        "command": facts["command"],
    }
    if joint:
        text = table_markdown(results) + ("\n" + lowshot.markdown(results) if run.split.halves else "")
    else:
        results["episodes"] = {"ways": config.ways, "queries": None if released else config.queries}
        del results["oracles"], results["curves"], results["queries"]
        text = episodes.markdown(results)
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "table.md", text)
    tensorboard(folder / "tb", results)
    if isinstance(exam, Exam):
        report(run, results, facts, exam.prepared, exam.supports[0], context)
        log.info("report: %s", folder / "report.html")
    print(text)
    log.info("tensorboard: tensorboard --logdir %s", run.dir)
