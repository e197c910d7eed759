"""Chapter 4: all classes scored together; the table and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.context import Context
from dist_train.data.activations import Activations, load
from dist_train.data.files import write_text
from dist_train.data.pool import progress_bar
from dist_train.engine import checkpoint, metrics
from dist_train.engine.preempt import Stopped, Stopper
from dist_train.fewshot.method import Base
from dist_train.fewshot.methods import make
from dist_train.fewshot.protocol import CURVES, METRICS, JointScorer, Queries, assert_disjoint, summary, support_rows
from dist_train.fewshot.report import report_html, table_markdown
from dist_train.stages.common import Run, Stage, log, provenance


def run(run: Run, context: Context, stop: Stopper, redo: bool = False) -> None:
    """Score ``evaluate.methods`` at ``evaluate.shots`` over ``evaluate.draws`` support draws; leaves
    ``results.json``, ``table.md`` and ``report.html``. Ranks share the draws.

    Raises:
        Stopped: told to leave; this stage, of minutes, starts again.
    """
    stage = Stage(run, "evaluate", context, redo)
    if stage.done:
        return
    config, extract = run.config.evaluate, run.dir / "extract"
    tables = {name: load(extract, name) for name in ("base_train", "base_val", "novel_train", "novel_val")}
    for role in ("base", "novel"):
        support, query = run.shards["train"], run.shards["val"]
        assert_disjoint(support, tables["novel_train"].ids, query, tables[f"{role}_val"].ids)
    base, novel = (_queries(tables[f"{role}_val"], context) for role in ("base", "novel"))
    means = torch.from_numpy(np.load(extract / "means.f32.npy")).to(context.device)
    rows = checkpoint.load(run.dir / "pretrain" / "final", context.device).tensors["model"]["head.weight"]
    prepared = Base(tables["base_train"], means, rows, run.dir / "learn", run.config.learn, config.rule)
    mine = range(context.rank, config.draws, context.world)
    supports = {d: support_rows(tables["novel_train"], max(config.shots), config.seed, d) for d in mine}
    orders = {
        d: torch.from_numpy(np.random.RandomState([config.seed, d]).permutation(len(run.novel))).to(context.device)
        for d in mine
    }
    methods: dict[str, Any] = {}
    averages: dict[str, Any] = {}
    bar = progress_bar(len(config.methods) * len(mine), "evaluate", "draw", context.main)
    with torch.inference_mode():
        for name in config.methods:
            scorer = JointScorer(make(name, prepared), base, novel)
            found = {}
            for draw in mine:
                context.doing(f"evaluate {name}: draw {draw}")
                support = torch.from_numpy(tables["novel_train"].rows[supports[draw]].astype(np.float32)).to(
                    context.device
                )
                found[draw] = {k: scorer.draw(support[:, :k], orders[draw]) for k in config.shots}
                bar.update(1)
            merged = {d: values for part in context.gather(found) for d, values in part.items()}
            if stop.agreed_now():
                raise Stopped(f"evaluate: left after {name}")
            draws = {str(k): [merged[d][k] for d in sorted(merged)] for k in config.shots}
            methods[name] = {
                k: {metric: summary([draw.metrics[metric] for draw in some]) for metric in METRICS}
                for k, some in draws.items()
            }
            averages[name] = {
                k: {
                    curve: np.mean([getattr(draw, curve) for draw in some], axis=0).round(4).tolist()
                    for curve in CURVES
                }
                for k, some in draws.items()
            }
    bar.close()
    if context.main:
        facts = provenance(run, context)
        results = {
            "methods": methods,
            "curves": averages,
            "shots": config.shots,
            "draws": config.draws,
            "interval": "95% t-interval over support draws",
            "queries": {"base": len(base.labels), "novel": len(novel.labels)},
            "classes": {"base": len(run.base), "novel": len(run.novel)},
            "split": facts["split"],
            "shards": facts["shards"],
            "commit": facts["commit"],
            "command": facts["command"],
        }
        text = table_markdown(results)
        write_text(stage.folder / "results.json", json.dumps(results, indent=1) + "\n")
        write_text(stage.folder / "table.md", text)
        write_text(stage.folder / "report.html", report_html(results, curves(run.dir), facts))
        _tensorboard(stage.folder, results)
        print(text)
        log.info("report: %s", stage.folder / "report.html")
        log.info("tensorboard: tensorboard --logdir %s", run.dir)
    stage.finish()


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
