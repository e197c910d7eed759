"""The CPUs that this process may use; without torch, which a command may not need."""

from __future__ import annotations

import os
from collections.abc import Mapping


def usable_cpus() -> int:
    """Return how many CPUs this process may use; under SLURM or taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def cpus_per_rank(local_world: int, env: Mapping[str, str] = os.environ) -> int:
    """Return this rank's number of CPUs: those that SLURM gave its task, else an equal share of the node's."""
    allocated = env.get("SLURM_CPUS_PER_TASK", "")
    if allocated.isdigit() and "SLURM_STEP_NUM_TASKS" in env:
        return max(1, min(usable_cpus(), int(allocated)))
    return max(1, usable_cpus() // local_world)
