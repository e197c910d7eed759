"""What it takes to add classes and to classify, split into decoding, backbone and prediction; and what the same takes
by nearest neighbour over all stored activations, and by fine-tuning the last layer (the paper's timing table).

    python tools/bench_adapt.py [--backbone resnet50] [--base 900] [--per-class 1281] [--photos DIR] [--device cpu]

Weights and stored activations are random, photos are drawn (or those of --photos): time does not depend on either.
All of it in one run, one after the other, so that the ratios hold whatever else the machine does. Needs 6 GB of memory
for the activations of 900 x 1281 images by default. "times": how often longer fine-tuning, or nearest neighbour,
takes than prediction, without decoding and backbone, which all of them need, and without what each prepares once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dist_train.classifier import photos
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Class
from dist_train.classifier.network import Network, build_untrained, row_method
from dist_train.classifier.photos import Preprocess
from dist_train.config import DrawConfig, LearnConfig
from dist_train.data.account import Account
from dist_train.data.activations import Activations
from dist_train.data.drawing import picture, split_of
from dist_train.fewshot import methods
from dist_train.fewshot.method import Base, Method
from dist_train.fewshot.methods import NUMBERS
from dist_train.models.backbone import Backbone

ADDED = (1, 10, 100)
BATCH = 32  # the paper's, for its time an image


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--base", type=int, default=900, help="base classes")
    parser.add_argument("--per-class", type=int, default=1281, help="stored activations of a base class")
    parser.add_argument("--method", default="phi2", help="phi1, phi2, phi2cal, phi_plus, ...")
    parser.add_argument("--photos", type=Path, help="a folder of at least 100; default: drawn ones of 500 x 375 pixels")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5, help="of which the median is told")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    with TemporaryDirectory() as folder:
        files = photos.in_folder(given.photos, Account()) if given.photos else draw(Path(folder))
        if len(files) < max(ADDED):
            parser.error(f"--photos {given.photos}: holds {len(files)}; give at least {max(ADDED)}")
        train = bank(given.base, given.per_class, Backbone(given.backbone, 1).dim)
        model = random_model(given.backbone, given.method, train, given.resize, given.size, device)
        clock = Clock(device, given.repeats)
        opened, _ = clock(model.head, once=True)
        threads = torch.get_num_threads()
        print(f"{given.backbone}, {given.method}, {given.base} base classes, {threads} thread(s), {device}")
        print(f"once, where the model is opened: {opened:.0f} ms")
        columns = ["decode", "backbone", "prediction", "all"]
        prepared, child = clock(lambda: methods.make("child", base(model, train)), once=True)
        print(f"once, before any fine-tuning: {prepared:.0f} ms\n")
        added = [adding(clock, model, child, files[:count]) for count in ADDED]
        print(table("adding classes of one photo (ms)", [*columns, "by fine-tuning", "times"], added))
        classified = [classifying(clock, model, train, files[:BATCH])]
        print(table(f"one photo of {BATCH} (ms)", [*columns, "by nearest neighbour", "times"], classified))


class Clock:
    """Milliseconds of an action: the median of some, after one that does not count."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, action: Callable[[], Any], once: bool = False) -> tuple[float, Any]:
        found, times = None, []
        for _ in range(1 if once else 1 + self.repeats):
            began = time.perf_counter()
            found = action()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return 1000 * float(np.median(times[-self.repeats :])), found


def adding(clock: Clock, model: Classifier, child: Method, files: list[Path]) -> list[Any]:
    decode, pixels = clock(lambda: [photos.load(path) for path in files])
    backbone, activations = clock(lambda: embedded(model, pixels))

    def predict() -> None:
        changed = model.copy()
        for number, activation in enumerate(activations):
            changed.add_activations(f"class {number}", activation[None])
        changed.head()

    prediction, _ = clock(predict)
    tuned, _ = clock(lambda: child.take(activations[:, None]))
    whole = decode + backbone + prediction
    label = f"{len(files)} class{'es' * (len(files) > 1)}"
    return [label, decode, backbone, prediction, whole, decode + backbone + tuned, f"{tuned / prediction:.0f}"]


def classifying(clock: Clock, model: Classifier, train: Activations, files: list[Path]) -> list[Any]:
    decode, pixels = clock(lambda: [photos.load(path) for path in files])
    backbone, activations = clock(lambda: embedded(model, pixels))
    prediction, _ = clock(lambda: model.answers(activations))
    near = methods.make("nn", base(model, train))
    neighbour, _ = clock(lambda: near.base_scores(activations), once=True)
    each = [value / len(files) for value in (decode, backbone, prediction, decode + backbone + prediction)]
    return ["1 photo", *each, (decode + backbone + neighbour) / len(files), f"{neighbour / prediction:.0f}"]


def embedded(model: Classifier, pixels: list[torch.Tensor]) -> torch.Tensor:
    batch = model.network.preprocess.batch
    return torch.cat([model.embed(batch(pixels[n : n + BATCH])) for n in range(0, len(pixels), BATCH)])


def table(title: str, columns: list[str], rows: list[list[Any]]) -> str:
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, *values in rows:
        lines.append(f"| {name} | {' | '.join(v if isinstance(v, str) else f'{v:.2f}' for v in values)} |")
    return "\n".join(lines) + "\n"


def draw(folder: Path) -> list[Path]:
    options = DrawConfig(size=500)
    names = split_of(options).base
    for number in range(max(ADDED)):
        image, _ = picture(options, "train", names[number % len(names)], number)
        image.resize((500, 375)).save(folder / f"{number:03d}.jpg", quality=90)
    return photos.in_folder(folder, Account())


def bank(classes: int, per_class: int, dim: int) -> Activations:
    """Random activations, float16: one class's, over and over in other places."""
    one = np.random.RandomState(0).random((per_class, dim)).astype(np.float16)
    rows = np.empty((classes * per_class, dim), np.float16)
    for number in range(classes):
        rows[number * per_class : (number + 1) * per_class] = np.roll(one, number, axis=1)
    return Activations(rows, np.arange(len(rows)), np.arange(classes + 1) * per_class)


def random_model(backbone: str, method: str, train: Activations, resize: int, size: int, device: torch.device
                 ) -> Classifier:  # fmt: skip
    """A model without a run: random weights, and these activations for what a method keeps of the base classes."""
    torch.manual_seed(0)
    classes = len(train.offsets) - 1
    architecture = {"name": backbone, "num_classes": classes, "small_stem": False}
    means, learn = torch.from_numpy(train.means()), LearnConfig()
    network, phi = build_untrained(architecture, method, means, learn)
    with torch.no_grad():
        rows = phi.base_rows(means)
    sample, preprocess = row_method(method).sample(train, device), Preprocess(resize, size)
    parts = Network(network, method, phi, learn, rows, sample, NUMBERS["calibration_cost"], preprocess).on(device)
    return Classifier(parts, [Class(f"class {n} of the base", f"n{n:08d}") for n in range(classes)], range(classes))


def base(model: Classifier, train: Activations) -> Base:
    """What the methods of the comparison use of the base classes."""
    head, rows = model.network.backbone.head, model.network.base_rows
    return Base(train, rows, head.weight, head.bias, Path(), LearnConfig(), "max", NUMBERS)


if __name__ == "__main__":
    main()
