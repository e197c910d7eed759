"""The commands that start runs and check machines: launch local, launch slurm, launch tensorboard, doctor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from dist_train.config import Config
from dist_train.config.io import freeze
from dist_train.errors import FAILED, UserError
from launch.cli.signature import Option, Options
from launch.slurm.profile import CHAIN, Cluster, load_cluster

_PROFILE = "Profile: a YAML file, or the name of one in configs/clusters/. Its keys, explained in docs/slurm.md: "
_RESOURCES = ("partition", "account", "qos", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "minutes")


def local(config: Config, *, workers: int = 1, starts: int = 3) -> int:
    """Run all stages on this machine with torch's launcher.

    When a worker dies, all of them start again and continue. Ctrl-C saves and leaves.

    Args:
        workers: Ranks: one a GPU, or a few on CPUs.
        starts: Give up after this many starts without progress.
    """
    from dist_train.distributed.context import Context
    from dist_train.files import outermost_missing
    from dist_train.runs.lock import RunLock
    from launch.local import launch
    from launch.slurm.jobs import reserved

    if workers < 1 or starts < 1:
        raise UserError("--workers and --starts: must be >= 1")
    made = outermost_missing(config.run_dir)
    with reserved(config.run_dir):
        config_file = freeze(config)
    code = launch(config_file, config.run_dir, workers, starts)
    if code == FAILED:
        with RunLock(config.run_dir, Context(), made) as lock:
            lock.discard(["launch"])
    return code


@dataclass(kw_only=True)
class SlurmOptions(Options):
    """What a chain of jobs asks for, and which stages it runs."""

    cluster: Annotated[str, Option(help=_PROFILE + ", ".join(Cluster.__dataclass_fields__))]
    partition: str | None = None
    """In place of the profile's partition."""
    account: str | None = None
    """In place of the profile's account."""
    qos: str | None = None
    """In place of the profile's qos."""
    nodes: int | None = None
    """In place of the profile's nodes."""
    gpus_per_node: int | None = None
    """In place of the profile's gpus_per_node."""
    tasks_per_node: int | None = None
    """In place of the profile's tasks_per_node."""
    cpus_per_task: int | None = None
    """In place of the profile's cpus_per_task."""
    minutes: int | None = None
    """In place of the profile's minutes."""
    stages: Annotated[
        str | None, Option(help=f"Stages to run, of {','.join(CHAIN)}; default: all that are not done.")
    ] = None
    sweep: Annotated[list[str], Option(several=True)] = field(default_factory=list)
    """Values of learn.* and evaluate.* to try, as arrays of jobs: learn.p_mean=0.3,0.9 evaluate.seed=0,1"""
    dry_run: bool = False
    """Print every script and the chain; submit nothing."""
    here: bool = False
    """Run the chain on this machine, without SLURM."""


def slurm(config: Config, options: SlurmOptions) -> int:
    """Submit the stages as a chain of SLURM jobs.

    A job that is stopped by preemption or a time limit saves, requeues itself and continues.
    """
    from launch.slurm.launch import launch_chain

    cluster = load_cluster(options.cluster)
    if options.account:
        cluster = replace(cluster, account=options.account)
    overrides = {name: getattr(options, name) for name in _RESOURCES}
    return launch_chain(config, cluster, overrides, options.stages, options.sweep, options.dry_run, options.here)


def tensorboard(folder: Path = Path("runs"), *, port: int = 6006) -> int:
    """Show a run or all runs in TensorBoard, and print the SSH tunnel that leads to it.

    Args:
        folder: RUNS/NAME, or RUNS for all.
        port: First port to try.
    """
    from launch.tensorboard import tensorboard

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give RUNS/NAME or the folder of all runs")
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: must be in 1..65535")
    return tensorboard(folder, port)


def doctor(*, runs: Path = Path("runs"), cluster: str | None = None, wait: float = 10) -> int:
    """Check this machine or cluster: what it can do, and what to fix, one line each.

    Args:
        runs: Folder of all runs: its speed, locks and clock are checked.
        cluster: Try this profile too: a short job on two nodes that exchanges data.
        wait: Minutes to wait for that job.
    """
    from launch.doctor.examine import examine

    return examine(runs, cluster, wait)
