"""Train the backbone on the base classes (the first stage)."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_train.config import Config
from dist_train.data.loading.augment import operations
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_side, train_windows
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError, verifying
from dist_train.models.backbones import Backbone
from dist_train.models.backbones.ours import drop_branches, resnet
from dist_train.runs.inputs import check_checkpoint
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.training import checkpoint
from dist_train.training.classification import Classification, evaluate
from dist_train.training.loop import TrainingLoop
from dist_train.training.optimizer import learning_rate, make_optimizer
from dist_train.training.precision import MixedPrecision, assert_float32, tuned_convolutions
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.window import Window


def pretrain(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train ``pretrain.model`` on the base classes, and write ``pretrain/final`` and ``pretrain/best``.

    The final weights, not the best, go on to ``extract``: choosing by validation accuracy would be choosing on the
    images that are reported.

    Raises:
        Stopped: the ranks agreed to stop, and everything is saved.
    """
    stage = Stage(run, "pretrain", context, redo)
    if stage.done:
        return stage.log_done()
    task = BackboneTraining(run, context)
    folder = stage.folder / "checkpoints"
    saved = checkpoint.load_agreed(folder, context, task.strategy.loads_on)
    if saved:
        check_checkpoint(saved, stage.inputs, folder)
    loop = TrainingLoop(task, stage.folder, stage.inputs, stop, saved)
    if context.main:
        log.info("pretrain: %s%s", task, f", continued at step {loop.start}" if saved else "")
    with tuned_convolutions(True):
        loop.run()
    final = task.strategy.evaluated()
    if context.main:
        facts = {"model": task.config.model, "small_stem": task.config.small_stem, "classes": list(task.base.classes)}
        facts |= {"step": loop.done, "best": loop.best}
        checkpoint.save(stage.folder / "final", {"model": final.state_dict()}, facts)
    stage.finish(step=loop.done, best_top1=loop.best, seconds=round(loop.seconds, 1))


class BackboneTraining(Classification):
    """Train a run's backbone on its base images, and evaluate it after each epoch.

    Attributes:
        base, val: the base classes' training and validation images.
        order: the order of the training images.
        replaced: images that could not be decoded and were replaced, over all starts of the run.
    """

    def __init__(self, run: Run, context: Context) -> None:
        self.run, config = run, run.config.pretrain
        self.base, self.val = run.view("train", "base"), run.view("val", "base")
        self.order = base_order(run)
        torch.manual_seed(run.config.seed)
        model = build(run, context)
        precision = MixedPrecision(config.precision, context.device)
        strategy = make_strategy(model, make_optimizer(model, config), precision, config, context)
        super().__init__(
            strategy, config, len(self.base.classes), run.config.seed, steps=self.order.steps(config.epochs)
        )
        self.warmup = round(config.warmup_epochs * len(self.base) / config.global_batch)
        self.replaced = 0.0

    def __str__(self) -> str:
        return (
            f"{self.config.model} on {len(self.base)} images of {len(self.base.classes)} classes, "
            f"{self.schedule.steps} steps of {self.config.global_batch} images"
        )

    def begin(self, start: int) -> None:
        data, steps = self.run.config.data, range(start, self.schedule.steps)
        self.batches = train_batches(self.base, self.order, data, self.strategy.context, steps, self.config.accumulate)

    def lr(self, step: int) -> float:
        return learning_rate(step, self.schedule.steps, self.warmup, self.config.epochs, self.config)

    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        values, data = super().values(step, sums, window), self.run.config.data
        self.replaced += values["data/replaced_samples"]
        values["data/replaced_samples"] = self.replaced
        values["progress/epoch"] = step * self.config.global_batch / len(self.base)
        if self.base.subset.cache:
            context = self.strategy.context
            retries = torch.tensor([float(self.base.subset.cache.retries)], device=context.device)
            values["data/download_retries"] = context.sum(retries).item()
        check_bad_fraction(self.replaced, step * self.config.global_batch, self.base, data.max_bad_fraction)
        return values

    def evaluates_at(self, step: int) -> bool:
        return self.order.ends_epoch(step - 1) or step == self.schedule.steps

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        context, config = self.strategy.context, self.config
        ids = np.sort(self.val.ids)[context.rank :: context.world]  # in the order of the shards
        batch = max(1, config.global_batch // context.world // config.accumulate)
        batches = eval_batches(self.val, ids, self.run.config.data, batch, context)
        return evaluate(model, self.strategy.precision, batches, len(self.val), context)

    def state(self, step: int) -> dict[str, Any]:
        return {"replaced": self.replaced, "next": fingerprint(self.run, self.order, step)}

    def load_state(self, state: dict[str, Any]) -> None:
        self.replaced = state["replaced"]


def base_order(run: Run) -> Order:
    """Return the order of a run's base training images."""
    base, data, config = run.view("train", "base"), run.config.data, run.config.pretrain
    shards = base.shards() if data.block_shards else None
    return Order(len(base), config.global_batch, run.config.seed, shards, data.block_shards)


def fingerprint(run: Run, order: Order, step: int) -> str:
    """Return a hash of global batch ``step``: sample ids, crop windows, flips, augmentations and side.

    A checkpoint keeps it, so that ``verify-resume`` can compare with what the run itself was about to do.
    """
    view = run.view("train", "base")
    positions, epochs = order.batch(step)
    ids, data, seed = view.ids[positions], run.config.data, run.config.seed
    windows = train_windows(view, ids, epochs, data, seed)
    chosen, side = operations(data, seed, epochs, ids), np.asarray(train_side(data, int(epochs[0])))
    parts = (ids, windows.anchor, windows.shape, windows.flip, chosen, side)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def check_bad_fraction(replaced: float, seen: int, base: View, limit: float) -> None:
    """Stop a training that replaces too many images.

    Args:
        seen: images of the training so far; counted as an epoch's at least.

    Raises:
        UserError: more than ``limit`` (``data.max_bad_fraction``) of them were replaced.
    """
    share = replaced / max(seen, len(base))
    if share > limit:
        raise UserError(
            f"data.max_bad_fraction={limit:g}: {replaced:.0f} images were replaced, {share:.2%} of those seen; "
            f"the log names them; {verifying(base.subset.source)}"
        )


def build(run: Run, context: Context) -> Backbone:
    """Return the backbone to be trained, on its device."""
    config = run.config.pretrain
    model = resnet(config.model, len(run.base), config.small_stem)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    if config.stochastic_depth:
        drop_branches(model, config.stochastic_depth)  # after the conversion: new layers would lack the hooks
    assert_float32(model)
    return model.to(context.device)


def load_backbone(config: Config, device: torch.device) -> tuple[Backbone, list[str]]:
    """Return a run's finished backbone, frozen and in evaluation mode, and the wnids of its classes."""
    saved = checkpoint.load(config.run_dir / "pretrain" / "final", device)
    model = resnet(saved.state["model"], len(saved.state["classes"]), saved.state["small_stem"])
    model.load_state_dict(saved.tensors["model"])
    memory = torch.channels_last if config.pretrain.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory)  # type: ignore[call-overload]
    return model.eval().requires_grad_(False), saved.state["classes"]
