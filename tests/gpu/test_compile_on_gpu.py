"""A compiled training step equals the eager step, and is compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dist_train.config import Precision, PretrainConfig
from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.models.backbones.ours import untrained
from dist_train.training.classification import Classification
from dist_train.training.loop import TrainingLoop
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.window import Window

STEPS = 4


def network(device: torch.device) -> nn.Module:
    """Return a ResNet; on a CPU, whose compiler would take a minute for it, a network with each of its kinds of
    layers."""
    torch.manual_seed(0)
    if device.type == "cuda":
        return untrained("resnet10", 10, small_stem=True).to(device)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 10))


class Recorded(Classification):
    """Train on given batches, and record each step's loss and the number of graphs that were compiled by then."""

    def __init__(self, strategy: Strategy, config: PretrainConfig, batches: Sequence[Batch]) -> None:
        super().__init__(strategy, config, classes=10, seed=0, steps=len(batches))
        self.batches = (batch for batch in batches)
        self.losses: list[float] = []
        self.graphs: list[int] = []

    def lr(self, step: int) -> float:
        return 0.01

    def values(self, step: int, sums: list[float], window: Window) -> dict[str, float]:
        values = super().values(step, sums, window)
        self.losses.append(values["train/loss"])
        self.graphs.append(counters["stats"]["unique_graphs"])
        return values


def trained(
    device: torch.device, precision: Precision, compiled: bool, folder: Path
) -> tuple[list[float], list[int], torch.Tensor]:
    """Train the real loop on another batch at each step.

    Returns:
        The loss of each step; how many graphs were compiled by the end of each; the weights in a row, on the CPU.
    """
    config = PretrainConfig(global_batch=16, precision=precision, compile=compiled, log_every=1, checkpoint_every=1000)
    context, model = Context(device=device), network(device)
    mixed = MixedPrecision(precision, device)
    strategy = make_strategy(model, make_optimizer(model, config), mixed, config, context)
    draw = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(STEPS):
        images = torch.randn(16, 3, 32, 32, generator=draw).to(device, memory_format=torch.channels_last)
        batches.append(Batch(images, torch.randint(10, (16,), generator=draw).to(device), np.arange(16)))
    torch.compiler.reset()
    counters.clear()
    task = Recorded(strategy, config, batches)
    TrainingLoop(task, folder, {}, StopFlag(context)).run()
    weights = torch.cat([value.detach().flatten().float().cpu() for value in model.parameters()])
    return task.losses, task.graphs, weights


def compare(device: torch.device, precision: Precision, tolerance: float, folder: Path) -> None:
    losses, graphs, weights = trained(device, precision, False, folder / "eager")
    assert graphs == [0] * STEPS
    other, graphs, others = trained(device, precision, True, folder / "compiled")
    assert graphs[0] >= 1 and graphs == [graphs[0]] * STEPS, f"compiled again: graphs after each step {graphs}"
    assert losses == pytest.approx(other, rel=tolerance), (losses, other)
    moved = float((weights - others).norm() / weights.norm())
    assert moved < tolerance, moved


def test_a_compiled_step_equals_the_eager_step(device: torch.device, tmp_path: Path) -> None:
    compare(device, "fp32", 1e-3, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_compiled_step_equals_the_eager_step_in_bf16(tmp_path: Path) -> None:
    compare(torch.device("cuda", 0), "bf16", 3e-2, tmp_path)  # fused operations round less often: bf16 keeps 8 bits
