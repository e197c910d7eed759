"""``dist-train launch local``: torch's own launcher in this process, on one machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from dist_train.errors import FAILED, STOPPED
from launch.restart import begin, decide, note_path


def launch(config_file: Path, run: Path, workers: int, starts: int) -> int:
    """Run all stages on ``workers`` ranks; when a rank dies, start all of them again and continue.

    Args:
        config_file: the frozen configuration.
        run: the run's folder, whose files show whether a start made progress.
        workers: number of ranks.
        starts: give up after so many starts in a row that made no progress.

    Returns:
        The exit code (``dist_train.errors``).
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):  # they print a traceback for every dead worker
        logging.getLogger(name).setLevel(logging.CRITICAL)
    job = f"local-{uuid.uuid4().hex[:8]}"
    while True:
        options = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=workers,
            run_id=job,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,  # whether to start again depends on the exit code and on progress
            monitor_interval=0.2,
            signals_to_handle="",
        )
        begin(run, job)
        with _SignalRelay() as relay:
            try:
                codes: dict[int, int] = elastic_launch(options, run_worker)(config_file)
                return max(codes.values())
            except _SignalBeforeWorkers:
                return STOPPED
            except ChildFailedError as error:
                failed = [failure.exitcode for failure in error.failures.values()]
                code = max(128 - exitcode if exitcode < 0 else exitcode for exitcode in failed)
        if relay.received:
            return STOPPED
        decision = decide(run, job, code, starts)
        print(f"dist-train: {decision.reason}", file=sys.stderr, flush=True)
        if decision.code != STOPPED:
            note_path(run, job).unlink(missing_ok=True)
            return decision.code


def run_worker(config_file: Path) -> int:
    """Run all stages as one of the workers.

    Return an exit code after which no new start is needed; with any other code, end this process and so all workers.
    """
    from launch import rank  # here, because only the workers need what it imports

    code = rank.start(config_file, "run")
    if code not in (0, FAILED, STOPPED):
        sys.exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
    return code


class _SignalBeforeWorkers(Exception):
    """Report a signal that came before there was a worker to pass it on to."""


class _SignalRelay:
    """Pass the signals that this process gets on to its workers, which save and leave.

    torch's launcher would end the workers itself, after 30 seconds by force: it would cut off saves that take longer,
    and end workers that have saved and wait for it to collect their results.

    Attributes:
        received: numbers of the signals so far.
    """

    _NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> _SignalRelay:
        self._before = {number: signal.signal(number, self._pass_on) for number in self._NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        workers = multiprocessing.active_children()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number if number in (signal.SIGINT, signal.SIGUSR2) else signal.SIGTERM)
        if not workers:
            raise _SignalBeforeWorkers
