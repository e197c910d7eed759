"""The rows of an evaluation, each kept as soon as it is complete.

rows/METHOD.json  {"shots": {k: {metric: [draws]}}, "curves", "seconds"}, and what it was made from: "inputs" (digest
                  of the stage's), "numbers" (evaluate.options of its method), "code" (stages/row_code.py), "commit"
rows/METHOD.npz   of joint scoring: int32 [classes, classes] by k, how often each class was taken for which
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import Config, EvaluateConfig, digest
from dist_train.fewshot.methods import numbers_of
from dist_train.files import atomic_write, write_text
from dist_train.runs.commit import git_commit
from dist_train.runs.inputs import same_options
from dist_train.runs.stage import facts_of, log
from dist_train.stages.row_code import code_of

_PARTS = {"shots", "curves", "seconds", "inputs", "numbers", "code", "commit"}


class Rows:
    """``rows/`` of a run's ``evaluate/``. A row that is damaged, or of other inputs or numbers, is computed again,
    alone."""

    def __init__(self, folder: Path, config: EvaluateConfig) -> None:
        self.stage, self.folder, self.config = folder, folder / "rows", config

    def read(self, name: str) -> dict[str, Any] | None:
        """A complete row, made from what it would be made from now but for the code; else None."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            row: dict[str, Any] = json.loads(path.read_text())
            if not row.keys() >= _PARTS:
                raise ValueError(f"no {', '.join(sorted(_PARTS - row.keys()))}")
            if row["curves"]:  # of joint scoring
                with np.load(path.with_suffix(".npz")) as confusions:
                    if {k: confusions[k].ndim for k in confusions.files} != dict.fromkeys(row["shots"], 2):
                        raise ValueError("confusions of other shots")
            made, now = dict(row["numbers"]), numbers_of(name, self.config.options)
        except Exception as error:  # whatever a damaged file leads to: json, zip, zlib, numpy
            log.warning("%s: damaged, or of an older version (%s); it is computed again", path, error)
            return None
        if row["inputs"] != self._inputs():
            log.warning("%s: made from other inputs; it is computed again", path)
            return None
        if made != now:
            keys = [key for key in {**made, **now} if made.get(key) != now.get(key)]
            changes = ", ".join(f"{key} {made.get(key)} -> {now.get(key)}" for key in keys)
            log.info("%s: made with other evaluate.options (%s); it is computed again", path, changes)
            return None
        return row

    def write(self, name: str, row: dict[str, Any], confusions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Keep a row, with what it was made from; returns both."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)  # an old one must not stand beside new confusions
        if confusions:
            with atomic_write(path.with_suffix(".npz")) as file:
                np.savez_compressed(file, **confusions)
        numbers = numbers_of(name, self.config.options)
        row = {**row, "inputs": self._inputs(), "numbers": numbers, "code": code_of(name), "commit": git_commit()}
        write_text(path, json.dumps(row) + "\n")
        return row

    def older(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Return the commit of those rows that other code has made, and say which code has changed since."""
        found = {name: row["commit"] for name, row in rows.items() if row["code"] != code_of(name)}
        if found:
            named = ", ".join(f"{name} ({commit}: {_changed(rows[name], name)})" for name, commit in found.items())
            log.warning(
                "evaluate: code has changed since these rows were made, which stay: %s. To make one again delete "
                "its file in %s; %s makes all again",
                *(named, self.folder, same_options("evaluate", "--redo")),
            )
        return found

    def _inputs(self) -> str:
        try:
            return digest(json.loads((self.stage / "inputs.json").read_text()))
        except (OSError, ValueError):  # ``check_inputs`` tells
            return ""


def _changed(row: Mapping[str, Any], name: str) -> str:
    """The modules that are not what they were when a row was made."""
    made, now = row["code"], code_of(name)
    if not isinstance(made, dict):
        return "made by an older version"
    return ", ".join(module for module in sorted({**made, **now}) if made.get(module) != now.get(module))


MADE = ("results.json", "table.md", "report.html", "per_class.csv")
"""What is made of the rows; of episodes the first two."""


def is_shown(folder: Path, config: EvaluateConfig) -> bool:
    """Whether an evaluation is finished, and what is made of its rows is there."""
    made = MADE if config.protocol == "joint" else MADE[:2]
    return facts_of(folder).get("methods") == config.methods and all((folder / name).is_file() for name in made)


def is_done(run: Path, stage: str, config: Config) -> bool:
    """Whether a stage has made all that is asked for. Its inputs are not compared: ``check_inputs`` does."""
    folder = run / stage
    if not (folder / "done.json").is_file():
        return False
    if stage == "learn":
        return all((folder / name / "final").is_dir() for name in config.learn.methods)
    if stage == "evaluate":
        kept = Rows(folder, config.evaluate)
        return is_shown(folder, config.evaluate) and all(kept.read(name) for name in config.evaluate.methods)
    return True
