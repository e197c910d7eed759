"""Compare the accuracy of a short training in every precision, under DDP and DeepSpeed, and in ``learn``.

    python tools/compare_precision.py --seeds 5

Draws images, trains a small ResNet on them from the same seeds in each way, and prints the base accuracy, its mean and
95% interval over seeds, and the paired difference from DDP in fp32. A CPU without fp16 instructions emulates fp16,
slowly.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import stats

from dist_train.config import (
    Config,
    DataConfig,
    DrawConfig,
    EvaluateConfig,
    ExtractConfig,
    LearnConfig,
    PackConfig,
    PretrainConfig,
)
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.runs.run import open_run
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.prepare import prepare
from dist_train.stages.pretrain import pretrain
from dist_train.training import metrics, precision

KINDS = ("fp32", "bf16", "fp16")


def base_config(folder: Path, epochs: float) -> Config:
    """Return the configuration of a training of about a minute on freshly drawn images."""
    drawn = DrawConfig(base_classes=20, novel_classes=2, train_per_class=60, val_per_class=30, size=48)
    data = DataConfig(
        shards=str(folder / "shards"), split=str(folder / "split.json"), train_size=40, eval_resize=40, eval_size=40,
        scale=(0.3, 1.0),
    )  # fmt: skip
    options = PretrainConfig(
        model="resnet10", epochs=epochs, global_batch=60, lr=0.08, warmup_epochs=min(1, epochs / 4)
    )
    config = Config(
        runs=folder / "runs", data=data, pack=PackConfig(train=folder / "train", val=folder / "val", draw=drawn),
        pretrain=options, extract=ExtractConfig(precision="fp32"),
        learn=LearnConfig(methods=["phi2"], steps=400, lr=0.03, log_every=400, checkpoint_every=400),
        evaluate=EvaluateConfig(methods=["phi2"], shots=[1]),
    )  # fmt: skip
    prepare(config, Context())
    return config


def accuracy(config: Config) -> float:
    """Train a backbone, and return the base top-1 (%) of its final weights."""
    context = Context()
    pretrain(open_run(config), context, StopFlag(context))
    rows = metrics.read_metrics(config.run_dir / "pretrain" / "metrics.jsonl")
    return [float(row["eval/top1(%)"]) for row in rows if "eval/top1(%)" in row][-1]


def learned(config: Config, kind: str) -> float:
    """Train phi2 in a precision, and return the base top-1 (%) of the rows that it predicts from the class means."""
    context = Context()
    config = replace(config, learn=replace(config.learn, precision=kind))  # type: ignore[arg-type]
    run = open_run(config)
    extract(run, context, StopFlag(context))
    learn(run, context, StopFlag(context), redo=True)
    rows = metrics.read_metrics(config.run_dir / "learn" / "phi2" / "metrics.jsonl")
    return float(rows[-1]["eval/base_top1(%)"])


def line(name: str, values: list[float], against: list[float]) -> str:
    """Return a row of the table."""
    scores, pairs = np.array(values), np.array(values) - np.array(against)
    factor = stats.t.ppf(0.975, len(scores) - 1) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    half, away = (factor * spread.std(ddof=1) if len(scores) > 1 else math.nan for spread in (scores, pairs))
    return f"| {name} | {scores.mean():.2f} ± {half:.2f} | {pairs.mean():+.2f} ± {away:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind, 2 at least for an interval")
    parser.add_argument("--epochs", type=float, default=8, help="of each training")
    parser.add_argument("--strategies", default="ddp,zero1", help="pretrain.strategy of each row")
    parser.add_argument(
        "--precisions", default=",".join(KINDS), help="of fp32, bf16 and fp16; the others are compared with the first"
    )
    args = parser.parse_args()
    if args.seeds < 2 or args.epochs <= 0 or not set(args.precisions.split(",")) <= set(KINDS):
        parser.error("--seeds is 2 at least, --epochs above 0, --precisions some of fp32, bf16, fp16")
    precision.cpu_has = lambda _: True  # emulated where the CPU has no such instructions
    kinds, strategies = args.precisions.split(","), args.strategies.split(",")
    accuracies: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = base_config(Path(folder), args.epochs)
        for seed in range(args.seeds):
            for strategy in strategies:
                for kind in kinds:
                    name = f"{strategy}, {kind}"
                    options = replace(base.pretrain, strategy=strategy, precision=kind)
                    config = replace(base, name=f"{strategy}-{kind}-{seed}", seed=seed, pretrain=options)
                    accuracies.setdefault(name, []).append(accuracy(config))
                    print(f"seed {seed}: {name}: {accuracies[name][-1]:.2f} %", flush=True)
            config = replace(base, name=f"{strategies[0]}-{kinds[0]}-{seed}", seed=seed)
            config = replace(config, pretrain=replace(base.pretrain, strategy=strategies[0], precision=kinds[0]))
            for kind in kinds:
                accuracies.setdefault(f"learn, {kind}", []).append(learned(config, kind))
    print(f"\n| training | base top-1, % over {args.seeds} seeds | from the first |\n|---|---:|---:|")
    first = {"learn": f"learn, {kinds[0]}"}
    for name, values in accuracies.items():
        print(line(name, values, accuracies[first.get(name.split(",")[0], next(iter(accuracies)))]))


if __name__ == "__main__":
    main()
