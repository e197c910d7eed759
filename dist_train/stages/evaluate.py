"""Chapter 4: all classes scored together, or episodes; the table and the report."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.methods import LABELS, METHODS
from dist_train.fewshot.protocols.episodes import spread
from dist_train.fewshot.protocols.joint import summary
from dist_train.files import write_text
from dist_train.report.markdown import episodes_markdown, low_shot_markdown, table_markdown
from dist_train.runs.provenance import provenance
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.conclude import report, tensorboard
from dist_train.stages.rows import MADE, Rows, is_shown
from dist_train.stages.scoring import EpisodeExam, Exam, Examiner


def evaluate(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
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
        text = table_markdown(results) + ("\n" + low_shot_markdown(results) if run.split.halves else "")
    else:
        results["episodes"] = {"ways": config.ways, "queries": None if released else config.queries}
        del results["oracles"], results["curves"], results["queries"]
        text = episodes_markdown(results)
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "table.md", text)
    tensorboard(folder / "tb", results)
    if isinstance(exam, Exam):
        report(run, results, facts, exam.prepared, exam.supports[0], context)
        log.info("report: %s", folder / "report.html")
    print(text)
    log.info("tensorboard: tensorboard --logdir %s", shlex.quote(str(run.dir)))
