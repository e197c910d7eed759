"""Say what a run will be before anything starts: steps, images, memory and time."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from dist_train.config import BackboneConfig, Config, PretrainConfig
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_side
from dist_train.data.splits import load_split
from dist_train.distributed.context import Context
from dist_train.errors import NoShards, UserError, counted
from dist_train.models.backbones import build, open_pretrained
from dist_train.runs.run import check_config, check_networks, open_run
from dist_train.stages.backbone import architecture_of
from dist_train.stages.memory import Cost, batches_by_card, count_cost, memory_by_use
from dist_train.stages.network_training import network_options
from dist_train.training.finetuning import freeze
from dist_train.training.objective import Objective
from dist_train.training.optimizer import make_optimizer, peak_lr
from dist_train.training.precision import MixedPrecision, tuned_convolutions
from dist_train.training.strategies.ddp import DataParallel

_ILSVRC2012 = 1_281_167 / 1000  # training images a class; assumed where there are no shards yet
_GIB = 2**30


@dataclass(frozen=True)
class Workload:
    """Hold what a run's backbone training will compute.

    Attributes:
        config: the run's configuration.
        world: number of ranks.
        images, classes: base training images and their classes.
        source: where the images were counted, in words.
        steps: optimiser steps.
        sides: the images' sides in pixels, at up to 500 steps that are spread evenly.
        costs: side -> what an image of it costs.
    """

    config: Config
    world: int
    images: int
    classes: int
    source: str
    steps: int
    sides: list[int]
    costs: dict[int, Cost]

    @property
    def seen(self) -> int:
        """Images of all steps together."""
        return self.steps * self.config.pretrain.global_batch

    @property
    def batch(self) -> int:
        """Images of a forward pass on a rank."""
        return self.config.pretrain.global_batch // self.world // self.config.pretrain.accumulate

    @property
    def largest(self) -> Cost:
        """The cost of an image of the largest side."""
        return self.costs[max(self.sides)]

    @property
    def flops(self) -> float:
        """Operations of the training: a backward pass takes twice those of a forward pass."""
        mean = sum(self.costs[side].flops for side in self.sides) / len(self.sides)
        return 3 * mean * self.seen


def dry_run(config: Config, world: int) -> list[str]:
    """Return the lines of ``--dry-run``: what a run will be on ``world`` ranks.

    Raises:
        UserError: options that do not fit each other, the shards or ``world`` ranks.
    """
    if config.features:
        return _plan_features(config)
    if config.backbone:
        return _plan_without_training(config, config.backbone, world)
    work, options = _workload(config, world), config.pretrain
    by_use = memory_by_use(options, work.largest, work.batch, world)
    side = max(work.sides)
    network = options.init.source if options.init else f"{options.model} with a {options.classifier} classifier"
    sides = f"{min(work.sides)} to {side}" if len(work.costs) > 1 else f"{side}"
    return [
        f"run         {config.run_dir}",
        f"images      {work.images:,} of {counted(work.classes, 'base class')} ({work.source})",
        f"pretrain    {network}, {options.strategy}, {options.optimizer}, {options.precision}: "
        f"{counted(options.epochs, 'epoch')}, {counted(work.steps, 'step')}, {counted(work.seen, 'image')} of "
        f"{sides} pixels",
        f"batch       {options.global_batch} = {counted(world, 'rank')} x {counted(options.accumulate, 'pass')} x "
        f"{work.batch}; peak rate {peak_lr(options):g}",
        f"model       {work.largest.parameters / 1e6:.1f} M parameters, "
        f"{work.largest.flops / 1e9:.2f} GFLOP forward an image; {work.flops:.3g} FLOP in all",
        f"memory      about {sum(by_use.values()) / _GIB:.1f} GiB a rank: "
        + ", ".join(f"{use} {bytes / _GIB:.2f}" for use, bytes in by_use.items() if bytes)
        + "; working buffers come on top",
        f"fits        at once on a rank, with working buffers: {batches_by_card(options, work.largest, side, world)}",
        f"time        {_time(work)}",
        *_plan_networks(config, work.images, work.classes, config.data.train_size, world),
        _later_stages(config, work.images),
    ]


def _plan_networks(config: Config, images: int, classes: int, side: int, world: int) -> list[str]:
    """Return the lines for the stage ``networks``; none where no row needs it.

    Args:
        images, classes: base training images, and their classes.
        side: side of the images in pixels.
    """
    check_networks(config, world)
    own, lines = config.networks, []
    sizes = {
        "triplet_network": (1, own.triplet_epochs, own.triplet_lr),
        "finetune_network": (own.draws * len(config.evaluate.shots), own.finetune_epochs, own.finetune_lr),
    }
    for network in config.networks_to_train:
        count, epochs, lr = sizes[network]
        options = network_options(config, epochs, lr)
        cost = count_cost(options, classes, side)
        bytes = sum(memory_by_use(options, cost, own.global_batch // world // own.accumulate, world).values())
        seen = epochs * images
        lines.append(
            f"networks    {network}: {counted(count, 'training')} of {counted(epochs, 'epoch')}, about "
            f"{counted(round(seen / own.global_batch), 'step')} of {counted(own.global_batch, 'image')} each; "
            f"{3 * cost.flops * seen * count:.3g} FLOP in all, about {bytes / _GIB:.1f} GiB a rank"
        )
    return lines


def _plan_without_training(config: Config, backbone: BackboneConfig, world: int) -> list[str]:
    """Return the lines for a run with a trained network."""
    check_config(config, world)
    images, classes, source = _counted(config, world)
    opened = open_pretrained(backbone)
    side, known = opened.preprocessing.size, len(opened.classes or ())
    cost = count_cost(PretrainConfig(init=backbone, precision=config.extract.precision), classes, side)
    return [
        f"run         {config.run_dir}",
        f"images      {images:,} of {counted(classes, 'base class')} ({source})",
        f"pretrain    takes in {backbone.source}; nothing is trained",
        f"weights     {opened.origin.file}, sha256 {opened.origin.sha256[:16]}, licence "
        f"{opened.origin.licence or 'not known'}, trained on {opened.origin.trained_on or 'unknown data'}; "
        f"a classifier of {counted(known, 'known class')}",
        f"model       {cost.parameters / 1e6:.1f} M parameters, activations of {opened.backbone.dim} numbers, "
        f"{cost.flops / 1e9:.2f} GFLOP an image of {side} pixels; {cost.flops * images:.3g} FLOP in all",
        *_plan_networks(config, images, classes, side, world),
        _later_stages(config, images),
    ]


def _plan_features(config: Config) -> list[str]:
    """Return the lines for a run of features."""
    run = open_run(config)
    assert run.features
    rows = len(run.groups("train", "base"))
    return [
        f"run         {config.run_dir}",
        f"features    {counted(rows, 'row')} of {counted(len(run.base), 'base class')}, "
        f"{counted(run.features.dim, 'activation')} each ({run.features['train'].path})",
        "pretrain    checks the features; nothing is trained",
        _later_stages(config, rows).replace("extract", "store").replace("images", "rows"),
    ]


def _later_stages(config: Config, images: int) -> str:
    return (
        f"then        extract {counted(images, 'image')}{' of ten crops' if config.extract.views == 'ten' else ''}, "
        f"learn {counted(len(config.learn.methods), 'predictor')} of {counted(config.learn.steps, 'step')}, "
        f"evaluate {counted(config.evaluate.draws, 'draw')} of {config.evaluate.shots} shots"
    )


def _workload(config: Config, world: int) -> Workload:
    options = config.pretrain
    images, classes, source = _counted(config, world)
    order = Order(images, options.global_batch, config.seed)
    check_config(config, world)
    steps = order.steps(options.epochs)
    epochs = (step * options.global_batch // images for step in range(0, steps, max(1, steps // 500)))
    sides = [train_side(config.data, epoch) for epoch in epochs]
    costs = {side: count_cost(options, classes, side) for side in set(sides)}
    return Workload(config, world, images, classes, source, steps, sides, costs)


def _time(work: Workload) -> str:
    """Measure a few steps on this machine, and say how long all steps take at that rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"dist-train: measuring a few steps on this machine's {name} ...", file=sys.stderr, flush=True)
    try:
        rate = measured_rate(work.config.pretrain, work.classes, max(work.sides), device)
    except (UserError, torch.OutOfMemoryError) as error:
        return f"not measured on this machine ({' '.join(str(error).split())[:160]})"
    rate *= 3 * work.largest.flops * work.seen / work.flops  # the mean over the sides, by their operations
    return (
        f"{work.seen / (rate * work.world) / 3600:,.1f} h for pretrain at {rate:,.1f} images/s a rank, measured now on "
        f"this machine's {name} without a loader; exchanges and evaluation come on top"
    )


@tuned_convolutions(True)
def measured_rate(config: PretrainConfig, classes: int, side: int, device: torch.device, seconds: float = 5.0) -> float:
    """Return the training images/s of a rank on this device, by a few steps on synthetic images, without a loader.

    Args:
        seconds: how long to measure, at least.
    """
    batch = 64 if device.type == "cuda" else 8
    model = build(architecture_of(config, classes)).to(device)
    if config.freeze:
        freeze(model, config.freeze)
    precision = MixedPrecision(config.precision, device)
    strategy = DataParallel(
        model, make_optimizer(model, config), precision, Context(device=device), config.channels_last
    )
    objective = Objective(config, classes)
    images = torch.randn(batch, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,), device=device)
    strategy.module.train()

    def step() -> None:
        mixed, targets = objective.mix(images, labels)
        strategy.backward(objective.loss(strategy.forward(mixed).float(), targets))
        strategy.step(config.clip_norm, norm=False)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(2):
        step()
    began, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - began < seconds:
        step()
        steps += 1
    return batch * steps / (time.perf_counter() - began)


def _counted(config: Config, world: int) -> tuple[int, int, str]:
    """Return the numbers of base training images and classes, and where they were counted."""
    try:
        run = open_run(config, world)
    except UserError as error:
        drawn = config.pack.draw if config.pack else None
        if drawn is not None:
            return drawn.base_classes * drawn.train_per_class, drawn.base_classes, "to be drawn"
        if not isinstance(error, NoShards):
            raise
        classes = len(load_split(config.data.split).roles(config.data.holdout)[0])
        where = f"no shards at {config.data.shards} yet: {_ILSVRC2012:.0f} a class, as in ILSVRC2012"
        return round(classes * _ILSVRC2012), classes, where
    return len(run.view("train", "base")), len(run.base), config.data.shards
