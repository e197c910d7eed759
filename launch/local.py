"""``dist-train launch local``: torch's own launcher in this process, on one machine."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path

from dist_train.errors import FAILED, STOPPED
from launch.after import again, begin


def work(arguments: list[str]) -> int:
    """One worker. What needs no new start is returned; anything else ends the process, and with it the group."""
    from launch.cli import main_of_rank

    code = main_of_rank(arguments)
    if code not in (0, FAILED, STOPPED):
        sys.exit(code)
    return code


def launch(arguments: list[str], run: Path, workers: int, starts: int) -> int:
    """Run a command on ``workers`` ranks; when a rank dies, start all again and continue. Gives up after
    ``starts`` starts in a row that made no progress. Returns the exit code."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2",
        )
        begin(run, job)
        try:
            return max(elastic_launch(options, work)(arguments).values())
        except SignalException:
            return STOPPED  # the workers got the signal too, and saved
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
            code = max(128 - exitcode if exitcode < 0 else exitcode for exitcode in codes)
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
