"""Checks before anything is submitted: whatever would fail after hours in a queue fails here, on one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_train.config import Config
from dist_train.errors import UserError
from launch.grid.members import Member
from launch.slurm.profile import CHAIN, Cluster, stage_resources


def choose_stages(config: Config, asked: str | None, members: Sequence[Member]) -> list[str]:
    """Return the stages of a chain in order: those that were asked for, or all, without those that are done.

    Args:
        asked: the value of ``--stages``.
        members: the sweep's members; empty without a sweep.

    Raises:
        UserError: there is no such stage, or a stage needs another that is neither done nor asked for.
    """
    chosen = list(CHAIN) if asked is None else [stage.strip() for stage in asked.split(",") if stage.strip()]
    unknown = [stage for stage in chosen if stage not in CHAIN]
    if unknown or not chosen:
        named = repr(unknown[0]) if unknown else "none"
        raise UserError(f"--stages {asked}: {named} is no stage; give some of {','.join(CHAIN)}")
    if members and not any(stage in members[0].own for stage in chosen):
        raise UserError(
            f"--stages {asked}: none of them is what --sweep varies; add {members[0].first}, or leave --sweep out"
        )
    chosen = [stage for stage in CHAIN if stage in chosen and not _is_done(config, stage, members)]
    for stage in chosen:
        earlier = config.stages_before(stage) if stage in config.stages else ()
        missing = [name for name in earlier if name not in chosen and not _is_done(config, name, members)]
        if missing:
            names = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not done"
            raise UserError(f"--stages {asked}: {stage} needs {names}; add to --stages: {','.join(missing)}")
    return chosen


def _is_done(config: Config, stage: str, members: Sequence[Member]) -> bool:
    """Return whether a stage is done, by every member of a sweep where it is their own."""
    from dist_train.stages.done import is_done

    if stage == "prepare":
        return config.pack is None or "://" in config.data.shards or _is_packed(config)
    if members and stage in members[0].own:
        return all(member.run.is_dir() and is_done(member.run, stage, member.config) for member in members)
    return is_done(config.run_dir, stage, config)


def check_submission(config: Config, cluster: Cluster, stages: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Refuse a chain that could not succeed.

    Args:
        stages: the chain's stages.
        overrides: what the command line asks for in place of the profile's resources.

    Raises:
        UserError: the chain cannot succeed; the line names what does not fit.
    """
    from dist_train.runs.inputs import check_inputs
    from dist_train.runs.run import check_config, check_networks, check_weights, open_run

    if "%" in str(config.run_dir):
        raise UserError(f"{config.run_dir}: SLURM gives % in a file's name a meaning; choose another --name or --runs")
    existing = next(folder for folder in (config.run_dir, *config.run_dir.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        raise UserError(f"{existing}: cannot write there; choose other --runs, or mend its permissions")
    resources = stage_resources(cluster, "pretrain", overrides)
    ranks = resources.ranks if "pretrain" in stages else 1
    check_config(config, ranks)
    check_networks(config, stage_resources(cluster, "networks", overrides).ranks if "networks" in stages else 1)
    check_weights(config)
    _check_pack(config)
    if "prepare" not in stages:
        run = open_run(config, ranks)
        if "evaluate" in stages and cluster.shares > 1 and not run.novel:
            raise UserError(
                f"stages.evaluate.array={cluster.shares}: split {run.split.name} has no novel classes, so that there "
                "are no draws to share; leave it out"
            )
        for stage in config.stages:
            check_inputs(run, stage)


def check_shares(config: Config, cluster: Cluster) -> None:
    """Refuse to spread the draws of a run over more jobs than there are draws.

    Raises:
        UserError: there are fewer draws.
    """
    if cluster.shares > config.evaluate.draws:
        raise UserError(
            f"stages.evaluate.array={cluster.shares}: members share evaluate.draws={config.evaluate.draws}; choose at "
            "most that"
        )


def _check_pack(config: Config) -> None:
    """Refuse at once what ``stages/prepare.py`` would refuse in a job."""
    from dist_train.data.packing.plan import check_pack_options
    from dist_train.data.sources.paths import is_there
    from dist_train.stages.prepare import check_drawing

    pack = config.pack
    if pack is None or "://" in config.data.shards:
        return
    packed = _is_packed(config)
    if pack.draw and pack.train and pack.val:
        check_drawing(pack, config.data.split)
    elif not packed:
        for source in (pack.train, pack.val, pack.devkit):
            if source is not None and not is_there(source):
                raise UserError(f"{source}: no such archive or folder; mend pack.train, pack.val or pack.devkit")
    if packed and pack.train is not None and is_there(pack.train):  # without its source, a pack is taken as it is
        check_pack_options(pack, Path(config.data.shards))


def _is_packed(config: Config) -> bool:
    return (Path(config.data.shards) / "index.json").is_file()
