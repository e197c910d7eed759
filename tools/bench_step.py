"""Compare the images/s of this trainer's step with those of a bare PyTorch loop, in one run, as ratios.

    python tools/bench_step.py [--model resnet18] [--size 64] [--batch 32] [--precision bf16] [--compile] [--matrix]

Side by side, with the same architecture, batch, loss, precision, memory format and optimiser settings:

- ``bare``: forward, cross entropy, backward, optimiser, in five lines of PyTorch on one synthetic batch;
- ``trainer``: ``training.loop.TrainingLoop`` as ``pretrain`` runs it, metrics included, on the same batch;
- ``trainer + loader``: the same, on images that its loader reads, decodes and crops: ``--shards``, or drawn ones;
- ``timm`` (``--timm``): timm's model, loss and optimiser in the step of its train.py, on the same batch;
- ``bare, again`` (``--control``): a second bare loop, to see how far two equal loops differ on this machine.

A round is ``--steps`` steps of each in turn, forwards and backwards. The loader starts anew in each
round, ``--lead`` steps before the clock, in which its buffers fill: it neither works in another loop's time nor profits
by it.
Ratios are medians over rounds of the two rates of one round, so that a machine that slows down slows both.
The interval is that of the median by order statistics, of at least 95% from 6 rounds on; min to max before.
On a CPU shared with other work, many short rounds on one thread (OMP_NUM_THREADS=1) tell the most. There
``--cpu-time`` also leaves out the time in which other work has the core, but waiting for data as well: look at both.

cuDNN is tuned, as in ``pretrain``, for all loops; compare ``--no-tuning`` in another process: choices are kept.
A log line comes every ``--log-every`` steps; evaluation and checkpoints are not part of a step. Where the time goes
is measured afterwards, for on a GPU that needs a wait after each part.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loops import LR, Steps, bare, timms
from scipy.stats import binom

from dist_train.config import DataConfig, DrawConfig, PackConfig, PretrainConfig
from dist_train.data.drawing import draw
from dist_train.data.loading.loader import Batch, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.packing.pack import pack
from dist_train.data.shards.index import ShardSet, open_shards
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.models.backbones.ours import untrained
from dist_train.training.classification import Classification
from dist_train.training.loop import TrainingLoop
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision, tuned_convolutions
from dist_train.training.strategies.factory import make_strategy

PARTS = ("data wait", "forward and loss", "backward", "optimiser", "sums", "logging", "other")


@dataclass(frozen=True)
class Setting:
    """Hold what the loops are compared under: a row of ``--matrix``."""

    compiled: bool
    channels_last: bool

    def __str__(self) -> str:
        return f"compile {'on' if self.compiled else 'off'}, channels_last {'on' if self.channels_last else 'off'}"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


@dataclass(frozen=True)
class Result:
    """Hold the figures of a setting.

    Attributes:
        rates: images/s of each round, by contestant.
        parts: ms a step of each of ``PARTS``, by contestant (the trainer's two).
        memory: peak GiB on the GPU, by contestant; empty on a CPU.
    """

    rates: dict[str, list[float]]
    parts: dict[str, dict[str, float]]
    memory: dict[str, float]

    def ratio(self, name: str) -> tuple[float, float, float]:
        """Return the median over rounds of the rate beside the bare loop's, and its interval."""
        ratios = sorted(a / b for a, b in zip(self.rates[name], self.rates["bare"], strict=True))
        k = max(1, int(binom.ppf(0.025, len(ratios), 0.5)))
        return statistics.median(ratios), ratios[k - 1], ratios[-k]


def synthetic(args: argparse.Namespace, setting: Setting, device: torch.device) -> Batch:
    torch.manual_seed(0)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)
    return Batch(images.contiguous(memory_format=setting.memory_format), labels, np.arange(args.batch))


class Clock:
    """Measure the seconds in wrapped calls; the device is waited for before and after each."""

    def __init__(self, device: torch.device, cpu_time: bool = False) -> None:
        self.device, self.read = device, time.process_time if cpu_time else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.read()

    def wrap(self, part: str, owner: Any, name: str) -> None:
        """Count the time of ``owner.name(...)`` as ``part`` from now on."""
        call = getattr(owner, name)

        def timed(*arguments: Any) -> Any:
            began = self.now()
            result = call(*arguments)
            self.seconds[part] += self.now() - began
            return result

        setattr(owner, name, timed)


class Endless(Classification):
    """A training whose batches are set for each round, at a constant rate."""

    def lr(self, step: int) -> float:
        return LR


class Trainer:
    """Train as ``stages.pretrain`` does, on the batches that a round gives.

    Args:
        folder: for metrics.jsonl and TensorBoard.
    """

    def __init__(self, args: argparse.Namespace, setting: Setting, device: torch.device, folder: Path) -> None:
        self.config = PretrainConfig(
            model=args.model, global_batch=args.batch, precision=args.precision, compile=setting.compiled,
            channels_last=setting.channels_last, log_every=args.log_every, checkpoint_every=10**9,
        )  # fmt: skip
        self.context = Context(device=device)
        model = untrained(args.model, args.classes).to(device)
        precision = MixedPrecision(args.precision, device)
        self.strategy = make_strategy(model, make_optimizer(model, self.config), precision, self.config, self.context)
        self.task = Endless(self.strategy, self.config, args.classes, seed=0, steps=10**9)
        self.loop = TrainingLoop(self.task, folder, {}, StopFlag(self.context))
        self.strategy.module.train()

    def run(self, batches: Generator[Batch], count: int) -> None:
        """Make ``count`` steps on ``batches``."""
        self.task.batches = batches
        for _ in range(count):
            self.loop.step()

    def parts(self, batches: Generator[Batch], count: int) -> dict[str, float]:
        """Return the ms a step of each of ``PARTS``."""
        clock = Clock(self.context.device)
        wrapped = (
            ("data wait", self.loop.window, "next"), ("forward and loss", self.task.objective, "mix"),
            ("forward and loss", self.strategy, "forward"), ("forward and loss", self.task.objective, "loss"),
            ("backward", self.strategy, "backward"), ("optimiser", self.strategy, "step"), ("sums", self.task, "count"),
            ("logging", self.loop.window, "total"), ("logging", self.loop, "_log"),
        )  # fmt: skip
        for part, owner, name in wrapped:
            clock.wrap(part, owner, name)
        began = clock.now()
        self.run(batches, count)
        clock.seconds["other"] = clock.now() - began - sum(clock.seconds.values())
        for _, owner, name in wrapped:
            vars(owner).pop(name, None)  # the class's method shows again
        return {part: 1000 * clock.seconds[part] / count for part in PARTS}


def repeated(batch: Batch) -> Generator[Batch]:
    while True:
        yield batch


def loaded(shards: ShardSet, args: argparse.Namespace, context: Context, numbers: range) -> Generator[Batch]:
    """Make the batches that ``pretrain`` would train on, of all classes."""
    view = make_view(shards["train"], shards.classes, shards.classes, "bench")
    data = DataConfig(shards=str(shards.root), train_size=args.size, threads=args.threads)
    return train_batches(view, Order(len(view), args.batch, 0), data, context, numbers)


class Comparison:
    """Time the trainer and the loops beside it under a setting.

    Args:
        shards: where the trainer's loader reads; None to leave the loader out.
        folder: for the trainer's metrics.
    """

    def __init__(self, args: argparse.Namespace, setting: Setting, shards: ShardSet | None, folder: Path) -> None:
        self.args, self.setting, self.shards = args, setting, shards
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        torch.compiler.reset()
        self.batch = synthetic(args, setting, self.device)
        self.trainer = Trainer(args, setting, self.device, folder)
        self.clock = Clock(self.device, args.cpu_time)

    def run(self) -> Result:
        """Time all contestants in turn, then where the trainer's time goes."""
        contestants = self.contestants()
        for seconds in contestants.values():
            seconds()  # compiles, and does everything that is done once
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        memory: dict[str, float] = {}
        for number in range(self.args.rounds):
            for name in list(contestants)[:: -1 if number % 2 else 1]:
                self._time(name, contestants[name], rates, memory)
            shown = ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
            print(f"{self.setting}: round {number + 1}: {shown} images/s", file=sys.stderr)
        parts = {name: self._parts(name) for name in contestants if name.startswith("trainer")}
        self.trainer.loop.close()
        return Result(rates, parts, memory)

    def contestants(self) -> dict[str, Callable[[], float]]:
        """Return for each contestant a function that makes a round's steps and returns their seconds."""
        args, setting, batch = self.args, self.setting, self.batch
        loops = {} if args.alone else {"bare": partial(self._time_loop, bare(args, setting, batch))}
        loops["trainer"] = partial(self._time_trainer, "trainer")
        if args.timm:
            loops["timm"] = partial(self._time_loop, timms(args, setting, batch))
        if args.control:
            loops["bare, again"] = partial(self._time_loop, bare(args, setting, batch))
        if self.shards:
            loops["trainer + loader"] = partial(self._time_trainer, "trainer + loader")
        return loops

    def _time(
        self, name: str, seconds: Callable[[], float], rates: dict[str, list[float]], memory: dict[str, float]
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            held = torch.cuda.memory_allocated(self.device)
        rates[name].append(self.args.batch * self.args.steps / seconds())
        if self.device.type == "cuda":  # above the weights and optimiser states of all of them
            memory[name] = (torch.cuda.max_memory_allocated(self.device) - held) / 2**30

    def _feed(self, name: str) -> Generator[Batch]:
        if name == "trainer" or self.shards is None:
            return repeated(self.batch)
        start = self.trainer.loop.done
        stop = start + self.args.lead + self.args.steps
        return loaded(self.shards, self.args, self.trainer.context, range(start, stop))

    def _time_trainer(self, name: str) -> float:
        batches = self._feed(name)
        if name != "trainer":
            self.trainer.run(batches, self.args.lead)
        began = self.clock.now()
        self.trainer.run(batches, self.args.steps)
        seconds = self.clock.now() - began
        batches.close()
        return seconds

    def _time_loop(self, steps: Steps) -> float:
        began = self.clock.now()
        steps(self.args.steps)
        return self.clock.now() - began

    def _parts(self, name: str) -> dict[str, float]:
        batches = self._feed(name)
        self.trainer.run(batches, self.args.lead)
        parts = self.trainer.parts(batches, self.args.steps)
        batches.close()
        return parts


def table(results: dict[Setting, Result]) -> Iterator[str]:
    """Make the lines of two Markdown tables: the rates and ratios, then where the time goes."""
    memory = any(result.memory for result in results.values())
    yield "| setting | loop | images/s (median) | beside bare | interval |" + (" GiB of a step |" if memory else "")
    yield "|---|---|---:|---:|---|" + ("---:|" if memory else "")
    for setting, result in results.items():
        for name, rates in result.rates.items():
            compared = " 1 | |" if name == "bare" else " – | |"
            if name != "bare" and "bare" in result.rates:
                middle, low, high = result.ratio(name)
                compared = f" {middle:.3f} | {low:.3f} to {high:.3f} |"
            more = f" {result.memory[name]:.2f} |" if memory else ""
            yield f"| {setting} | {name} | {statistics.median(rates):.1f} |{compared}{more}"
    yield ""
    yield f"| setting | loop | {' | '.join(f'{part}, ms' for part in PARTS)} |"
    yield "|---|---|" + "---:|" * len(PARTS)
    for setting, result in results.items():
        for name, parts in result.parts.items():
            yield f"| {setting} | {name} | {' | '.join(f'{parts[part]:.2f}' for part in PARTS)} |"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each in a round")
    parser.add_argument("--lead", type=int, default=4, help="the loader's steps before them that are not timed")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--log-every", type=int, default=20, help="steps, as pretrain.log_every")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-channels-last", action="store_true")
    parser.add_argument("--no-tuning", action="store_true", help="without torch.backends.cudnn.benchmark")
    parser.add_argument("--matrix", action="store_true", help="compile on and off, channels_last on and off")
    parser.add_argument("--timm", action="store_true", help="timm's training step too")
    parser.add_argument("--control", action="store_true", help="a second bare loop: how far two equal loops differ")
    parser.add_argument("--cpu-time", action="store_true", help="rates per second of this process's CPU time")
    parser.add_argument("--shards", help="folder of packed images; drawn ones where none is given")
    parser.add_argument("--threads", type=int, default=0, help="the loader's, as data.threads")
    parser.add_argument("--alone", action="store_true", help="leave the bare loop out: one network to compile")
    parser.add_argument("--no-loader", action="store_true", help="leave the loader out: DALI is not needed then")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args(arguments)


def settings(args: argparse.Namespace) -> list[Setting]:
    if args.matrix:
        return [Setting(*switches) for switches in itertools.product((False, True), (True, False))]
    return [Setting(args.compile, not args.no_channels_last)]


def drawn_shards(args: argparse.Namespace, folder: Path) -> ShardSet:
    """Pack drawn images of twice the side of the crops, as ImageNet's images are beside crops of 224 pixels."""
    each = max(20, -(-2 * args.batch // 10))
    options = DrawConfig(
        base_classes=10, novel_classes=1, train_per_class=each, val_per_class=1, size=max(32, 2 * args.size)
    )
    draw(options, folder / "train", folder / "val", progress=False)
    return pack(PackConfig(train=folder / "train", workers=1), folder / "shards", progress=False)


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary, tuned_convolutions(not args.no_tuning):
        folder = Path(temporary)
        shards = None
        if not args.no_loader:
            shards = open_shards(args.shards) if args.shards else drawn_shards(args, folder)
            args.classes = max(args.classes, len(shards.classes))
        results = {
            setting: Comparison(args, setting, shards, folder / f"metrics{number}").run()
            for number, setting in enumerate(settings(args))
        }
    cuda = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.model}, {args.batch} images of {args.size} pixels, {args.precision}, {args.rounds} rounds of "
        f"{args.steps} steps{', CPU time' if args.cpu_time else ''}"
        f"{', cuDNN not tuned' if args.no_tuning else ''}; {where}, torch {torch.__version__}\n"
    )
    print("\n".join(table(results)))
    if args.json:
        args.json.write_text(json.dumps([asdict(setting) | asdict(result) for setting, result in results.items()]))


if __name__ == "__main__":
    main()
