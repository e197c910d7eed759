"""The chain of jobs that a submission consists of: each stage waits for the stage before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dist_train.config import Config
from dist_train.config.io import frozen_path
from dist_train.errors import command
from launch.grid.members import Member
from launch.slurm.profile import CHAIN, Cluster, Resources, stage_resources


@dataclass(frozen=True)
class Task:
    """What a job, or a member of an array of jobs, calls on each of its ranks.

    Attributes:
        function: MODULE:FUNCTION, which returns an exit code. It is imported on the rank: what it needs takes seconds.
        arguments: the function's arguments.
        run: the run's folder, whose files show whether a start made progress.
        command: the command line that does the same, to show to people.
        name: name of the sweep's member; empty for a job that is no member of an array.
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
            own member of the other array; ``afterany``: also runs where the other job failed.
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
    array with a job for each member, and a last job collects their table.

    Args:
        overrides: what the command line asks for in place of the profile's resources.
        members: the sweep's members; empty without a sweep.
    """
    chain: list[PlannedJob] = []
    for stage in stages:
        previous = chain[-1] if chain else None
        if members and CHAIN.index(stage) >= CHAIN.index(members[0].first):
            tasks = tuple(stage_task(member.config, stage, member.name) for member in members)
        else:
            tasks = (stage_task(config, stage),)
        pairwise = previous is not None and len(previous.tasks) > 1 and len(tasks) > 1
        chain.append(
            PlannedJob(
                stage,
                stage_resources(cluster, stage, overrides),
                tasks,
                previous.stage if previous else None,
                "aftercorr" if pairwise else "afterok",
            )
        )
    if members and "evaluate" in stages:
        one_process = replace(
            stage_resources(cluster, "evaluate", overrides), nodes=1, tasks_per_node=1, gpus_per_node=0
        )
        chain.append(PlannedJob("collect", one_process, (_collect_task(config),), "evaluate", "afterany"))
    return chain


def stage_task(config: Config, stage: str, name: str = "") -> Task:
    """Return the task that runs a stage from the frozen configuration (``dist_train.config.io.freeze``)."""
    file = frozen_path(config)
    return Task("launch.rank:start", (file, stage), config.run_dir, command(stage, "--config", file), name)


def _collect_task(config: Config) -> Task:
    """Return the task that writes the table of a sweep."""
    run = config.run_dir
    return Task("launch.grid.report:print_sweep_table", (run,), run, command("collect", run))
