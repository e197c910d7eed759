"""A sweep: values of ``learn`` and ``evaluate`` over one backbone, ``--sweep learn.p_mean=0.3,0.5,0.9``.

Its members are runs in RUN/sweep/; on SLURM their stages are arrays (``launch/slurm/chain.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dist_train.config import Config, to_dict
from dist_train.config.io import list_keys, takes_list, unknown_key, with_options
from dist_train.errors import UserError
from dist_train.stages.network_store import network_folders
from launch.grid.members import Axis, Member, combinations, link_stages, named

_VARIABLE = ("learn.", "evaluate.")


MADE_BY = "dist-train launch slurm ... --sweep learn.seed=0,1,2 (--here without SLURM)"
"""The command that makes a sweep, for errors."""


def sweep_folder(run: Path) -> Path:
    """Return the folder of a run's sweeps."""
    return run / "sweep"


def check_folder(run: Path) -> None:
    """Check that the folder of a run is there.

    Raises:
        UserError: it is not.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give RUNS/NAME")


def sweep_members(config: Config, entries: Sequence[str]) -> list[Member]:
    """Return a member for each combination of the values in ``entries``; none for no entries.

    Args:
        config: configuration of the base run.
        entries: texts of the form KEY=VALUE,VALUE,...

    Raises:
        UserError: an entry has another form, its key cannot be swept, a value is wrong, or two members are the same.
    """
    if not entries:
        return []
    axes = [_axis(entry) for entry in entries]
    keys = {axis[0][0] for axis in axes}
    if len(keys) < len(axes):
        raise UserError("--sweep: a key is given twice; give all its values at once")
    first = "learn" if any(key.startswith("learn.") for key in keys) else "evaluate"
    members: list[Member] = []
    names: dict[str, str] = {}  # by the content of the configuration
    for name, options in combinations(axes).items():
        point = _changed(config, name, options)
        _check_networks(config, point, name)
        content = json.dumps(to_dict(point))
        if content in names:
            raise UserError(f"--sweep: {names[content]} and {name} are the same setting; leave one out")
        names[content] = name
        members.append(Member(named(point, name, sweep_folder(config.run_dir)), first))
    return members


def _check_networks(config: Config, point: Config, name: str) -> None:
    """Refuse a member whose rows need other networks than the base run trains for all members."""
    shared, needed = (network_folders(c, c.networks_to_train) for c in (config, point))
    if {folder.name for folder in needed} - {folder.name for folder in shared}:
        raise UserError(
            f"--sweep {name}: members share the networks of the base run, and this one needs others; vary neither "
            "evaluate.methods, evaluate.seed nor evaluate.shots, or leave finetune_network and triplet_network out"
        )


def _axis(entry: str) -> Axis:
    """Return the (key, value) pairs of KEY=VALUE,VALUE,...; a comma within brackets belongs to a value."""
    key, equals, text = (part.strip() for part in entry.partition("="))
    values = [value.strip() for value in re.split(r",(?![^\[]*\])", text) if value.strip()]
    if not equals or not values:
        raise UserError(f"--sweep {entry}: give KEY=VALUE,VALUE,... without spaces, as in learn.p_mean=0.3,0.9")
    keys = list(list_keys(Config))
    if key not in keys:
        raise UserError(f"--sweep {entry}: {unknown_key(key, [k for k in keys if k.startswith(_VARIABLE)])}")
    if not key.startswith(_VARIABLE):
        raise UserError(f"--sweep {key}: members share one backbone, so only learn.* and evaluate.* can vary")
    return [(key, value) for value in dict.fromkeys(values)]


def _changed(config: Config, name: str, options: list[str]) -> Config:
    """Return the configuration of a combination of values.

    Raises:
        UserError: a value is wrong.
    """
    try:
        return with_options(config, options)
    except UserError as error:
        lists = [key.removeprefix("--") for key in options[::2] if takes_list(Config, key.removeprefix("--"))]
        hint = f"; {lists[0]} takes a list: [A], and several of them [A],[B]" if lists else ""
        raise UserError(f"--sweep {name}: {error}{hint}") from None


def link_members(run: Path, members: Sequence[Member]) -> None:
    """Make the members' folders; their shared stages are links to the base run's."""
    for member in members:
        link_stages(member, dict.fromkeys(member.shared, run))
