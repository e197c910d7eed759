"""Chapter 3: the predictor learns to turn activations into classifier rows (paper, section 3)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations, load
from dist_train.data.loading.augment import uniforms
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.fewshot.methods import LEARNED
from dist_train.models.predictor import RowPredictor
from dist_train.runs.continuing import continue_training, diverged, finish_writes
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.rows import is_done
from dist_train.training import checkpoint
from dist_train.training.cuda_graph import Graphed
from dist_train.training.finite import Losses, NonFinite, check_weights
from dist_train.training.metrics import MetricsWriter
from dist_train.training.optimizer import predictor_rate, set_lr, sgd
from dist_train.training.precision import MixedPrecision, assert_float32, exact_products
from dist_train.training.strategies.ddp import SummedGradients

_DRAW_AHEAD = 64  # steps whose random numbers are drawn and sent to the device together


def learn(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train each of ``learn.methods`` on the base activations; leaves ``learn/METHOD/final``.

    Raises:
        Stopped: told to leave; all is saved.
    """
    stage = Stage(run, "learn", context, redo)
    if context.gather(is_done(run.dir, "learn", run.config))[0]:
        return stage.rest()
    stage.reopen()
    bank = open_bank(run, context)
    rates = {}
    for method in run.config.learn.methods:
        final = stage.folder / method / "final"
        if not context.gather(final.is_dir())[0]:
            seed = run.config.seed + run.config.learn.seed  # of all: they are compared, so they see the same draws
            train(method, bank, run.config.learn, final.parent, seed, context, stage.inputs, stop)
        context.barrier(f"learn-{method}")
        # Predictors of an older version have none.
        if context.main and (rate := json.loads((final / "state.json").read_text()).get("iterations_per_s")):
            rates[method] = rate
    stage.finish(iterations_per_s=rates)


def open_bank(run: Run, context: Context) -> Bank:
    """The base activations of a run that ``extract`` has finished."""
    extract = run.dir / "extract"
    head = checkpoint.load(run.dir / "pretrain" / "final", context.device).tensors["model"]["head.weight"]
    means = np.load(extract / "means.f32.npy")
    return Bank(load(extract, "base_train"), load(extract, "base_val"), means, head, context)


class Bank:
    """The base activations where they are used: whole on a GPU, memory-mapped on a CPU.

    Attributes:
        train: float16 [N, C].
        first, count: int64 [classes], rows of each class.
        means, head: float32 [classes, C], the mean activations and the backbone's own classifier.
        val, val_labels: float32 [Q, C] and int64 [Q], for the base accuracy that is logged.
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
        """For ``_DRAW_AHEAD`` steps from ``step``, each [steps, classes]: whether a single row stands for the class
        and not its mean, that row, and the query's row. A pure function of (seed, step, class): the same on any
        number of ranks, and after a resume."""
        classes = len(self.count)
        steps = np.repeat(np.arange(step, step + _DRAW_AHEAD, dtype=np.int64), classes)
        labels = np.tile(np.arange(classes, dtype=np.int64), _DRAW_AHEAD)
        drawn = uniforms(seed, steps, labels, 3).reshape(_DRAW_AHEAD, classes, 3)
        u = torch.from_numpy(drawn).to(self.device, non_blocking=True)
        single = u[..., 0] >= p_mean
        support, query = (self.first + (u[..., k] * self.count).long() for k in (1, 2))
        # A row that is not used is read all the same: take one that is read anyway.
        return single, torch.where(single, support, query), query


def train(
    method: str,
    bank: Bank,
    config: LearnConfig,
    folder: Path,
    seed: int,
    context: Context,
    inputs: dict[str, Any],
    stop: StopFlag,
) -> float:
    """Train one predictor; continues from its last checkpoint. Returns iterations/s.

    One step: one statistic and one query a class; every rank computes all rows and classifies its
    share of the queries, so that the gradient is the same on any number of ranks.

    Args:
        inputs: what the stage is made from; a checkpoint of other inputs is refused.

    Raises:
        UserError: the loss is not finite.
        Stopped: told to leave; all is saved.
    """
    torch.manual_seed(seed)
    model = LEARNED[method].build(method, bank.means, bank.head, config).to(context.device)
    config = replace(config, **model.own)
    assert_float32(model)
    groups = [{"params": list(model.parameters()), "weight_decay": config.weight_decay}]
    optimizer = sgd(groups, config.momentum, nesterov=False)
    precision = MixedPrecision(config.precision, context.device)
    checkpoints = folder / "checkpoints"
    strategy = SummedGradients(model, optimizer, precision, context)
    saved = continue_training(checkpoints, inputs, context, strategy)
    start, window = (saved["step"], saved["window"]) if saved else (0, None)
    metrics = MetricsWriter(folder, start) if context.main else None
    bar = progress_bar(config.steps, f"learn {method}", "it", context.main, start)
    labels = torch.arange(len(bank.count), device=context.device)[context.rank :: context.world]
    step_once: Callable[..., torch.Tensor] = partial(one_step, model, bank, labels, strategy)
    # Not with fp16, whose scaler keeps numbers of its own, nor with an exchange between ranks in each step.
    graphed = config.cuda_graph and context.device.type == "cuda" and context.world == 1 and config.precision != "fp16"
    for group in optimizer.param_groups:  # whatever the checkpoint's was
        group["lr"] = torch.zeros((), device=context.device) if graphed else 0.0
    if graphed:
        step_once = Graphed(step_once, context.device, "learn.cuda_graph")
    loss_sum, logged = _restore(window, start, context)
    losses = Losses(context.device)
    writer = checkpoint.Writer()

    def keep(step: int) -> None:
        """All that the next step needs. All ranks call it."""
        sums = context.gather(loss_sum.item())
        losses.check(sum(sums), context)
        state = {"step": step, "inputs": inputs, "window": [logged, sums]}
        tensors = strategy.tensors()
        check_weights(tensors["model"], step)
        if context.main:
            path, retain = checkpoint.step_path(checkpoints, step), partial(checkpoint.retain, checkpoints, 2)
            writer.save(path, tensors, state, retain)

    began, paused = time.perf_counter(), 0.0
    try:
        for step in range(start, config.steps):
            if step == start or step % _DRAW_AHEAD == 0:
                context.report_progress(f"learn {method}: step {step} of {config.steps}")
                block = step - step % _DRAW_AHEAD
                drawn = bank.draw(seed, block, config.p_mean)
            lr = predictor_rate(step, config.steps, config)
            set_lr(optimizer, lr)
            loss = step_once(*(part[step % _DRAW_AHEAD] for part in drawn))
            number = step + 1
            loss_sum += loss
            losses.add(number, loss)
            if number % config.log_every == 0 or number % config.checkpoint_every == 0 or number == config.steps:
                now = time.perf_counter()
                mean_loss = context.sum(loss_sum).item() / (number - logged)
                losses.check(mean_loss, context)
                top1 = base_top1(model, bank, context)
                if metrics:
                    rate = (number - start) / (now - began - paused)
                    values = {
                        "train/loss": mean_loss,
                        "eval/base_top1(%)": top1,
                        "optim/lr": lr,
                        "optim/loss_scale": precision.loss_scale,
                        "optim/skipped_steps": precision.skipped.item(),
                    }
                    values |= {
                        "progress/steps": float(config.steps),
                        "progress/seconds_left": (config.steps - number) / rate,
                    }
                    metrics.write(number, {**values, "time/throughput(it/s)": rate})
                    bar.set_postfix(loss=f"{mean_loss:.3f}", base=f"{top1:.1f}%")
                    bar.update(number - bar.n)
                loss_sum.zero_()
                logged = number
                paused += time.perf_counter() - now
            if number % config.checkpoint_every == 0 and number < config.steps:
                keep(number)
            if number % _DRAW_AHEAD == 0 and number < config.steps and stop.agreed():
                keep(number)
                finish_writes(writer, context, "learn")
                raise Stopped(f"learn {method}: saved at step {number} of {config.steps}")
        check_weights(model.state_dict(), config.steps)
        stop.finish()
        finish_writes(writer, context, "learn")
    except NonFinite as error:
        raise diverged(error, f"learn {method}", checkpoints, writer, "a lower learn.lr") from None
    finally:
        bar.close()
        writer.close()
        if metrics:
            metrics.close()
    rate = (config.steps - start) / max(time.perf_counter() - began - paused, 1e-9)
    if context.main:
        checkpoint.save(
            folder / "final",
            {"model": model.state_dict()},
            {"method": method, "step": config.steps, "iterations_per_s": round(rate, 2)},
        )
        log.info("learn: %s, %d steps, %.1f it/s", method, config.steps - start, rate)
    return round(rate, 2)


def one_step(
    model: RowPredictor,
    bank: Bank,
    labels: torch.Tensor,
    strategy: SummedGradients,
    single: torch.Tensor,
    support: torch.Tensor,
    query: torch.Tensor,
) -> torch.Tensor:
    """One step on one step's share of ``Bank.draw``; this rank classifies the queries of ``labels``. Returns its
    part of the loss, on the device."""
    statistics = torch.where(single[:, None], bank.train[support].float(), bank.means)
    with strategy.precision.autocast():
        loss = model.loss(bank.train[query[labels]].float(), labels, statistics, single) / len(bank.count)
    strategy.backward(loss)
    strategy.step(clip_norm=0.0, norm=False)
    return loss.detach()


def _restore(window: list[Any] | None, start: int, context: Context) -> tuple[torch.Tensor, int]:
    """Sum of losses of this rank since the last log line, and that line's step."""
    if window is None:
        return torch.zeros((), dtype=torch.float64, device=context.device), start
    logged, sums = window
    # On another number of ranks rank 0 takes it all.
    mine = sums[context.rank] if len(sums) == context.world else sum(sums) * context.main
    return torch.tensor(mine, dtype=torch.float64, device=context.device), logged


@exact_products()
@torch.inference_mode()
def base_top1(model: RowPredictor, bank: Bank, context: Context) -> float:
    """Accuracy in percent of base validation images among the base classes, rows predicted from means."""
    rows = model(bank.means, torch.zeros(len(bank.means), dtype=torch.bool, device=bank.device))
    correct = sum(
        ((model.query(q) @ rows.T).argmax(1) == y).sum()
        for q, y in zip(bank.val.split(8192), bank.val_labels.split(8192), strict=True)
    )
    total = context.sum(torch.as_tensor(correct, dtype=torch.float64, device=bank.device))
    return 100 * total.item() / bank.queries
