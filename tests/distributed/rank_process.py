"""The program of a rank's process. It is a module of its own: the forked process imports it by its name, and many
modules are named conftest."""

from __future__ import annotations

import os
import sys


def run_rank(env: dict[str, str], arguments: list[str], error: str) -> None:
    """Run a rank in its own process."""
    descriptor = os.open(error, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ |= {**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.stdout = sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    import torch

    from launch.cli.main import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


def run_rank_sharing(env: dict[str, str], arguments: list[str], error: str) -> None:
    """Run a rank on a machine whose launcher gives all ranks the same GPU."""
    from dist_train.distributed import context

    context.identity = lambda device, env: "GPU-5ec41dd0"
    run_rank(env, arguments, error)
