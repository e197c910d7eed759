"""Measure what share of its backbone's own rate a model reaches on a folder of photos.

    python tools/bench_batch.py MODEL PHOTOS [--photos 200] [--repeats 3]

In turns, so that all rows meet the same machine: the backbone alone, on a batch that is ready; reading alone, on all
cores; ``Classifier.stream``, as ``classify`` and ``predict`` call it; and photos decoded one after another before each
batch. Each row is the median of its repeats. CPU time of all threads tells more than the rate where the machine is
busy with something else.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from bench_serve import cpu_name

from dist_train import Classifier
from dist_train.classifier import photo_files
from dist_train.classifier.reading import batches, read
from dist_train.data.account import Account
from dist_train.distributed.cpus import keep_freed_memory


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder made by dist-train adapt or create")
    parser.add_argument("folder", type=Path, help="folder of photos")
    parser.add_argument("--photos", type=int, default=200, help="photos at most")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each row")
    args = parser.parse_args(arguments)
    model = Classifier.load(args.model)
    keep_freed_memory()  # as the commands do
    paths = photo_files.in_folder(args.folder, Account())[: args.photos]
    rows = [(str(path), path) for path in paths]
    size = model.network.preprocess.spec.size
    ready = torch.randn(model.network.batch, 3, size, size, device=model.device)
    ways: dict[str, Callable[[], object]] = {
        "the backbone alone": lambda: [model.embed(ready[: len(part)]) for part in batches(paths, len(ready))],
        "reading alone": lambda: list(read(lambda row: model._prepared(row[1], row[0]), rows, model.network.pace)),
        "`predict`, `classify`": lambda: list(model.stream(rows)),
        "one after another": lambda: [
            model.answers(model.embed(model.network.preprocess.batch(map(model.pixels, part))))
            for part in batches(paths, len(ready))
        ],
    }
    list(model.stream(rows[: len(ready)]))  # warms up
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, {len(paths)} photos\n")
    for _ in range(args.repeats):
        for name, work in ways.items():
            begin, cpu = time.perf_counter(), time.process_time()
            work()
            seconds[name].append((time.perf_counter() - begin, time.process_time() - cpu))
    rates = {name: len(paths) / median(wall for wall, _ in times) for name, times in seconds.items()}
    print("| | photos a second | share of the backbone | CPU ms a photo |\n|---|---:|---:|---:|")
    for name, rate in rates.items():
        cpu = 1000 * median(cpu for _, cpu in seconds[name]) / len(paths)
        print(f"| {name} | {rate:.1f} | {rate / rates['the backbone alone']:.2f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
