"""``dist-train doctor``: what this machine, or a cluster, can do, and what to fix; one line for each check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from dist_train.config import CacheConfig
from launch.doctor import machine, slurm, trial
from launch.doctor.line import Line
from launch.slurm.profile import Cluster, load_cluster


def examine(runs: Path, cluster: str | None, minutes: float) -> int:
    """Print a line for each check; return 1 where one of them is an error, else 0.

    Args:
        runs: the folder of all runs.
        cluster: also try this profile, by a short job on two nodes.
        minutes: how long to wait for that job.

    Raises:
        UserError: there is no such profile, or it is wrong.
    """
    profile = load_cluster(cluster) if cluster else None
    worst = "ok"
    for line in _lines(runs, profile, minutes):
        worst = "error" if "error" in (line.level, worst) else line.level
        print(f"{line.level:8} {line.subject:12} {line.text}", flush=True)
    return 1 if worst == "error" else 0


def _lines(runs: Path, profile: Cluster | None, minutes: float) -> Iterator[Line]:
    groups: list[Iterable[Line]] = [
        machine.software(),
        machine.accelerators(),
        machine.processors(),
        machine.network(),
        machine.folder("runs", runs),
        machine.folder("cache", CacheConfig().dir.expanduser()),
        slurm.settings(),
    ]
    if profile:
        groups.append(trial.try_nodes(runs, profile, minutes))
    for group in groups:
        yield from group
