#!/usr/bin/env python3
"""From pictures to a classifier that learns new classes from one photo each, in Python, on a CPU.

    python examples/learn_a_class.py            # into ./example
    python examples/learn_a_class.py FOLDER --epochs 2 --base-classes 8

The script needs no data: it draws pictures whose classes are a shape, a texture and a palette. It trains a small
network on the base classes, then adds the novel classes from one picture each, without any training, and asks for the
classes of pictures that neither the training nor the model has seen.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dist_train import Classifier
from dist_train.classifier import export
from dist_train.classifier.from_run import from_run
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
from dist_train.config.io import freeze
from dist_train.data.drawing import split_of
from launch.rank import start

SIDE = 48
"""Pixels of each side of the network's input."""


def configure(folder: Path, epochs: float, base_classes: int, learn_steps: int) -> Config:
    """Return the configuration of a run in ``folder``: what is drawn, packed, trained and evaluated.

    The same keys stand in configs/*.yaml; whatever is left out here has its default.
    """
    drawing = DrawConfig(base_classes=base_classes, novel_classes=4, train_per_class=30, val_per_class=10, size=SIDE)
    return Config(
        name="run",
        runs=folder,
        pack=PackConfig(draw=drawing, train=folder / "pictures/train", val=folder / "pictures/val", shard_mb=4),
        data=DataConfig(
            shards=str(folder / "shards"), split=str(folder / "split.json"), train_size=SIDE, eval_resize=SIDE,
            eval_size=SIDE, scale=(0.6, 1.0),
        ),
        pretrain=PretrainConfig(
            model="resnet10", epochs=epochs, warmup_epochs=epochs / 8, global_batch=32, lr=0.05,
            precision="fp32",
        ),
        extract=ExtractConfig(precision="fp32"),
        learn=LearnConfig(methods=["phi2"], steps=learn_steps, lr=0.03, precision="fp32"),
        evaluate=EvaluateConfig(methods=["nn", "mean", "phi2"], draws=20),
    )  # fmt: skip


def teach(model: Classifier, pictures: Path, names: list[str]) -> float:
    """Add a class for each name from its first training picture; return the accuracy on its validation pictures.

    Every picture is classified among all classes, those of the run included.
    """
    for name in names:
        model.add_class(name, min((pictures / "train" / name).iterdir()))
    correct = total = 0
    for name in names:
        answers = model.predict(sorted((pictures / "val" / name).iterdir()), topk=1)
        correct += sum(best.name == name for (best,) in answers)
        total += len(answers)
    return correct / total


def main() -> None:
    """Draw, pack, train and evaluate; then add classes, ask, save and export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("example"), help="where everything is written")
    parser.add_argument("--epochs", type=float, default=8, help="epochs of the training on the base classes")
    parser.add_argument("--base-classes", type=int, default=20, help="how many base classes are drawn")
    parser.add_argument("--learn-steps", type=int, default=500, help="steps of the training of the predictor")
    args = parser.parse_args()

    # 1. Pictures -> shards -> backbone -> activations -> predictor -> table. Run again, it skips what is done.
    config = configure(args.folder, args.epochs, args.base_classes, args.learn_steps)
    code = start(freeze(config), "run")  # as a rank of a cluster starts; it prints errors itself
    if code:
        sys.exit(code)

    # 2. A model of the run's base classes, and new classes from one picture each.
    model = from_run(config)
    assert config.pack and config.pack.draw
    novel = list(split_of(config.pack.draw).novel)
    share = teach(model, args.folder / "pictures", novel)
    print(f"{len(novel)} classes added from one picture each: {share:.0%} of their other pictures are recognised, "
          f"among {len(model.classes)} classes")  # fmt: skip

    # 3. Answers for a single picture.
    picture = min((args.folder / "pictures/val" / novel[0]).iterdir())
    print(picture.name)
    for best in model.predict(picture, topk=3)[0]:
        print(f"  {best.probability:6.1%}  {best.name}")

    # 4. The model on disk, and for other programs.
    model.save(args.folder / "model")
    same = Classifier.load(args.folder / "model", "cpu")
    assert same.classes == model.classes
    print(export.write_safetensors(same, args.folder / "model.safetensors"))


if __name__ == "__main__":
    main()
