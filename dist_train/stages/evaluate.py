"""Evaluate: score all classes together, or episodes; write the table and the report (paper, chapter 4)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from dist_train.config import NETWORK_OF
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar, working
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError, counted
from dist_train.fewshot.methods import LABELS, METHODS
from dist_train.fewshot.part import Part
from dist_train.fewshot.results import (
    BackboneFacts,
    Counts,
    EpisodeFacts,
    Interval,
    MethodResult,
    Metrics,
    Results,
    SplitFacts,
)
from dist_train.fewshot.table_row import TableRow
from dist_train.files import write_text
from dist_train.report.markdown import episodes_markdown, joint_markdown, low_shot_markdown
from dist_train.report.tensorboard import write_tensorboard
from dist_train.runs.inputs import same_options
from dist_train.runs.provenance import provenance
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.done import EVALUATION_FILES, is_done, is_reported
from dist_train.stages.network_scoring import scoring_of
from dist_train.stages.part_store import PartStore
from dist_train.stages.reporting import write_report
from dist_train.stages.row_store import RowStore, StoredRow
from dist_train.stages.scoring import NO_SHOTS, BaseScoring, EpisodeScoring, JointScoring, Scoring
from dist_train.stages.share import Share


def evaluate(run: Run, context: Context, stop: StopFlag, redo: bool = False, share: Share | None = None) -> None:
    """Score ``evaluate.methods`` at ``evaluate.shots`` over ``evaluate.draws`` support draws, which ranks share.

    Without novel classes nothing is drawn: the methods' base accuracy is measured.

    Leaves ``results.json``, ``table.md`` and, for joint scoring, ``report.html``. Each method's row is kept as soon as
    it is complete (stages/row_store.py), and so are its draws at a stop (stages/part_store.py), so that a stage which
    was interrupted, or is given more methods or other options, computes only what is missing.

    Args:
        share: keep what these draws find, and make no table: another start makes it, when all shares are there.

    Raises:
        Stopped: the run is to stop; the rows and draws that are complete stay.
        UserError: a method's scores are not finite.
    """
    stage = Stage(run, "evaluate", context, redo)
    if not context.gather(is_done(run.dir, "networks", run.config))[0]:
        first = same_options("networks").rstrip(",")
        raise UserError(f"{run.dir / 'networks'}: not all networks of evaluate.methods are trained; first: {first}")
    config, store = run.config.evaluate, RowStore(stage.folder, run.config)
    rows: dict[str, StoredRow] = {}
    if context.main:
        rows = {name: stored for name in config.methods if (stored := store.read(name))}
    missing = context.gather([name for name in config.methods if name not in rows])[0]
    if context.gather(not missing and is_reported(stage.folder, config))[0]:
        if context.main:
            store.warn_of_older(rows)
            if share:
                share.discard(run.dir)
        return stage.log_done()
    if share is not None and context.main:
        share.note(run.dir, same_options("evaluate"))
    if share is None:
        stage.reopen()
        if context.main:
            for name in EVALUATION_FILES:  # they would show other rows than there are going to be
                (stage.folder / name).unlink(missing_ok=True)
    with working("evaluate: activations", context.main):
        scoring = _scoring(run)(run, context)
    if missing:
        rows |= _score(run, missing, scoring, store, share, stop)
    if share is not None:
        context.report_progress(share.done)
        return log.info("evaluate: share %s of the draws is done (%s)", share, stage.folder / "parts")
    if context.main:
        _report(run, scoring, {name: rows[name] for name in config.methods}, store.warn_of_older(rows))
        PartStore(store).discard()
    stage.finish(methods=config.methods)


def _scoring(run: Run) -> type[Scoring]:
    if run.config.evaluate.protocol != "joint":
        return EpisodeScoring
    return JointScoring if run.novel else BaseScoring


def _score(
    run: Run, missing: list[str], frozen: Scoring, store: RowStore, share: Share | None, stop: StopFlag
) -> dict[str, StoredRow]:
    """Compute these rows and keep each at once; returned on rank 0. Of a share, the parts are kept.

    Args:
        frozen: what scores the rows of the frozen backbone's activations.
    """
    context, rows, parts = frozen.context, dict[str, StoredRow](), PartStore(store)
    networks = [NETWORK_OF.get(name) for name in missing]
    scorings = {network: scoring_of(network, run, frozen) for network in dict.fromkeys(networks)}
    draws = [scorings[network].draws_of(name) for name, network in zip(missing, networks, strict=True)]
    wanted = [share.of(numbers) if share else numbers for numbers in draws]
    bar = progress_bar(sum(map(len, wanted)), "evaluate", "draw", context.main)
    for place, (name, network, numbers) in enumerate(zip(missing, networks, wanted, strict=True)):
        bar.set_postfix_str(LABELS[name])
        scorings[network].later = missing[place + 1 :]
        with torch.inference_mode():
            found = _find(name, numbers, scorings[network], parts, stop, bar, keep=share is not None)
        if context.main and share is None:
            rows[name] = store.write(name, found.row(), found.confusions)
    bar.close()
    context.barrier("evaluate-rows")
    return rows


def _find(
    name: str, numbers: Sequence[int], scoring: Scoring, parts: PartStore, stop: StopFlag, bar: tqdm[Any], *, keep: bool
) -> Part:
    """Return what these draws of a row find, complete on rank 0: draws that are in a part already are taken from it.

    Args:
        keep: keep what is computed here as a part; else only at a stop.
    """
    context = scoring.context
    known = parts.read(name) if context.main else []
    there = context.gather({number for part in known for number in part.numbers})[0]
    missing = [number for number in numbers if number not in there]
    bar.update(len(numbers) - len(missing))
    computed, where = Part(), ", in its preparation, which begins anew"
    with suppress(Stopped):  # before the first draw
        computed, where = scoring.score(name, stop, bar, missing), ""
    stopped = len(computed.numbers) < len(missing)
    if context.main and computed.numbers and (keep or stopped):
        parts.write(name, computed)
    if stopped:
        done = f"{len(numbers) - len(missing) + len(computed.numbers)} of {counted(len(numbers), 'draw')}{where}"
        if bar.total and bar.total > len(numbers):
            done += f"; of all rows {bar.n} of {bar.total}"
        context.report_progress(f"evaluate {name}: {done}")
        raise Stopped(f"evaluate: stopped in {name} after {done}; what is complete is kept")
    return Part.join([*known, computed])


def _report(run: Run, scoring: Scoring, stored: Mapping[str, StoredRow], older: Mapping[str, str]) -> None:
    """Write results.json, the table, the report and TensorBoard from the rows."""
    facts = provenance(run, scoring.context)
    results = make_results(run, {name: stored_row.row for name, stored_row in stored.items()}, older, facts)
    folder = run.dir / "evaluate"
    text = _table(run, results)
    write_text(folder / "results.json", json.dumps(results.to_json(), indent=1) + "\n")
    write_text(folder / "table.md", text)
    with working("evaluate: TensorBoard"):
        write_tensorboard(folder / "tb", results)
    if isinstance(scoring, (JointScoring, BaseScoring)):
        with working("evaluate: pictures"):
            write_report(run, results, facts, scoring)
        log.info("report: %s", folder / "report.html")
    print(text)
    log.info("tensorboard: tensorboard --logdir %s", shlex.quote(str(run.dir)))


def make_results(run: Run, rows: Mapping[str, TableRow], older: Mapping[str, str], facts: Mapping[str, Any]) -> Results:
    """Average the rows over draws, and say where they are from.

    Args:
        older: name -> commit of the rows that other code made.
        facts: what ``provenance`` returned.
    """
    config = run.config.evaluate
    joint, released = config.protocol == "joint", config.protocol == "released"
    drawn = bool(run.novel)
    average = Interval.spread if released else Interval.of
    unit = "support draws" if joint else "episodes"
    interval = f"standard deviation over {unit}" if released else f"95% t-interval over {unit}"

    def averaged(row: TableRow) -> dict[str, Metrics]:
        return {k: {metric: average(draws) for metric, draws in metrics.items()} for k, metrics in row.shots.items()}

    return Results(
        protocol=config.protocol,
        methods={
            name: MethodResult(
                {int(k): metrics for k, metrics in averaged(row).items()},
                {int(k): curves for k, curves in row.curves.items()},
            )
            for name, row in rows.items()
            if not METHODS[name].oracle
        },
        oracles={name: averaged(row)["all"] for name, row in rows.items() if METHODS[name].oracle and drawn},
        left_out=[name for name, row in rows.items() if not row.shots],
        seconds={name: row.seconds for name, row in rows.items()},
        shots=config.shots if drawn else [int(NO_SHOTS)],
        draws=config.draws if drawn else 1,
        interval=interval if drawn else "no interval: nothing is drawn",
        queries=Counts(len(run.groups("val", "scored")), len(run.groups("val", "novel")) if drawn else 0)
        if joint
        else None,
        classes=Counts(len(run.scored), len(run.novel)),
        split=SplitFacts(**facts["split"]),
        shards=run.samples.hash,
        samples=run.samples.kind,
        seed=config.seed,
        rule=config.rule,
        options=config.options,
        commit=facts["commit"],
        older=older,
        command=facts["command"],
        episodes=None if joint else EpisodeFacts(config.ways, None if released else config.queries),
        backbone=_backbone_facts(facts),
    )


def _backbone_facts(facts: Mapping[str, Any]) -> BackboneFacts | None:
    backbone = facts.get("backbone")
    names = ("source", "trained_on", "novel_seen", "fine_tuned")
    return backbone and BackboneFacts(**{name: backbone[name] for name in names})


def _table(run: Run, results: Results) -> str:
    """Return ``table.md``."""
    if results.episodes:
        return episodes_markdown(results)
    low_shot = "\n" + low_shot_markdown(results) if run.split.halves else ""
    return joint_markdown(results) + low_shot
