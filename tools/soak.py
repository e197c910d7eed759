"""Kill ranks at random moments, start again, and compare with the run that nobody disturbed.

    python tools/soak.py --kills 200 --out docs/results/soak.md

Two runs over and over on drawn images, with real processes over gloo:

* exact: always two ranks. At the end weights, predictors and every number in metrics.jsonl (times and
  memory apart) must be bit-equal to the undisturbed run's.
* elastic: one, two or four ranks, drawn at each start. Sums over ranks are then added in another
  order, so numbers may differ in the last digits; the samples of every batch may not (each
  checkpoint's record of its next batch), nor may a step be missing or come twice.

A start forks from a process that has the libraries loaded, so that it takes a second or two.
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
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

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
    to_dict,
)
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
from launch.cli.main import main as dist_train

LIMIT = 120  # seconds in which all ranks must have left after one was killed


@dataclass
class Record:
    """What was done, and what it hit."""

    kills: int = 0
    killed: int = 0
    stops: int = 0
    starts: int = 0
    runs: int = 0
    where: Counter[str] = field(default_factory=Counter)
    worlds: Counter[int] = field(default_factory=Counter)


def options(root: Path, name: str) -> Config:
    """A run of every stage whose undisturbed time is several mean times between kills."""
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
    """Fork the ranks of one ``dist-train run``; their process ids."""
    path = config.runs / f"{config.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(to_dict(config)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
                names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
                os.environ |= {name: str(value) for name, value in names.items()}
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                torch.set_num_threads(1)
                code = dist_train(["run", "--config", str(path)])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return children


def wait(children: list[int], seconds: float, log: Path) -> list[int]:
    """Exit codes of all; those that are still there are killed and count as a failure."""
    end, codes = time.monotonic() + seconds, {}
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


def moment(config: Config) -> str:
    """What a kill hits now: the stage, and whether a checkpoint was being written."""
    if list(config.run_dir.rglob(".step-*.tmp")) or list(config.run_dir.rglob(".best.tmp")):
        return "checkpoint being written"
    done = [stage for stage in STAGES if (config.run_dir / stage).is_dir()]
    return done[-1] if done else "start"


def soak(config: Config, worlds: list[int], rng: random.Random, record: Record, kills: int, log: Path) -> None:
    """One run, killed and started again until it is through (or there were enough kills, then left alone)."""
    while True:
        world = rng.choice(worlds)
        record.starts += 1
        record.worlds[world] += 1
        children = start(config, world, log)
        end = time.monotonic() + rng.uniform(0.2, 5.0)
        while time.monotonic() < end and not (config.run_dir / "evaluate" / "done.json").exists():
            time.sleep(0.005)
        gentle, victims = False, []
        if record.kills < kills and not (config.run_dir / "evaluate" / "done.json").exists():
            victims = rng.sample(children, rng.choice([1, len(children)]))
            gentle = rng.random() < 0.2
            record.where[moment(config)] += 1
            for victim in victims:
                os.kill(victim, signal.SIGUSR2 if gentle else signal.SIGKILL)
            if gentle:
                record.stops += 1
            else:
                record.kills += 1
                record.killed += len(victims)
        codes = wait(children, LIMIT, log)
        if codes == [0] * world:
            record.runs += 1
            return
        allowed = {0, FAILED, LOST, STOPPED, -signal.SIGKILL, -signal.SIGUSR2}
        if not victims or not set(codes) <= allowed:
            raise SystemExit(f"{log.read_text()[-3000:]}\nsoak: FAILED: exit codes {codes}")


def numbers(config: Config) -> dict[str, list[dict[str, Any]]]:
    """Every metrics.jsonl, without what is measured in seconds and bytes."""
    paths = sorted(config.run_dir.rglob("metrics.jsonl"))
    return {str(path.relative_to(config.run_dir)): reproducible(read_metrics(path)) for path in paths}


def differences(config: Config, reference: Config, exact: bool) -> list[str]:
    """What of a finished run is not as in the undisturbed one."""
    found = []
    mine, true = numbers(config), numbers(reference)
    for name, rows in true.items():
        steps = [[(row["step"], sorted(row)) for row in one] for one in (mine.get(name, []), rows)]
        if steps[0] != steps[1]:
            found.append(f"{name}: steps are missing or come twice")
        elif exact and mine[name] != rows:
            found.append(f"{name}: other numbers")
    folders = ["pretrain/final", "learn/phi1/final", "learn/phi2/final", "learn/phi2star/final"]
    for folder in folders if exact else ():
        one, other = (checkpoint.load(c.run_dir / folder).tensors["model"] for c in (config, reference))
        if not all(torch.equal(value, other[name]) for name, value in one.items()):
            found.append(f"{folder}: other weights")
    tables = [np.load(c.run_dir / "extract" / "base_train.f16.npy").astype(np.float32) for c in (config, reference)]
    if exact and not np.array_equal(*tables):
        found.append("extract: other activations")
    if not (np.isfinite(tables[0]).all() and (np.abs(tables[0]).sum(1) > 0).all()):
        found.append("extract: rows were never written")
    run = open_run(config)
    for path in checkpoint.step_checkpoints(config.run_dir / "pretrain" / "checkpoints"):
        state = checkpoint.load(path).state
        if state["next"] != pretrain.fingerprint(run, pretrain.base_order(run), state["step"]):
            found.append(f"{path.name}: other samples in the next batch")
    if exact:
        results = [
            json.loads((c.run_dir / "evaluate" / "results.json").read_text())["methods"] for c in (config, reference)
        ]
        if results[0] != results[1]:
            found.append("evaluate: other results")
    return found


def mark_orientations(folder: Path) -> None:
    """Give each photo one of the eight EXIF orientations, so that every batch has windows that are turned."""
    for number, path in enumerate(sorted(folder.glob("*/*.JPEG"))):
        exif = Image.Exif()
        exif[orientation.TAG] = 1 + number % 8
        Image.open(path).save(path, quality=95, exif=exif)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many times to kill one rank or all (SIGKILL)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, the victims and the numbers of ranks")
    parser.add_argument("--minutes", type=float, default=1e9, help="after these, let the last run finish and report")
    parser.add_argument("--elastic", default="1,2,4", help="numbers of ranks of the elastic run; empty: none")
    parser.add_argument("--out", type=Path, help="write the record here (Markdown)")
    given = parser.parse_args()
    torch.set_num_threads(1)  # no thread pool before a fork
    rng, record, began = random.Random(given.seed), Record(), time.monotonic()
    elastic = [int(world) for world in given.elastic.split(",") if world]
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root = Path(folder)
        drawn = DrawConfig(base_classes=6, novel_classes=3, train_per_class=20, val_per_class=6, size=40)
        # In a child, so that this process stays without threads and can fork.
        child = os.fork()
        if child == 0:
            draw(drawn, root / "train", root / "val", progress=False)
            mark_orientations(root / "train")
            save_split(split_of(drawn), root / "split.json")
            pack(
                PackConfig(train=root / "train", val=root / "val", shard_mb=0.05, workers=1),
                root / "shards",
                progress=False,
            )
            os._exit(0)
        if wait([child], LIMIT, root / "log") != [0]:
            raise SystemExit("soak: the images could not be packed")
        import nvidia.dali.fn  # noqa: F401  (loaded once, for all forks)

        log, reference = root / "log", options(root, "reference")
        if wait(start(reference, 2, log), 600, log) != [0, 0]:
            raise SystemExit(f"soak: FAILED: the undisturbed run: {log.read_text()[-2000:]}")
        print(f"the undisturbed run took {time.monotonic() - began:.0f} s with packing", flush=True)
        while record.kills < given.kills and time.monotonic() - began < 60 * given.minutes:
            exact = not elastic or record.runs % 2 == 0
            config = options(root, f"run-{record.runs}")
            soak(config, [2] if exact else elastic, rng, record, given.kills, log)
            wrong = differences(config, reference, exact)
            found += [f"{config.name} ({'exact' if exact else 'elastic'}): {line}" for line in wrong]
            state = "; ".join(wrong) or "nothing lost, nothing repeated"
            print(f"{record.kills} kills, {record.starts} starts: {config.name} {state}", flush=True)
        if found:
            (given.out or Path("soak")).with_suffix(".log").write_bytes(log.read_bytes())
    text = "\n".join(
        [
            "# Soak: killed at random, compared with the run that nobody disturbed",
            "",
            f"```\npython tools/soak.py --kills {given.kills} --seed {given.seed} --elastic {given.elastic}\n```",
            "",
            f"- {record.kills} times one or all ranks killed (SIGKILL, {record.killed} processes), "
            f"{record.stops} times told to stop (USR2), in {record.starts} starts of {record.runs} runs; "
            f"{(time.monotonic() - began) / 60:.0f} minutes; commit {git_commit()}",
            f"- hit: {', '.join(f'{where} {n}' for where, n in record.where.most_common())}",
            f"- starts on so many ranks: {', '.join(f'{world}: {n}' for world, n in sorted(record.worlds.items()))}",
            f"- result: {'; '.join(found) or 'nothing lost, nothing repeated'}",
            "",
        ]
    )
    print(text)
    if given.out and not found:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
