"""Training steps on the fake device: ``python steps.py CASES`` in ``fake.environment``.

Prints a JSON line for each case of the JSON list CASES: the error, or the most memory that a step has taken, in bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from fake import FakeCuda, switch_on
from torch.distributed._tools.mem_tracker import MemTracker

from dist_train.config import LearnConfig, PretrainConfig
from dist_train.data.activations import Activations
from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context
from dist_train.models.backbones.ours import drop_branches, untrained
from dist_train.stages.learn import PredictorTraining
from dist_train.training.bank import Bank, StepReader
from dist_train.training.classification import Classification
from dist_train.training.optimizer import make_optimizer, set_lr
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.window import Window

CUDA = torch.device("cuda", 0)
CONTEXT = Context(device=CUDA)


class StepOnly(Classification):
    """Train by the step of ``pretrain``, at the rate that the caller sets."""

    def lr(self, step: int) -> float:
        return 0.1


def pretrain(mode: FakeCuda, fault: str, side: int, classes: int, **options: Any) -> int:
    """Make a step of ``pretrain``, or two where the first makes the optimiser's state; return the peak memory."""
    config = PretrainConfig(**options)
    model = untrained(config.model, classes).to(CUDA)
    if config.stochastic_depth:
        drop_branches(model, config.stochastic_depth)
    precision = MixedPrecision(config.precision, CUDA)
    strategy = make_strategy(model, make_optimizer(model, config), precision, config, CONTEXT)
    strategy.module.train()
    task, window = StepOnly(strategy, config, classes, seed=0, steps=2), Window(StepOnly.sums, CUDA)
    tracker = MemTracker()
    tracker.track_external(strategy.model, strategy.optimizer, *([strategy.average] if strategy.average else []))
    images = config.global_batch // config.accumulate

    def batches() -> Generator[Batch]:
        while True:
            tracker.reset_mod_stats()  # or it refuses the model's next forward pass
            pixels = torch.empty(images, 3, side, side, device=CUDA).contiguous(memory_format=torch.channels_last)
            labels = torch.zeros(images, dtype=torch.int64, device="cpu" if fault == "labels" else CUDA)
            yield Batch(pixels, labels, np.arange(images))

    loss = task.objective.loss
    if fault in FAULTS:
        task.objective.loss = lambda logits, targets: FAULTS[fault](loss(logits, targets), logits)  # type: ignore[method-assign]
    task.batches = batches()
    with tracker, mode.step():
        for step in range(1 if config.optimizer == "sgd" else 2):
            set_lr(strategy.optimizer, 0.1)
            task.step(step, window, norm=True)
    return tracker.get_tracker_snapshot("peak")[CUDA]["Total"]


def faulty(change: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[..., torch.Tensor]:
    def changed(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        change(loss, logits)
        return loss

    return changed


FAULTS = {
    "item": faulty(lambda loss, logits: loss.item()),
    "if": faulty(lambda loss, logits: 1 if loss > 0 else 2),
    "cpu": faulty(lambda loss, logits: loss.cpu()),
    "mask": faulty(lambda loss, logits: logits[logits > 0]),
    "constant": faulty(lambda loss, logits: logits + torch.zeros(logits.shape[1])),
    "constant sent": faulty(lambda loss, logits: logits + torch.zeros(logits.shape[1]).to(CUDA)),
    "number sent": faulty(lambda loss, logits: torch.tensor(2.0).to(CUDA)),
    "number kept": faulty(lambda loss, logits: torch.tensor(0.0).copy_(loss)),
    "index": faulty(lambda loss, logits: logits[torch.arange(2)]),
}
"""Changes that someone might make to a step, in place of the loss."""


def learned(mode: FakeCuda, fault: str, method: str, precision: str, graphed: bool) -> int:
    """Make two steps of ``learn``, with means only and with single images only. ``graphed`` puts the rate on the
    device, as a CUDA graph needs."""
    rng = np.random.default_rng(0)
    table = Activations(rng.random((140, 12)).astype(np.float16), np.arange(140), np.arange(0, 141, 20))
    bank = Bank(table, table, table.means(), torch.randn(7, 12), CONTEXT)
    config = LearnConfig(precision=precision)  # type: ignore[arg-type]
    reader = StepReader(bank, 0)
    task = PredictorTraining(method, reader, config, CONTEXT)
    for group in task.strategy.optimizer.param_groups:
        group["lr"] = torch.zeros((), device=CUDA) if graphed else 0.0
    reader.read(2)  # draws for all
    if fault == "labels":
        bank.labels = bank.labels.cpu()
    for step, p_mean in enumerate((1.0, 0.0)):
        task.config = replace(task.config, p_mean=p_mean)
        reader.p_mean = p_mean
        with mode.step():
            set_lr(task.strategy.optimizer, 0.1)
            rows = reader.read(step)
            task.update(rows.chance, rows.supports, rows.queries)
    return 0


def main() -> None:
    switch_on()
    makers = {"pretrain": pretrain, "learn": learned}
    for case in json.loads(sys.argv[1]):
        given = dict(case)
        with FakeCuda() as mode:
            try:
                result = {"peak": makers[given.pop("stage")](mode, given.pop("fault", ""), **given)}
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps([case, result]), flush=True)


if __name__ == "__main__":
    main()
