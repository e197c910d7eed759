"""What a run will be, before anything starts: steps, images, memory and time."""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

from dist_train.config import Config, PretrainConfig
from dist_train.data.loading.loader import train_side
from dist_train.data.loading.order import Order
from dist_train.data.splits import load_split
from dist_train.distributed.context import Context
from dist_train.errors import NoShards, UserError
from dist_train.models.backbone import Backbone
from dist_train.runs.run import check_options, open_run
from dist_train.stages.memory import cards, cost, memory
from dist_train.training.objective import Objective
from dist_train.training.optimizer import make_optimizer, peak_lr
from dist_train.training.precision import MixedPrecision, tuned_convolutions
from dist_train.training.strategies.ddp import DataParallel

_ILSVRC2012 = 1_281_167 / 1000  # training images a class, where there are no shards yet
_GIB = 2**30


@tuned_convolutions(True)
def measured_rate(config: PretrainConfig, classes: int, side: int, device: torch.device, seconds: float = 5.0) -> float:
    """Training images/s of one rank on this device: a few steps on synthetic images, without a loader."""
    batch = 64 if device.type == "cuda" else 8
    model: nn.Module = Backbone(config.model, classes, config.small_stem).to(device)
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


def plan(config: Config, world: int) -> list[str]:
    """The lines of ``--dry-run``.

    Raises:
        UserError: options that do not fit each other, the shards or ``world`` ranks.
    """
    options, data = config.pretrain, config.data
    images, classes, source = _counted(config, world)
    order = Order(images, options.global_batch, config.seed)
    check_options(config, world)
    steps = order.steps(options.epochs)
    sides = [train_side(data, step * options.global_batch // images) for step in range(0, steps, max(1, steps // 500))]
    each = options.global_batch // world // options.accumulate
    costs = {side: cost(options, classes, side) for side in set(sides)}
    flops = 3 * options.global_batch * sum(costs[side].flops for side in sides) / len(sides) * steps
    parts = memory(options, costs[max(sides)], each, world)
    fit = cards(options, costs[max(sides)], max(sides), world)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # In the mean over the sides, by their operations.
    share = flops / (3 * options.global_batch * steps) / costs[max(sides)].flops
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    seen = steps * options.global_batch
    try:
        print(f"dist-train: measuring a few steps on this machine's {name} ...", file=sys.stderr, flush=True)
        rate = measured_rate(options, classes, max(sides), device) / share
        hours = (
            f"{seen / (rate * world) / 3600:,.1f} h for pretrain at {rate:,.1f} images/s a rank, measured now on this "
            f"machine's {name} without a loader; exchanges and evaluation come on top"
        )
    except (UserError, torch.OutOfMemoryError) as error:
        hours = f"not measured on this machine ({' '.join(str(error).split())[:160]})"
    shown = f"{min(sides)} to {max(sides)}" if len(set(sides)) > 1 else f"{max(sides)}"
    return [
        f"run         {config.run_dir}",
        f"images      {images:,} of {classes} base classes ({source})",
        f"pretrain    {options.model}, {options.strategy}, {options.optimizer}, {options.precision}: "
        f"{options.epochs:g} epochs, {steps:,} steps, {seen:,} images of {shown} pixels",
        f"batch       {options.global_batch} = {world} rank(s) x {options.accumulate} pass(es) x {each}; "
        f"peak rate {peak_lr(options):g}",
        f"model       {costs[max(sides)].parameters / 1e6:.1f} M parameters, "
        f"{costs[max(sides)].flops / 1e9:.2f} GFLOP forward an image; {flops:.3g} FLOP in all",
        f"memory      about {sum(parts.values()) / _GIB:.1f} GiB a rank: "
        + ", ".join(f"{key} {value / _GIB:.2f}" for key, value in parts.items() if value)
        + "; working buffers come on top",
        f"fits        at once on a rank, with working buffers: {fit}",
        f"time        {hours}",
        f"then        extract {images:,} images{' of ten crops' if config.extract.views == 'ten' else ''}, "
        f"learn {len(config.learn.methods)} predictor(s) of {config.learn.steps:,} steps, "
        f"evaluate {config.evaluate.draws} draws of {config.evaluate.shots} shots",
    ]


def _counted(config: Config, world: int) -> tuple[int, int, str]:
    """Base training images and classes, and where they were counted."""
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
