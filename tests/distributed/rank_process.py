"""What a rank's process runs. A module of its own, for the forked process imports it by its name, and
there are several named conftest."""

from __future__ import annotations

import os
import sys

from faults import Fault, plant


def run_rank(env: dict[str, str], arguments: list[str], error: str, fault: Fault | None = None) -> None:
    """One rank, in its own process; with a ``fault``, under a launcher, and it fails there."""
    descriptor = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ |= {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    import torch

    from launch.cli import main, main_of_rank

    torch.set_num_threads(1)
    if fault:
        plant(fault)
    sys.exit(main_of_rank(arguments) if fault else main(arguments))
