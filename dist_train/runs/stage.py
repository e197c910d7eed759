"""The folder of a stage within a run: the record of its inputs, and the mark that it is done."""

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
    """Open a stage's folder.

    A stage does this: ``if stage.done: return stage.log_done()``, then its work, then ``stage.finish()``. A stage that
    can get more to do after it was done calls ``stage.reopen()`` before the work.

    Args:
        redo: delete this stage and the later ones first.

    Raises:
        UserError: an earlier stage is not finished, or inputs changed since this stage was started.
    """

    def __init__(self, run: Run, name: str, context: Context, redo: bool = False) -> None:
        self.run, self.folder = run, run.dir / name
        self.name = name
        self.context = context
        self.inputs = stage_inputs(run, name)
        if context.main:
            self._check(run, redo)
            if redo:  # later stages were made from this stage's results; but rows know their network by themselves
                later = STAGES[STAGES.index(name) + 1 :] if name != "networks" else ()
                for stage in (name, *later):
                    shutil.rmtree(run.dir / stage, ignore_errors=True)
            if not (self.folder / "done.json").is_file():
                self._record()
        context.barrier(f"{name}-open")
        self.done = (self.folder / "done.json").is_file()

    def _check(self, run: Run, redo: bool) -> None:
        for stage in run.config.stages_before(self.name):
            if not (run.dir / stage / "done.json").is_file():
                raise UserError(f"{run.dir / stage}: {stage} is not finished; first: {same_options(stage).rstrip(',')}")
        if not redo:
            check_inputs(run, self.name)

    def log_done(self) -> None:
        """Log that there is nothing to do."""
        if self.context.main:
            log.info("%s: done already (%s)", self.name, self.folder)

    def reopen(self) -> None:
        """Mark the stage as not done, for later stages too, and record its inputs anew; all ranks call it.

        It is for a stage that may have been finished with less to do than it has now.
        """
        if self.context.main and self.done:
            log.info("%s: done (%s), but the configuration asks for more now", self.name, self.folder)
            (self.folder / "done.json").unlink()
            self._record()
        self.done = False
        self.context.barrier(f"{self.name}-reopen")

    def _record(self) -> None:
        """Record the inputs of this stage, the configuration and the provenance of the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (
            self.folder / "inputs.json"
        ).is_file():  # an existing record differs in neutral keys at most, or is of an older version
            _write(self.folder / "inputs.json", self.inputs)
        write_text(self.run.dir / "config.yaml", to_yaml(self.run.config))
        _write(self.run.dir / "provenance.json", provenance(self.run, self.context))

    def finish(self, **facts: Any) -> None:
        """Wait for all ranks, and mark the stage as done, with these facts."""
        self.context.barrier(f"{self.name}-finish")
        if self.context.main:
            _write(self.folder / "done.json", {"inputs": digest(self.inputs), **facts})
        self.context.barrier(f"{self.name}-finished")


def read_done(folder: Path) -> dict[str, Any]:
    """Return the facts that ``Stage.finish`` wrote; {} where the stage is not finished, or the file is damaged."""
    try:
        done: dict[str, Any] = json.loads((folder / "done.json").read_text())
    except (OSError, ValueError):
        return {}
    return done


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=1) + "\n")
