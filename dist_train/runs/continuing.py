"""Continuing a stage's training from its newest checkpoint, and what to say where it cannot go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.runs.inputs import check_checkpoint
from dist_train.training import checkpoint
from dist_train.training.finite import NonFinite
from dist_train.training.strategies.strategy import Strategy


def continue_training(
    folder: Path, inputs: dict[str, Any], context: Context, strategy: Strategy
) -> dict[str, Any] | None:
    """Load the newest checkpoint of ``folder`` into what is trained; its state, or None where there is none.

    Raises:
        UserError: it is of other ``inputs``, all are damaged, or ranks found different ones: a network
            file system may show some nodes an old state for a while.
    """
    saved = checkpoint.load_latest(folder, strategy.loads_on)
    if saved:
        check_checkpoint(saved, inputs, folder)
    found = context.gather(saved.state["step"] if saved else 0)
    if len(set(found)) > 1:
        raise UserError(
            f"{folder}: ranks see different newest checkpoints (steps {sorted(set(found))}): the file system shows "
            f"some nodes an old state; wait a minute and start again"
        )
    if saved:
        strategy.load(saved.tensors)
    return saved.state if saved else None


def diverged(error: NonFinite, stage: str, folder: Path, writer: checkpoint.Writer, keys: str) -> UserError:
    """What to tell where the loss is not finite: the step, the last good checkpoint, what to change."""
    writer.finish()
    good = checkpoint.step_checkpoints(folder)
    last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    again = f"start again with {keys}, and --redo or another --name"
    return UserError(f"{stage}: loss or weights are not finite at step {error.step}; {last}; {again}")


def finish_writes(writer: checkpoint.Writer, context: Context, stage: str) -> None:
    """Everything that rank 0 saved is on disk; all ranks know."""
    if context.main:
        writer.finish()
    context.barrier(f"{stage}-saved")
