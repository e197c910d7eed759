"""Many settings of ``learn`` and ``evaluate`` over one backbone: ``--sweep learn.p_mean=0.3,0.5,0.9``.

Each member is a run of its own in RUN/sweep/, whose earlier stages are links to RUN's.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, Config
from dist_train.config.io import fields, unknown_key
from dist_train.errors import UserError, command
from dist_train.files import write_text
from dist_train.report.markdown import format_mean, markdown_head, markdown_row
from dist_train.report.wording import display_name

_SWEPT = ("learn.", "evaluate.")


def members(sweep: Sequence[str]) -> dict[str, list[str]]:
    """ "KEY=V1,V2" and more -> {name: options} of every combination.

    Raises:
        UserError: not of that form, or a key of an earlier stage.
    """
    axes = []
    for entry in sweep:
        key, equals, values = (part.strip() for part in entry.partition("="))
        found = [value.strip() for value in re.split(r",(?![^\[]*\])", values) if value.strip()]
        if not equals or not found:
            raise UserError(f"--sweep {entry}: give KEY=VALUE,VALUE,... without spaces, as in learn.p_mean=0.3,0.9")
        if key not in (known := list(fields(Config))):
            raise UserError(f"--sweep {entry}: {unknown_key(key, [k for k in known if k.startswith(_SWEPT)])}")
        if not key.startswith(_SWEPT):
            raise UserError(f"--sweep {key}: members share one backbone, so only learn.* and evaluate.* can vary")
        axes.append([(key, value) for value in dict.fromkeys(found)])
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise UserError("--sweep: a key is given twice; give all its values at once")
    return combinations(axes)


def combinations(axes: Sequence[Sequence[tuple[str, str]]]) -> dict[str, list[str]]:
    """Of each axis, its (key, value) pairs -> {name: options} of every combination."""
    return {
        ",".join(f"{key}={value}" for key, value in point).replace("/", "_"): [
            part for key, value in point for part in (f"--{key}", value)
        ]
        for point in itertools.product(*axes)
    }


def first_stage(sweep: Sequence[str]) -> str:
    """The first stage that differs between members."""
    return "learn" if any(entry.strip().startswith("learn.") for entry in sweep) else "evaluate"


def link(run: Path, names: Sequence[str], first: str) -> Path:
    """Make the members' folders; returns RUN/sweep."""
    for name in names:
        share(run / "sweep" / name, {stage: run for stage in STAGES[: STAGES.index(first)]})
    return run / "sweep"


def share(folder: Path, stages: Mapping[str, Path]) -> None:
    """Make a member's folder, with links to these stages of other runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage, run in stages.items():
        if not (folder / stage).is_symlink():
            os.symlink(os.path.relpath(run / stage, folder), folder / stage)


_METRICS = {"base_top1": "base top-1", "novel_top1": "novel top-1", "harmonic": "H", "accuracy": "accuracy"}


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:  # of a member with another protocol
        return "–"
    return format_mean(value, half="ci95" if "ci95" in value else "std")


def collect(run: Path) -> str:
    """One table of all members, left in RUN/sweep/table.md.

    Raises:
        UserError: no member has results.
    """
    found: list[tuple[list[str], dict[str, Any]]] = []
    missing = []
    for folder in sorted(p for p in (run / "sweep").glob("*") if p.is_dir()):
        try:
            results = json.loads((folder / "evaluate" / "results.json").read_text())
        except (OSError, ValueError):
            missing.append(folder.name)
            continue
        for method, by_shots in results["methods"].items():
            found += [([folder.name, display_name(method), shots], values) for shots, values in by_shots.items()]
    if not found:
        raise UserError(f"{run / 'sweep'}: no member has results yet; how they are: {command('status', run / 'sweep')}")
    metrics = [name for name in _METRICS if any(name in values for _, values in found)]
    head = markdown_head([_METRICS[name] for name in metrics], ["setting", "method", "shots"])
    rows = [markdown_row([*names, *(_cell(values.get(name)) for name in metrics)]) for names, values in found]
    spread = "half-width of the 95% interval over draws or episodes (as released: one standard deviation)"
    told = ["", f"Percent; mean ± {spread}."]
    if missing:
        told.append(f"Without results: {', '.join(missing)}")
    text = "\n".join([*head, *rows, *told]) + "\n"
    write_text(run / "sweep" / "table.md", text)
    return text
