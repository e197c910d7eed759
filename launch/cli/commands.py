"""The commands around a run: launch, logs, cancel, study, collect, doctor. ``launch/cli/main.py`` has the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dist_train.config import Config, configs_dir
from dist_train.config.io import find_yaml
from dist_train.errors import UserError
from launch.slurm.profile import CHAIN, Cluster, load_cluster

ASKED = ("partition", "account", "qos", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "minutes")


def add(commands: Any, parser: Callable[..., Any], words: Sequence[str]) -> None:
    """Add the parsers of these commands, for a command line of these words."""
    local = parser(description="Run all stages on this machine with torch's launcher; a dead worker's group starts "
                               "again and continues. Ctrl-C saves and leaves.")  # fmt: skip
    if "local" in words:
        add_run_options(local)
    local.add_argument("--workers", type=int, default=1, help="Ranks: one a GPU, or a few on CPUs.")
    local.add_argument("--starts", type=int, default=3, help="Give up after so many starts without progress.")

    slurm = parser(description="Submit the stages as a chain of SLURM jobs. Stopped by preemption or a time limit, "
                               "a job saves, requeues itself and continues.")  # fmt: skip
    if "slurm" in words:
        add_run_options(slurm)
    slurm.add_argument(
        "--cluster",
        required=True,
        help="Profile: a YAML file, or the name of one in configs/clusters/. Its keys, explained in docs/slurm.md: "
        + ", ".join(Cluster.__dataclass_fields__),
    )
    for name in ASKED:
        kind = str if name in ("partition", "account", "qos") else int
        slurm.add_argument(f"--{name}", type=kind, help=f"In place of the profile's {name}.")
    slurm.add_argument("--stages", help=f"Some of {','.join(CHAIN)}; default: all that are not done.")
    swept = "learn.* and evaluate.* over values, as arrays: learn.p_mean=0.3,0.9 evaluate.seed=0,1"
    slurm.add_argument("--sweep", nargs="+", action="extend", default=[], help=swept)
    slurm.add_argument("--dry_run", action="store_true", help="Print every script and the chain; submit nothing.")
    slurm.add_argument("--here", action="store_true", help="Run the chain on this machine, without SLURM.")

    board = parser(description="TensorBoard for a run or all runs, and the SSH tunnel that leads to it.")
    board.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="RUNS/NAME, or RUNS for all.")
    board.add_argument("--port", type=int, default=6006, help="First port to try.")

    launch = parser(description="Start a run: on this machine (local) or as SLURM jobs (slurm); or TensorBoard.")
    commands.add_subcommand("launch", launch, help="start a run here or on SLURM")
    kinds = launch.add_subcommands(dest="launcher", required=True)
    kinds.add_subcommand("local", local, help="on this machine")
    kinds.add_subcommand("slurm", slurm, help="as a chain of SLURM jobs")
    kinds.add_subcommand("tensorboard", board, help="TensorBoard, and how to reach it")

    logs = parser(description="What a rank of the newest job printed.")
    logs.add_argument("run", type=Path, help="RUNS/NAME.")
    logs.add_argument("--stage", help="Of this stage's newest job.")
    logs.add_argument("--rank", type=int, default=0, help="Of this rank.")
    logs.add_argument("--member", type=int, default=0, help="Of this member of an array.")
    logs.add_argument("-f", "--follow", action="store_true", help="Go on until the job has ended.")
    commands.add_subcommand("logs", logs, help="what a job printed")

    cancel = parser(description="End a run's queued and running jobs; what runs saves first.")
    cancel.add_argument("run", type=Path, help="RUNS/NAME.")
    commands.add_subcommand("cancel", cancel, help="end a run's jobs")

    study = parser(
        description="Vary choices one at a time over one backbone, on the split's pseudo-novel classes: a table of "
        "what each changes, draw by draw, in RUN/study/. Members run one after the other; the same command continues."
    )
    study.add_argument("study", help="YAML file, or the name of one in configs/studies/.")
    study.add_argument("--seeds", type=int, default=1, help="Learn each setting so often, and take the mean.")
    if "study" in words:
        add_run_options(study)
        study.set_defaults({"data.holdout": "pseudo-novel"})
    commands.add_subcommand("study", study, help="which choice matters, and by how much")

    collect = parser(description="One table of a sweep's members, in RUN/sweep/table.md.")
    collect.add_argument("run", type=Path, help="RUNS/NAME.")
    commands.add_subcommand("collect", collect, help="the table of a sweep")

    doctor = parser(description="What this machine or cluster can do, and what to mend: one line each.")
    doctor.add_argument("--runs", type=Path, default=Path("runs"), help="Folder of all runs: speed, locks, clock.")
    doctor.add_argument("--cluster", help="Try this profile too: a short job on two nodes that exchanges data.")
    doctor.add_argument("--wait", type=float, default=10, help="Minutes to wait for that job.")
    commands.add_subcommand("doctor", doctor, help="check this machine or cluster")


def add_run_options(parser: Any) -> None:
    """Every key of the configuration, and ``--config``."""
    parser.add_argument("--config", action="config", help="YAML file, or the name of one in configs/.")
    parser.add_class_arguments(Config)


def launch_local(config: Config, options: Namespace) -> int:
    from dist_train.config.io import freeze
    from launch.local import launch
    from launch.slurm.jobs import reserved

    if options.workers < 1 or options.starts < 1:
        raise UserError("--workers and --starts: must be >= 1")
    with reserved(config.run_dir):
        path = freeze(config)
    return launch(path, config.run_dir, options.workers, options.starts)


def launch_slurm(config: Config, options: Namespace) -> int:
    from launch.slurm.launch import launch_chain

    cluster = load_cluster(options.cluster)
    if options.account:
        cluster = replace(cluster, account=options.account)
    overrides = {name: getattr(options, name) for name in ASKED}
    return launch_chain(config, cluster, overrides, options.stages, options.sweep, options.dry_run, options.here)


def study(config: Config, options: Namespace) -> int:
    from launch.grid.run_study import run_study

    return run_study(config, find_yaml("study", options.study, configs_dir() / "studies", "*.yaml"), options.seeds)


def collect(given: Namespace) -> int:
    from launch.grid.report import print_sweep_table

    return print_sweep_table(given.run)


def logs(given: Namespace) -> int:
    from launch.slurm.logs import print_log

    with suppress(KeyboardInterrupt):
        print_log(given.run, given.stage, given.rank, given.follow, given.member)
    return 0


def cancel(given: Namespace) -> int:
    from launch.slurm.jobs import cancel

    print(f"{given.run}: cancelled {', '.join(cancel(given.run))}")
    return 0


def doctor(given: Namespace) -> int:
    from launch.doctor.examine import examine

    return examine(given.runs, given.cluster, given.wait)


def tensorboard(given: Namespace) -> int:
    from launch.tensorboard import tensorboard

    if not given.folder.is_dir():
        raise UserError(f"{given.folder}: no such folder; give RUNS/NAME or the folder of all runs")
    if not 0 < given.port < 65536:
        raise UserError(f"--port {given.port}: must be in 1..65535")
    return tensorboard(given.folder, given.port)
