"""The rows of an evaluation on disk, each kept as soon as it is complete.

rows/METHOD.json  what fewshot/table_row.py holds, {"shots", "curves", "seconds"}, and what it was made from: "inputs"
                  (digest of the stage's inputs, and of the facts of its networks), "numbers" (evaluate.options of its
                  method), "code" (stages/row_code.py), "commit"
rows/METHOD.npz   in joint scoring: int32 [classes, classes] by number of shots, how often each class was taken for
                  which
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from dist_train.config import NETWORK_OF, Config, digest
from dist_train.fewshot.methods import options_of
from dist_train.fewshot.table_row import TableRow
from dist_train.files import atomic_write, write_text
from dist_train.runs.commit import git_commit
from dist_train.runs.inputs import same_options
from dist_train.runs.stage import log
from dist_train.stages.network_store import DONE, network_folders
from dist_train.stages.row_code import code_of


@dataclass(frozen=True)
class Origin:
    """What a row was made from.

    Attributes:
        inputs: digest of the stage's inputs, and of its networks where it has any.
        numbers: the values of ``evaluate.options`` that the row depends on.
        code: module -> digest of its code; of an older version, anything else.
        commit: the commit of the code.
    """

    inputs: str
    numbers: dict[str, float]
    code: Any
    commit: str


@dataclass(frozen=True)
class StoredRow:
    """Hold a row, and what it was made from."""

    row: TableRow
    origin: Origin

    def to_json(self) -> dict[str, Any]:
        """Return both as the keys of one file."""
        return {**self.row.to_json(), **asdict(self.origin)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returns.

        Raises:
            ValueError: keys are missing.
        """
        missing = {"shots", "curves", "seconds", *Origin.__dataclass_fields__} - values.keys()
        if missing:
            raise ValueError(f"no {', '.join(sorted(missing))}")
        origin = Origin(values["inputs"], dict(values["numbers"]), values["code"], values["commit"])
        return cls(TableRow.from_json(values), origin)


class RowStore:
    """Read and write ``rows/`` in the folder of a run's evaluation.

    A row that is damaged, or made from other inputs or options, counts as missing: it alone is computed again.
    """

    def __init__(self, stage_folder: Path, config: Config) -> None:
        self.stage_folder, self.folder = stage_folder, stage_folder / "rows"
        self.run_config, self.config = config, config.evaluate

    def read(self, name: str) -> StoredRow | None:
        """Return a method's row if it is complete and its inputs and options are those of now; else None.

        The code is not compared: ``warn_of_older`` does.
        """
        path = self.folder / f"{name}.json"
        if not path.is_file():
            return None
        try:
            stored = StoredRow.from_json(json.loads(path.read_text()))
            if self.config.protocol == "joint" and stored.row.shots:
                with np.load(path.with_suffix(".npz")) as confusions:
                    if {k: confusions[k].ndim for k in confusions.files} != dict.fromkeys(stored.row.shots, 2):
                        raise ValueError("confusions of other shots")
        except Exception as error:  # a damaged file raises nearly anything: json, zip, zlib, numpy
            log.warning("%s: damaged, or of an older version (%s); it is computed again", path, error)
            return None
        if stored.origin.inputs != self._inputs_digest(name):
            log.warning("%s: made from other inputs; it is computed again", path)
            return None
        before, now = stored.origin.numbers, options_of(name, self.config.options)
        if before != now:
            keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
            changes = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in keys)
            log.info("%s: made with other evaluate.options (%s); it is computed again", path, changes)
            return None
        return stored

    def write(self, name: str, row: TableRow, confusions: Mapping[str, np.ndarray]) -> StoredRow:
        """Keep a row with what it was made from, and return both."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}.json"
        path.unlink(missing_ok=True)  # an old row must not stand beside new confusions
        if confusions:
            with atomic_write(path.with_suffix(".npz")) as file:
                np.savez_compressed(file, **confusions)  # type: ignore[arg-type]
        stored = StoredRow(row, self.origin(name))
        write_text(path, json.dumps(stored.to_json()) + "\n")
        return stored

    def origin(self, name: str) -> Origin:
        """Return what a row is made from now."""
        numbers = options_of(name, self.config.options)
        return Origin(self._inputs_digest(name), numbers, code_of(name), git_commit())

    def warn_of_older(self, rows: Mapping[str, StoredRow]) -> dict[str, str]:
        """Return {name: commit} of the rows that other code made, and log which code has changed since."""
        older = {name: stored.origin.commit for name, stored in rows.items() if stored.origin.code != code_of(name)}
        if older:
            reasons = (f"{name} ({commit}: {_changed_modules(rows[name], name)})" for name, commit in older.items())
            log.warning(
                "evaluate: code has changed since these rows were made; they stay: %s. To make a row again, delete "
                "its file in %s; %s makes all rows again",
                *(", ".join(reasons), self.folder, same_options("evaluate", "--redo")),
            )
        return older

    def _inputs_digest(self, name: str) -> str:
        try:
            inputs = json.loads((self.stage_folder / "inputs.json").read_text())
            if name in NETWORK_OF:  # the trainings' seconds differ whenever a network is made again
                folders = network_folders(self.run_config, [NETWORK_OF[name]])
                inputs = [inputs, *(json.loads((folder / DONE).read_text()) for folder in folders)]
            return digest(inputs)
        except (OSError, ValueError):  # ``check_inputs`` reports it
            return ""


def _changed_modules(stored: StoredRow, name: str) -> str:
    """Name the modules whose code differs from that of a row."""
    before, now = stored.origin.code, code_of(name)
    if not isinstance(before, dict):
        return "made by an older version"
    return ", ".join(module for module in sorted({**before, **now}) if before.get(module) != now.get(module))
