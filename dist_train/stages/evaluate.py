"""Chapter 4: all classes scored together; the table and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.context import Context
from dist_train.data.activations import Activations, load
from dist_train.data.files import atomic_write, write_text
from dist_train.data.pool import progress_bar
from dist_train.engine import checkpoint, metrics
from dist_train.engine.preempt import Stopped, Stopper
from dist_train.fewshot.method import Base
from dist_train.fewshot.methods import LABELS, METHODS, NUMBERS, make
from dist_train.fewshot.protocol import (
    CURVES,
    METRICS,
    Draw,
    JointScorer,
    Queries,
    assert_disjoint,
    summary,
    support_rows,
)
from dist_train.fewshot.report import report_html, table_markdown
from dist_train.stages.common import Run, Stage, log, provenance


def run(run: Run, context: Context, stop: Stopper, redo: bool = False) -> None:
    """Score ``evaluate.methods`` at ``evaluate.shots`` over ``evaluate.draws`` support draws; leaves
    ``results.json``, ``table.md`` and ``report.html``. Ranks share the draws.

    Each method's row is kept in ``rows/`` as soon as it is complete, so a stage that was interrupted, or is
    given more methods, continues with the next one.

    Raises:
        Stopped: told to leave; the rows that are complete stay.
    """
    stage = Stage(run, "evaluate", context, redo)
    config = run.config.evaluate
    if stage.done and json.loads((stage.folder / "done.json").read_text()).get("methods") == config.methods:
        return
    todo = [name for name in config.methods if not _row(stage.folder, name).is_file()]
    context.barrier("evaluate-todo")  # before the first of them is written
    if todo:
        exam = Exam(run, context)
        bar = progress_bar(len(todo) * len(exam.mine), "evaluate", "draw", context.main)
        for name in todo:
            bar.set_postfix_str(LABELS[name])
            with torch.inference_mode():
                row, confusions = exam.sit(name, stop, bar)
            if context.main:
                _row(stage.folder, name).parent.mkdir(exist_ok=True)
                with atomic_write(_row(stage.folder, name).with_suffix(".npz")) as file:
                    np.savez_compressed(file, **confusions)
                write_text(_row(stage.folder, name), json.dumps(row) + "\n")
        bar.close()
        context.barrier("evaluate-rows")
    if context.main:
        _conclude(run, stage.folder, context)
    stage.finish(methods=config.methods)


def _row(folder: Path, name: str) -> Path:
    return folder / "rows" / f"{name}.json"


class Exam:
    """What all methods are asked: the same supports and queries."""

    def __init__(self, run: Run, context: Context) -> None:
        config, extract = run.config.evaluate, run.dir / "extract"
        self.config, self.context = config, context
        tables = {name: load(extract, name) for name in ("base_train", "base_val", "novel_train", "novel_val")}
        for role in ("base", "novel"):
            support, query = run.shards["train"], run.shards["val"]
            assert_disjoint(support, tables["novel_train"].ids, query, tables[f"{role}_val"].ids)
        self.base, self.novel = (_queries(tables[f"{role}_val"], context) for role in ("base", "novel"))
        means = torch.from_numpy(np.load(extract / "means.f32.npy")).to(context.device)
        head = checkpoint.load(run.dir / "pretrain" / "final", context.device).tensors["model"]
        self.prepared = Base(
            tables["base_train"], means, head["head.weight"], head["head.bias"], run.dir / "learn",
            run.config.learn, config.rule, {**NUMBERS, **config.options},
        )  # fmt: skip
        self.bank = tables["novel_train"]
        self.mine = range(context.rank, config.draws, context.world)
        self.supports = {d: support_rows(self.bank, max(config.shots), config.seed, d) for d in self.mine}
        novel = len(run.novel)
        self.orders = {
            d: torch.from_numpy(np.random.RandomState([config.seed, d]).permutation(novel)).to(context.device)
            for d in self.mine
        }

    def sit(self, name: str, stop: Stopper, bar: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """One method's row: {"shots": {k: {metric: [draws], ...}}, "curves": {k: {curve: mean}}, "seconds"}, where
        an oracle has "all" for k; and how often each class was taken for which, by k: int32 [classes, classes],
        summed over draws.

        Raises:
            Stopped: told to leave.
        """
        began = time.perf_counter()
        self.context.doing(f"evaluate {name}: base classes")
        method = make(name, replace(self.prepared, watch=partial(self._watched, name, stop)))
        scorer = JointScorer(method, self.base, self.novel)
        classes = len(self.prepared.means)
        truth = torch.cat([self.base.labels, self.novel.labels + classes]).cpu().numpy()
        found: dict[str, dict[int, Draw]] = {}
        confusions: dict[str, np.ndarray] = {}
        for turn in range(1 if method.oracle else -(-self.config.draws // self.context.world)):
            if stop.agreed_now():
                raise Stopped(f"evaluate: left in {name}; the methods before it are kept")
            if turn >= len(self.mine) or (method.oracle and not self.context.main):
                continue
            draw = self.mine[turn]
            self.context.doing(f"evaluate {name}: draw {draw}")
            for k, support in self._supports(draw, method.oracle):
                one = scorer.draw(support, self.orders[draw])
                found.setdefault(k, {})[draw] = replace(one, predicted=np.zeros(0, np.int64))
                count = len(self.orders[draw]) + classes
                taken = np.bincount(truth * count + one.predicted, minlength=count**2).astype(np.int32)
                confusions[k] = confusions.get(k, 0) + taken.reshape(count, count)
            bar.update(len(self.mine) if method.oracle else 1)
        every = self.context.gather((found, confusions))
        shots = list(found)
        draws = {k: [one for _, one in sorted(x for part, _ in every for x in part.get(k, {}).items())] for k in shots}
        row = {
            "shots": {k: {metric: [one.metrics[metric] for one in some] for metric in METRICS}
                      for k, some in draws.items()},
            "curves": {k: {curve: np.mean([getattr(one, curve) for one in some], axis=0).round(4).tolist()
                           for curve in CURVES} for k, some in draws.items()},
            "seconds": round(time.perf_counter() - began, 1),
        }  # fmt: skip
        return row, {k: sum(part[k] for _, part in every if k in part) for k in shots}

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

    def _supports(self, draw: int, oracle: bool) -> Iterator[tuple[str, Any]]:
        """Of one draw, by number of shots; or all images, class by class."""
        if oracle:
            ends = zip(self.bank.offsets[:-1], self.bank.offsets[1:], strict=True)
            yield "all", [self._load(self.bank.rows[first:last]) for first, last in ends]
            return
        support = self._load(self.bank.rows[self.supports[draw]])
        for k in self.config.shots:
            yield str(k), support[:, :k]

    def _load(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows.astype(np.float32)).to(self.context.device)


def _conclude(run: Run, folder: Path, context: Context) -> None:
    """From the rows: results.json, table, report, TensorBoard."""
    config, facts = run.config.evaluate, provenance(run, context)
    rows = {name: json.loads(_row(folder, name).read_text()) for name in config.methods}
    values = {
        name: {k: {metric: summary(draws) for metric, draws in found.items()} for k, found in row["shots"].items()}
        for name, row in rows.items()
    }
    results = {
        "methods": {name: found for name, found in values.items() if not METHODS[name].oracle},
        "oracles": {name: found["all"] for name, found in values.items() if METHODS[name].oracle},
        "curves": {name: row["curves"] for name, row in rows.items() if not METHODS[name].oracle},
        "seconds": {name: row["seconds"] for name, row in rows.items()},
        "shots": config.shots,
        "draws": config.draws,
        "interval": "95% t-interval over support draws",
        "queries": {role: len(run.view("val", role)) for role in ("base", "novel")},
        "classes": {"base": len(run.base), "novel": len(run.novel)},
        "split": facts["split"],
        "shards": facts["shards"],
        "commit": facts["commit"],
        "command": facts["command"],
    }
    text = table_markdown(results)
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "table.md", text)
    write_text(folder / "report.html", report_html(results, curves(run.dir), facts))
    _tensorboard(folder, results)
    print(text)
    log.info("report: %s", folder / "report.html")
    log.info("tensorboard: tensorboard --logdir %s", run.dir)


def curves(folder: Path) -> dict[str, Any]:
    """The training curves of a run, as rows of metrics.jsonl."""
    learn = sorted(path.parent.name for path in (folder / "learn").glob("*/metrics.jsonl"))
    return {
        "pretrain": metrics.read(folder / "pretrain" / "metrics.jsonl"),
        "learn": {method: metrics.read(folder / "learn" / method / "metrics.jsonl") for method in learn},
    }


def _queries(table: Activations, context: Context) -> Queries:
    activations = torch.from_numpy(table.rows.astype(np.float32)).to(context.device)
    return Queries(activations, torch.from_numpy(table.labels).to(context.device))


def _tensorboard(folder: Path, results: dict[str, Any]) -> None:
    """Accuracy against shots: the step is the number of shots."""
    for method, by_shots in results["methods"].items():
        writer = metrics.SummaryWriter(str(folder / "tb" / method))
        for shots, values in by_shots.items():
            for metric, value in values.items():
                writer.add_scalar(f"fewshot/{metric}(%)", value["mean"], int(shots))
        writer.close()
