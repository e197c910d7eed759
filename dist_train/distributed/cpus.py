"""What this process has of the machine: CPUs and memory; without torch, which a command may not need."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Options of mallopt, by glibc's malloc.h."""


def usable_cpus() -> int:
    """Return how many CPUs this process may use; under SLURM or taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def cpus_per_rank(local_world: int, env: Mapping[str, str] = os.environ) -> int:
    """Return this rank's number of CPUs: those that SLURM gave its task, else an equal share of the node's."""
    allocated = env.get("SLURM_CPUS_PER_TASK", "")
    if allocated.isdigit() and "SLURM_STEP_NUM_TASKS" in env:
        return max(1, min(usable_cpus(), int(allocated)))
    return max(1, usable_cpus() // local_world)


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB of freed memory for what it allocates next, where glibc would return it to the
    kernel, to get it back cleared page by page. A network on a CPU frees and allocates its feature maps with each
    batch: the starter takes about half the time with it (docs/results/batch.md). Without glibc nothing changes.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        libc.mallopt(_TRIM_THRESHOLD, 2**30)
