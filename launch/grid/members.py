"""A grid: runs that differ in a few keys and share one backbone. Sweeps and studies are grids.

A grid has axes, each a key of the configuration with its values; every combination of values is a member, a run of its
own in a folder below the base run. The stages before the first one in which members differ are links to the base run's.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_train.config import Config
from dist_train.errors import UserError

Axis = Sequence[tuple[str, str]]
"""(key, value) of each value of a key, both as on a command line."""


@dataclass(frozen=True)
class Member:
    """A run of a grid.

    Attributes:
        config: its configuration, with its own name and folder.
        first: the first stage that is its own; the stages before it are links.
    """

    config: Config
    first: str

    @property
    def name(self) -> str:
        """The name of its folder: the values in which it differs."""
        return self.config.name

    @property
    def run(self) -> Path:
        """Its folder."""
        return self.config.run_dir

    @property
    def shared(self) -> tuple[str, ...]:
        """The stages that it shares with other runs."""
        return self.config.stages[: self.config.stages.index(self.first)]

    @property
    def own(self) -> tuple[str, ...]:
        """The stages that are its own."""
        return self.config.stages[self.config.stages.index(self.first) :]


def combinations(axes: Sequence[Axis]) -> dict[str, list[str]]:
    """Return the options of each combination of values by its name, such as ``learn.p_mean=0.3,learn.seed=1``."""
    return {
        ",".join(f"{key}={value}" for key, value in point).replace("/", "_"): [
            word for key, value in point for word in (f"--{key}", value)
        ]
        for point in itertools.product(*axes)
    }


def named(config: Config, name: str, folder: Path) -> Config:
    """Return a member's configuration with its name and the folder that its run's folder is in.

    Raises:
        UserError: no folder can have this name; it is too long, most likely.
    """
    try:
        return replace(config, name=name, runs=folder)
    except ValueError as error:
        raise UserError(f"{error}; vary fewer keys at a time, or shorter values") from None


def link_stages(member: Member, sources: Mapping[str, Path]) -> None:
    """Make a member's folder, with a link for each stage that it shares.

    Args:
        sources: the run that each of these stages is taken from.
    """
    member.run.mkdir(parents=True, exist_ok=True)
    for stage in member.shared:
        link = member.run / stage
        if not link.is_symlink():
            os.symlink(os.path.relpath(sources[stage] / stage, member.run), link)
