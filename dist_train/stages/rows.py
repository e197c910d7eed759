"""The rows of an evaluation, each kept as soon as it is complete.

rows/METHOD.json  {"shots": {k: {metric: [draws]}}, "curves": ..., "seconds", "numbers", "commit"}
rows/METHOD.npz   of joint scoring: int32 [classes, classes] by k, how often each class was taken for which
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import EvaluateConfig
from dist_train.data.files import atomic_write, write_text
from dist_train.fewshot.methods import LABELS, numbers_of
from dist_train.stages.common import git_commit, log


class Rows:
    """``rows/`` of a run's ``evaluate/``. A row that is damaged, or was made with other ``evaluate.options`` of its
    method, is not there: it is computed again, alone."""

    def __init__(self, folder: Path, config: EvaluateConfig) -> None:
        self.folder, self.config = folder / "rows", config

    def read(self, name: str) -> dict[str, Any] | None:
        """A complete row of these options, or None."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            row: dict[str, Any] = json.loads(path.read_text())
            made = row["numbers"]
            if row["curves"]:  # of joint scoring
                with np.load(path.with_suffix(".npz")) as confusions:
                    if {k: confusions[k].ndim for k in confusions.files} != dict.fromkeys(row["shots"], 2):
                        raise ValueError("of other shots")
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: damaged (%s); %s is computed again", path, type(error).__name__, LABELS[name])
            return None
        now = numbers_of(name, self.config.options)
        if made != now:
            changes = ", ".join(f"{key}={now[key]:g}, not {made.get(key)}" for key in now if made.get(key) != now[key])
            log.info("%s: made with other evaluate.options; again with %s", LABELS[name], changes)
            return None
        return row

    def write(self, name: str, row: dict[str, Any], confusions: Mapping[str, np.ndarray]) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)  # no time at which an old row stands beside a new table
        if confusions:
            with atomic_write(path.with_suffix(".npz")) as file:
                np.savez_compressed(file, **confusions)
        row = {**row, "numbers": numbers_of(name, self.config.options), "commit": git_commit()}
        write_text(path, json.dumps(row) + "\n")

    def older(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """Of those rows that other code has made, the commit. Says so."""
        found = {name: row["commit"] for name, row in rows.items() if row["commit"] != git_commit()}
        if found:
            named = ", ".join(f"{LABELS[name]} ({commit})" for name, commit in found.items())
            log.warning(
                "kept as they are, made at another commit than this (%s): %s; --redo makes all again, deleting "
                "%s/METHOD.json one of them",
                git_commit(), named, self.folder,
            )  # fmt: skip
        return found
