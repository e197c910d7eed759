"""Measure the iterations/s of ``learn``'s predictors on random activations, at the paper's size by default.

    python tools/bench_learn.py [--methods phi2 ...] [--classes 900] [--per-class 1300] [--dim 2048] [--steps 20]
        [--precision fp32] [--cuda-graph off on] [--together] [--json FILE]

Activations are written to a temporary file and memory-mapped, as in a run; the printed peak memory is that of the
process so far. A run trains 75,000 steps by default. On a GPU, time a few thousand steps: the first are slow. Beside
other work on a CPU, the CPU seconds of a step say more than its rate; they include what the few steps are framed by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dist_train.config import LearnConfig
from dist_train.data.activations import Activations
from dist_train.distributed import context as contexts
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.methods import LEARNED
from dist_train.stages.learn import PredictorTraining, train
from dist_train.training.bank import Bank, StepReader
from dist_train.training.metrics import peak_memory_gib


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=900)
    parser.add_argument("--per-class", type=int, default=1300)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--methods", nargs="+", choices=list(LEARNED), default=list(LEARNED), metavar="NAME")
    parser.add_argument(
        "--cuda-graph", nargs="+", choices=["off", "on"], default=["off"], help="learn.cuda_graph: each in turn"
    )
    parser.add_argument("--together", action="store_true", help="then train all of them side by side, as a run does")
    parser.add_argument("--json", type=Path, help="write the figures here, after each method")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, contexts.start() as context:
        bank = random_bank(Path(temporary) / "rows.npy", args.classes, args.per_class, args.dim, context)
        print(f"{args.classes} classes, {args.dim} channels, {args.precision}, {context.device}")
        rates: dict[str, dict[str, float]] = defaultdict(dict)
        for method in args.methods:
            for graph in args.cuda_graph:
                config = LearnConfig(
                    steps=args.steps, precision=args.precision, log_every=args.steps, cuda_graph=graph == "on"
                )
                folder = Path(temporary) / method / graph
                task = PredictorTraining(method, StepReader(bank, 0), config, context)
                began = time.process_time()
                rate = train({folder: task}, {}, StopFlag(context))[method]
                cpu = (time.process_time() - began) / args.steps
                rates[method][graph] = rate
                print(
                    f"{method}{', CUDA graph' if graph == 'on' else ''}: {rate:.2f} it/s "
                    f"({75_000 / rate / 60:.1f} min for 75,000 steps), {cpu:.2f} CPU s a step, "
                    f"peak {peak_memory_gib(context.device):.1f} GiB",
                    flush=True,
                )
            if args.json:
                figures = {"rates": rates, "steps": args.steps, "peak_gib": peak_memory_gib(context.device)}
                args.json.write_text(json.dumps(figures))

        if args.together:
            config = LearnConfig(steps=args.steps, precision=args.precision, log_every=args.steps)
            reader = StepReader(bank, 0)
            tasks = {Path(temporary) / f"{name}-together": PredictorTraining(name, reader, config, context)
                     for name in args.methods}  # fmt: skip
            began = time.process_time()
            seconds = sum(1 / rate for rate in train(tasks, {}, StopFlag(context)).values())
            cpu = (time.process_time() - began) / args.steps
            print(
                f"side by side: {1 / seconds:.2f} steps of all a second ({75_000 * seconds / 3600:.1f} h for 75,000), "
                f"{cpu:.2f} CPU s a step of all"
            )


def random_bank(path: Path, classes: int, per_class: int, dim: int, context: contexts.Context) -> Bank:
    """Write random activations to a file, and return them memory-mapped."""
    draw = torch.Generator(context.device).manual_seed(0)
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (classes * per_class, dim))
    means = np.empty((classes, dim), np.float32)
    for label in range(classes):
        block = torch.rand(per_class, dim, generator=draw, device=context.device)
        rows[label * per_class : (label + 1) * per_class] = block.half().cpu().numpy()
        means[label] = block.mean(0).cpu().numpy()
    del rows
    offsets = np.arange(classes + 1) * per_class
    table = Activations(np.load(path, mmap_mode="c"), np.arange(offsets[-1]), offsets)
    val = Activations(np.asarray(table.rows[: 2 * classes]), np.arange(2 * classes), np.arange(classes + 1) * 2)
    return Bank(table, val, means, torch.from_numpy(means), context)


if __name__ == "__main__":
    main()
