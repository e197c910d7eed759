"""What comes before anything is submitted: which stages, and everything that can be refused at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, Config, to_dict
from dist_train.config.io import takes_list
from dist_train.distributed.context import Context
from dist_train.errors import UserError, command
from dist_train.runs.lock import RunLock
from launch.slurm import jobs
from launch.slurm.profile import CHAIN, Cluster, resources


@contextmanager
def reserved(run: Path) -> Iterator[None]:
    """A run for this process alone, from the check to the last job. A run that was not there is gone again
    where nothing was submitted.

    Raises:
        UserError: another submission is under way, or jobs of it are queued or running.
    """
    new = not run.exists()
    try:
        with RunLock(run / "launch", Context()) as lock:
            lock.acquire()
            busy = jobs.active(run) if shutil.which("squeue") else []
            if busy:  # they read its configuration when they start
                raise UserError(
                    f"{run}: jobs {', '.join(busy)} of this run are queued or running; "
                    f"{command('status', run)} shows them, {command('cancel', run)} ends them"
                )
            yield
    except BaseException:
        if new and not jobs.recorded(run):
            shutil.rmtree(run, ignore_errors=True)
        raise


def choose(config: Config, given: str | None, swept: str | None, members: dict[str, list[str]]) -> list[str]:
    """The stages of a chain, in order: those that were asked for, or all, without those that are done.

    Args:
        given: of ``--stages``.
        swept: the first stage that differs between the ``members`` of a sweep, {name: options}.

    Raises:
        UserError: no such stage, or one that it needs is neither done nor asked for.
    """
    from dist_train.config.io import changed
    from dist_train.stages.rows import is_done

    wanted = list(CHAIN) if given is None else [stage.strip() for stage in given.split(",") if stage.strip()]
    wrong = [stage for stage in wanted if stage not in CHAIN]
    if wrong or not wanted:
        raise UserError(
            f"--stages {given}: {repr(wrong[0]) if wrong else 'none'} is no stage; some of {','.join(CHAIN)}"
        )
    if swept and not any(stage in wanted for stage in STAGES[STAGES.index(swept) :]):
        raise UserError(f"--stages {given}: none of them is what --sweep varies; add {swept}, or leave --sweep out")

    def done(stage: str) -> bool:
        if stage == "prepare":
            return config.pack is None or "://" in config.data.shards or _packed(config)
        if swept and STAGES.index(stage) >= STAGES.index(swept):
            runs = {config.run_dir / "sweep" / name: options for name, options in members.items()}
            return all(run.is_dir() and is_done(run, stage, changed(config, options)) for run, options in runs.items())
        return is_done(config.run_dir, stage, config)

    chosen = [stage for stage in CHAIN if stage in wanted and not done(stage)]
    for stage in chosen:
        before = [other for other in STAGES if CHAIN.index(other) < CHAIN.index(stage)]
        missing = [other for other in before if other not in chosen and not done(other)]
        if missing:
            told = f"{', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not done"
            raise UserError(f"--stages {given}: {stage} needs {told}; add to --stages: {','.join(missing)}")
    return chosen


def check(
    config: Config, cluster: Cluster, stages: list[str], asked: dict[str, Any], members: dict[str, list[str]]
) -> None:
    """What would fail after hours in a queue fails here.

    Raises:
        UserError: what and where.
    """
    from dist_train.runs.inputs import check_inputs
    from dist_train.runs.run import check_options, open_run

    if "%" in str(config.run_dir):
        raise UserError(f"{config.run_dir}: SLURM gives % in a file's name a meaning; choose another --name or --runs")
    there = next(folder for folder in (config.run_dir, *config.run_dir.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"{there}: cannot write there; choose other --runs, or mend its permissions")
    _check_members(config, members)
    wanted = resources(cluster, "pretrain", asked)
    world = (wanted.nodes or 1) * wanted.ranks_per_node if "pretrain" in stages else 1
    check_options(config, world)
    _check_pack(config)
    if "prepare" not in stages:
        run = open_run(config, world)
        for stage in STAGES:
            check_inputs(run, stage)


def _check_members(config: Config, members: dict[str, list[str]]) -> None:
    from dist_train.config.io import changed

    seen: dict[str, str] = {}
    for name, options in members.items():
        try:
            text = json.dumps(to_dict(changed(config, options)))
        except UserError as error:
            lists = [key for key in options[::2] if takes_list(Config, key.removeprefix("--"))]
            hint = f"; {lists[0][2:]} takes a list: [A], and several of them [A],[B]" if lists else ""
            raise UserError(f"--sweep {name}: {error}{hint}") from None
        if text in seen:
            raise UserError(f"--sweep: {seen[text]} and {name} are the same setting; leave one out")
        seen[text] = name


def _check_pack(config: Config) -> None:
    """``stages/prepare.py`` refuses the same, but in a job."""
    from dist_train.data.packing.pack import check_pack_options
    from dist_train.data.sources.paths import is_there
    from dist_train.stages.prepare import check_drawing

    pack = config.pack
    if pack is None or "://" in config.data.shards:
        return
    if pack.draw and pack.train and pack.val:
        check_drawing(pack, config.data.split)
    else:
        for source in (pack.train, pack.val, pack.devkit) if not _packed(config) else ():
            if source is not None and not is_there(source):
                raise UserError(f"{source}: no such archive or folder; mend pack.train, pack.val or pack.devkit")
    if _packed(config) and pack.train is not None and is_there(pack.train):  # else they are taken as they are
        check_pack_options(pack, Path(config.data.shards))


def _packed(config: Config) -> bool:
    return (Path(config.data.shards) / "index.json").is_file()
