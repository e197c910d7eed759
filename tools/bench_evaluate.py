"""Time and memory of the whole evaluation, on random activations of the paper's size by default.

    python tools/bench_evaluate.py [--methods nn mean ...] [--per-class 1281] [--val-per-class 50] [--draws 20] ...

It runs ``evaluate`` itself, without its report, which needs images: every method, with random weights where it is
trained, on 900 base classes of 1281 images and 100 novel classes of 1300, with 2048 channels and 50 queries for each
class. With ``--folder`` the activations (4.7 GB) and the complete rows stay there, so that a second start continues as
``evaluate`` does; otherwise they are in a temporary folder.

It prints for each method the seconds and CPU seconds of its preparation and of its draws, and the peak of resident
memory. Mapped pages of the activations count as resident, although the system reclaims them where memory is short;
*anonymous* is the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from dist_train.config import Config, EvaluateConfig, LearnConfig
from dist_train.data.activations import load
from dist_train.data.shards.index import ShardSet, Subset, sample_dtype
from dist_train.data.sources.synsets import Synsets
from dist_train.data.splits import Split
from dist_train.distributed import context as contexts
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.fewshot.methods import FROZEN, LEARNED
from dist_train.fewshot.part import Part
from dist_train.fewshot.protocols.joint import JointScorer
from dist_train.files import write_text
from dist_train.runs.run import Run
from dist_train.stages import scoring
from dist_train.stages.evaluate import evaluate
from dist_train.training import checkpoint

_FACTORS = 64


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=FROZEN, default=FROZEN, metavar="NAME")
    parser.add_argument("--base", type=int, default=900, help="base classes")
    parser.add_argument("--per-class", type=int, default=1281, help="training images of a base class")
    parser.add_argument("--novel", type=int, default=100, help="novel classes")
    parser.add_argument("--novel-per-class", type=int, default=1300, help="training images of a novel class")
    parser.add_argument("--val-per-class", type=int, default=50, help="queries of a class")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="evaluate.options of the methods")
    parser.add_argument("--folder", type=Path, help="where activations and rows are made, and stay")
    parser.add_argument("--json", type=Path, help="write seconds by row here, after each row")
    options = parser.parse_args(arguments)
    sizes = [
        options.base,
        options.per_class,
        options.novel,
        options.novel_per_class,
        options.val_per_class,
        options.dim,
    ]
    folder = options.folder or Path(tempfile.mkdtemp())
    try:
        with contexts.start() as context, StopFlag(context) as stop:
            numbers = {key: float(value) for key, value in (option.split("=") for option in options.options)}
            run = make(folder, sizes, EvaluateConfig(methods=options.methods, shots=options.shots, draws=options.draws,
                                                     options=numbers))  # fmt: skip
            Measured.target, Measured.seconds = options.json, {}
            print("| method | prepare (s) | CPU (s) | draws (s) | CPU (s) | peak (GiB) | anonymous (GiB) |")
            print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
            with (
                patch.multiple("dist_train.stages.evaluate", JointScoring=Measured, _report=lambda *_: None),
                patch.object(scoring, "JointScorer", Prepared),
            ):
                evaluate(run, context, stop)
    except Stopped as stopped:
        print(stopped)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


class Prepared(JointScorer):
    """Note when a method is ready for its draws."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Prepared.at = now()


class Measured(scoring.JointScoring):
    """Print the time and memory of each row, and write the seconds to ``target``."""

    target: Path | None
    seconds: dict[str, float]

    def score(self, name: str, stop: StopFlag, bar: tqdm[Any], numbers: Sequence[int] | None = None) -> Part:
        with Peak() as peak:
            Prepared.at = began = now()
            part = super().score(name, stop, bar, numbers)
            times = np.stack([Prepared.at - began, now() - Prepared.at]).ravel()
        numbers = " | ".join(f"{value:.1f}" for value in [*times, peak.resident, peak.anonymous])
        print(f"| {name} | {numbers} |", flush=True)
        self.seconds[name] = round(float(times[0] + times[2]), 1)
        if self.target:
            self.target.write_text(json.dumps({"seconds": self.seconds, "methods": FROZEN}))
        return part


def now() -> np.ndarray:
    """Return the seconds, and the CPU seconds of this process: [2]."""
    return np.array([time.perf_counter(), time.process_time()])


class Peak:
    """Measure the peaks of this process's resident memory in GiB within a ``with`` block, 50 times a second."""

    def __enter__(self) -> Peak:
        self.resident = self.anonymous = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            sizes = {line.split(":")[0]: int(line.split()[1]) / 2**20 for line in lines if line.endswith(" kB")}
            self.resident = max(self.resident, sizes["VmRSS"])
            self.anonymous = max(self.anonymous, sizes["RssAnon"])

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def make(folder: Path, sizes: list[int], options: EvaluateConfig) -> Run:
    """Make a run whose first three stages are done, from random numbers; an existing one of these sizes stays."""
    base, per_class, novel, novel_per_class, val_per_class, dim = sizes
    classes = [f"n{number:08d}" for number in range(base + novel)]
    split = Split("random", tuple(classes[:base]), tuple(classes[base:]))
    counts = {
        "train": [per_class] * base + [novel_per_class] * novel,
        "val": [val_per_class] * (base + novel),
    }
    subsets = {name: subset(folder, name, np.repeat(np.arange(base + novel), each)) for name, each in counts.items()}
    shards = ShardSet(str(folder), tuple(classes), subsets, f"random {sizes}", "exif", Synsets())
    # Random weights instead of the identity. No stage needs the backbone or images.
    config = Config(name="run", runs=folder, learn=LearnConfig(identity_init=False),
                    evaluate=options)  # fmt: skip
    run = Run(config, shards, split, split.base, split.novel)
    if (run.dir / "learn" / "done.json").is_file():
        return run
    # On a GPU where there is a GPU, because the tables are 4.7 GB.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(0)
    centres = torch.randn(base + novel, _FACTORS, generator=generator, device=device)
    mixing = torch.randn(_FACTORS, dim, generator=generator, device=device)
    for name, each in counts.items():
        for role, numbers in (("base", range(base)), ("novel", range(base, base + novel))):
            first = sum(each[: numbers.start])
            middle = centres[numbers.start : numbers.stop]
            table(run.dir / "extract", f"{role}_{name}", middle, mixing, each[numbers.start], first, generator)
    means = torch.from_numpy(load(run.dir / "extract", "base_train").means())
    np.save(run.dir / "extract" / "means.f32.npy", means.numpy())
    torch.manual_seed(0)
    head = {"head.weight": torch.randn(base, dim) / dim**0.5, "head.bias": torch.zeros(base)}
    checkpoint.save(run.dir / "pretrain" / "final", {"model": head}, {})
    for name, kind in LEARNED.items():
        model = kind.build(name, means, head["head.weight"], config.learn)
        checkpoint.save(run.dir / "learn" / name / "final", {"model": model.state_dict()}, {})
    for stage in ("pretrain", "extract", "learn"):
        write_text(run.dir / stage / "done.json", "{}\n")
    return run


def subset(folder: Path, name: str, labels: np.ndarray) -> Subset:
    """Make an index without shards."""
    samples = np.zeros(len(labels), sample_dtype(12))
    samples["label"], samples["key"] = labels, [f"{name}{number}".encode() for number in range(len(labels))]
    return Subset(name, folder, (), samples)


def table(
    folder: Path,
    name: str,
    centres: torch.Tensor,
    mixing: torch.Tensor,
    per_class: int,
    first: int,
    generator: torch.Generator,
) -> None:
    """Write activations of classes as ``extract`` does; samples are numbered from ``first``.

    Like those of a trained network they are not negative, and lie near a space of few dimensions: ``mixing`` maps
    factors about each of the ``centres`` to them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, dim = len(centres) * per_class, mixing.shape[1]
    rows = np.lib.format.open_memmap(folder / f"{name}.f16.npy", "w+", np.float16, (count, dim))
    for number, centre in enumerate(centres):
        factors = centre + torch.randn(per_class, _FACTORS, generator=generator, device=centres.device)
        rows[number * per_class : (number + 1) * per_class] = (factors @ mixing).relu().half().cpu().numpy()
    ids = np.arange(first, first + count)
    np.savez(folder / f"{name}.rows.npz", ids=ids, offsets=np.arange(len(centres) + 1) * per_class)


if __name__ == "__main__":
    main()
