"""A stage's folder within a run: what it was made from, whether it is done, and what it left."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, digest, to_yaml
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.files import write_text
from dist_train.runs.inputs import check_inputs, same_options, stage_inputs
from dist_train.runs.provenance import provenance
from dist_train.runs.run import Run

log = logging.getLogger("dist_train")


class Stage:
    """One stage's folder. Use: ``if stage.done: return stage.log_done()``, work, ``stage.finish()``; ``stage.reopen()``
    before the work where a stage that is done can be asked for more.

    A stage that was started or finished from other inputs stops and says what changed; ``redo``
    deletes it, and the stages after it, first.

    Raises:
        UserError: inputs changed since the stage was started.
    """

    def __init__(self, run: Run, name: str, context: Context, redo: bool = False) -> None:
        self.run, self.folder = run, run.dir / name
        self.name = name
        self.context = context
        self.inputs = stage_inputs(run, name)
        if context.main:
            self._check(run, redo)
            if redo:  # what was made from this stage's results goes with them
                for later in STAGES[STAGES.index(name) :]:
                    shutil.rmtree(run.dir / later, ignore_errors=True)
            if not (self.folder / "done.json").is_file():
                self._record()
        context.barrier(f"{name}-open")
        self.done = (self.folder / "done.json").is_file()

    def _check(self, run: Run, redo: bool) -> None:
        for stage in STAGES[: STAGES.index(self.name)]:
            if not (run.dir / stage / "done.json").is_file():
                raise UserError(f"{run.dir / stage}: {stage} is not finished; first: {same_options(stage).rstrip(',')}")
        if not redo:
            check_inputs(run, self.name)

    def log_done(self) -> None:
        """All is there."""
        if self.context.main:
            log.info("%s: done already (%s)", self.name, self.folder)

    def reopen(self) -> None:
        """There is more to make than when it was finished, if it was: it is not done now, for later stages either, and
        notes anew what it is made from. All ranks call it."""
        if self.context.main and self.done:
            log.info("%s: done (%s), but not all that is asked for now", self.name, self.folder)
            (self.folder / "done.json").unlink()
            self._record()
        self.done = False
        self.context.barrier(f"{self.name}-reopen")

    def _record(self) -> None:
        """What this stage, and with it the run, is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "inputs.json").is_file():  # the same but for neutral keys, or of an older version
            _write(self.folder / "inputs.json", self.inputs)
        write_text(self.run.dir / "config.yaml", to_yaml(self.run.config))
        _write(self.run.dir / "provenance.json", provenance(self.run, self.context))

    def finish(self, **facts: Any) -> None:
        """All ranks are through: mark the stage as done."""
        self.context.barrier(f"{self.name}-finish")
        if self.context.main:
            _write(self.folder / "done.json", {"inputs": digest(self.inputs), **facts})
        self.context.barrier(f"{self.name}-finished")


def read_done(folder: Path) -> dict[str, Any]:
    """What ``Stage.finish`` has left in a stage's folder; nothing where it is not finished, or the file is damaged."""
    try:
        found: dict[str, Any] = json.loads((folder / "done.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")
