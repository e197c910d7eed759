"""Measure what safety costs a step: agreement on a stop, and writing a checkpoint beside the training.

    torchrun --standalone --nproc-per-node 2 tools/bench_reliability.py

Measures steps of a small ResNet on random images under DDP, in turns within one run: plain steps, steps after which
all ranks agree whether to stop, and steps during which a ResNet-50's checkpoint (weights and momentum, about 205 MB)
is written. Prints medians, and the medians of paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

from dist_train.config import PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.stopping import StopFlag
from dist_train.models.backbones.ours import untrained
from dist_train.training.checkpoint import CheckpointSaver
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.ddp import DataParallel


@dataclass
class Times:
    """Hold the milliseconds of each kind of step, and paired ratios to plain steps, a pair per round.

    Attributes:
        blocked: milliseconds that training waits for the copy of the tensors.
        wrote: seconds of a checkpoint's write.
    """

    plain: list[float] = field(default_factory=list)
    agreed: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    blocked: list[float] = field(default_factory=list)
    wrote: list[float] = field(default_factory=list)
    ratios: list[tuple[float, float]] = field(default_factory=list)


class Training:
    """Train a small ResNet under DDP on the same random images."""

    def __init__(self, context: contexts.Context, stop: StopFlag, batch: int) -> None:
        torch.manual_seed(0)
        model = untrained("resnet10", 100).to(context.device)
        optimizer = make_optimizer(model, PretrainConfig())
        self.strategy = DataParallel(model, optimizer, MixedPrecision("fp32", context.device), context)
        self.images = torch.randn(batch, 3, 64, 64, device=context.device)
        self.labels = torch.randint(100, (batch,), device=context.device)
        self.stop = stop

    def step(self, agree: bool) -> float:
        """Return the milliseconds of one step, with the agreement of all ranks or without."""
        began = time.perf_counter()
        self.strategy.backward(F.cross_entropy(self.strategy.forward(self.images), self.labels))
        self.strategy.step(clip_norm=0.0, norm=False)
        if agree:
            assert not self.stop.agreed()
        return 1000 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="steps of each kind in a round")
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    args = parser.parse_args()
    with contexts.start() as context, StopFlag(context) as stop, tempfile.TemporaryDirectory() as folder:
        training, times = Training(context, stop, args.batch), Times()
        for _ in range(5):
            training.step(agree=True)
        measure_rounds(training, times, context, Path(folder), args.rounds, args.steps)
        if context.main:
            print(f"{context.world} ranks, {context.device}, {args.rounds} rounds of {args.steps} steps\n")
            print(table(times))


def measure_rounds(
    training: Training, times: Times, context: contexts.Context, folder: Path, rounds: int, steps: int
) -> None:
    """Measure all kinds of steps in turns; rank 0 writes the checkpoints."""
    tensors = {f"w{n}": torch.randn(2_560_000) for n in range(20)}  # 51 M numbers: ResNet-50 and its momentum
    saver = CheckpointSaver(folder, keep=1)
    for number in range(rounds):
        plain, agreed = [], []
        for _ in range(steps):  # alternating, so that a slow moment of the machine affects both
            plain.append(training.step(agree=False))
            agreed.append(training.step(agree=True))
        training.stop.finish()
        if context.main:
            saver.save(number, tensors, {"step": number})
            times.blocked.append(saver.blocked_ms)
        beside = [training.step(agree=False) for _ in range(steps)]
        if context.main:
            saver.finish()
            times.wrote.append(saver.write_seconds)
        median = statistics.median(plain)
        times.ratios.append((statistics.median(agreed) / median, statistics.median(beside) / median))
        times.plain += plain
        times.agreed += agreed
        times.beside += beside
        context.barrier(f"round-{number}")
    saver.close()


def table(times: Times) -> str:
    """Return the medians as a Markdown table."""
    median = statistics.median
    agreed, beside = (median(ratios) for ratios in zip(*times.ratios, strict=True))
    return "\n".join([
        "| | median | beside plain steps |",
        "|---|---:|---:|",
        f"| plain step | {median(times.plain):.1f} ms | 1 |",
        f"| step with the agreement of all ranks | {median(times.agreed):.1f} ms | {agreed:.3f} |",
        f"| step while a checkpoint is written | {median(times.beside):.1f} ms | {beside:.3f} |",
        f"| training waits for the copy of the tensors | {median(times.blocked):.0f} ms | |",
        f"| the write, beside the training | {median(times.wrote):.2f} s | |",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
