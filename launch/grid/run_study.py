"""``dist-train study``: run the members of a study one after the other in this process, and compare them.

What is done is skipped, so the same command continues.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from dist_train.config import Config
from dist_train.errors import STOPPED, UserError
from launch.grid.members import Member, link_stages
from launch.grid.report import write_study
from launch.grid.study import DEFAULT, Settings, read_study, study_members

log = logging.getLogger("dist_train")


def run_study(config: Config, path: Path, seeds: int) -> int:
    """Run the members that are not done, and write RUN/study/NAME.md and NAME.json.

    Returns:
        0, or ``STOPPED``.

    Raises:
        UserError: bad input, novel classes, or members that were made from other inputs.
    """
    _check_study(config, seeds)
    choices = read_study(path)
    settings = study_members(config, path, choices, seeds)
    default = settings[DEFAULT][0].config
    base = Member(replace(default, name=config.name, runs=config.runs), "pretrain")
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    for stage in ("prepare", *base.config.stages_before("learn")):
        if code := _run_stage(base, stage, deadline):
            return code
    _link_members(base, settings)
    members = [member for of_setting in settings.values() for member in of_setting]
    for number, member in enumerate(members, 1):
        log.info("study %s: %d of %d, %s", path.stem, number, len(members), member.name)
        for stage in member.own:
            if code := _run_stage(member, stage, deadline):
                return code
    print(write_study(config.run_dir / "study" / path.stem, choices, settings))
    return 0


def _check_study(config: Config, seeds: int) -> None:
    if config.data.holdout == "novel":
        raise UserError("data.holdout=novel: choosing on the novel classes is tuning on the test set; leave it out, "
                        "and the split's pseudo-novel classes take their place")  # fmt: skip
    if config.evaluate.protocol != "joint":
        raise UserError(f"evaluate.protocol={config.evaluate.protocol}: a study compares base and novel classes scored "
                        "together; take joint")  # fmt: skip
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be >= 1")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("study: runs in one process; start it without torchrun")


def _link_members(base: Member, settings: Settings) -> None:
    """Make the members' folders. Their shared stages are links to the base run's; where only ``evaluate`` differs,
    ``learn`` is a link to that of the default with the same seed.

    Raises:
        UserError: a member was made from other inputs.
    """
    from dist_train.runs.inputs import check_inputs
    from dist_train.runs.run import open_run

    run = open_run(base.config)
    for members in settings.values():
        for member, default in zip(members, settings[DEFAULT], strict=True):
            link_stages(member, {stage: default.run if stage == "learn" else base.run for stage in member.shared})
            for stage in member.own:
                remedy = f"delete {member.config.runs}, and the study makes it again"
                check_inputs(replace(run, config=member.config), stage, remedy)


def _run_stage(member: Member, stage: str, deadline: float | None) -> int:
    """Run a stage of a member in this process; return 0, or ``STOPPED``.

    Args:
        deadline: when to stop, by ``time.monotonic``; None: never.
    """
    from launch.rank import work

    config = member.config
    if deadline is not None:
        minutes_left = (deadline - time.monotonic()) / 60
        if minutes_left <= 0:
            log.info("study: max_minutes are over; the same command continues")
            return STOPPED
        config = replace(config, max_minutes=minutes_left)
    return work(config, stage, False)
