"""Train the predictors that turn activations into classifier rows (paper, section 3; the third stage)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config import LearnConfig
from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.distributed.pool import working
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.methods import LEARNED
from dist_train.models.predictor import RowPredictor
from dist_train.runs.inputs import check_checkpoint, stage_inputs
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.done import is_done
from dist_train.training import checkpoint
from dist_train.training.bank import DRAW_AHEAD, Bank, StepReader
from dist_train.training.cuda_graph import GraphedStep
from dist_train.training.loop import Schedule, Task, TrainingLoop, run_side_by_side
from dist_train.training.optimizer import predictor_rate, sgd
from dist_train.training.precision import MixedPrecision, assert_float32, exact_products, settled
from dist_train.training.strategies.ddp import SummedGradients
from dist_train.training.window import Window

_EARLY = (10, 100)  # steps with a log line of their own: a training of hours shows soon whether it learns


def learn(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train each of ``learn.methods`` on the base activations, side by side, and write ``learn/METHOD/final``.

    Methods that are trained already stay as they are.

    Raises:
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    run = _settled(run, context, redo)
    stage = Stage(run, "learn", context, redo)
    if context.gather(is_done(run.dir, "learn", run.config))[0]:
        return stage.log_done()
    stage.reopen()
    with working("learn: activations", context.main):
        bank = open_bank(run, context)
    config = run.config.learn
    reader = StepReader(bank, run.config.seed + config.seed)  # the same for all: they are compared
    missing = [name for name in config.methods if not (stage.folder / name / "final").is_dir()]
    missing = context.gather(missing)[0]
    if missing:
        tasks = {stage.folder / name: PredictorTraining(name, reader, config, context) for name in missing}
        train(tasks, stage.inputs, stop)
    context.barrier("learn-methods")
    rates = {}
    for name in config.methods if context.main else ():
        # Predictors of an older version have no rate.
        if rate := json.loads((stage.folder / name / "final/state.json").read_text()).get("iterations_per_s"):
            rates[name] = rate
    stage.finish(iterations_per_s=rates, precision=config.precision)


def _settled(run: Run, context: Context, redo: bool) -> Run:
    """Return the run with the precision that ``auto`` stands for: that of an earlier start, or this device's."""
    asked = run.config.learn.precision if redo else stage_inputs(run, "learn")["learn.precision"]
    precision = context.gather(settled(asked, context.device))[0]
    return replace(run, config=replace(run.config, learn=replace(run.config.learn, precision=precision)))


def train(tasks: Mapping[Path, PredictorTraining], inputs: dict[str, Any], stop: StopFlag) -> dict[str, float]:
    """Train predictors side by side, each from its newest checkpoint in its folder on, and write ``FOLDER/final``.

    What each learns is what it learns alone: they share the rows that a step reads, and nothing else.

    Args:
        inputs: what the stage is made from; a checkpoint of other inputs is refused.

    Returns:
        Iterations/s of each method in this start, of its own computations alone.

    Raises:
        UserError: a loss is not finite; the others are saved.
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    loops = {folder: _loop(task, folder, inputs, stop) for folder, task in tasks.items()}
    run_side_by_side(list(loops.values()))
    rates = {}
    for (folder, loop), task in zip(loops.items(), tasks.values(), strict=True):
        rates[task.method] = rate = round(loop.steps_per_second, 2)
        if loop.context.main:
            facts = {"method": task.method, "step": loop.done, "iterations_per_s": rate}
            checkpoint.save(folder / "final", {"model": task.model.state_dict()}, facts)
            log.info("learn: %s, %d steps, %.1f it/s", task.method, loop.done - loop.start, rate)
    return rates


def _loop(task: PredictorTraining, folder: Path, inputs: dict[str, Any], stop: StopFlag) -> TrainingLoop:
    """Return the loop of a predictor's training, at its newest checkpoint."""
    context, checkpoints = task.strategy.context, folder / "checkpoints"
    saved = checkpoint.load_agreed(checkpoints, context, task.strategy.loads_on)
    if saved:
        check_checkpoint(saved, inputs, checkpoints)
    return TrainingLoop(task, folder, inputs, stop, saved)


def open_bank(run: Run, context: Context) -> Bank:
    """Return the base activations of a run whose ``extract`` is finished."""
    extract = run.dir / "extract"
    head, _ = load_head(run.dir, context.device)
    means = np.load(extract / "means.f32.npy")
    return Bank(load(extract, "base_train"), load(extract, "base_val"), means, head, context)


class PredictorTraining(Task):
    """Train a predictor: in each step one statistic and one query for each class.

    Every rank computes all rows and classifies its share of the queries, so that the gradient is the same on any number
    of ranks.

    Attributes:
        model: the predictor.
        config: ``learn``'s options, with those that the method sets itself.
    """

    remedy = "a lower learn.lr"

    def __init__(self, method: str, reader: StepReader, config: LearnConfig, context: Context) -> None:
        self.method, self.name, self.reader, self.bank = method, f"learn {method}", reader, reader.bank
        torch.manual_seed(reader.seed)
        self.model = LEARNED[method].build(method, self.bank.means, self.bank.head, config).to(context.device)
        assert_float32(self.model)
        self.config = config = replace(config, **self.model.own)
        reader.p_mean = min(reader.p_mean, config.p_mean)
        groups = [{"params": list(self.model.parameters()), "weight_decay": config.weight_decay}]
        optimizer = sgd(groups, config.momentum, nesterov=False)
        precision = MixedPrecision(settled(config.precision, context.device), context.device)
        self.strategy = SummedGradients(self.model, optimizer, precision, context)
        self.schedule = Schedule(
            steps=config.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every,
            checkpoint_last=False, keep=2, agree_every=DRAW_AHEAD, early=_EARLY,
        )  # fmt: skip
        self._update: Callable[..., torch.Tensor] = self.update

    def begin(self, start: int) -> None:
        context, config = self.strategy.context, self.config
        # No graph with fp16, whose scaler keeps numbers of its own, nor with an exchange between ranks in each step.
        graphed = (
            config.cuda_graph and context.device.type == "cuda" and context.world == 1 and config.precision != "fp16"
        )
        for group in self.strategy.optimizer.param_groups:  # whatever the checkpoint's was
            group["lr"] = torch.zeros((), device=context.device) if graphed else 0.0
        if graphed:
            self._update = GraphedStep(self.update, context.device, "learn.cuda_graph")

    def lr(self, step: int) -> float:
        return predictor_rate(step, self.schedule.steps, self.config)

    def step(self, step: int, window: Window, norm: bool) -> None:
        rows = self.reader.read(step)
        loss = self._update(rows.chance, rows.supports, rows.queries)
        window.add(step + 1, loss, loss)

    def update(self, chance: torch.Tensor, supports: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Make an optimiser step on a step's rows (``StepRows``); a CUDA graph may replay it.

        Returns:
            This rank's part of the loss, a scalar on the device.
        """
        bank, strategy = self.bank, self.strategy
        single = chance >= self.config.p_mean
        statistics = torch.where(single[:, None], supports, bank.means)
        with strategy.precision.autocast():
            loss = self.model.loss(queries, bank.labels, statistics, single)
            loss = loss / len(bank.count)
        strategy.backward(loss)
        strategy.step(clip_norm=0.0, norm=False)
        return loss.detach()

    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        return {
            "train/loss": sums[0] / window.steps,
            "eval/base_top1(%)": base_top1(self.model, self.bank, self.strategy.context),
            "time/throughput(it/s)": window.steps_per_second,
        }

    def summary(self, values: dict[str, float]) -> dict[str, str]:
        return {"loss": f"{values['train/loss']:.3f}", "base": f"{values['eval/base_top1(%)']:.1f}%"}


@exact_products()
@torch.inference_mode()
def base_top1(model: RowPredictor, bank: Bank, context: Context) -> float:
    """Return the accuracy in percent of base validation images among the base classes, with rows predicted from means.
    All ranks call it."""
    rows = model(bank.means, torch.zeros(len(bank.means), dtype=torch.bool, device=bank.device))
    correct = sum(
        ((model.query(q) @ rows.T).argmax(1) == y).sum()
        for q, y in zip(torch.split(bank.val, 8192), torch.split(bank.val_labels, 8192), strict=True)
    )
    total = context.sum(torch.as_tensor(correct, dtype=torch.float64, device=bank.device))
    return 100 * total.item() / bank.queries
