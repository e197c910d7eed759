"""A short job of a profile on two nodes: whether the ranks meet, and how fast they exchange data."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from dist_train.config import Config
from dist_train.distributed import context as contexts
from dist_train.distributed.context import Context
from dist_train.errors import UserError, counted
from dist_train.files import write_text
from launch.doctor.line import Level, Line
from launch.slurm import jobs, scheduler
from launch.slurm.chain import PlannedJob, Task
from launch.slurm.profile import Cluster, stage_resources
from launch.slurm.scheduler import NoAnswer, State

_MINUTES = 5  # time limit of the job
_EXCHANGED = 64 * 2**20  # bytes of an exchange whose speed is measured
_RESULT = "lines.json"


def try_nodes(runs: Path, cluster: Cluster, minutes: float) -> Iterator[Line]:
    """Submit the job, wait for its result, and return the lines that its ranks report.

    Args:
        runs: a folder that the nodes see; the job has a folder of its own in it until it has ended.
        minutes: how long to wait for the job.
    """
    from launch.slurm.submit import submit

    resources = stage_resources(cluster, "pretrain", {"nodes": min(2, cluster.nodes or 2), "minutes": _MINUTES})
    runs.mkdir(parents=True, exist_ok=True)
    run = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs.absolute()))
    config = Config(name=run.name, runs=run.parent)
    task = Task("launch.doctor.trial:exchange", (run,), run, "dist-train doctor")
    try:
        job = submit(config, cluster, [PlannedJob("doctor", resources, (task,))])["doctor"]
    except UserError as error:
        shutil.rmtree(run)
        yield Line("error", "job", str(error))
        return
    end = time.monotonic() + 60 * minutes
    state = _wait_for_result(run, job, end)
    if (run / _RESULT).is_file():
        yield from (Line(*line) for line in json.loads((run / _RESULT).read_text()))
        while time.monotonic() < end and _may_run(run):
            time.sleep(1)
        shutil.rmtree(run, ignore_errors=True)
        return
    scheduler.scancel([job])
    yield _no_result(run, job, minutes, state)


def _wait_for_result(run: Path, job: str, end: float) -> State | None:
    """Wait until there is a result, the job has ended, or the time is over; return the job's last known state."""
    state = None
    while time.monotonic() < end and not (run / _RESULT).is_file():
        with suppress(NoAnswer):
            state = scheduler.states([job]).get(job, state)
        if state and not state.active:
            break
        time.sleep(1)
    return state


def _no_result(run: Path, job: str, minutes: float, state: State | None) -> Line:
    """Return the line for a job without a result. Its folder stays where it has a log."""
    last_known = f"{state.state} {state.reason}".strip() if state else "unknown"
    log = next(jobs.folder(run).glob("*_log.out"), None)
    if log is None:  # the job never started
        shutil.rmtree(run, ignore_errors=True)
    where = f"; its log is {log}" if log else ""
    return Line("error", "job", f"job {job} did not report within {minutes:g} min (state {last_known}){where}")


def _may_run(run: Path) -> bool:
    try:
        return bool(jobs.active(run))
    except NoAnswer:
        return True


def exchange(run: Path) -> int:
    """Run on every rank of the job: exchange data with the others, and let rank 0 write the lines; return 0."""
    with contexts.start(timeout=120, folder=run / "launch") as context:
        placement, *warnings = contexts.placement(context)
        lines = [Line("ok", "ranks", placement), *(Line("warning", "ranks", text) for text in warnings)]
        transport = "NCCL" if context.device.type == "cuda" else "gloo"
        speed = _exchange_speed(context)
        lines.append(
            Line("ok", "all-reduce", f"{speed:.2f} GB/s over {transport} between {counted(context.world, 'rank')}")
        )
        context.sum(torch.zeros(1))  # all ranks leave this exchange together, so their clocks can be compared
        clocks = context.gather(time.time())
        spread = max(clocks) - min(clocks)
        level: Level = "ok" if spread < 5 else "warning"
        lines.append(Line(level, "clocks", f"{spread:.2f} s apart between the ranks"))
        if context.main:
            write_text(run / _RESULT, json.dumps(lines))
        context.barrier("doctor")
    return 0


def _exchange_speed(context: Context) -> float:
    """Return the speed of sums over all ranks in GB/s."""
    data = torch.ones(_EXCHANGED // 4, device=context.device)
    context.sum(data[:1])
    begin = time.perf_counter()
    for _ in range(3):
        context.sum(data)
    if context.device.type == "cuda":
        torch.cuda.synchronize()
    return 3 * _EXCHANGED / 1e9 / (time.perf_counter() - begin)
