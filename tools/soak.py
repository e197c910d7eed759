"""Kill ranks at random moments, start them again, and compare the result with an undisturbed run.

    python tools/soak.py --kills 200 --out docs/results/soak.md

Two kinds of runs alternate, on drawn images and with real processes over gloo:

* exact: always two ranks. At the end, weights, predictors and every number in metrics.jsonl (apart from times and
  memory) must be equal to the undisturbed run's, bit by bit.
* elastic: one, two or four ranks, drawn at each start. Sums over ranks are then added in another order, so numbers
  may differ in the last digits. The samples of every batch may not differ (each checkpoint records its next batch),
  and no step may be missing or come twice.

Ranks are forked from a process that has the libraries loaded, so that a start takes a second or two.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image

import launch.rank
from dist_train.config import (
    STAGES,
    Config,
    DataConfig,
    DrawConfig,
    EvaluateConfig,
    ExtractConfig,
    LearnConfig,
    MonitorConfig,
    PackConfig,
    PretrainConfig,
)
from dist_train.config.io import freeze
from dist_train.data.drawing import draw, split_of
from dist_train.data.images import orientation
from dist_train.data.packing.pack import pack
from dist_train.data.splits import save_split
from dist_train.errors import FAILED, LOST, STOPPED
from dist_train.runs.commit import git_commit
from dist_train.runs.run import open_run
from dist_train.stages import pretrain
from dist_train.training import checkpoint
from dist_train.training.metrics import read_metrics, reproducible

LIMIT = 120  # seconds in which all ranks must leave after one was killed


@dataclass
class Record:
    """Count what was done to the runs.

    Attributes:
        kills, killed: times that ranks were killed, and the number of these processes.
        stops: times that ranks were asked to stop.
        starts, runs: starts, and runs that finished.
        hits: what a kill or stop hit -> how often.
        worlds: number of ranks -> starts.
    """

    kills: int = 0
    killed: int = 0
    stops: int = 0
    starts: int = 0
    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    worlds: Counter[int] = field(default_factory=Counter)


def make_config(root: Path, name: str) -> Config:
    """Return a run of all stages, which undisturbed takes several times as long as the mean time between kills."""
    data = DataConfig(
        shards=str(root / "shards"),
        split=str(root / "split.json"),
        train_size=32,
        eval_resize=32,
        eval_size=32,
        threads=1,
    )
    return Config(
        name=name,
        runs=root / "runs",
        data=data,
        monitor=MonitorConfig(start_timeout=20, rank_timeout=5, hang_timeout=60),
        pretrain=PretrainConfig(
            model="resnet10", epochs=12, global_batch=24, lr=0.05, warmup_epochs=1, precision="fp32", log_every=3,
            checkpoint_every=4, keep=2,
        ),
        extract=ExtractConfig(batch=8, block=8, precision="fp32"),
        learn=LearnConfig(steps=400, precision="fp32", log_every=50, checkpoint_every=50),
        evaluate=EvaluateConfig(draws=5),
    )  # fmt: skip


def start(config: Config, world: int, log: Path) -> list[int]:
    """Fork the ranks of a ``dist-train run``, and return their process ids."""
    path = freeze(config)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            run_rank(path, rank, world, port, log)
        children.append(child)
    return children


def run_rank(config_file: Path, rank: int, world: int, port: int, log: Path) -> NoReturn:
    """Run a rank in this process, which a fork has made, and exit."""
    code = 1
    try:
        names: dict[str, int | str] = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        os.environ |= {name: str(value) for name, value in names.items()}
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        torch.set_num_threads(1)
        code = launch.rank.start(config_file, "run")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], seconds: float, log: Path) -> list[int]:
    """Return the exit codes of all ranks; after ``seconds``, kill the ranks that are still there, and fail."""
    end, codes = time.monotonic() + seconds, dict[int, int]()
    while len(codes) < len(children):
        for child in children:
            if child not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[child] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
            tail = log.read_text()[-3000:] if log.exists() else ""
            raise SystemExit(f"{tail}\nsoak: FAILED: {len(children) - len(codes)} did not leave in {seconds:.0f} s")
        time.sleep(0.01)
    return [codes[child] for child in children]


def current_work(config: Config) -> str:
    """Return what a kill would hit now: a stage, or a checkpoint being written."""
    if list(config.run_dir.rglob(".step-*.tmp")) or list(config.run_dir.rglob(".best.tmp")):
        return "checkpoint being written"
    done = [stage for stage in STAGES if (config.run_dir / stage).is_dir()]
    return done[-1] if done else "start"


def soak(config: Config, worlds: list[int], rng: random.Random, record: Record, kills: int, log: Path) -> None:
    """Kill a run and start it again until it is finished; after ``kills`` kills, leave it alone."""
    while True:
        world = rng.choice(worlds)
        record.starts += 1
        record.worlds[world] += 1
        children = start(config, world, log)
        end = time.monotonic() + rng.uniform(0.2, 5.0)
        while time.monotonic() < end and not is_finished(config):
            time.sleep(0.005)
        disturbed = record.kills < kills and not is_finished(config)
        if disturbed:
            disturb(config, children, rng, record)
        codes = wait(children, LIMIT, log)
        if codes == [0] * world:
            record.runs += 1
            return
        allowed = {0, FAILED, LOST, STOPPED, -signal.SIGKILL, -signal.SIGUSR2}
        if not disturbed or not set(codes) <= allowed:
            raise SystemExit(f"{log.read_text()[-3000:]}\nsoak: FAILED: exit codes {codes}")


def disturb(config: Config, ranks: list[int], rng: random.Random, record: Record) -> None:
    """Kill one rank or all, or ask them to stop, and record it."""
    victims = rng.sample(ranks, rng.choice([1, len(ranks)]))
    stop = rng.random() < 0.2
    record.hits[current_work(config)] += 1
    for victim in victims:
        os.kill(victim, signal.SIGUSR2 if stop else signal.SIGKILL)
    if stop:
        record.stops += 1
    else:
        record.kills += 1
        record.killed += len(victims)


def is_finished(config: Config) -> bool:
    """Return whether the last stage is done."""
    return (config.run_dir / "evaluate" / "done.json").exists()


def read_numbers(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every metrics.jsonl, without what is measured in seconds and bytes."""
    paths = sorted(config.run_dir.rglob("metrics.jsonl"))
    return {str(path.relative_to(config.run_dir)): reproducible(read_metrics(path)) for path in paths}


def differences(config: Config, reference: Config, exact: bool) -> list[str]:
    """Return what differs between a finished run and the undisturbed one."""
    lines = compare_metrics(config, reference, exact)
    if exact:
        lines += compare_weights(config, reference)
        ours, theirs = (read_methods(run) for run in (config, reference))
        if ours != theirs:
            lines.append("evaluate: other results")
    ours, theirs = (np.load(run.run_dir / "extract" / "base_train.f16.npy") for run in (config, reference))
    if exact and not np.array_equal(ours, theirs):
        lines.append("extract: other activations")
    ours = ours.astype(np.float32)
    if not (np.isfinite(ours).all() and (np.abs(ours).sum(1) > 0).all()):
        lines.append("extract: rows were never written")
    run = open_run(config)
    for path in checkpoint.step_checkpoints(config.run_dir / "pretrain" / "checkpoints"):
        state = checkpoint.load(path).state
        if state["next"] != pretrain.fingerprint(run, pretrain.base_order(run), state["step"]):
            lines.append(f"{path.name}: other samples in the next batch")
    return lines


def compare_metrics(config: Config, reference: Config, exact: bool) -> list[str]:
    """Return the metrics.jsonl with other steps than the undisturbed run's, or with other numbers if ``exact``."""
    lines, ours = [], read_numbers(config)
    for name, theirs in read_numbers(reference).items():
        rows = ours.get(name, [])
        if [(row["step"], sorted(row)) for row in rows] != [(row["step"], sorted(row)) for row in theirs]:
            lines.append(f"{name}: steps are missing or come twice")
        elif exact and rows != theirs:
            lines.append(f"{name}: other numbers")
    return lines


def compare_weights(config: Config, reference: Config) -> list[str]:
    """Return the folders of final weights that are not equal to the undisturbed run's."""
    lines = []
    for folder in ("pretrain/final", *(f"learn/{method}/final" for method in reference.learn.methods)):
        ours, theirs = (checkpoint.load(run.run_dir / folder).tensors["model"] for run in (config, reference))
        if not all(torch.equal(value, theirs[name]) for name, value in ours.items()):
            lines.append(f"{folder}: other weights")
    return lines


def read_methods(config: Config) -> Any:
    """Return the results of all methods."""
    return json.loads((config.run_dir / "evaluate" / "results.json").read_text())["methods"]


def mark_orientations(folder: Path) -> None:
    """Give the photos the eight EXIF orientations in turn, so that every batch has windows to turn."""
    for number, path in enumerate(sorted(folder.glob("*/*.JPEG"))):
        exif = Image.Exif()
        exif[orientation.TAG] = 1 + number % 8
        Image.open(path).save(path, quality=95, exif=exif)


def prepare(root: Path) -> None:
    """Draw and pack images in a child process, so that this process stays without threads and can fork."""
    drawn = DrawConfig(base_classes=6, novel_classes=3, train_per_class=20, val_per_class=6, size=40)
    child = os.fork()
    if child == 0:
        draw(drawn, root / "train", root / "val", progress=False)
        mark_orientations(root / "train")
        save_split(split_of(drawn), root / "split.json")
        packing = PackConfig(train=root / "train", val=root / "val", shard_mb=0.05, workers=1)
        pack(packing, root / "shards", progress=False)
        os._exit(0)
    if wait([child], LIMIT, root / "log") != [0]:
        raise SystemExit("soak: the images could not be packed")


def soak_runs(root: Path, args: argparse.Namespace, record: Record, began: float) -> list[str]:
    """Soak runs until there were enough kills, or until the time is up; return the differences."""
    rng = random.Random(args.seed)
    elastic = [int(world) for world in args.elastic.split(",") if world]
    log, reference = root / "log", make_config(root, "reference")
    if wait(start(reference, 2, log), 600, log) != [0, 0]:
        raise SystemExit(f"soak: FAILED: the undisturbed run: {log.read_text()[-2000:]}")
    print(f"the undisturbed run took {time.monotonic() - began:.0f} s with packing", flush=True)
    lines: list[str] = []
    while record.kills < args.kills and time.monotonic() - began < 60 * args.minutes:
        exact = not elastic or record.runs % 2 == 0
        config = make_config(root, f"run-{record.runs}")
        soak(config, [2] if exact else elastic, rng, record, args.kills, log)
        wrong = differences(config, reference, exact)
        lines += [f"{config.name} ({'exact' if exact else 'elastic'}): {line}" for line in wrong]
        state = "; ".join(wrong) or "nothing lost, nothing repeated"
        print(f"{record.kills} kills, {record.starts} starts: {config.name} {state}", flush=True)
    if lines:
        (args.out or Path("soak")).with_suffix(".log").write_bytes(log.read_bytes())
    return lines


def report(args: argparse.Namespace, record: Record, minutes: float, lines: list[str]) -> str:
    """Return the record as Markdown."""
    hits = ", ".join(f"{hit} {n}" for hit, n in record.hits.most_common())
    worlds = ", ".join(f"{world}: {n}" for world, n in sorted(record.worlds.items()))
    return f"""# Soak: runs whose ranks are killed at random, compared with an undisturbed run

```
python tools/soak.py --kills {args.kills} --seed {args.seed} --elastic {args.elastic}
```

- ranks were killed {record.kills} times (SIGKILL, {record.killed} processes) and asked to stop {record.stops} times \
(USR2), in {record.starts} starts of {record.runs} runs; {minutes:.0f} minutes; commit {git_commit()}
- hits: {hits}
- starts by number of ranks: {worlds}
- result: {"; ".join(lines) or "nothing lost, nothing repeated"}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many times to kill one rank or all (SIGKILL)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments, the victims and the numbers of ranks")
    parser.add_argument("--minutes", type=float, default=1e9, help="then let the last run finish, and report")
    parser.add_argument("--elastic", default="1,2,4", help="numbers of ranks of the elastic runs; empty: none")
    parser.add_argument("--out", type=Path, help="write the record here (Markdown)")
    args = parser.parse_args()
    torch.set_num_threads(1)  # no thread pool before a fork
    record, began = Record(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        prepare(Path(folder))
        import nvidia.dali.fn  # noqa: F401  (loaded once, for all forks)

        lines = soak_runs(Path(folder), args, record, began)
    text = report(args, record, (time.monotonic() - began) / 60, lines)
    print(text)
    if args.out and not lines:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
