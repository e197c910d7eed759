"""Chapter 1: the backbone learns the base classes."""

from __future__ import annotations

import hashlib
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_train.config import Config
from dist_train.data.loading.augment import operations
from dist_train.data.loading.loader import eval_batches, train_batches, train_side, train_windows
from dist_train.data.loading.order import Order
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.errors import UserError, verifying
from dist_train.models.backbone import Backbone
from dist_train.runs.continuing import continue_training, diverged, finish_writes
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.training import checkpoint
from dist_train.training.finite import NonFinite, check_weights
from dist_train.training.loop import Window, evaluate, train
from dist_train.training.metrics import MetricsWriter
from dist_train.training.objective import Objective
from dist_train.training.optimizer import learning_rate, make_optimizer
from dist_train.training.precision import MixedPrecision, assert_float32, tuned_convolutions
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy


def pretrain(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train ``pretrain.model`` on the base classes; leaves ``pretrain/final`` and ``pretrain/best``.

    The final weights, not the best, go on to ``extract``: choosing by validation accuracy would be
    choosing on the images that are reported.

    Raises:
        Stopped: told to leave; all is saved.
    """
    stage = Stage(run, "pretrain", context, redo)
    if stage.done:
        return stage.rest()
    config, data, seed = run.config.pretrain, run.config.data, run.config.seed
    base, val = run.view("train", "base"), run.view("val", "base")
    order = base_order(run)
    total, warmup = order.steps(config.epochs), round(config.warmup_epochs * len(base) / config.global_batch)

    torch.manual_seed(seed)
    model = build(run, context)
    optimizer = make_optimizer(model, config)
    precision = MixedPrecision(config.precision, context.device)

    strategy = make_strategy(model, optimizer, precision, config, context)
    rate = partial(learning_rate, total=total, warmup=warmup, epochs=config.epochs, config=config)
    objective = Objective(config, len(base.classes))

    folder = stage.folder / "checkpoints"
    saved = continue_training(folder, stage.inputs, context, strategy)
    state = saved or {"step": 0, "best": -1.0, "seconds": 0.0, "replaced": 0.0}
    start = state["step"]
    window = Window.restore(state.get("window"), context)
    keep = Keeper(run, stage, order, strategy, window, state)

    metrics = MetricsWriter(stage.folder, start) if context.main else None
    if context.main:
        log.info(
            "pretrain: %s on %d images of %d classes, %d steps of %d images%s",
            config.model, len(base), len(base.classes), total, config.global_batch,
            f", continued at step {start}" if start else "",
        )  # fmt: skip
    bar = progress_bar(total * config.global_batch, "pretrain", "img", context.main, start * config.global_batch)

    def on_log(step: int, values: dict[str, float]) -> None:
        state["replaced"] += values["data/replaced_samples"]
        values["data/replaced_samples"] = state["replaced"]
        if base.subset.cache:
            retries = torch.tensor([float(base.subset.cache.retries)], device=context.device)
            values["data/download_retries"] = context.sum(retries).item()
        check_bad_fraction(state["replaced"], step * config.global_batch, base, data.max_bad_fraction)
        if metrics:
            rate = values["time/throughput(images/s)"]
            values["progress/epoch"] = step * config.global_batch / len(base)
            values["progress/steps"] = float(total)
            values["progress/seconds_left"] = (total - step) * config.global_batch / rate
            metrics.write(step, {**values, **keep.timings()})
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", top1=f"{values['train/top1(%)']:.1f}%")
            bar.update(step * config.global_batch - bar.n)

    def on_step(step: int) -> None:
        last = step == total
        state["step"] = step
        if order.ends_epoch(step - 1) or last:
            ids = np.sort(val.ids)[context.rank :: context.world]  # in the order of the shards
            batch = max(1, config.global_batch // context.world // config.accumulate)
            if window.steps:
                window.total(context)  # before a broken model is called the best
            model = strategy.evaluated()
            check_weights(model.state_dict(), step)
            scores = evaluate(model, precision, eval_batches(val, ids, data, batch, context), len(val), context)
            if metrics:
                metrics.write(step, scores)
                bar.write(f"step {step}/{total}: base top-1 {scores['eval/top1(%)']:.2f}%")
            if scores["eval/top1(%)"] > state["best"]:
                state["best"] = scores["eval/top1(%)"]
                keep.best(model)
        if step % config.checkpoint_every == 0 or last:
            keep.step()
        if not last and stop.agreed():
            keep.step()
            finish_writes(keep.writer, context, "pretrain")
            raise Stopped(f"pretrain: saved at step {step} of {total}")

    batches = train_batches(base, order, data, seed, context, range(start, total), config.accumulate)
    try:
        with tuned_convolutions(True):
            train(strategy, batches, config, seed, start, total, rate, objective, window, on_log, on_step)
        stop.finish()
        finish_writes(keep.writer, context, "pretrain")
    except NonFinite as error:
        raise diverged(error, "pretrain", folder, keep.writer, "a lower pretrain.lr, or pretrain.clip_norm") from None
    finally:
        batches.close()
        bar.close()
        if metrics:
            metrics.close()
        keep.writer.close()
    final = strategy.evaluated()
    if context.main:
        facts: dict[str, Any] = {"model": config.model, "small_stem": config.small_stem, "classes": list(base.classes)}
        facts |= {"step": total, "best": state["best"]}
        checkpoint.save(stage.folder / "final", {"model": final.state_dict()}, facts)
    stage.finish(step=total, best_top1=state["best"], seconds=round(keep.seconds(), 1))


class Keeper:
    """What this stage saves, and when it was there."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        order: Order,
        strategy: Strategy,
        window: Window,
        state: dict[str, Any],
    ) -> None:
        self.run, self.stage, self.order, self.state = run, stage, order, state
        self.strategy, self.window = strategy, window
        self.folder, self.writer = stage.folder / "checkpoints", checkpoint.Writer()
        self.saved: int | None = None  # by this start: one that is there may be damaged
        self.began = time.perf_counter() - state["seconds"]

    def seconds(self) -> float:
        """Of all starts together."""
        return time.perf_counter() - self.began

    def timings(self) -> dict[str, float]:
        return {
            "checkpoint/blocked(ms)": self.writer.blocked,
            "checkpoint/write(s)": self.writer.wrote,
            "checkpoint/failures": float(self.writer.failures),
        }

    def step(self) -> None:
        """All that the next step needs. All ranks call it."""
        config, step = self.run.config.pretrain, self.state["step"]
        if step == self.saved:  # due and told to leave at once
            return
        self.saved = step
        state = {**self.state, "inputs": self.stage.inputs, "seconds": self.seconds()}
        state["window"] = self.window.save(self.strategy.context) if self.window.steps else None
        path = checkpoint.step_path(self.folder, step)
        tensors = self.strategy.tensors()
        check_weights(tensors["model"], step)
        if self.strategy.context.main:
            state["next"] = fingerprint(self.run, self.order, step)
            retain = partial(checkpoint.retain, self.folder, config.keep, config.keep_every)
            self.writer.save(path, tensors, state, retain)

    def best(self, model: nn.Module) -> None:
        if self.strategy.context.main:
            tensors = {"model": model.state_dict()}
            self.writer.save(self.stage.folder / "best", tensors, dict(self.state))


def base_order(run: Run) -> Order:
    """The order of the base training images."""
    base, data, config = run.view("train", "base"), run.config.data, run.config.pretrain
    shards = base.shards() if data.block_shards else None
    return Order(len(base), config.global_batch, run.config.seed, shards, data.block_shards)


def fingerprint(run: Run, order: Order, step: int) -> str:
    """Hash of what global batch ``step`` will be: sample ids, crop windows, flips, augmentations, side. A
    checkpoint keeps it, so that ``verify-resume`` can compare with what the run itself was about to do."""
    view = run.view("train", "base")
    positions, epochs = order.batch(step)
    ids, data, seed = view.ids[positions], run.config.data, run.config.seed
    windows = train_windows(view, ids, epochs, data, seed)
    chosen, side = operations(data, seed, epochs, ids), np.asarray(train_side(data, int(epochs[0])))
    parts = (ids, windows.anchor, windows.shape, windows.flip, chosen, side)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def check_bad_fraction(replaced: float, seen: int, base: View, limit: float) -> None:
    """Raises UserError past ``data.max_bad_fraction`` of the images seen, counted as at least an epoch's."""
    share = replaced / max(seen, len(base))
    if share > limit:
        raise UserError(
            f"data.max_bad_fraction={limit:g}: {replaced:.0f} images were replaced, {share:.2%} of those seen; "
            f"the log names them; {verifying(base.subset.source)}"
        )


def build(run: Run, context: Context) -> Backbone:
    """The backbone to be trained, on its device."""
    config = run.config.pretrain
    model = Backbone(config.model, len(run.base), config.small_stem)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if config.stochastic_depth:
        model.drop_branches(config.stochastic_depth)  # after it: new layers would lack the hooks
    assert_float32(model)
    return model.to(context.device)


def load_backbone(config: Config, device: torch.device) -> tuple[Backbone, list[str]]:
    """A run's finished backbone, frozen, in evaluation mode; and the wnids of its classes."""
    saved = checkpoint.load(config.run_dir / "pretrain" / "final", device)
    model = Backbone(saved.state["model"], len(saved.state["classes"]), saved.state["small_stem"])
    model.load_state_dict(saved.tensors["model"])
    memory = torch.channels_last if config.pretrain.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), saved.state["classes"]
