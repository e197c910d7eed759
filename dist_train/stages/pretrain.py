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
from dist_train.data.loading.loader import eval_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_side, train_windows
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError, counted
from dist_train.models.backbones import Backbone, Pretrained, build, open_pretrained
from dist_train.models.backbones.cosine import with_linear_classifier
from dist_train.models.backbones.ours import drop_branches
from dist_train.runs.inputs import check_checkpoint
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.backbone import RunBackbone, architecture_of, give_rows
from dist_train.stages.features import check_features
from dist_train.stages.image_training import ImageTraining, TrainingImages
from dist_train.training import checkpoint
from dist_train.training.classification import evaluate
from dist_train.training.finetuning import freeze
from dist_train.training.loop import TrainingLoop
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision, assert_float32, tuned_convolutions
from dist_train.training.strategies.factory import make_strategy


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
        replace(task.backbone, network=with_linear_classifier(final)).save(run.config, step=loop.done, best=loop.best)
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
    section = "backbone" if config.backbone else "pretrain.init"
    context.report_progress(f"opening {options.source}", patient=True)
    opened = open_pretrained(options, section) if context.main else None
    context.barrier("backbone-opened")
    for note in opened.notes if opened else ():
        log.info("pretrain: %s", note)
    if config.backbone:
        return opened
    opened = opened or open_pretrained(options, section)
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


class BackboneTraining(ImageTraining):
    """Train a run's backbone on its base images, and evaluate it after each epoch.

    Attributes:
        backbone: the network in training.
        val: the base classes' validation images.
    """

    def __init__(self, run: Run, context: Context, opened: Pretrained | None) -> None:
        """Prepare the training, of the network that ``pretrain.init`` names where it is ``opened``."""
        self.run, config = run, run.config.pretrain
        self.val = run.view("val", "base")
        torch.manual_seed(run.config.seed)
        self.backbone = _start_from(opened, run, context)
        model = self.backbone.network
        precision = MixedPrecision(config.precision, context.device)
        strategy = make_strategy(model, make_optimizer(model, config), precision, config, context)
        view, data = run.view("train", "base"), run.config.data
        images = TrainingImages(view, base_order(run), data, self.backbone.preprocessing)
        super().__init__(images, strategy, config, run.config.seed)

    def __str__(self) -> str:
        network = self.config.init.source if self.config.init else self.config.model
        view = self.images.view
        return (
            f"{network} on {counted(len(view), 'image')} of {counted(len(view.classes), 'class')}, "
            f"{counted(self.schedule.steps, 'step')} of {counted(self.config.global_batch, 'image')}"
        )

    def evaluates_at(self, step: int) -> bool:
        return self.images.order.ends_epoch(step - 1) or step == self.schedule.steps

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        context, config = self.strategy.context, self.config
        ids = np.sort(self.val.ids)[context.rank :: context.world]  # in the order of the shards
        batch = max(1, config.global_batch // context.world // config.accumulate)
        preprocessing = self.backbone.preprocessing
        batches = eval_batches(self.val, ids, self.run.config.data, batch, context, preprocessing=preprocessing)
        return evaluate(model, self.strategy.precision, batches, len(self.val), context)

    def state(self, step: int) -> dict[str, Any]:
        return {**super().state(step), "next": fingerprint(self.run, self.images.order, step)}


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


def _start_from(opened: Pretrained | None, run: Run, context: Context) -> RunBackbone:
    """Return the backbone to be trained, on its device: an opened network, or a new one of ``pretrain.model``."""
    config = run.config.pretrain
    if opened:
        known = give_rows(opened, run.base)
        if context.main:
            log.info("pretrain: starts from %s, which has rows for %d base classes", opened.origin.source, known)
        backbone = RunBackbone(opened.backbone, run.base, opened.preprocessing, opened.origin)
    else:
        network = build(architecture_of(config, len(run.base)))
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
