"""``dist-train launch local``: torch's own launcher in this process, on one machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_train.errors import FAILED, STOPPED
from launch.restart import again, begin


def work(arguments: list[str]) -> int:
    """One worker. What needs no new start is returned; anything else ends the process, and with it the group."""
    from launch.cli.main import main_of_rank

    code = main_of_rank(arguments)
    if code not in (0, FAILED, STOPPED):
        sys.exit(code)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C finds nothing left to do
    return code


class _Told(Exception):
    """A signal before there was a worker to pass it on to."""


@contextmanager
def _passing_on() -> Iterator[list[int]]:
    """The signals that this process gets go to its workers, which save and leave; yields those that came.

    torch's launcher would end the workers itself, after 30 seconds by force: long saves would be cut, and
    workers that have saved wait for it to take their results.
    """
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        workers = multiprocessing.active_children()
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, number if number in (signal.SIGINT, signal.SIGUSR2) else signal.SIGTERM)
        if not workers:
            raise _Told

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def launch(arguments: list[str], run: Path, workers: int, starts: int) -> int:
    """Run a command on ``workers`` ranks; when a rank dies, start all again and continue. Gives up after
    ``starts`` starts in a row that made no progress. Returns the exit code."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):  # a traceback for every dead worker
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
        with _passing_on() as came:
            try:
                return max(elastic_launch(options, work)(arguments).values())
            except _Told:
                return STOPPED
            except ChildFailedError as error:
                codes = [failure.exitcode for failure in error.failures.values()]
                code = max(128 - exitcode if exitcode < 0 else exitcode for exitcode in codes)
        if came:
            return STOPPED
        code, reason = again(run, job, code, starts)
        print(f"dist-train: {reason}", file=sys.stderr, flush=True)
        if code != STOPPED:
            (run / "launch" / f"start-{job}.json").unlink(missing_ok=True)
            return code


def tensorboard(folder: Path, port: int) -> int:
    """TensorBoard for a run or a folder of runs, here; prints how to reach it from elsewhere."""
    import getpass
    import socket
    import subprocess

    free = next((p for p in range(port, min(port + 50, 65536)) if _free(p)), port)
    host = socket.gethostname()
    print(f"from your own machine: ssh -N -L {free}:localhost:{free} {getpass.getuser()}@{host}\n"
          f"then open http://localhost:{free}; Ctrl-C ends it", flush=True)  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(free),
        "--host",
        "localhost",
    ]
    try:
        return subprocess.run(command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}).returncode
    except KeyboardInterrupt:
        return 0


def _free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0
