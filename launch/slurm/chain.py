"""The chain of jobs that a submission consists of: each stage waits for the stage before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dist_train.config import Config
from dist_train.config.io import frozen_path
from dist_train.errors import command
from dist_train.stages.share import Share
from launch.grid.members import Member
from launch.slurm.profile import CHAIN, Cluster, Resources, stage_resources

MERGE = "merge"
"""The job that makes the table of what the array of ``evaluate`` has found."""


@dataclass(frozen=True)
class Task:
    """What a job, or a member of an array of jobs, calls on each of its ranks.

    Attributes:
        function: MODULE:FUNCTION, which returns an exit code. It is imported on the rank: what it needs takes seconds.
        arguments: the function's arguments.
        run: the run's folder, whose files show whether a start made progress.
        command: the command line that does the same, to show to people.
        name: name of the array's member: the sweep's, or the share of the draws; empty for a job that is no member.
    """

    function: str
    arguments: tuple[Any, ...]
    run: Path
    command: str
    name: str = ""


@dataclass(frozen=True)
class PlannedJob:
    """A job that is to be submitted, or an array of jobs.

    Attributes:
        stage: its name in the chain.
        resources: what the job, or each member of the array, asks SLURM for.
        tasks: one task, or one for each member of the array.
        after: the stage in the chain that it waits for; None: it waits for nothing.
        condition: the condition of the wait, by sbatch's name. ``aftercorr``: each member of this array waits for its
            own member of the other array; ``afterany``: also runs where the other job, or members of it, failed.
    """

    stage: str
    resources: Resources
    tasks: tuple[Task, ...]
    after: str | None = None
    condition: Literal["afterok", "aftercorr", "afterany"] = "afterok"

    def dependency(self, ids: Mapping[str, str]) -> str | None:
        """Return sbatch's ``--dependency``.

        Args:
            ids: job id of each stage that is submitted.
        """
        return f"{self.condition}:{ids[self.after]}" if self.after is not None else None


def plan_chain(
    config: Config,
    cluster: Cluster,
    stages: Sequence[str],
    overrides: Mapping[str, Any],
    members: Sequence[Member],
) -> list[PlannedJob]:
    """Return the jobs of these stages. From the first stage in which the members of a sweep differ, each stage is an
    array with a job for each member, and a last job collects their table. Where the profile spreads ``evaluate`` over
    an array, that has a job for each share of the draws, and of each member; a further job makes the table of them.

    Args:
        overrides: what the command line asks for in place of the profile's resources.
        members: the sweep's members; empty without a sweep.
    """
    chain: list[PlannedJob] = []
    for stage in stages:
        own = members and CHAIN.index(stage) >= CHAIN.index(members[0].first)
        runs = [(member.config, member.name) for member in members] if own else [(config, "")]
        resources = stage_resources(cluster, stage, overrides)
        tasks = tuple(stage_task(config, stage, name) for config, name in runs)
        if stage == "evaluate" and cluster.shares > 1:
            shares = [Share(number, cluster.shares) for number in range(cluster.shares)]
            parts = tuple(_share_task(config, share, name) for config, name in runs for share in shares)
            chain.append(_after(chain, PlannedJob(stage, resources, parts)))
            stage, resources = MERGE, _one_rank(resources)
        chain.append(_after(chain, PlannedJob(stage, resources, tasks)))
    if members and "evaluate" in stages:
        resources = replace(_one_rank(stage_resources(cluster, "evaluate", overrides)), gpus_per_node=0)
        collect = PlannedJob("collect", resources, (_collect_task(config),), chain[-1].stage, "afterany")
        chain.append(collect)
    return chain


def _after(chain: Sequence[PlannedJob], job: PlannedJob) -> PlannedJob:
    """Return the job with its wait for the last job of the chain. In a sweep each member waits for its own; SLURM pairs
    arrays of the same size only, so that after an array of another size all wait for its end, and a member whose
    earlier stage failed says so."""
    if not chain:
        return job
    before = chain[-1]
    if len(before.tasks) == 1 or len(job.tasks) == 1:
        return replace(job, after=before.stage, condition="afterok")
    same = len(before.tasks) == len(job.tasks)
    return replace(job, after=before.stage, condition="aftercorr" if same else "afterany")


def _one_rank(resources: Resources) -> Resources:
    """Return the resources of a job with one rank, on the same kind of node."""
    gpus = min(resources.gpus_per_node, 1) if resources.gpus_per_node else resources.gpus_per_node
    return replace(resources, nodes=1, tasks_per_node=1, gpus_per_node=gpus)


def stage_task(config: Config, stage: str, name: str = "") -> Task:
    """Return the task that runs a stage from the frozen configuration (``dist_train.config.io.freeze``)."""
    file = frozen_path(config)
    return Task("launch.rank:start", (file, stage), config.run_dir, command(stage, "--config", file), name)


def _share_task(config: Config, share: Share, name: str) -> Task:
    """Return the task that finds a share of the draws of ``evaluate``."""
    file, words = frozen_path(config), ("evaluate", "--config", frozen_path(config), "--share", share)
    name = f"{name} share {share}".strip()
    return Task("launch.rank:start", (file, "evaluate", str(share)), config.run_dir, command(*words), name)


def _collect_task(config: Config) -> Task:
    """Return the task that writes the table of a sweep."""
    run = config.run_dir
    return Task("launch.grid.report:print_sweep_table", (run,), run, command("collect", run))
