"""Measure the index of a large data set: seconds until a node's ranks have it open, and their memory for it.

    python tools/bench_index.py                                     # ImageNet-21k's size, 8 ranks
    python tools/bench_index.py --rows 1281167 --classes 1000       # ImageNet's
    python tools/bench_index.py --block-shards 64                   # in the order of a cache's blocks

The tool writes an index as pack does, with rows drawn at random and shards that are empty files of the right size, and
starts ranks that open it at the same time: they check table and shards, make a view of all classes, and compute the ids
and crop windows of their part of the first global batches. Memory is counted from after the imports.

* private: anonymous memory of the rank that has most of it; no other rank can use it, and it cannot be reclaimed.
* node: the ranks' proportional set sizes, summed: shared memory counts once, the table's page cache included.
* peak: the largest ``node`` during a second start, sampled every 20 ms.

The page cache is warm: the time to read the files from a disk or network comes on top.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from dist_train.config import DataConfig
from dist_train.data.loading.order import Order, rank_slice
from dist_train.data.loading.plan import train_windows
from dist_train.data.shards.index import Shard, open_shards, sample_dtype, write_index
from dist_train.data.splits import make_view

IMAGENET_21K = (14_197_122, 21_841)  # images and classes, image-net.org
PER_SHARD = 1_170  # samples, as pack makes them of ImageNet
BATCHES = 50


def memory(pid: int | str = "self") -> dict[str, int]:
    """Return the bytes by the names of smaps_rollup: Pss, Anonymous, ..."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) * 1024 for name, rest in (line.split(":") for line in lines)}


def write(root: Path, rows: int, classes: int) -> None:
    """Write a finished pack of so many samples, whose shards have no content."""
    random = np.random.default_rng(0)
    table = np.zeros(rows, sample_dtype(len("n01440764_10026")))
    place = np.arange(rows)
    table["shard"], table["offset"] = place // PER_SHARD, 512 + place % PER_SHARD * 120_000
    table["size"] = random.integers(20_000, 110_000, rows)
    table["width"], table["height"], table["orientation"] = *random.integers(300, 500, (2, rows)), 1
    table["label"] = random.permutation(place % classes)
    table["key"] = [b"n%08d_%05d" % (label, number) for number, label in enumerate(table["label"].tolist())]
    counts = np.bincount(table["shard"])
    shards = [
        Shard(f"{n:06}.tar", int(count), PER_SHARD * 120_000 + 1024, f"{n:064x}") for n, count in enumerate(counts)
    ]
    (root / "train").mkdir(parents=True)
    for shard in shards:
        with (root / "train" / shard.name).open("wb") as file:
            file.truncate(shard.bytes)  # takes no room
    write_index(root, [f"n{number:08}" for number in range(classes)], "stored", {"train": (shards, table, [])}, {})


def rank(number: int, args: argparse.Namespace, root: Path, meet: Any, results: Any) -> None:
    """Act as one rank: open the index, report what it took, and stay until all ranks have been measured."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(args.ranks), "LOCAL_RANK": str(number),
                   "LOCAL_WORLD_SIZE": str(args.ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # fmt: skip
    meet.wait()  # all ranks have imported their modules
    before = memory()
    meet.wait()
    began, idle = time.perf_counter(), time.process_time()
    shards = open_shards(root)
    opened = time.perf_counter()
    view = make_view(shards["train"], shards.classes, shards.classes, "bench")
    order = Order(len(view), 256 * args.ranks, 0, view.shards() if args.block_shards else None, args.block_shards)

    def batch(step: int) -> None:
        positions, epochs = (rank_slice(part, number, args.ranks) for part in order.batch(step))
        train_windows(view, view.ids[positions], epochs, DataConfig(), 0)

    assert not view.turned
    batch(0)
    first, ready = time.perf_counter(), time.process_time()
    for step in range(1, BATCHES + 1):
        batch(step)
    each = (time.perf_counter() - first) / BATCHES
    meet.wait()  # all have it mapped
    after = memory()
    results.put({"open": opened - began, "first": first - began, "batch": each, "work": ready - idle,
                 **{name: after[name] - before[name] for name in ("Pss", "Anonymous")}})  # fmt: skip
    meet.wait()


def start(args: argparse.Namespace, root: Path, watch: bool) -> tuple[list[dict[str, float]], float]:
    """Start the ranks, and return the report of each, and the peak of their memory in bytes where it is watched."""
    spawn = multiprocessing.get_context("spawn")
    meet, results = spawn.Barrier(args.ranks + 1), spawn.Queue()
    ranks: list[BaseProcess] = [
        spawn.Process(target=rank, args=(n, args, root, meet, results)) for n in range(args.ranks)
    ]
    for process in ranks:
        process.start()
    meet.wait()
    base = peak = sum(memory(process.pid or 0)["Pss"] for process in ranks) if watch else 0
    meet.wait()
    while watch and meet.n_waiting < args.ranks:
        peak = max(peak, sum(memory(process.pid or 0)["Pss"] for process in ranks))
        time.sleep(0.02)
    meet.wait()
    reports = [results.get() for _ in ranks]
    meet.wait()
    for process in ranks:
        process.join()
    return reports, peak - base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=IMAGENET_21K[0], help="%(default)s")
    parser.add_argument("--classes", type=int, default=IMAGENET_21K[1], help="%(default)s")
    parser.add_argument("--ranks", type=int, default=8, help="%(default)s")
    parser.add_argument("--block-shards", type=int, default=0, help="data.block_shards; %(default)s")
    parser.add_argument("--folder", type=Path, help="where the index is kept and found again; default: made anew")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.folder or Path(folder, "index")
        if not (root / "index.json").exists():
            write(root, args.rows, args.classes)
        table = (root / "train.samples.npy").stat().st_size
        reports, _ = start(args, root, watch=False)
        _, peak = start(args, root, watch=True)
    size = f"{args.rows:,} rows, {args.classes:,} classes, table {table / 1e6:.0f} MB"
    print(f"{size}, {args.ranks} ranks, {len(os.sched_getaffinity(0))} cores")
    print("| open, s | first batch after, s | CPU of all ranks until then, s | a batch, ms | private, MB a rank "
          "| node, MB | node at its peak, MB |")  # fmt: skip
    print("|---:|---:|---:|---:|---:|---:|---:|")
    slowest = {name: max(row[name] for row in reports) for name in reports[0]}
    print(
        f"| {slowest['open']:.2f} | {slowest['first'] - slowest['open']:.2f} "
        f"| {sum(row['work'] for row in reports):.2f} | {1e3 * slowest['batch']:.2f} "
        f"| {slowest['Anonymous'] / 1e6:.0f} | {sum(row['Pss'] for row in reports) / 1e6:.0f} | {peak / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()
