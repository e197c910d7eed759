"""The work of two steps of ``gpu_check``: draw full-size photos; stop and resume a run, and compare it with a whole
run.

python tools/gpu_check_work.py images FOLDER --json FILE [--count 1024]
python tools/gpu_check_work.py resume FOLDER --json FILE [--tiny]
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dist_train.config import PackConfig
from dist_train.data.packing.pack import pack
from dist_train.errors import STOPPED
from dist_train.training import checkpoint

WIDTH, HEIGHT, QUALITY = 500, 375, 90  # as a usual ImageNet photo; with the grain below, 110 KB like it
GRAIN = 17  # levels, standard deviation
# Percent points between tables: GPUs add in any order, so two runs are not equal to the last bit.
MOST_APART = 5.0
TINY = ["--pack.draw.base_classes", "6", "--pack.draw.novel_classes", "3", "--pack.draw.train_per_class", "12",
        "--pack.draw.val_per_class", "4", "--pack.draw.size", "36", "--data.train_size", "32",
        "--data.eval_resize", "32", "--data.eval_size", "32", "--pretrain.global_batch", "12",
        "--pretrain.checkpoint_every", "2", "--learn.steps", "20", "--evaluate.draws", "2",
        "--evaluate.methods", "[mean,phi1]", "--learn.methods", "[phi1]"]  # fmt: skip
# The demo's 100 classes with fewer images and steps, in the precision of GPUs.
FULL = ["--pack.draw.train_per_class", "40", "--pack.draw.val_per_class", "10", "--learn.methods", "[phi1]",
        "--evaluate.methods", "[mean,phi1]", "--evaluate.draws", "20", "--learn.steps", "1000",
        "--pretrain.precision", "bf16", "--extract.precision", "bf16", "--learn.precision", "bf16",
        "--pretrain.checkpoint_every", "20"]  # fmt: skip


def photo(number: int, path: Path) -> int:
    """Draw soft blobs with grain, which compress as photos do; return the file's bytes."""
    rng = np.random.default_rng(number)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, GRAIN, (HEIGHT, WIDTH, 3)).astype(np.float32)
    Image.fromarray((np.asarray(blobs) + grain).clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return path.stat().st_size


def images(folder: Path, count: int) -> dict[str, Any]:
    """Write ``FOLDER/photos/train``, ten classes of full-size photos, and pack them to ``FOLDER/shards``."""
    for name in ("photos", "shards"):
        shutil.rmtree(folder / name, ignore_errors=True)
    paths = [folder / "photos" / "train" / f"class{number % 10}" / f"{number}.jpg" for number in range(count)]
    for path in paths[:10]:
        path.parent.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        sizes = list(pool.map(photo, range(count), paths))
    pack(PackConfig(train=folder / "photos" / "train", shard_mb=16), folder / "shards", progress=False)
    return {"images": count, "mean_kb": round(sum(sizes) / count / 1000, 1)}


def command(folder: Path, name: str, tiny: bool) -> list[str]:
    """Return the command of a run of drawn classes."""
    data = folder / "run-data"
    return [sys.executable, "-m", "dist_train", "run", "--config", "demo", "--name", name,
            "--runs", str(folder / "runs"), "--data.shards", str(data / "shards"), "--data.split",
            str(data / "split.json"), "--pack.train", str(data / "train"), "--pack.val", str(data / "val"),
            "--pretrain.epochs", "2", "--pretrain.warmup_epochs", "0.5", *(TINY if tiny else FULL)]  # fmt: skip


def stop_in_training(run: Path, words: list[str]) -> int:
    """Start a run, send it TERM once it has saved its first step, and return its exit code."""
    process = subprocess.Popen(words)
    while process.poll() is None and not checkpoint.step_checkpoints(run / "pretrain" / "checkpoints"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    return process.wait()


def resume(folder: Path, tiny: bool) -> dict[str, Any]:
    """Make a whole run, and a run that is stopped in training and started again, and compare them.

    Returns:
        equal: whether both tables are the same; largest_difference: between two figures, in percent points;
        weights_difference: the largest between the networks; seconds: of each start; table: the resumed run's.

    Raises:
        SystemExit: a start left with an unexpected exit code.
    """
    shutil.rmtree(folder / "runs", ignore_errors=True)
    seconds = {}
    starts = {"whole": 0, "stopped": STOPPED, "resumed": 0}
    for start, wanted in starts.items():
        run = folder / "runs" / ("whole" if start == "whole" else "stopped")
        words, began = command(folder, run.name, tiny), time.monotonic()
        code = stop_in_training(run, words) if start == "stopped" else subprocess.run(words).returncode
        seconds[start] = round(time.monotonic() - began, 1)
        if code != wanted:
            raise SystemExit(f"the {start} run left with exit code {code}, not {wanted}")
    runs = [folder / "runs" / name for name in ("whole", "stopped")]
    tables = [figures(json.loads((run / "evaluate" / "results.json").read_text())) for run in runs]
    weights = [checkpoint.load(run / "pretrain" / "final", torch.device("cpu")).tensors["model"] for run in runs]
    apart = max(abs(tables[0][key] - tables[1][key]) for key in tables[0])
    return {
        "equal": tables[0] == tables[1],
        "largest_difference": round(apart, 3),
        "weights_difference": max(float((value - weights[1][key]).abs().max()) for key, value in weights[0].items()),
        "seconds": seconds,
        "table": (runs[1] / "evaluate" / "table.md").read_text(),
    }


def figures(results: dict[str, Any]) -> dict[str, float]:
    """Return the means of a run's table, in percent, by method, shots and metric."""
    return {
        f"{method} {shots} {metric}": value["mean"]
        for method, row in results["methods"].items()
        for shots, metrics in row.items()
        for metric, value in metrics.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["images", "resume"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="the result")
    parser.add_argument("--count", type=int, default=1024, help="photos")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds on a CPU")
    args = parser.parse_args(arguments)
    facts = images(args.folder, args.count) if args.what == "images" else resume(args.folder, args.tiny)
    args.json.write_text(json.dumps(facts))
    if facts.get("largest_difference", 0) > MOST_APART:
        raise SystemExit(f"the tables are {facts['largest_difference']} points apart, more than {MOST_APART}")


if __name__ == "__main__":
    main()
