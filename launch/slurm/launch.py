"""``dist-train launch slurm``: a submission from its options to the last job of the chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.config.io import freeze
from dist_train.errors import command
from launch.grid.sweep import link_members, sweep_members
from launch.slurm.chain import plan_chain
from launch.slurm.jobs import reserved
from launch.slurm.preflight import check_shares, check_submission, choose_stages
from launch.slurm.profile import Cluster
from launch.slurm.submit import describe_chain, require_sbatch, run_here, submit


def launch_chain(
    config: Config,
    cluster: Cluster,
    overrides: Mapping[str, Any],
    stages: str | None = None,
    sweep: Sequence[str] = (),
    dry_run: bool = False,
    here: bool = False,
) -> int:
    """Submit the stages that are not done as a chain of jobs, and return the exit code.

    Args:
        overrides: resources that the command line asks for in place of the profile's; None: the profile's.
        stages: names, separated by commas; None: all stages.
        sweep: KEY=VALUE,VALUE,... each; ``learn`` and ``evaluate`` become arrays over all combinations.
        dry_run: print every script and the chain, and submit nothing.
        here: run the chain on this machine, without SLURM.

    Raises:
        UserError: the chain could not succeed, or sbatch refused a job.
    """
    config = replace(config, runs=config.runs.absolute())
    if cluster.scratch:
        config = replace(config, cache=replace(config.cache, dir=Path(cluster.scratch)))
    members = sweep_members(config, sweep)
    chosen = choose_stages(config, stages, members)
    check_submission(config, cluster, chosen, overrides)
    for one in [member.config for member in members] or [config]:
        check_shares(one, cluster)
    if not chosen:
        done = f"{stages}: done" if stages else "all stages are done"
        print(f"{config.run_dir}: {done}; nothing to submit")
        return 0
    chain = plan_chain(config, cluster, chosen, overrides, members)
    if dry_run:
        print(describe_chain(config, cluster, chain))
        return 0
    if not here:
        require_sbatch()
    with reserved(config.run_dir):
        freeze(config)
        link_members(config.run_dir, members)
        for member in members:
            freeze(member.config)
        if here:
            return run_here(config, chain)
        for stage, job_id in submit(config, cluster, chain).items():
            print(f"{stage}: job {job_id}")
    print(f"watch: {command('status', config.run_dir, '--watch')}; {command('logs', config.run_dir, '-f')}")
    return 0
