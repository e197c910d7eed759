"""What safety costs a step: agreeing on a stop, and writing a checkpoint beside the training.

    torchrun --standalone --nproc-per-node 2 tools/bench_reliability.py

Steps of a small ResNet on random images under DDP, in turns within one run: plain; with the agreement
of all ranks after every step; and those during which a ResNet-50's checkpoint (weights and momentum,
about 205 MB) is being written. Prints medians and the median of paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from dist_train.config import PretrainConfig
from dist_train.distributed import context as contexts
from dist_train.distributed.stopping import StopFlag
from dist_train.models.backbone import Backbone
from dist_train.training import checkpoint
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.ddp import DataParallel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12, help="of each kind in a round")
    parser.add_argument("--batch", type=int, default=32, help="images a rank")
    given = parser.parse_args()
    with contexts.start() as context, StopFlag(context) as stop, tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = Backbone("resnet10", 100).to(context.device)
        optimizer = make_optimizer(model, PretrainConfig())
        strategy = DataParallel(model, optimizer, MixedPrecision("fp32", context.device), context)
        images = torch.randn(given.batch, 3, 64, 64, device=context.device)
        labels = torch.randint(100, (given.batch,), device=context.device)
        large = {f"w{n}": torch.randn(2_560_000) for n in range(20)}  # 51 M numbers: ResNet-50 and its momentum
        saver = checkpoint.CheckpointSaver(Path(folder), keep=given.rounds)

        def step(agree: bool) -> float:
            began = time.perf_counter()
            strategy.backward(F.cross_entropy(strategy.forward(images), labels))
            strategy.step(clip_norm=0.0, norm=False)
            if agree:
                assert not stop.agreed()
            return 1000 * (time.perf_counter() - began)

        for _ in range(5):
            step(True)
        plain: list[float] = []
        agreed: list[float] = []
        beside: list[float] = []
        blocked: list[float] = []
        wrote: list[float] = []
        ratios: list[tuple[float, float]] = []
        for number in range(given.rounds):
            for _ in range(given.steps):  # one after the other, so that a slow moment hits both
                plain.append(step(False))
                agreed.append(step(True))
            stop.finish()
            ratio = statistics.median(agreed[-given.steps :]) / statistics.median(plain[-given.steps :])
            if context.main:
                saver.save(number, large, {"step": number})
                blocked.append(saver.blocked_ms)
            beside += [step(False) for _ in range(given.steps)]
            if context.main:
                saver.finish()
                wrote.append(saver.write_seconds)
                checkpoint.retain(Path(folder), 1)
            ratios.append((ratio, statistics.median(beside[-given.steps :]) / statistics.median(plain[-given.steps :])))
            context.barrier(f"round-{number}")
        if context.main:
            print(f"{context.world} ranks, {context.device}, {given.rounds} rounds of {given.steps} steps\n")
            print("| | median | beside plain steps |\n|---|---:|---:|")
            print(f"| plain step | {statistics.median(plain):.1f} ms | 1 |")
            r = [statistics.median(values) for values in zip(*ratios, strict=True)]
            print(f"| step with the agreement of all ranks | {statistics.median(agreed):.1f} ms | {r[0]:.3f} |")
            print(f"| step while a checkpoint is written | {statistics.median(beside):.1f} ms | {r[1]:.3f} |")
            print(f"| training waits for the copy of the tensors | {statistics.median(blocked):.0f} ms | |")
            print(f"| the write, beside the training | {statistics.median(wrote):.2f} s | |")
        saver.close()


if __name__ == "__main__":
    main()
