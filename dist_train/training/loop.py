"""The training loop: step, log, evaluate, save, stop. ``pretrain`` and ``learn`` run it, each with its own task.

A ``Task`` says what a step is and what its numbers mean; the loop owns the window of sums, the checkpoints, the
metrics, the progress bar and the way out. Between log lines it asks the device for no number.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError
from dist_train.training.checkpoint import Checkpoint, CheckpointSaver, step_checkpoints
from dist_train.training.metrics import MetricsWriter
from dist_train.training.optimizer import set_lr
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.window import NonFinite, Window, check_weights


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Say when the loop logs, saves and stops; all in optimiser steps, counted from 1.

    Attributes:
        steps: steps of the whole training.
        log_every: steps between log lines; every checkpoint and the last step have a log line too.
        checkpoint_every: steps between checkpoints.
        checkpoint_last: whether the last step has a checkpoint.
        keep, keep_every: as in ``checkpoint.retain``.
        agree_every: steps between the boundaries at which the ranks agree on whether to stop.
        early: further steps with a log line.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    checkpoint_last: bool
    keep: int
    keep_every: int = 0
    agree_every: int = 1
    early: tuple[int, ...] = ()

    def logs_at(self, step: int) -> bool:
        """Return whether a log line is due after ``step``."""
        due = step % self.log_every == 0 or step % self.checkpoint_every == 0
        return due or step == self.steps or step in self.early

    def saves_at(self, step: int) -> bool:
        """Return whether a checkpoint is due after ``step``."""
        return self.checkpoint_last if step == self.steps else step % self.checkpoint_every == 0


class Task(ABC):
    """What a loop trains.

    Attributes:
        name: "pretrain", "learn phi2": what progress and errors begin with.
        strategy: the model, its optimiser, and the ranks that train it.
        schedule: when to log, to save and to stop.
        sums: how many numbers the window adds up; the first is of the losses.
        unit, units_per_step: what the progress bar counts.
        remedy: what to change where the loss is not finite ("a lower learn.lr").
    """

    name: str
    strategy: Strategy
    schedule: Schedule
    sums = 1
    unit = "it"
    units_per_step = 1
    remedy: str

    def begin(self, start: int) -> None:  # noqa: B027  (few tasks need it)
        """Get ready for step ``start`` (from 0), after a checkpoint is loaded."""

    def end(self) -> None:  # noqa: B027
        """Release what ``begin`` took."""

    @abstractmethod
    def lr(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0)."""

    @abstractmethod
    def step(self, step: int, window: Window, norm: bool) -> torch.Tensor | None:
        """Make optimiser step ``step`` (from 0) at the rate that is set, and add its numbers to ``window``. Asks the
        device for no number.

        Returns:
            The gradient's norm before clipping, on the device, where ``norm`` asks for it and the task has one.
        """

    @abstractmethod
    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        """Return the metrics of a log line after ``step`` (from 1), of the sums over all ranks. All ranks call it."""

    @abstractmethod
    def summary(self, values: dict[str, float]) -> dict[str, str]:
        """Return the few of ``values``, a log line's or an evaluation's, that the progress bar shows."""

    def evaluates_at(self, step: int) -> bool:
        """Return whether an evaluation is due after ``step`` (from 1)."""
        return False

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of ``model``; the first of them decides which weights are the best. All ranks call it."""
        raise NotImplementedError

    def state(self, step: int) -> dict[str, Any]:
        """Return what a checkpoint after ``step`` keeps beside the tensors, as JSON."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue from what ``state`` returned."""


class TrainingLoop:
    """Train a task to its last step, and write to ``folder``:

        checkpoints/step-00001234/  best/  metrics.jsonl  tb/

    Args:
        inputs: what the training is made from; every checkpoint records it.
        saved: the checkpoint to continue from; None to start at step 0.

    Attributes:
        start: the step that this process started at.
        done: optimiser steps that are done, those before ``start`` among them.
        best: the highest first score of an evaluation so far; -1 before the first.
    """

    def __init__(
        self, task: Task, folder: Path, inputs: dict[str, Any], stop: StopFlag, saved: Checkpoint | None = None
    ) -> None:
        self.task, self.folder, self.inputs, self.stop = task, folder, inputs, stop
        self.strategy, self.context, self.schedule = task.strategy, task.strategy.context, task.schedule
        state = saved.state if saved else {}
        if saved:
            self.strategy.load(saved.tensors)
            task.load_state(state)
        self.start = self.done = int(state.get("step", 0))
        self.best = float(state.get("best", -1.0))
        self.window = Window(task.sums, self.context.device)
        self.window.load_state(state.get("window"), self.start, self.context)
        self.saver = CheckpointSaver(folder, self.schedule.keep, self.schedule.keep_every)
        self.metrics = MetricsWriter(folder, self.start) if self.context.main else None
        units = task.units_per_step
        self.bar = progress_bar(
            self.schedule.steps * units, task.name, task.unit, self.context.main, self.start * units
        )
        self._began, self._seconds_before = time.perf_counter(), float(state.get("seconds", 0.0))
        self._step_seconds = 0.0
        self._beside: Sequence[TrainingLoop] = ()
        self._saved_step: int | None = None  # by this process: a checkpoint that is there may be damaged

    def run(self) -> None:
        """Make all steps that are left.

        Raises:
            UserError: the loss or the weights are not finite, or the last checkpoint could not be written.
            Stopped: the ranks agreed to stop, and everything is saved.
        """
        run_side_by_side([self])

    def begin(self, beside: Sequence[TrainingLoop] = ()) -> None:
        """Get ready for the first step; ``beside`` are the other trainings, whose steps take turns with this one's."""
        self._beside = beside
        self.task.begin(self.start)
        self.strategy.module.train()

    def step(self) -> None:
        """Make the next optimiser step, and everything that is due after it.

        Raises:
            NonFinite: the loss or the weights are not finite.
        """
        step, self.done = self.done, self.done + 1
        self.context.report_progress(f"{self.task.name}: step {self.done} of {self.schedule.steps}")
        set_lr(self.strategy.optimizer, self.task.lr(step))
        log_due = self.schedule.logs_at(self.done)
        began = time.perf_counter()
        norm = self.task.step(step, self.window, norm=log_due)
        sums = self.window.total(self.context) if log_due else None  # waits for the device, so it is timed
        seconds = time.perf_counter() - began
        self.window.end_step(seconds)
        self._step_seconds += seconds
        if sums is not None:
            self._log(sums, norm)
        if self.task.evaluates_at(self.done):
            self._evaluate()
        if self.schedule.saves_at(self.done):
            self._save()

    def save(self) -> None:
        """Save what the steps of this process have made, and wait for the disk. All ranks call it.

        Raises:
            NonFinite: the loss or the weights are not finite.
            UserError: it could not be written.
        """
        if self.start < self.done < self.schedule.steps:
            self._save()
        self._finish_writes()

    def finish(self) -> None:
        """Check the weights after the last step, and wait for the disk. All ranks call it.

        Raises:
            NonFinite: the weights are not finite.
            UserError: the last checkpoint could not be written.
        """
        check_weights(self.strategy.evaluated().state_dict(), self.done)
        self.stop.finish()
        self._finish_writes()

    def close(self) -> None:
        """Release the task's data, and close every file."""
        self.task.end()
        self.bar.close()
        if self.metrics:
            self.metrics.close()
        self.saver.close()

    @property
    def seconds(self) -> float:
        """Wall time of this training, all starts together."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def steps_per_second(self) -> float:
        """The rate of this start's steps, without logging, evaluation and saving. On a GPU a log line waits for the
        steps of all trainings that take turns: there only the sum of their times is right."""
        return (self.done - self.start) / max(self._step_seconds, 1e-9)

    def _turn_seconds(self) -> float:
        """Return the time of a step of this training, and of a step of each that takes turns with it."""
        others = [loop for loop in self._beside if loop.start < loop.done < loop.schedule.steps]
        return 1 / self.window.steps_per_second + sum(1 / loop.steps_per_second for loop in others)

    def _log(self, sums: list[float], norm: torch.Tensor | None) -> None:
        precision = self.strategy.precision
        if norm is not None and not precision.scaler.is_enabled() and not math.isfinite(norm):
            raise NonFinite(self.done)  # a finite loss may have such a gradient, and the weights are gone
        values = self.task.values(self.done, sums, self.window)
        if norm is not None:
            values["optim/gradient_norm"] = float(norm)
        values |= {
            "optim/lr": self.task.lr(self.done - 1),
            "optim/loss_scale": precision.loss_scale,
            "optim/skipped_steps": precision.skipped.item(),
            "progress/steps": float(self.schedule.steps),
            "progress/seconds_left": (self.schedule.steps - self.done) * self._turn_seconds(),
        }
        if self.metrics:
            self.metrics.write(self.done, values | self.saver.timings())
            self.bar.set_postfix(self.task.summary(values))
            self.bar.update(self.done * self.task.units_per_step - self.bar.n)
        self.window.clear()

    def _evaluate(self) -> None:
        if self.window.steps:
            self.window.total(self.context)  # before a broken model is called the best
        model = self.strategy.evaluated()
        check_weights(model.state_dict(), self.done)
        scores = self.task.evaluate(model)
        if self.metrics:
            self.metrics.write(self.done, scores)
            shown = ", ".join(f"{name} {value}" for name, value in self.task.summary(scores).items())
            self.bar.write(f"step {self.done}/{self.schedule.steps}: {shown}")
        score = next(iter(scores.values()))
        if score > self.best:
            self.best = score
            if self.context.main:
                self.saver.save_best({"model": model.state_dict()}, self._state())

    def _save(self) -> None:
        """Save everything that the next step needs. All ranks call it."""
        if self.done == self._saved_step:  # a checkpoint was due in the step that stops
            return
        self._saved_step = self.done
        window = self.window.state(self.context)
        tensors = self.strategy.tensors()
        check_weights(tensors["model"], self.done)
        if self.context.main:
            self.saver.save(self.done, tensors, {**self._state(), "inputs": self.inputs, "window": window})

    def _state(self) -> dict[str, Any]:
        return {"step": self.done, "best": self.best, "seconds": self.seconds, **self.task.state(self.done)}

    def _finish_writes(self) -> None:
        """Wait until everything that rank 0 saved is on its disk. All ranks call it."""
        if self.context.main:
            self.saver.finish()
        self.context.barrier(f"{self.task.name}-saved")

    def diverged(self, error: NonFinite) -> UserError:
        """Name the step, the last good checkpoint and what to change."""
        self.saver.finish()
        good = step_checkpoints(self.saver.folder)
        last = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        again = f"start again with {self.task.remedy}, and --redo or another --name"
        return UserError(f"{self.task.name}: loss or weights are not finite at step {error.step}; {last}; {again}")


def run_side_by_side(loops: Sequence[TrainingLoop]) -> None:
    """Make all steps that are left of several trainings: the next step of each, then the step after it of each.

    A training that is behind, as after a kill between two checkpoints, catches up first. Their tasks then read the same
    rows at the same time. All have the same ``StopFlag``.

    Raises:
        UserError: a loss or weights are not finite, or a last checkpoint could not be written; the other trainings are
            saved.
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    at = loops[0]
    try:
        for at in loops:
            at.begin([loop for loop in loops if loop is not at])
        while unfinished := [loop for loop in loops if loop.done < loop.schedule.steps]:
            step = min(loop.done for loop in unfinished)
            for at in [loop for loop in unfinished if loop.done == step]:
                at.step()
            schedule = at.schedule
            if at.done < schedule.steps and at.done % schedule.agree_every == 0 and at.stop.agreed():
                for at in loops:
                    at.save()
                raise Stopped(f"{at.task.name}: saved at step {at.done} of {schedule.steps}")
        for at in loops:
            at.finish()
    except NonFinite as error:
        for other in loops:
            if other is not at:
                with suppress(NonFinite):
                    other.save()
        raise at.diverged(error) from None
    finally:
        for loop in loops:
            loop.close()
