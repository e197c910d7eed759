"""Train the backbone on the base classes (the first stage)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dist_train.data.loading.augment import operations
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_side, train_windows
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError, verifying
from dist_train.models.backbones import Backbone, Pretrained, open_pretrained
from dist_train.models.backbones.ours import drop_branches, resnet
from dist_train.runs.inputs import check_checkpoint
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.backbone import RunBackbone, give_rows
from dist_train.stages.features import check_features
from dist_train.training import checkpoint
from dist_train.training.classification import Classification, evaluate
from dist_train.training.finetuning import freeze
from dist_train.training.loop import TrainingLoop
from dist_train.training.optimizer import learning_rate, make_optimizer
from dist_train.training.precision import MixedPrecision, assert_float32, tuned_convolutions
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.window import Window


def pretrain(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train ``pretrain.model`` or ``pretrain.init`` on the base classes, and write ``pretrain/final`` and
    ``pretrain/best``; or take in the trained network that ``backbone`` names, or check ``features``.

    The final weights, not the best, go on to ``extract``: choosing by validation accuracy would be choosing on the
    images that are reported.

    Raises:
        Stopped: the ranks agreed to stop, and everything is saved.
        UserError: the trained network cannot be opened.
    """
    if run.features:
        return check_features(run, run.features, context, redo)
    done = context.gather((run.dir / "pretrain" / "done.json").is_file())[0]
    opened = None if done and not redo else _open_trained(run, context)  # first: bad input must leave nothing behind
    stage = Stage(run, "pretrain", context, redo)
    if stage.done:
        return stage.log_done()
    if run.config.backbone:
        return _take_in(stage, opened)
    task = BackboneTraining(run, context, opened)
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
        assert isinstance(final, Backbone)
        replace(task.backbone, network=final).save(run.config, step=loop.done, best=loop.best)
    stage.finish(step=loop.done, best_top1=loop.best, seconds=round(loop.seconds, 1))


def _open_trained(run: Run, context: Context) -> Pretrained | None:
    """Open the network that ``backbone`` or ``pretrain.init`` names; None where there is none. To be taken in, it is
    needed on rank 0 alone.

    Raises:
        UserError: it cannot be opened, or keys do not fit it.
    """
    config = run.config
    options = config.backbone or config.pretrain.init
    if options is None:
        return None
    context.report_progress(f"opening {options.source}", patient=True)
    try:
        opened = open_pretrained(options) if context.main else None  # rank 0 may have to fetch it
    except UserError as error:
        raise UserError(str(error) if config.backbone else f"pretrain.init: {error}") from None
    context.barrier("backbone-opened")
    for note in opened.notes if opened else ():
        log.info("pretrain: %s", note)
    if config.backbone:
        return opened
    opened = opened or open_pretrained(options)
    if config.data.train_size != opened.preprocessing.size:
        size = opened.preprocessing.size
        raise UserError(
            f"data.train_size={config.data.train_size}: {options.source} sees images of {size} pixels; give "
            f"--data.train_size {size}, or another --pretrain.init.size"
        )
    if config.pretrain.freeze:
        freeze(opened.backbone, config.pretrain.freeze)
    return opened


def _take_in(stage: Stage, opened: Pretrained | None) -> None:
    """Write ``pretrain/final`` of a network that is trained already.

    Args:
        opened: the network, on rank 0.
    """
    began, facts, base = time.perf_counter(), {}, stage.run.base
    if opened:
        own, known = opened.backbone.head.out_features, give_rows(opened, base)
        has_head = known == len(base)
        RunBackbone(opened.backbone, base, opened.preprocessing, opened.origin, has_head).save(stage.run.config)
        rows = f"{known} of the network's own {own} rows" if has_head else "in closed form, by extract"
        facts = {"network": opened.origin.source, "weights": opened.origin.sha256[:16], "head": rows}
        log.info("pretrain: %s (%s) is trained already; classifier of the base classes: %s", *list(facts.values()))
    stage.finish(seconds=round(time.perf_counter() - began, 1), **facts)


class BackboneTraining(Classification):
    """Train a run's backbone on its base images, and evaluate it after each epoch.

    Attributes:
        backbone: the network in training.
        base, val: the base classes' training and validation images.
        order: the order of the training images.
        replaced: images that could not be decoded and were replaced, over all starts of the run.
    """

    def __init__(self, run: Run, context: Context, opened: Pretrained | None) -> None:
        """Prepare the training, of the network that ``pretrain.init`` names where it is ``opened``."""
        self.run, config = run, run.config.pretrain
        self.base, self.val = run.view("train", "base"), run.view("val", "base")
        self.order = base_order(run)
        torch.manual_seed(run.config.seed)
        self.backbone = _start_from(opened, run, context)
        model = self.backbone.network
        precision = MixedPrecision(config.precision, context.device)
        strategy = make_strategy(model, make_optimizer(model, config), precision, config, context)
        super().__init__(
            strategy, config, len(self.base.classes), run.config.seed, steps=self.order.steps(config.epochs)
        )
        self.warmup = round(config.warmup_epochs * len(self.base) / config.global_batch)
        self.replaced = 0.0

    def __str__(self) -> str:
        network = self.config.init.source if self.config.init else self.config.model
        return (
            f"{network} on {len(self.base)} images of {len(self.base.classes)} classes, "
            f"{self.schedule.steps} steps of {self.config.global_batch} images"
        )

    def begin(self, start: int) -> None:
        data, steps = self.run.config.data, range(start, self.schedule.steps)
        self.batches = train_batches(
            self.base, self.order, data, self.strategy.context, steps, self.config.accumulate,
            self.backbone.preprocessing,
        )  # fmt: skip

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
        preprocessing = self.backbone.preprocessing
        batches = eval_batches(self.val, ids, self.run.config.data, batch, context, preprocessing=preprocessing)
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


def _start_from(opened: Pretrained | None, run: Run, context: Context) -> RunBackbone:
    """Return the backbone to be trained, on its device: an opened network, or a new one of ``pretrain.model``."""
    config = run.config.pretrain
    if opened:
        known = give_rows(opened, run.base)
        if context.main:
            log.info("pretrain: starts from %s, which has rows for %d base classes", opened.origin.source, known)
        backbone = RunBackbone(opened.backbone, run.base, opened.preprocessing, opened.origin)
    else:
        network = resnet(config.model, len(run.base), config.small_stem)
        backbone = RunBackbone(network, run.base, run.config.data.preprocessing)
    network = _synchronise(backbone.network) if config.sync_batchnorm else backbone.network
    if config.stochastic_depth:
        drop_branches(network, config.stochastic_depth)  # after the conversion: new layers would lack the hooks
    assert_float32(network)
    return replace(backbone, network=network.to(context.device))


def _synchronise(network: Backbone) -> Backbone:
    """Return a network whose batch norms take their statistics over all ranks."""
    convert: Callable[[nn.Module], Any] = nn.SyncBatchNorm.convert_sync_batchnorm
    if network.architecture.get("source") == "timm":  # whose batch norms may have the activation in them
        from timm.layers.norm_act import convert_sync_batchnorm as convert
    converted: Backbone = convert(network)
    return converted
