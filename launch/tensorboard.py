"""``dist-train launch tensorboard``: TensorBoard on this machine, and how to reach it from another."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
from pathlib import Path


def tensorboard(folder: Path, port: int) -> int:
    """Show a run, or a folder of runs, in TensorBoard until Ctrl-C; return its exit code.

    Args:
        folder: the folder of the run or runs.
        port: the first of 50 ports to try.
    """
    free = next((p for p in range(port, min(port + 50, 65536)) if _is_free(p)), port)
    host = socket.gethostname()
    print(f"from your own machine: ssh -N -L {free}:localhost:{free} {getpass.getuser()}@{host}\n"
          f"then open http://localhost:{free}; Ctrl-C ends it", flush=True)  # fmt: skip
    options = ["--logdir", str(folder), "--port", str(free), "--host", "localhost"]
    program = [sys.executable, "-m", "tensorboard.main", *options]
    try:
        return subprocess.run(program, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}).returncode
    except KeyboardInterrupt:
        return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0
