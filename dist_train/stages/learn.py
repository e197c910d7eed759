"""Train the predictors that turn activations into classifier rows (paper, section 3; the third stage)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations, load
from dist_train.data.loading.augment import uniforms
from dist_train.distributed.context import Context
from dist_train.distributed.pool import working
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.base_head import load_head
from dist_train.fewshot.methods import LEARNED
from dist_train.models.predictor import RowPredictor
from dist_train.runs.inputs import check_checkpoint
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.done import is_done
from dist_train.training import checkpoint
from dist_train.training.cuda_graph import GraphedStep
from dist_train.training.loop import Schedule, Task, TrainingLoop
from dist_train.training.optimizer import predictor_rate, sgd
from dist_train.training.precision import MixedPrecision, assert_float32, exact_products
from dist_train.training.strategies.ddp import SummedGradients
from dist_train.training.window import Window

_DRAW_AHEAD = 64  # steps whose random numbers are drawn and sent to the device together


def learn(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train each of ``learn.methods`` on the base activations, and write ``learn/METHOD/final``.

    Raises:
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    stage = Stage(run, "learn", context, redo)
    if context.gather(is_done(run.dir, "learn", run.config))[0]:
        return stage.log_done()
    stage.reopen()
    with working("learn: activations", context.main):
        bank = open_bank(run, context)
    seed = run.config.seed + run.config.learn.seed  # the same for all: they are compared, so they see the same draws
    rates = {}
    for method in run.config.learn.methods:
        folder = stage.folder / method
        if not context.gather((folder / "final").is_dir())[0]:
            train(PredictorTraining(method, bank, run.config.learn, seed, context), folder, stage.inputs, stop)
        context.barrier(f"learn-{method}")
        # Predictors of an older version have no rate.
        if context.main and (rate := json.loads((folder / "final/state.json").read_text()).get("iterations_per_s")):
            rates[method] = rate
    stage.finish(iterations_per_s=rates)


def train(task: PredictorTraining, folder: Path, inputs: dict[str, Any], stop: StopFlag) -> float:
    """Train a predictor, continuing from its newest checkpoint, and write ``folder/final``.

    Args:
        inputs: what the stage is made from; a checkpoint of other inputs is refused.

    Returns:
        Iterations/s of this start.

    Raises:
        UserError: the loss is not finite.
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    context, checkpoints = task.strategy.context, folder / "checkpoints"
    saved = checkpoint.load_agreed(checkpoints, context, task.strategy.loads_on)
    if saved:
        check_checkpoint(saved, inputs, checkpoints)
    loop = TrainingLoop(task, folder, inputs, stop, saved)
    loop.run()
    rate = round(loop.steps_per_second, 2)
    if context.main:
        facts = {"method": task.method, "step": loop.done, "iterations_per_s": rate}
        checkpoint.save(folder / "final", {"model": task.model.state_dict()}, facts)
        log.info("learn: %s, %d steps, %.1f it/s", task.method, loop.done - loop.start, rate)
    return rate


def open_bank(run: Run, context: Context) -> Bank:
    """Return the base activations of a run whose ``extract`` is finished."""
    extract = run.dir / "extract"
    head, _ = load_head(run.dir, context.device)
    means = np.load(extract / "means.f32.npy")
    return Bank(load(extract, "base_train"), load(extract, "base_val"), means, head, context)


class Bank:
    """Hold the base activations where they are used: whole on a GPU, memory-mapped on a CPU.

    Attributes:
        train: float16 [N, C].
        first, count: int64 [classes], each class's first row and number of rows.
        means, head: float32 [classes, C], the mean activations and the backbone's own classifier.
        val, val_labels: float32 [Q, C] and int64 [Q], this rank's share of the validation images, for the base accuracy
            that is logged.
        queries: number of validation images of all ranks.
    """

    def __init__(
        self, train: Activations, val: Activations, means: np.ndarray, head: torch.Tensor, context: Context
    ) -> None:
        device = context.device
        self.device = device
        self.train = torch.from_numpy(train.rows).to(device)
        self.first = torch.from_numpy(train.offsets[:-1]).to(device)
        self.count = torch.from_numpy(np.diff(train.offsets)).to(device)
        self.means = torch.from_numpy(np.asarray(means)).to(device)
        self.head = head.to(device)
        mine = slice(context.rank, None, context.world)
        self.val = torch.from_numpy(val.rows[mine].astype(np.float32)).to(device)
        self.val_labels = torch.from_numpy(val.labels[mine]).to(device)
        self.queries = len(val.ids)

    def draw(self, seed: int, step: int, p_mean: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw for ``_DRAW_AHEAD`` steps from ``step``, as a pure function of (seed, step, class): the same on any
        number of ranks, and after a resume.

        Returns:
            Each [steps, classes]: whether a single row stands for the class in place of its mean, that row, and the
            query's row.
        """
        classes = len(self.count)
        steps = np.repeat(np.arange(step, step + _DRAW_AHEAD, dtype=np.int64), classes)
        labels = np.tile(np.arange(classes, dtype=np.int64), _DRAW_AHEAD)
        drawn = uniforms(seed, steps, labels, 3).reshape(_DRAW_AHEAD, classes, 3)
        u = torch.from_numpy(drawn).to(self.device, non_blocking=True)
        single = u[..., 0] >= p_mean
        support, query = (self.first + (u[..., k] * self.count).long() for k in (1, 2))
        # A row that is not used is read all the same: take one that is read anyway.
        return single, torch.where(single, support, query), query


class PredictorTraining(Task):
    """Train a predictor: in each step one statistic and one query for each class.

    Every rank computes all rows and classifies its share of the queries, so that the gradient is the same on any number
    of ranks.

    Attributes:
        model: the predictor.
        config: ``learn``'s options, with those that the method sets itself.
        labels: int64 [this rank's queries], the classes whose queries this rank classifies.
    """

    remedy = "a lower learn.lr"

    def __init__(self, method: str, bank: Bank, config: LearnConfig, seed: int, context: Context) -> None:
        self.method, self.name, self.bank, self.seed = method, f"learn {method}", bank, seed
        torch.manual_seed(seed)
        self.model = LEARNED[method].build(method, bank.means, bank.head, config).to(context.device)
        assert_float32(self.model)
        self.config = config = replace(config, **self.model.own)
        groups = [{"params": list(self.model.parameters()), "weight_decay": config.weight_decay}]
        optimizer = sgd(groups, config.momentum, nesterov=False)
        precision = MixedPrecision(config.precision, context.device)
        self.strategy = SummedGradients(self.model, optimizer, precision, context)
        self.schedule = Schedule(
            steps=config.steps, log_every=config.log_every, checkpoint_every=config.checkpoint_every,
            checkpoint_last=False, keep=2, agree_every=_DRAW_AHEAD,
        )  # fmt: skip
        self.labels = torch.arange(len(bank.count), device=context.device)[context.rank :: context.world]
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
        if start % _DRAW_AHEAD:
            self._draw(start)

    def lr(self, step: int) -> float:
        return predictor_rate(step, self.schedule.steps, self.config)

    def step(self, step: int, window: Window, norm: bool) -> None:
        if step % _DRAW_AHEAD == 0:
            self._draw(step)
        loss = self._update(*(numbers[step % _DRAW_AHEAD] for numbers in self._drawn))
        window.add(step + 1, loss, loss)

    def update(self, single: torch.Tensor, support: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Make an optimiser step on one step's share of ``Bank.draw``; a CUDA graph may replay it.

        Returns:
            This rank's part of the loss, a scalar on the device.
        """
        bank, strategy = self.bank, self.strategy
        statistics = torch.where(single[:, None], bank.train[support].float(), bank.means)
        with strategy.precision.autocast():
            loss = self.model.loss(bank.train[query[self.labels]].float(), self.labels, statistics, single)
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

    def _draw(self, step: int) -> None:
        """Draw the numbers of the block that ``step`` lies in."""
        self._drawn = self.bank.draw(self.seed, step - step % _DRAW_AHEAD, self.config.p_mean)


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
